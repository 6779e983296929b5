"""What people may ask of a saga, and what comes of it: the rules of the machine for manual operations.

Each rule works on a draft, and returns why the event is ignored, or None.
"""

from msgspec.structs import replace

from saga_core.draft import (
    COMPENSATING,
    COMPLETED,
    PENDING,
    SAGA_COMPENSATING,
    SAGA_COMPLETED,
    SAGA_FAILED,
    SAGA_STARTED,
    STARTED,
    Draft,
    past_pivot,
    plain,
    positions,
    put,
)
from saga_core.events import (
    CancelRequested,
    CompensationRequested,
    ResumeRequested,
    RetryRequested,
    SkipRequested,
    StepResolved,
    SuspendRequested,
)
from saga_core.model import Progress
from saga_core.moves import (
    begin_ready,
    end_well,
    fire,
    forward_again,
    give_up,
    send,
    skip,
    too_early,
    turn_round,
    undone,
)
from saga_core.plan import Failure


def compensation_requested(draft: Draft, event: CompensationRequested | CancelRequested) -> str | None:
    """Undo a saga, or try the undoing once more that had failed.

    Orders of a parent are numbered: one that is delivered again must not start a child again that has failed since.
    """
    asked = event.attempt if isinstance(event, CompensationRequested) else 0
    if past_pivot(draft):
        return "it is past its pivot, and goes forward only"
    if asked:
        if asked <= draft.asked:
            return f"its parent has asked for attempt {asked} before"
        draft.asked = asked
    elif draft.state is SAGA_COMPENSATING:
        return "it is being undone already"
    elif draft.state is SAGA_COMPLETED and draft.plan.parent is not None:
        return f"its parent counts on it; compensate saga {draft.plan.parent.saga}"
    if draft.state is SAGA_FAILED:
        draft.state = SAGA_COMPENSATING
        once_more(draft)
    else:
        turn_round(draft)
    return None


def retry_requested(draft: Draft, event: RetryRequested) -> str | None:
    """Try once more what had failed for good, or now what waits for its next attempt."""
    if draft.suspended:
        return "it is suspended; resume it first"
    waiting = [place for place in positions(draft.running | draft.undoing) if draft.record(place).waiting]
    if not (waiting or draft.stuck):
        return "nothing in it has failed for good, and nothing waits for another attempt"
    if draft.state is SAGA_FAILED:
        draft.state = SAGA_STARTED if past_pivot(draft) else SAGA_COMPENSATING
    for position in waiting:
        send(draft, position, draft.record(position))
    once_more(draft)
    return None


def step_resolved(draft: Draft, event: StepResolved) -> str | None:
    """Take a person's word for how a step ended."""
    position = draft.plan.position(event.step)
    record = draft.record(position)
    bit = 1 << position
    stuck = bool(draft.stuck & bit)
    forward = record.state is STARTED or (stuck and past_pivot(draft))
    if event.state == "completed" and forward:
        unstick(draft, bit)
        forward_again(draft, position)
        attempt = record.attempt - 1 if record.waiting else record.attempt
        end_well(
            draft, position, Progress(COMPLETED, attempt, 0, plain(event.output), None, event.at, record.met)
        )
    elif event.state == "failed" and record.state is STARTED:
        error = Failure("resolved", event.reason)
        give_up(draft, position, replace(record, error=error, executed_at=event.at, unknown=False))
    elif event.state == "compensated" and (record.state is COMPENSATING or (stuck and not forward)):
        unstick(draft, bit)
        undone(draft, position, record)
    else:
        return f"step {event.step!r} is {record.state}, and cannot be resolved as {event.state}"
    return None


def skip_requested(draft: Draft, event: SkipRequested) -> str | None:
    """Do without a step: now if it waits for a person or another attempt, or when its turn comes."""
    position = draft.plan.position(event.step)
    record = draft.record(position)
    bit = 1 << position
    if record.state is PENDING and draft.state is SAGA_STARTED and not record.skip:
        put(draft, position, replace(record, skip=True))
    elif (record.state is STARTED and record.waiting) or (draft.stuck & bit and past_pivot(draft)):
        unstick(draft, bit)
        skip(draft, position, record)
    elif record.is_out or record.deferred:
        return f"step {event.step!r} is running; resolve it, or wait for its end"
    else:
        return f"step {event.step!r} is {record.state}, and cannot be skipped"
    return None


def suspend_requested(draft: Draft, event: SuspendRequested) -> str | None:
    """Start nothing new until somebody resumes the saga."""
    if draft.suspended:
        return "it is suspended already"
    draft.suspended = True
    return None


def resume_requested(draft: Draft, event: ResumeRequested) -> str | None:
    """Go on, with all that has become due or ready meanwhile."""
    if not draft.suspended:
        return "it is not suspended"
    draft.suspended = False
    fire(draft)
    if not too_early(draft):
        begin_ready(draft)
    return None


def unstick(draft: Draft, bit: int) -> None:
    """Take a step out of a person's hands; a saga that rested in `failed` goes on."""
    draft.stuck &= ~bit
    draft.running &= ~bit
    if draft.state is SAGA_FAILED:
        draft.state = SAGA_STARTED if past_pivot(draft) else SAGA_COMPENSATING


def once_more(draft: Draft) -> None:
    """Try everything again that had failed for good, with its attempts forgiven."""
    forward = draft.state is SAGA_STARTED
    for position in positions(draft.stuck):
        record = draft.record(position)
        if forward:
            draft.running |= 1 << position
            total = draft.plan.steps[position].total_timeout
            send(
                draft,
                position,
                replace(
                    record,
                    state=STARTED,
                    attempt=record.attempt + 1,
                    forgiven=record.attempt,
                    expires=None if total is None else draft.at + total,
                ),
            )
        else:
            # Its turn comes as that of any other step that is to be undone: one by one, if the saga says so.
            put(draft, position, replace(record, forgiven=record.compensation_attempt))
            draft.tips |= 1 << position
    draft.stuck = 0
