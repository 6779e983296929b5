"""The world that `explore` goes through: a saga, its child sagas, a clock, and everything that can happen next.

What can happen is read off `outstanding` and `wake_at` alone, as an engine does that has just been started: whatever
they leave out never happens, and the saga that needs it never comes to rest.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from saga_core.children import child_saga, order_to_undo
from saga_core.commands import Compensate, CompensateChild, Execute, Report, StartChild
from saga_core.draft import Transition, positions
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
from saga_core.machine import outstanding, wake_at
from saga_core.model import Progress, Saga
from saga_core.payload import EMPTY
from saga_core.plan import Failure, Plan, Step, plan_saga
from saga_core.retry import NO_RETRY, PATIENT, RetryPolicy
from saga_core.shortcut import transition
from saga_core.states import SagaState, StepState

ManualOperation = Literal["compensate", "cancel", "retry", "resolve", "skip", "suspend", "resume"]

SAGA_ID = "01J00000000000000000000000"
REASON = "test"

STARTED, COMPENSATING = StepState.STARTED, StepState.COMPENSATING

_EVEN_PATIENT = replace(PATIENT, jitter=0.0)


class World(NamedTuple):
    """Everything at one moment. `sagas` begins with the one in question; its children follow, by their ids.

    `used` is a mask of the manual operations that have been asked for. `rested` tells how children have come to rest
    so far, and so which reports may come late: the child, its state, and `asked` as of then.
    """

    now: float
    sagas: tuple[Saga, ...]
    used: int = 0
    rested: frozenset[tuple[str, SagaState, int]] = frozenset()

    def saga(self, saga_id: str) -> Saga | None:
        """Return the saga with an id, if there is one."""
        return next((saga for saga in self.sagas if saga.id == saga_id), None)


class Happening(NamedTuple):
    """Something that can happen to one saga of the world: an event, or a command about a child that is carried out.

    `operation` is the bit of a manual operation. What `may` be ignored is a message that is delivered once more.
    """

    saga: str
    at: float
    what: Event | StartChild | CompensateChild
    operation: int = 0
    may_be_ignored: bool = False


class Result(NamedTuple):
    """What a happening led to: the world after it, and what the machine was asked and answered, if it was."""

    world: World
    before: Saga | None = None
    event: Event | None = None
    answer: Transition | None = None


def without_jitter(steps: Sequence[Step[Any]]) -> list[Step[Any]]:
    """Return steps whose delays are round numbers: jitter spreads load, and here would only make states differ.

    Raises: DefinitionError, PayloadError.
    """
    behind = plan_saga("explored", steps, None, id=SAGA_ID, at=0.0).graph.behind
    return [_without_jitter(step, bool(behind >> position & 1)) for position, step in enumerate(steps)]


def happenings(world: World, failures: int, operations: Sequence[ManualOperation]) -> Iterator[Happening]:
    """Go through everything that can happen next."""
    now = world.now
    wakes = [_wake(saga, now, failures) for saga in world.sagas]
    soonest = min(wakes)
    # A timer may be late: a result comes first that comes when the timer is due already.
    moments = (now, soonest) if now < soonest < inf else (now,)
    for saga, wake in zip(world.sagas, wakes, strict=True):
        yield from _results(world, saga, failures, moments)
        if wake == soonest < inf:
            yield Happening(saga.id, wake, TimePassed(wake))
        for place, operation in enumerate(operations):
            if not world.used >> place & 1:
                for event in manual_events(saga.plan, operation, now):
                    yield Happening(saga.id, now, event, 1 << place, True)


def happen(world: World, happening: Happening) -> Result:
    """Let something happen."""
    what, at = happening.what, happening.at
    if isinstance(what, StartChild):
        parent = world.saga(what.saga)
        assert parent is not None
        return Result(_world(world, world.saga(what.child) or child_saga(parent, what, at), at, 0))
    if isinstance(what, CompensateChild):
        parent = world.saga(what.saga)
        assert parent is not None
        before, event = order_to_undo(parent, world.saga(what.child), what, at)
    else:
        found = world.saga(happening.saga)
        assert found is not None
        before, event = found, what
    answer = transition(before, event)
    return Result(_world(world, answer.saga, at, happening.operation), before, event, answer)


def stale(world: World) -> Iterator[tuple[Saga, Event]]:
    """Go through messages that may come late or twice now, and have to be ignored."""
    for saga in world.sagas:
        for position, record in enumerate(saga.records()):
            step, now = saga.plan.steps[position].name, world.now
            awaited = (STARTED, record.attempt) if record.state is STARTED and not record.waiting else None
            for attempt in range(1, record.attempt + 1):
                if record.state is STARTED and awaited == (STARTED, attempt):
                    if record.deferred:
                        yield saga, StepDeferred(step, attempt, now)
                else:
                    for event in _step_results(step, attempt, now):
                        yield saga, event
            if record.attempt == 0:
                yield saga, StepSucceeded(step, 1, EMPTY, now)
            for attempt in range(1, record.compensation_attempt + 1):
                last = attempt == record.compensation_attempt
                if record.state is COMPENSATING and last and not record.waiting:
                    if record.deferred:
                        yield saga, CompensationDeferred(step, attempt, now)
                else:
                    for event in _undo_results(step, attempt, now):
                        yield saga, event
            if record.compensation_attempt == 0:
                yield saga, CompensationSucceeded(step, 1, now)
    for child_id, state, asked in world.rested:
        child = world.saga(child_id)
        assert child is not None
        assert child.plan.parent is not None
        step, attempt = child.plan.parent.step, child.plan.parent.attempt
        parent = world.saga(child.plan.parent.saga)
        assert parent is not None
        if asked < child.asked:
            yield parent, ChildRested(step, attempt, child.id, state, world.now, asked)
    for child in world.sagas[1:]:
        for order in range(1, child.asked + 1):
            yield child, CompensationRequested(REASON, world.now, attempt=order)


def manual_events(plan: Plan, operation: ManualOperation, at: float) -> Iterator[Event]:
    """Go through the events that a manual operation can be."""
    names = [step.name for step in plan.steps]
    if operation == "resolve":
        for name in names:
            yield StepResolved(name, "completed", REASON, at)
            yield StepResolved(name, "failed", REASON, at)
            yield StepResolved(name, "compensated", REASON, at)
    elif operation == "skip":
        for name in names:
            yield SkipRequested(name, REASON, at)
    else:
        yield _OPERATIONS[operation](REASON, at)


_OPERATIONS: dict[str, Any] = {
    "compensate": CompensationRequested,
    "cancel": CancelRequested,
    "retry": RetryRequested,
    "suspend": SuspendRequested,
    "resume": ResumeRequested,
}


def _world(world: World, saga: Saga, at: float, operation: int) -> World:
    rested = world.rested
    if saga.plan.parent is not None and saga.at_rest:
        rested |= {(saga.id, saga.state, saga.asked)}
    if len(world.sagas) == 1 and world.sagas[0].id == saga.id:
        sagas: tuple[Saga, ...] = (saga,)
    else:
        by_id = {other.id: other for other in world.sagas[1:]}
        first = world.sagas[0]
        if saga.id == first.id:
            first = saga
        else:
            by_id[saga.id] = saga
        sagas = (first, *(by_id[key] for key in sorted(by_id)))
    return World(max(at, world.now), sagas, world.used | operation, rested)


def _results(world: World, saga: Saga, failures: int, moments: Sequence[float]) -> Iterator[Happening]:
    for command in outstanding(saga):
        if isinstance(command, Execute | Compensate):
            position = saga.plan.position(command.step)
            undo = isinstance(command, Compensate)
            for at in moments:
                for event in _outcomes(saga, position, undo, failures, at, deferrable=True):
                    yield Happening(saga.id, at, event)
        elif isinstance(command, StartChild):
            if world.saga(command.child) is None:
                yield from (Happening(saga.id, at, command) for at in moments)
        elif isinstance(command, CompensateChild):
            # A child that has been told is told again: the message may be delivered twice.
            yield from (Happening(saga.id, at, command, 0, True) for at in moments)
        else:
            yield from (_reported(command, at) for at in moments)
    for position in positions(saga.running | saga.undoing):
        record = saga.record(position)
        if record.deferred:
            undo = record.state is COMPENSATING
            for at in moments:
                for event in _outcomes(saga, position, undo, failures, at, deferrable=False):
                    yield Happening(saga.id, at, event)


def _reported(report: Report, at: float) -> Happening:
    # A parent that was told already, or no longer waits, ignores it.
    event = ChildRested(report.step, report.attempt, report.child, report.state, at, report.asked)
    return Happening(report.saga, at, event, 0, True)


def _outcomes(
    saga: Saga, position: int, undo: bool, failures: int, at: float, *, deferrable: bool
) -> Iterable[Event]:
    """Go through the outcomes of the attempt that is out; one more attempt may follow only so many failures."""
    step, record = saga.plan.steps[position], saga.record(position)
    policy = step.compensation_retry if undo else step.retry
    busy = "busy" if policy is None or policy.retry_on is None else next(iter(policy.retry_on), "busy")
    again = not _grows(saga, position, record, failures)
    events: list[Event]
    if undo:
        events = _undo_results(step.name, record.compensation_attempt, at, busy if again else None)
    else:
        events = _step_results(step.name, record.attempt, at, busy if again else None)
    return events if deferrable else events[1:]


def _step_results(step: str, attempt: int, at: float, busy: str | None = "busy") -> list[Event]:
    events: list[Event] = [
        StepDeferred(step, attempt, at),
        StepSucceeded(step, attempt, EMPTY, at),
        StepSkipped(step, attempt, REASON, at),
        StepFailed(step, attempt, Failure("declined", "declined"), at),
        StepFailed(step, attempt, Failure("lost", "lost"), at, unknown=True),
    ]
    if busy is not None:
        events.append(StepFailed(step, attempt, Failure(busy, busy, retryable=True), at))
        events.append(StepFailed(step, attempt, Failure(busy, busy, retryable=True), at, unknown=True))
    return events


def _undo_results(step: str, attempt: int, at: float, busy: str | None = "busy") -> list[Event]:
    events: list[Event] = [
        CompensationDeferred(step, attempt, at),
        CompensationSucceeded(step, attempt, at),
        CompensationFailed(step, attempt, Failure("declined", "declined"), at),
    ]
    if busy is not None:
        events.append(CompensationFailed(step, attempt, Failure(busy, busy, retryable=True), at))
    return events


def _wake(saga: Saga, now: float, failures: int) -> float:
    """Return when a saga's timers are due, infinity if never, or if an attempt beyond those allowed would follow."""
    wake = wake_at(saga)
    if wake is None:
        return inf
    at = max(wake, now)
    for position in positions(saga.running | saga.undoing):
        record = saga.record(position)
        due = record.until is not None and record.until <= at and not record.waiting
        over = record.state is STARTED and record.expires is not None and record.expires <= at
        if due and not over and _grows(saga, position, record, failures):
            return inf
    return at


def _grows(saga: Saga, position: int, record: Progress, failures: int) -> bool:
    """Whether a retryable failure would bring about an attempt beyond those allowed."""
    step = saga.plan.steps[position]
    if record.state is STARTED:
        used = record.attempt - record.forgiven
        behind = bool(saga.plan.graph.behind >> position & 1)
        policy = step.retry or NO_RETRY
    else:
        used = record.compensation_attempt - record.forgiven
        behind = False
        policy = step.compensation_retry or PATIENT
    return used > failures and (behind or policy.max_attempts is None or used < policy.max_attempts)


def _without_jitter(step: Step[Any], behind: bool) -> Step[Any]:
    child, retry = step.child, step.retry
    if child is not None:
        child = replace(child, steps=without_jitter(child.steps))
    elif retry is None and behind:
        retry = PATIENT
    return replace(
        step,
        child=child,
        retry=None if retry is None else _even(retry),
        compensation_retry=_even(step.compensation_retry or PATIENT),
    )


def _even(policy: RetryPolicy) -> RetryPolicy:
    return _EVEN_PATIENT if policy is PATIENT else replace(policy, jitter=0.0)
