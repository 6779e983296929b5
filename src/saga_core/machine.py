"""The state machine: every decision about a saga is made here, from data alone.

The theory of operation. A step is *out* while it is `started` or `compensating` and neither waits for its next
attempt nor for a callback; exactly then a command for it is in flight, or should be. So `outstanding` can tell from
the state alone what has to be published: the state is the outbox.

* A step begins when all that it depends on has ended well: completed, or skipped.
* An event that answers a command in flight is applied. Every other one (a duplicate, a late result of an earlier
  attempt, a result for a step that was never asked) leaves the saga as it is, and `Transition.ignored` says why.
* A failed attempt is followed by another one as the step's policy says. When there is none left, nothing new starts;
  what is out is awaited; then what has completed is undone, each step after all that depended on it, independent ones
  side by side (Garcia-Molina & Salem, *Sagas*, 1987). A step without a compensation is passed over. A step whose
  outcome nobody knows is undone too.
* A compensation is tried again by its own policy. One that fails for good leaves its step `failed`, and what it stood
  on as it is; what is independent of it is still undone; then the saga rests in `failed`, for a person.
* When the pivot has ended well, the saga goes forward only. What fails behind it is tried again without end, and what
  cannot be leaves the saga in `failed` when the rest is done.

`TABLE` says which event is answered in which state of a saga, by which rule, and what state can follow. Whatever is
not in it is ignored. The rules are made of the moves in `moves`. The door is `transition`, in `shortcut`.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from saga_core.commands import WITH_HANDLER, Command, Execute, Report, StartChild
from saga_core.draft import (
    COMPENSATING,
    COMPLETED,
    SAGA_COMPENSATED,
    SAGA_COMPENSATING,
    SAGA_COMPLETED,
    SAGA_FAILED,
    SAGA_STARTED,
    STARTED,
    Draft,
    Transition,
    close,
    command_for,
    open_draft,
    plain,
    positions,
    put,
    report,
)
from saga_core.errors import UnknownStepError
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
from saga_core.model import Progress, Saga, untouched
from saga_core.moves import (
    SAGA_TIMEOUT,
    begin_ready,
    deadline,
    end_well,
    fail_attempt,
    fail_compensation,
    fire,
    forward_again,
    give_up,
    send_due,
    settle,
    skip,
    too_early,
    turn_round,
    undone,
)
from saga_core.operations import (
    compensation_requested,
    resume_requested,
    retry_requested,
    skip_requested,
    step_resolved,
    suspend_requested,
)
from saga_core.options import NO_OPTIONS, Options
from saga_core.plan import Failure, Plan, Step, plan_saga
from saga_core.states import SagaState


def new_saga(
    name: str,
    steps: Sequence[Step[Any]],
    context: object = None,
    *,
    id: str,
    at: float,
    options: Options = NO_OPTIONS,
    secret: str = "",
) -> Saga:
    """Build a saga whose first steps are in flight; `outstanding` gives the commands for them.

    `id` is a ULID, `at` the time in seconds since 1970, UTC; `secret` makes the tokens of deferred steps
    unguessable.

    Raises: DefinitionError, PayloadError.
    """
    return begin(plan_saga(name, steps, context, id=id, at=at, options=options, secret=secret)).saga


def decide(saga: Saga, event: Event) -> Transition:
    """Answer an event as the table says. Ask `transition`, which gives the same answer and is quicker.

    Raises: UnknownStepError.
    """
    row = TABLE[type(event)]
    if saga.state not in row.leads:
        if (step := getattr(event, "step", None)) is not None:
            saga.plan.position(step)
        return Transition(saga, (), f"saga {saga.id} is {saga.state}: {row.otherwise}")
    draft = open_draft(saga, event.at)
    ignored = row.rule(draft, event)
    if ignored is not None:
        return Transition(saga, (), f"saga {saga.id}: {ignored}")
    settle(draft)
    return close(draft, saga.revision + 1)


def outstanding(saga: Saga) -> tuple[Command, ...]:
    """Recompute from the state alone every command that is in flight, or should be."""
    out = [
        command_for(saga.plan, position, record)
        for position in positions(saga.running | saga.undoing)
        if (record := saga.record(position)).is_out
    ]
    if saga.at_rest and saga.plan.parent is not None:
        out.append(report(saga.plan, saga.state, saga.asked))
    return tuple(out)


def wake_at(saga: Saga) -> float | None:
    """Return the next moment when time alone changes something, in seconds since 1970, UTC; None if there is none."""
    if saga.at_rest:
        return None
    if not (saga.ready or saga.suspended) and saga.plan.options.timeout is None and min(saga.wakes) == inf:
        return None
    moment = deadline(open_draft(saga, saga.updated_at))
    if saga.suspended:
        for position in positions(saga.running | saga.undoing):
            record = saga.record(position)
            # What waits is not sent before it is resumed, but the time of all its attempts runs on.
            until = record.expires if record.waiting else record.until
            if until is not None:
                moment = min(moment, until)
    else:
        moment = min(moment, min(saga.wakes))
        if saga.ready:
            moment = min(moment, saga.plan.options.start_at or inf)
    return None if moment == inf else moment


def awaits(saga: Saga, command: Command) -> bool:
    """Whether the command's result would still be applied.

    Raises: UnknownStepError, also where the step is not of the command's kind: with a child saga, or without.
    """
    position = saga.plan.position(command.step)
    record, has_child = saga.record(position), saga.plan.steps[position].child is not None
    if has_child is isinstance(command, WITH_HANDLER):
        kind = "without" if has_child else "with"
        raise UnknownStepError(
            f"Saga {saga.id} ({saga.name}) has no step {command.step!r} {kind} a child saga"
        )
    if isinstance(command, Report):
        undone = command.state is SAGA_COMPENSATED
        if record.attempt != command.attempt or record.waiting:
            return False
        if record.state is STARTED:
            return undone or command.state is SAGA_COMPLETED
        return record.state is COMPENSATING and (undone or command.asked == record.compensation_attempt)
    if isinstance(command, (Execute, StartChild)):
        return record.state is STARTED and record.attempt == command.attempt and record.is_out
    return record.state is COMPENSATING and record.compensation_attempt == command.attempt and record.is_out


def begin(plan: Plan) -> Transition:
    """Make the saga of a plan at its first moment, with its first steps in flight unless it starts later."""
    blank, at = untouched(len(plan.steps)), plan.created_at
    saga = Saga(plan, SAGA_STARTED, 0, blank, at, ready=plan.graph.roots, wakes=(inf,) * len(blank))
    draft = open_draft(saga, at)
    if not too_early(draft):
        begin_ready(draft)
        settle(draft)
    return close(draft, 0)


# The rules. Each works on a draft, and returns why the event is ignored, or None.


def _step_succeeded(draft: Draft, event: StepSucceeded) -> str | None:
    position = draft.plan.position(event.step)
    record = draft.record(position)
    if record.state is not STARTED or record.attempt != event.attempt or record.waiting:
        return _not_awaited(event.step, event.attempt, record)
    forward_again(draft, position)
    draft.running &= ~(1 << position)
    end_well(
        draft,
        position,
        Progress(COMPLETED, event.attempt, 0, plain(event.output), None, event.at, record.met),
    )
    return None


def _step_skipped(draft: Draft, event: StepSkipped) -> str | None:
    position = draft.plan.position(event.step)
    record = draft.record(position)
    if record.state is not STARTED or record.attempt != event.attempt or record.waiting:
        return _not_awaited(event.step, event.attempt, record)
    skip(draft, position, record)
    return None


def _step_failed(draft: Draft, event: StepFailed) -> str | None:
    position = draft.plan.position(event.step)
    record = draft.record(position)
    if record.state is not STARTED or record.attempt != event.attempt or record.waiting:
        return _not_awaited(event.step, event.attempt, record)
    fail_attempt(draft, position, event.error, unknown=event.unknown)
    send_due(draft, (position,))
    return None


def _step_deferred(draft: Draft, event: StepDeferred) -> str | None:
    position = draft.plan.position(event.step)
    record = draft.record(position)
    if record.state is not STARTED or record.attempt != event.attempt or not record.is_out:
        return _not_awaited(event.step, event.attempt, record)
    put(draft, position, replace(record, deferred=True))
    return None


def _compensation_succeeded(draft: Draft, event: CompensationSucceeded) -> str | None:
    position = draft.plan.position(event.step)
    record = draft.record(position)
    if record.state is not COMPENSATING or record.compensation_attempt != event.attempt or record.waiting:
        return _not_awaited(event.step, event.attempt, record, "compensate")
    undone(draft, position, record)
    return None


def _compensation_failed(draft: Draft, event: CompensationFailed) -> str | None:
    position = draft.plan.position(event.step)
    record = draft.record(position)
    if record.state is not COMPENSATING or record.compensation_attempt != event.attempt or record.waiting:
        return _not_awaited(event.step, event.attempt, record, "compensate")
    fail_compensation(draft, position, event.error)
    send_due(draft, (position,))
    return None


def _compensation_deferred(draft: Draft, event: CompensationDeferred) -> str | None:
    position = draft.plan.position(event.step)
    record = draft.record(position)
    if record.state is not COMPENSATING or record.compensation_attempt != event.attempt or not record.is_out:
        return _not_awaited(event.step, event.attempt, record, "compensate")
    put(draft, position, replace(record, deferred=True))
    return None


def _child_rested(draft: Draft, event: ChildRested) -> str | None:
    position = draft.plan.position(event.step)
    record = draft.record(position)
    if draft.plan.steps[position].child is None or record.attempt != event.attempt:
        return f"step {event.step!r} did not start the saga {event.child} in attempt {event.attempt}"
    if record.state is STARTED and event.state is SAGA_COMPLETED:
        forward_again(draft, position)
        draft.running &= ~(1 << position)
        end_well(draft, position, Progress(COMPLETED, event.attempt, 0, executed_at=event.at, met=record.met))
    elif record.state is STARTED and event.state is SAGA_COMPENSATED:
        error = Failure("child_compensated", f"the child saga {event.child} was undone")
        fail_attempt(draft, position, error, unknown=False)
    elif record.state is COMPENSATING and not record.waiting and event.state is SAGA_COMPENSATED:
        undone(draft, position, record)
    elif record.state is COMPENSATING and not record.waiting and event.state in (SAGA_FAILED, SAGA_COMPLETED):
        if event.asked != record.compensation_attempt:
            attempt = f"attempt {record.compensation_attempt} to undo it"
            return f"the child saga {event.child} had {event.state} before {attempt}"
        if event.state is SAGA_FAILED:
            error = Failure(
                "child_failed", f"the child saga {event.child} could not be undone; see to it first"
            )
        else:
            # Its pivot was out when it was told, and has ended well since.
            error = Failure(
                "child_past_pivot", f"the child saga {event.child} went past its pivot and completed"
            )
        fail_compensation(draft, position, error)
    else:
        return f"step {event.step!r} is {record.state}, and a child that is {event.state} changes nothing"
    return None


def _time_passed(draft: Draft, event: TimePassed) -> str | None:
    fired = False
    if event.at >= deadline(draft):
        fired = True
        error = Failure(SAGA_TIMEOUT, "the saga's time is over")
        turn_round(draft)
        for position in positions(draft.running):
            record = draft.record(position)
            give_up(draft, position, replace(record, error=error, executed_at=event.at, unknown=True))
    fired |= fire(draft)
    if draft.ready and not draft.suspended and not too_early(draft):
        fired = True
        begin_ready(draft)
    return None if fired else f"nothing is due at {event.at}"


def _not_awaited(step: str, attempt: int, record: Progress, operation: str = "execute") -> str:
    current = record.attempt if operation == "execute" else record.compensation_attempt
    return (
        f"a result of attempt {attempt} to {operation} step {step!r} is not awaited: "
        f"the step is {record.state}, its latest attempt is {current}"
    )


class Row(Struct, frozen=True):
    """One row of the table: the rule that answers an event, the states it answers in and what can follow each."""

    rule: Callable[[Draft, Any], str | None]
    leads: Mapping[SagaState, tuple[SagaState, ...]]
    otherwise: str


_ON, _BACK = SAGA_STARTED, SAGA_COMPENSATING
_OVER, _HALF, _GONE = SAGA_COMPLETED, SAGA_FAILED, SAGA_COMPENSATED
_AT_REST = "nothing is awaited any more"
_NOT_UNDOING = "nothing is being undone"

TABLE: dict[type[Event], Row] = {
    StepSucceeded: Row(
        _step_succeeded, {_ON: (_ON, _OVER, _HALF), _BACK: (_BACK, _GONE, _ON, _OVER)}, _AT_REST
    ),
    StepSkipped: Row(_step_skipped, {_ON: (_ON, _OVER, _HALF), _BACK: (_BACK, _GONE, _ON, _OVER)}, _AT_REST),
    StepFailed: Row(_step_failed, {_ON: (_ON, _BACK, _GONE, _HALF), _BACK: (_BACK, _GONE)}, _AT_REST),
    StepDeferred: Row(_step_deferred, {_ON: (_ON,), _BACK: (_BACK,)}, _AT_REST),
    CompensationSucceeded: Row(_compensation_succeeded, {_BACK: (_BACK, _GONE, _HALF)}, _NOT_UNDOING),
    CompensationFailed: Row(_compensation_failed, {_BACK: (_BACK, _HALF)}, _NOT_UNDOING),
    CompensationDeferred: Row(_compensation_deferred, {_BACK: (_BACK,)}, _NOT_UNDOING),
    ChildRested: Row(
        _child_rested,
        {_ON: (_ON, _OVER, _BACK, _GONE, _HALF), _BACK: (_BACK, _GONE, _HALF, _ON, _OVER)},
        _AT_REST,
    ),
    TimePassed: Row(
        _time_passed, {_ON: (_ON, _BACK, _GONE, _OVER, _HALF), _BACK: (_BACK, _GONE, _HALF)}, _AT_REST
    ),
    CompensationRequested: Row(
        compensation_requested,
        {_ON: (_BACK, _GONE), _OVER: (_BACK, _GONE), _BACK: (_BACK,), _HALF: (_BACK,)},
        "it is undone already",
    ),
    CancelRequested: Row(compensation_requested, {_ON: (_BACK, _GONE)}, "it cannot be cancelled any more"),
    RetryRequested: Row(
        retry_requested, {_ON: (_ON,), _BACK: (_BACK,), _HALF: (_ON, _BACK)}, "nothing failed for good"
    ),
    StepResolved: Row(
        step_resolved,
        {
            _ON: (_ON, _OVER, _BACK, _GONE, _HALF),
            _BACK: (_BACK, _GONE, _HALF, _ON, _OVER),
            _HALF: (_ON, _OVER, _BACK, _GONE, _HALF),
        },
        "there is nothing to resolve",
    ),
    SkipRequested: Row(
        skip_requested, {_ON: (_ON, _OVER, _HALF), _HALF: (_ON, _OVER, _HALF)}, "there is nothing to skip"
    ),
    SuspendRequested: Row(suspend_requested, {_ON: (_ON,), _BACK: (_BACK,)}, "nothing new starts anyhow"),
    ResumeRequested: Row(
        resume_requested,
        {_ON: (_ON, _OVER, _BACK, _GONE, _HALF), _BACK: (_BACK, _GONE, _HALF)},
        "it is not suspended",
    ),
}
"""The machine. An event type that is missing here is a bug, and raises KeyError."""
