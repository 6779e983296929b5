"""Random sagas and random courses of events, for properties that hold for all of them.

A *walk* leads a saga through a course: results, duplicates of anything that ever came, results that nobody asked for,
time that passes, and people who meddle at any moment. A course is drawn as small numbers that are reduced to what
there is (the steps of the saga, the commands in flight), so that every course fits every saga.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from msgspec import Raw

from saga_core import Saga, Transition, decode_saga, encode_saga, new_saga, outstanding, transition
from saga_core.children import child_saga
from saga_core.commands import Command, Compensate, CompensateChild, Execute, Report, StartChild
from saga_core.conditions import when
from saga_core.events import (
    CancelRequested,
    ChildRested,
    CompensationDeferred,
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    ResumeRequested,
    RetryRequested,
    SkipRequested,
    StepDeferred,
    StepFailed,
    StepResolved,
    StepSkipped,
    StepSucceeded,
    SuspendRequested,
    TimePassed,
)
from saga_core.machine import wake_at
from saga_core.options import NO_OPTIONS
from saga_core.plan import ChildSaga, Failure, Options, Step
from saga_core.retry import RetryPolicy
from saga_core.states import SagaState

from .notation import BORN, ID

CONTEXT = {"yes": True, "no": False, "total": 7, "who": {"name": "Ann"}}

POLICIES = [
    RetryPolicy(max_attempts=2, jitter=0),
    RetryPolicy(max_attempts=3, initial_delay=0, jitter=0.5),
    RetryPolicy(max_attempts=3, initial_delay=4, max_delay=6),
    RetryPolicy(max_attempts=None, initial_delay=2, multiplier=1, retry_on=("busy", "timeout")),
    RetryPolicy(max_attempts=1),
]
CONDITIONS = [
    when("yes"),
    when("no"),
    ~when("no"),
    when("total", ">", 9),
    when("who.name", "in", ("Ann", "Bob")),
]
FAILURES = [
    Failure("broken", "for good"),
    Failure("busy", "try again", retryable=True),
    Failure("odd", "try again", retryable=True, details=Raw(b'{"seen":1}')),
]
CHILD = ChildSaga("inner", [Step(name="x", action="do_x", compensation="undo_x")])


@dataclass(frozen=True)
class Definition:
    """What a saga is made of; kept beside the saga, so that a model can be made of the same."""

    steps: tuple[Step[Any], ...]
    options: Options = NO_OPTIONS
    as_child: bool = False

    def saga(self) -> Saga:
        if not self.as_child:
            return new_saga("trip", self.steps, CONTEXT, id=ID, at=BORN, options=self.options)
        child = ChildSaga("trip", self.steps, CONTEXT, self.options)
        parent = new_saga("outer", [Step(name="p", child=child)], id=ID, at=BORN)
        return child_saga(
            parent, next(one for one in outstanding(parent) if isinstance(one, StartChild)), BORN
        )


def rarely(values: st.SearchStrategy[Any], otherwise: Any = None) -> st.SearchStrategy[Any]:
    return st.sampled_from([False, False, True]).flatmap(lambda yes: values if yes else st.just(otherwise))


@st.composite
def definitions(draw: st.DrawFn, most: int = 12) -> Definition:
    """Draw a saga of up to `most` steps with everything that a saga can have."""
    many = draw(st.integers(1, most))
    # What is early in the list may depend on what is late: the order of time is another one.
    order = draw(st.just(list(range(many))) | st.permutations(range(many)))
    linear = draw(st.booleans())
    needs: dict[int, set[int]] = {}
    for place, position in enumerate(order):
        before = order[:place]
        if linear:
            needs[position] = set(before[-1:])
        else:
            needs[position] = set(draw(st.lists(st.sampled_from(before), max_size=3))) if before else set()
    pivot = draw(st.none() | st.integers(0, many - 1))
    if pivot is not None:
        _put_beside_nothing(order, needs, pivot)
    rich = draw(st.booleans())
    steps = []
    for position in range(many):
        name = f"s{position}"
        child = CHILD if draw(st.integers(0, 9)) == 9 else None
        everything: dict[str, Any] = {}
        if rich:
            everything = {
                "when": draw(rarely(st.sampled_from(CONDITIONS))),
                "compensation_retry": draw(rarely(st.sampled_from(POLICIES))),
                "timeout": draw(rarely(st.sampled_from([1.0, 5.0, 30.0]))),
                "total_timeout": draw(rarely(st.sampled_from([1.0, 8.0, 40.0]))),
                "compensation_timeout": draw(rarely(st.sampled_from([2.0, 20.0]))),
            }
        wanted = tuple(f"s{other}" for other in sorted(needs[position]))
        steps.append(
            Step(
                name=name,
                action="" if child else f"do_{name}",
                compensation=None if child else draw(st.sampled_from([f"undo_{name}", f"undo_{name}", None])),
                depends_on=None if position and wanted == (f"s{position - 1}",) else wanted,
                retry=None if child else draw(rarely(st.sampled_from(POLICIES))),
                pivot=position == pivot,
                child=child,
                **everything,
            )
        )
    options = Options(
        start_at=draw(rarely(st.sampled_from([BORN - 5, BORN + 3, BORN + 20]))),
        timeout=draw(rarely(st.sampled_from([4.0, 30.0, 200.0]))),
        compensation_order=draw(st.sampled_from(["parallel", "parallel", "sequential"])),
    )
    return Definition(tuple(steps), options, draw(st.integers(0, 9)) == 9)


def _put_beside_nothing(order: list[int], needs: dict[int, set[int]], pivot: int) -> None:
    """Let the pivot wait for all before it, and all after it for the pivot."""
    place = order.index(pivot)
    needs[pivot] |= set(order[:place])
    for position in order[place + 1 :]:
        needs[position].add(pivot)


# What can happen next.
number = st.integers(0, 60)
happening = st.one_of(
    st.tuples(st.just("all well"), st.integers(1, 8)),
    st.tuples(st.just("well"), number),
    st.tuples(st.just("well"), number),
    st.tuples(st.just("fails"), number, st.sampled_from([1, 1, 2, 4, 4, 5, 0, 3])),
    st.tuples(st.just("fails"), number, st.sampled_from([1, 1, 2, 4, 4, 5, 0, 3])),
    st.tuples(st.just("well"), number),
    st.tuples(st.just("later"), number),
    st.tuples(st.just("nothing to do"), number),
    st.tuples(st.just("callback"), number, st.integers(0, 3)),
    st.tuples(
        st.just("time"), st.sampled_from(["wake", "wake", "wake", "before", "second", "minute", "hour"])
    ),
    st.tuples(
        st.just("time"), st.sampled_from(["wake", "wake", "wake", "before", "second", "minute", "hour"])
    ),
    st.tuples(st.just("again"), number),
    st.tuples(st.just("stray"), st.integers(0, 7), number, st.integers(0, 4)),
    st.tuples(st.just("child"), number, st.sampled_from(["completed", "compensated", "failed", "started"])),
    st.tuples(st.just("resolve"), number, st.sampled_from(["completed", "failed", "compensated"])),
    st.tuples(st.just("skip"), number),
    st.tuples(
        st.just("person"),
        st.sampled_from(["retry", "suspend", "resume", "retry", "resume", "compensate", "cancel"]),
    ),
)
# Hypothesis draws short lists by itself; short and long ones are wanted.
courses = st.lists(happening, max_size=8) | st.lists(happening, min_size=25, max_size=60)
Course = list[tuple[Any, ...]]


def well(command: Command, at: float) -> Event:
    """Make the event that says: it worked."""
    match command:
        case Execute():
            return StepSucceeded(
                command.step, command.attempt, Raw(b'{"from":"%s"}' % command.step.encode()), at
            )
        case Compensate():
            return CompensationSucceeded(command.step, command.attempt, at)
        case StartChild():
            return ChildRested(command.step, command.attempt, command.child, SagaState.COMPLETED, at)
        case CompensateChild():
            return CompensationSucceeded(command.step, command.attempt, at)
        case Report():
            raise AssertionError("a report is for the parent")


def badly(command: Command, how: int, at: float) -> Event:
    """Make the event that says: it did not work."""
    error = FAILURES[how % 3]
    if isinstance(command, Compensate | CompensateChild):
        return CompensationFailed(command.step, command.attempt, error, at)
    return StepFailed(command.step, command.attempt, error, at, unknown=how > 2)


@dataclass
class Walk:
    """A saga on its way, and all that was ever seen of it."""

    definition: Definition
    saga: Saga = field(init=False)
    origin: Saga = field(init=False)
    now: float = BORN
    offered: list[Event] = field(default_factory=list)
    history: list[Event] = field(default_factory=list)
    issued: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.saga = self.origin = self.definition.saga()
        self.issued.extend(outstanding(self.saga))

    def take(self, event: Event) -> Transition:
        answer = transition(self.saga, event)
        self.offered.append(event)
        if answer.ignored is None:
            self.history.append(event)
            self.issued.extend(answer.commands)
        self.saga = answer.saga
        return answer

    def flight(self) -> list[Command]:
        return [command for command in outstanding(self.saga) if not isinstance(command, Report)]

    def events(self, course: Course) -> Iterator[Event]:
        """Make the course's events one by one, each for the saga as it then is."""
        for happened in course:
            self.now += 0.25
            yield from self._events_of(happened)

    def _events_of(self, happened: tuple[Any, ...]) -> Iterator[Event]:
        steps = self.definition.steps
        match happened:
            case "all well", many:
                for _ in range(many):
                    if flight := self.flight():
                        yield well(flight[0], self.now)
            case "well", which:
                yield from (well(command, self.now) for command in chosen(self.flight(), which))
            case "fails", which, how:
                yield from (badly(command, how, self.now) for command in chosen(self.flight(), which))
            case "later", which:
                for command in chosen(self.flight(), which):
                    kind = CompensationDeferred if isinstance(command, Compensate) else StepDeferred
                    yield kind(command.step, command.attempt, self.now)
            case "nothing to do", which:
                for command in chosen(self.flight(), which):
                    yield StepSkipped(command.step, command.attempt, "nothing to do", self.now)
            case "callback", which, how:
                deferred = [step for step in self.saga.steps if self.saga.progress_of(step.name).deferred]
                for step in chosen(deferred, which):
                    undo = step.state == "compensating"
                    make = Compensate if undo else Execute
                    attempt = step.compensation_attempt if undo else step.attempt
                    command = make(ID, step.name, "", attempt)
                    yield well(command, self.now) if how == 3 else badly(command, how, self.now)
            case "time", how:
                wake = wake_at(self.saga)
                if how in ("wake", "before") and wake is not None:
                    moment = wake if how == "wake" else wake - 0.001
                    self.now = max(self.now, moment)
                else:
                    moment = self.now = self.now + {"second": 1, "minute": 60, "hour": 3600}.get(how, 0)
                yield TimePassed(moment)
            case "again", which:
                yield from chosen(self.offered, which)
            case "stray", kind, which, attempt:
                name = steps[which % len(steps)].name
                command = (Execute, Compensate)[kind % 2](ID, name, "", attempt)
                yield well(command, self.now) if kind < 4 else badly(command, kind % 6, self.now)
            case "child", which, state:
                children = [step for step in self.saga.steps if step.child is not None]
                for step in chosen(children, which):
                    # Half of them know of the latest attempt to undo the child, half do not.
                    asked = max(step.compensation_attempt - which % 2, 0)
                    yield ChildRested(step.name, step.attempt or 1, ID, SagaState(state), self.now, asked)
            case "resolve", which, state:
                name = steps[which % len(steps)].name
                yield StepResolved(name, state, "I looked", self.now, "Ann", Raw(b'{"by":"Ann"}'))
            case "skip", which:
                yield SkipRequested(steps[which % len(steps)].name, "not needed", self.now)
            case "person", "compensate" if self.saga.plan.parent is not None and len(self.history) % 3:
                # By turns a person wishes it, or the parent orders it, for the first or the second time.
                yield CompensationRequested("its parent asked", self.now, attempt=len(self.history) % 3)
            case "person", what:
                kind = {
                    "compensate": CompensationRequested,
                    "cancel": CancelRequested,
                    "retry": RetryRequested,
                    "suspend": SuspendRequested,
                    "resume": ResumeRequested,
                }[what]
                yield kind("a person asked", self.now)

    def go(self, course: Course) -> "Walk":
        for event in self.events(course):
            self.take(event)
        return self

    def come_to_rest(self, crashing: bool = False) -> "Walk":
        """Let everything go well from here: whatever is asked works, callbacks come, time passes."""
        for _ in range(1000):
            if crashing:
                self.saga = decode_saga(encode_saga(self.saga))
            if self.saga.at_rest:
                return self
            if self.saga.suspended:
                event: Event = ResumeRequested("go on", self.now)
            elif flight := self.flight():
                event = well(flight[0], self.now)
            elif deferred := list(self._events_of(("callback", 0, 3))):
                (event,) = deferred
            else:
                wake = wake_at(self.saga)
                assert wake is not None, "it waits for nothing, and does not rest"
                self.now = max(self.now, wake)
                event = TimePassed(self.now)
            assert self.take(event).ignored is None
        raise AssertionError("it does not come to rest")


def chosen(things: Sequence[Any], which: int) -> list[Any]:
    return [things[which % len(things)]] if things else []


def walks() -> st.SearchStrategy[Walk]:
    """Walk a random saga through a random course."""
    return st.builds(lambda definition, course: Walk(definition).go(course), definitions(), courses)
