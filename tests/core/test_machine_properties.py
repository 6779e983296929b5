"""What holds for every linear saga and every course of events, however absurd.

A *walk* leads a random saga through a random course: results, duplicates of anything that was ever sent,
results that nobody asked for, and wishes to compensate at any time. Beside it walks a slow model that is
obviously right.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import event as label
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from saga_core import (
    Command,
    Compensate,
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    Execute,
    Failure,
    Saga,
    StepFailed,
    StepState,
    StepSucceeded,
    Transition,
    awaits,
    consequences,
    decode_event,
    decode_saga,
    encode_event,
    encode_payload,
    encode_saga,
    fold,
    outstanding,
    transition,
)

from .model import LinearSaga
from .notation import BORN, event_of, saga_of

# What can happen next. The numbers are reduced to what there is: to the steps of the saga, the events so far.
number = st.integers(0, 200)
happening = st.one_of(
    st.tuples(st.just("results"), st.integers(1, 40)),  # so many commands succeed
    st.tuples(st.just("result"), st.booleans()),  # one command succeeds, or fails
    st.just(("result", False)),
    st.tuples(st.just("again"), number),  # an event of the past comes once more
    st.tuples(
        st.just("stray"), number, st.integers(0, 3), st.sampled_from(["ok", "fails"]), st.booleans()
    ),  # a result that perhaps nobody asked for
    st.just(("compensate",)),
)
# Hypothesis draws short lists by itself; short and long ones are wanted.
courses = st.lists(happening, max_size=8) | st.lists(happening, min_size=15, max_size=40)
definitions = (
    st.integers(1, 40)
    .flatmap(lambda length: st.lists(st.sampled_from(["", "", "-"]), min_size=length, max_size=length))
    .map(lambda marks: " ".join(f"s{place}{mark}" for place, mark in enumerate(marks)))
)
Course = list[tuple[object, ...]]

property_test = settings(deadline=None)

FAILURES = [
    Failure("code", "no details"),
    Failure("code", "empty details", retryable=True, details=Raw(b"{}")),
    Failure("", "details", details=Raw(b'{"seen": [null, {"deep": "\\u00e9"}]}')),
]


def result_of(command: Command, outcome: str, at: float) -> Event:
    """Make a result; what it carries differs from step to step, and is sometimes nothing."""
    undo = "" if isinstance(command, Execute) else "undo "
    event = event_of(f"{undo}{command.step}#{command.attempt} {outcome}", at)
    kind = sum(command.step.encode()) % 4
    match event:
        case StepSucceeded() if kind < 3:
            return replace(event, output=[encode_payload(None, ""), Raw(b"{}"), Raw(b'{ "n" : 1.50 }')][kind])
        case StepFailed() | CompensationFailed() if kind < 3:
            return replace(event, error=FAILURES[kind])
        case _:
            return event


@dataclass
class Walk:
    """A saga on its way, and all that was ever seen of it."""

    definition: str
    saga: Saga = field(init=False)
    origin: Saga = field(init=False)
    offered: list[Event] = field(default_factory=list)
    history: list[Event] = field(default_factory=list)
    issued: list[Command] = field(default_factory=list)
    answered: set[Command] = field(default_factory=set)
    caused: dict[Command, tuple[Command, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.saga = self.origin = saga_of(self.definition)
        self.issued.extend(outstanding(self.saga))

    @property
    def now(self) -> float:
        return BORN + 0.1 * (len(self.offered) + 1)

    def take(self, event: Event) -> Transition:
        before = self.saga
        answer = transition(before, event)
        self.offered.append(event)
        if answer.ignored is None:
            self.history.append(event)
            self.issued.extend(answer.commands)
            if not isinstance(event, CompensationRequested):
                kind = Execute if type(event).__name__.startswith("Step") else Compensate
                (command,) = [c for c in outstanding(before) if type(c) is kind and c.step == event.step]
                self.answered.add(command)
                self.caused[command] = answer.commands
        self.saga = answer.saga
        return answer

    def events(self, course: Course) -> Iterator[Event]:
        """Make the course's events one by one, each for the saga as it then is."""
        for happened in course:
            match happened:
                case "results", int(many):
                    for _ in range(many):
                        if self.saga.at_rest:
                            break
                        yield result_of(outstanding(self.saga)[0], "ok", self.now)
                case "result", bool(well):
                    for command in outstanding(self.saga):
                        yield result_of(command, "ok" if well else "fails", self.now)
                case "again", int(which):
                    if self.offered:
                        yield self.offered[which % len(self.offered)]
                case "stray", int(which), int(attempt), str(outcome), bool(undo):
                    steps = self.origin.plan.steps
                    operation = "undo " if undo else ""
                    name = steps[which % len(steps)].name
                    yield event_of(f"{operation}{name}#{attempt} {outcome}", self.now)
                case _:
                    yield event_of("compensate", self.now)

    def go(self, course: Course) -> "Walk":
        for event in self.events(course):
            self.take(event)
        return self


walks = st.builds(lambda definition, course: Walk(definition).go(course), definitions, courses)


def seen(saga: Saga) -> dict[str, object]:
    """Return all that a user can see of a saga and that its events decide."""
    return {
        "state": saga.state,
        "revision": saga.revision,
        "updated_at": saga.updated_at,
        "completed_at": saga.completed_at,
        "steps": [
            {
                "name": step.name,
                "compensable": step.compensation is not None,
                "state": step.state,
                "attempt": step.attempt,
                "compensation_attempt": step.compensation_attempt,
                "output": step.output,
                "error": step.error,
                "executed_at": step.executed_at,
            }
            for step in saga.steps
        ],
    }


@property_test
@given(definitions, courses)
def test_every_saga_does_what_the_model_does(definition: str, course: Course) -> None:
    walk = Walk(definition)
    model = LinearSaga([(word.rstrip("-"), not word.endswith("-")) for word in definition.split()], BORN)
    assert seen(walk.saga) == vars(model)
    for event in walk.events(course):
        before = walk.saga
        running_before = set(outstanding(before))
        answer = walk.take(event)

        assert model.tell(event) == (answer.ignored is None)
        assert seen(answer.saga) == vars(model)
        running = [
            ("execute" if isinstance(command, Execute) else "compensate", command.step, command.attempt)
            for command in outstanding(answer.saga)
        ]
        assert running == model.in_flight()
        assert len(running) <= 1
        assert answer.saga.at_rest == (not running)
        # What an event causes is what was not in flight before it: nothing is asked twice, nothing is lost.
        assert set(answer.commands) == set(outstanding(answer.saga)) - running_before
        if answer.ignored is not None:
            assert answer.saga is before
            assert answer.commands == ()
    label(walk.saga.state)


@property_test
@given(walks)
def test_what_is_outstanding_was_issued_and_not_answered(walk: Walk) -> None:
    assert set(outstanding(walk.saga)) == set(walk.issued) - walk.answered
    assert len(walk.issued) == len(set(walk.issued)), "the same command was issued twice"


@property_test
@given(walks)
def test_a_command_is_awaited_exactly_while_it_is_outstanding(walk: Walk) -> None:
    for command in walk.issued:
        assert awaits(walk.saga, command) == (command in outstanding(walk.saga))


@property_test
@given(walks)
def test_steps_run_in_order_and_are_undone_in_reverse_order(walk: Walk) -> None:
    places = walk.origin.plan.positions
    run = [places[event.step] for event in walk.history if isinstance(event, StepSucceeded)]
    assert run == list(range(len(run)))
    undone = [places[event.step] for event in walk.history if isinstance(event, CompensationSucceeded)]
    assert undone == sorted(undone, reverse=True)
    for step in walk.saga.steps[: max(undone, default=0)]:
        assert step.state is not StepState.STARTED
    for step in walk.saga.steps[min(undone, default=len(places)) :]:
        assert step.compensation is None or step.state is not StepState.COMPLETED


@property_test
@given(walks)
def test_no_result_that_was_applied_is_applied_again(walk: Walk) -> None:
    for event in walk.history:
        if isinstance(event, CompensationRequested):
            continue
        for outcome in ("ok", "fails"):
            kind = Execute if type(event).__name__.startswith("Step") else Compensate
            answer = transition(walk.saga, result_of(kind("", event.step, "", event.attempt), outcome, BORN))
            assert answer.saga is walk.saga
            assert answer.commands == ()
            assert answer.ignored is not None


@property_test
@given(walks)
def test_a_compensated_saga_has_undone_each_step_that_was_done_exactly_once(walk: Walk) -> None:
    walk.go([("compensate",), ("results", 100)])
    assert walk.saga.is_compensated
    done = {event.step for event in walk.history if isinstance(event, StepSucceeded)}
    undone = [event.step for event in walk.history if isinstance(event, CompensationSucceeded)]
    assert len(undone) == len(set(undone))
    assert set(undone) == {step.name for step in walk.saga.steps if step.name in done and step.compensation}
    assert set(undone) == {step.name for step in walk.saga.steps if step.state is StepState.COMPENSATED}


@property_test
@given(walks)
def test_folding_the_history_gives_the_saga_bit_for_bit(walk: Walk) -> None:
    folded = fold(walk.origin, walk.history)
    assert folded == walk.saga
    assert encode_saga(folded) == encode_saga(walk.saga)
    # What was ignored may as well be in the history.
    assert fold(walk.origin, walk.offered) == walk.saga


@property_test
@given(walks)
def test_folding_what_a_store_kept_gives_the_saga_bit_for_bit(walk: Walk) -> None:
    origin = decode_saga(encode_saga(walk.origin))
    history = [decode_event(encode_event(event)) for event in walk.history]
    assert history == walk.history
    assert encode_saga(fold(origin, history)) == encode_saga(walk.saga)


@property_test
@given(walks)
def test_a_saga_comes_back_from_storage_bit_for_bit(walk: Walk) -> None:
    stored = encode_saga(walk.saga)
    back = decode_saga(stored)
    assert back == walk.saga
    assert encode_saga(back) == stored
    assert outstanding(back) == outstanding(walk.saga)
    assert back.steps == walk.saga.steps
    assert back.context == walk.saga.context


@property_test
@given(walks)
def test_a_message_of_the_past_leads_to_what_it_caused_and_is_still_outstanding(walk: Walk) -> None:
    still = outstanding(walk.saga)
    for command in walk.issued:
        caused = walk.caused.get(command, ())
        assert consequences(walk.origin, walk.history, command) == tuple(c for c in caused if c in still)


@property_test
@given(definitions, courses)
def test_no_event_changes_a_saga_that_somebody_holds(definition: str, course: Course) -> None:
    walk = Walk(definition)
    held = [(walk.saga, encode_saga(walk.saga))]
    for event in walk.events(course):
        walk.take(event)
        held.append((walk.saga, encode_saga(walk.saga)))
    for saga, as_it_was in held:
        assert encode_saga(saga) == as_it_was


@property_test
@given(walks, st.data())
def test_the_same_event_gets_the_same_answer(walk: Walk, data: st.DataObject) -> None:
    if walk.offered:
        event = data.draw(st.sampled_from(walk.offered))
        assert transition(walk.saga, event) == transition(decode_saga(encode_saga(walk.saga)), event)


@property_test
@given(walks, st.lists(st.sampled_from(["ok", "ok", "ok", "fails"]), max_size=100))
def test_whoever_crashes_wherever_what_is_outstanding_leads_to_rest(walk: Walk, outcomes: list[str]) -> None:
    """All messages are lost at every turn, all memory too; the stored state alone goes on."""
    outcome = iter(outcomes)
    turns = 0
    while True:
        walk.saga = decode_saga(encode_saga(walk.saga))
        commands = outstanding(walk.saga)
        if walk.saga.at_rest:
            assert commands == ()
            break
        (command,) = commands
        answer = walk.take(result_of(command, next(outcome, "ok"), walk.now))
        assert answer.ignored is None
        turns += 1
    assert turns <= 2 * len(walk.origin.plan.steps)
    assert walk.saga.state in ("completed", "compensated", "failed")


@property_test
@given(walks)
def test_whatever_happened_a_person_can_still_have_it_undone(walk: Walk) -> None:
    """In every state, asking often enough and compensations that work lead to `compensated`."""
    walk.go([("compensate",), ("results", 100)])
    assert walk.saga.is_compensated


@property_test
@given(definitions, courses)
def test_whoever_dies_before_publishing_the_redelivered_message_carries_on(
    definition: str, course: Course
) -> None:
    """The commands of a commit are lost; the message that it answered comes again and brings them back."""
    walk = Walk(definition)
    for event in walk.events(course):
        answer = walk.take(event)
        if answer.ignored is None and not isinstance(event, CompensationRequested):
            (*_, redelivered) = walk.caused
            again = consequences(walk.origin, walk.history, redelivered)
            assert again == answer.commands == outstanding(walk.saga)


def test_the_model_knows_all_that_a_user_can_see() -> None:
    """A field that is added to a saga has to be added to the model."""
    kept = {field.name for field in msgspec.structs.fields(Saga)}
    assert set(seen(saga_of("a"))) == kept - {"plan", "progress"} | {"steps"}


@pytest.mark.parametrize("length", [1, 40])
def test_walks_reach_every_state(length: int) -> None:
    """The walks above would prove little if they ended early."""
    definition = " ".join(f"s{n}" for n in range(length))
    completed = Walk(definition).go([("results", length)])
    assert completed.saga.is_completed
    failed = completed.go([("compensate",), ("results", length - 1), ("result", False)])
    assert failed.saga.is_failed
    assert failed.go([("compensate",), ("result", True)]).saga.is_compensated
