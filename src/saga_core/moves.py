"""The moves that the machine's rules are made of: begin a step, end it well, give it up, undo it, come to rest.

Two things are worth knowing when reading them. A step's `standing` counts the steps that depend on it and have begun:
it can be undone when that is 0, and its bit is then in `tips`. So the way back is known at every moment, and nothing
has to be searched for when a saga fails. And no move recurses: a thousand skipped steps are a loop.
"""

from collections.abc import Iterable
from math import inf

from msgspec.structs import replace

from saga_core.conditions import holds
from saga_core.draft import (
    COMPENSATED,
    COMPENSATING,
    FAILED,
    SAGA_COMPENSATED,
    SAGA_COMPENSATING,
    SAGA_COMPLETED,
    SAGA_FAILED,
    SAGA_STARTED,
    SKIPPED,
    STARTED,
    Draft,
    command_for,
    due,
    past_pivot,
    positions,
    put,
)
from saga_core.model import FIRST_ATTEMPT, Progress
from saga_core.payload import decode_object
from saga_core.plan import Failure, StepPlan
from saga_core.retry import NO_RETRY, PATIENT, RetryPolicy, delay_before
from saga_core.states import Operation

TIMEOUT = "timeout"
TOTAL_TIMEOUT = "total_timeout"
SAGA_TIMEOUT = "saga_timeout"

# Forward


def end_well(draft: Draft, position: int, record: Progress) -> None:
    """Note that a step has completed or is skipped, and begin what waited for it."""
    put(draft, position, record)
    draft.tips |= 1 << position
    graph = draft.plan.graph
    dependents = graph.dependents[position]
    if draft.state is not SAGA_STARTED:
        return
    todo: list[int] = []
    _meet(draft, dependents, todo)
    while todo:
        place = todo.pop()
        if begin(draft, place):
            _meet(draft, graph.dependents[place], todo)


def _meet(draft: Draft, dependents: tuple[int, ...], todo: list[int]) -> None:
    """Tell dependents that one of the steps that they wait for has ended well; `todo` takes those that are free."""
    dependencies = draft.plan.graph.dependencies
    for place in reversed(dependents):
        wanted = len(dependencies[place])
        if wanted > 1:
            record = draft.record(place)
            met = record.met + 1
            put(draft, place, replace(record, met=met))
            if met < wanted:
                continue
        todo.append(place)


def begin(draft: Draft, position: int) -> bool:
    """Begin a step whose turn has come, or note that it could begin; True if it was skipped, and so has ended."""
    if draft.suspended:
        draft.ready |= 1 << position
        return False
    plan = draft.plan
    step = plan.steps[position]
    record = draft.record(position)
    for other in plan.graph.dependencies[position]:
        below = draft.record(other)
        put(draft, other, _stand_on(below, 1))
    bit = 1 << position
    draft.tips &= ~plan.graph.masks[position]
    draft.ready &= ~bit
    if record.skip or (step.when is not None and not holds(step.when, decode_object(plan.context))):
        put(draft, position, Progress(SKIPPED, executed_at=draft.at, met=record.met))
        draft.tips |= bit
        return True
    draft.running |= bit
    if step.timeout is None and step.total_timeout is None and record.met == 0:
        put(draft, position, FIRST_ATTEMPT)
        draft.commands.append(command_for(plan, position, FIRST_ATTEMPT))
    else:
        expires = None if step.total_timeout is None else draft.at + step.total_timeout
        send(draft, position, Progress(STARTED, 1, met=record.met, expires=expires))
    return False


def send(draft: Draft, position: int, record: Progress) -> None:
    """Send an attempt out, to act or to compensate, with its timeout running from now."""
    step = draft.plan.steps[position]
    timeout = step.timeout if record.state is STARTED else step.compensation_timeout
    ends = [draft.at + timeout] if timeout is not None else []
    if record.state is STARTED and record.expires is not None:
        ends.append(record.expires)
    out = replace(record, waiting=False, deferred=False, until=min(ends, default=None))
    put(draft, position, out)
    draft.commands.append(command_for(draft.plan, position, out))


def begin_ready(draft: Draft) -> None:
    """Begin every step that could have begun before, and now may."""
    for position in positions(draft.ready):
        if begin(draft, position):
            end_well(draft, position, draft.record(position))


def fail_attempt(draft: Draft, position: int, error: Failure, *, unknown: bool) -> None:
    """Try a step again if its policy allows it; else give it up."""
    record = draft.record(position)
    step = draft.plan.steps[position]
    record = replace(record, error=error, executed_at=draft.at, unknown=record.unknown or unknown)
    if draft.state is SAGA_STARTED and step.child is None:
        forward_only = past_pivot(draft)
        policy = step.retry or (PATIENT if forward_only else NO_RETRY)
        moment = next_attempt(draft, step, record, policy, "execute", endless=forward_only)
        if moment is not None and (record.expires is None or moment < record.expires):
            wait(draft, position, replace(record, attempt=record.attempt + 1), moment)
            return
    give_up(draft, position, record)


def next_attempt(
    draft: Draft,
    step: StepPlan,
    record: Progress,
    policy: RetryPolicy,
    operation: Operation,
    *,
    endless: bool,
) -> float | None:
    """Return when the next attempt is due, or None when there is to be none."""
    error = record.error
    if error is None or not error.retryable:
        return None
    if policy.retry_on is not None and error.code not in policy.retry_on:
        return None
    attempt = record.attempt if operation == "execute" else record.compensation_attempt
    used = attempt - record.forgiven
    if not endless and policy.max_attempts is not None and used >= policy.max_attempts:
        return None
    return draft.at + delay_before(policy, used, draft.plan.id, step.name, attempt + 1, operation)


def wait(draft: Draft, position: int, record: Progress, until: float) -> None:
    """Keep the next attempt until its moment; `send_due` sends it out."""
    put(draft, position, replace(record, waiting=True, deferred=False, until=until))


def send_due(draft: Draft, among: Iterable[int]) -> bool:
    """Send out the attempts that have waited until now, unless the saga is suspended; False if there are none."""
    sent = False
    for position in among:
        record = draft.record(position)
        if record.waiting and not draft.suspended and record.until is not None and record.until <= draft.at:
            send(draft, position, record)
            sent = True
    return sent


def give_up(draft: Draft, position: int, record: Progress) -> None:
    """Note that a step has failed for good, and turn the saga round; past its pivot, leave the step to a person."""
    bit = 1 << position
    draft.running &= ~bit
    attempt = record.attempt - 1 if record.waiting else record.attempt
    record = replace(
        record,
        state=FAILED,
        attempt=attempt,
        waiting=False,
        deferred=False,
        until=None,
        expires=None,
        cause=record.error if record.unknown else None,
    )
    put(draft, position, record)
    if past_pivot(draft):
        draft.stuck |= bit
        return
    if record.unknown:
        draft.tips |= bit
    else:
        _fall(draft, position)
    turn_round(draft)


def forward_again(draft: Draft, position: int) -> None:
    """Go on forward when the pivot ends well although somebody asked to turn round while it was out: too late."""
    if position == draft.plan.pivot and draft.state is SAGA_COMPENSATING:
        draft.state = SAGA_STARTED


def skip(draft: Draft, position: int, record: Progress) -> None:
    """Note that a step is left out, and begin what waited for it."""
    forward_again(draft, position)
    draft.running &= ~(1 << position)
    attempt = record.attempt - 1 if record.waiting else record.attempt
    skipped = Progress(SKIPPED, attempt, executed_at=draft.at, met=record.met, unknown=record.unknown)
    end_well(draft, position, skipped)


# Backward


def turn_round(draft: Draft) -> None:
    """Start nothing new: what waits is given up, what is out is awaited."""
    if draft.state is SAGA_COMPENSATING:
        return
    draft.state = SAGA_COMPENSATING
    draft.ready = 0
    for position in positions(draft.running):
        record = draft.record(position)
        if record.waiting:
            give_up(draft, position, record)


def undo(draft: Draft) -> None:
    """Compensate every step that nothing stands on, once no step runs any more."""
    if draft.running or draft.suspended:
        return
    in_turn = draft.plan.options.compensation_order == "sequential"
    while draft.tips and not (in_turn and draft.undoing):
        position = draft.tips.bit_length() - 1
        draft.tips ^= 1 << position
        record, step = draft.record(position), draft.plan.steps[position]
        harmless = record.state is SKIPPED and not record.unknown
        if harmless or (step.compensation is None and step.child is None):
            put(draft, position, replace(record, standing=-1))
            _fall(draft, position)
        else:
            draft.undoing |= 1 << position
            again(draft, position, record)


def again(draft: Draft, position: int, record: Progress) -> None:
    """Send the next attempt to compensate a step."""
    attempt = record.compensation_attempt + 1
    send(draft, position, replace(record, state=COMPENSATING, compensation_attempt=attempt, expires=None))


def undone(draft: Draft, position: int, record: Progress) -> None:
    """Note that a step is undone, and with it what it stood on comes free."""
    bit = 1 << position
    draft.undoing &= ~bit
    put(
        draft,
        position,
        replace(
            record,
            state=COMPENSATED,
            compensation_attempt=record.compensation_attempt - record.waiting,
            error=record.cause,
            waiting=False,
            deferred=False,
            until=None,
            expires=None,
        ),
    )
    _fall(draft, position)


def fail_compensation(draft: Draft, position: int, error: Failure) -> None:
    """Try a compensation again if its policy allows it; else leave the step to a person."""
    step = draft.plan.steps[position]
    record = replace(draft.record(position), error=error, until=None, deferred=False)
    policy = step.compensation_retry or PATIENT
    moment = next_attempt(draft, step, record, policy, "compensate", endless=False)
    if moment is not None:
        wait(draft, position, replace(record, compensation_attempt=record.compensation_attempt + 1), moment)
        return
    bit = 1 << position
    draft.undoing &= ~bit
    draft.stuck |= bit
    put(draft, position, replace(record, state=FAILED, waiting=False))


def settle(draft: Draft) -> None:
    """Go on, or come to rest. Every rule ends here."""
    if draft.state is SAGA_COMPENSATING:
        if draft.tips:
            undo(draft)
        if not (draft.running or draft.undoing or draft.tips):
            draft.state = SAGA_FAILED if draft.stuck else SAGA_COMPENSATED
    elif draft.state is SAGA_STARTED and not (draft.running or draft.ready):
        draft.state = SAGA_FAILED if draft.stuck else SAGA_COMPLETED


def _fall(draft: Draft, position: int) -> None:
    """Take a step off those that it stood on."""
    for other in draft.plan.graph.dependencies[position]:
        below = _stand_on(draft.record(other), -1)
        put(draft, other, below)
        if below.standing == 0:
            draft.tips |= 1 << other


def _stand_on(record: Progress, change: int) -> Progress:
    return replace(record, standing=record.standing + change)


# Time


def fire(draft: Draft) -> bool:
    """Do what is due; False if nothing is, or it has to wait until the saga is resumed.

    What times out comes first: it may turn the saga round, and then no attempt that is due at the same moment begins.
    """
    fired = False
    for position in due(draft):
        fired |= _time_out(draft, position)
    return send_due(draft, due(draft)) or fired


def _time_out(draft: Draft, position: int) -> bool:
    record = draft.record(position)
    if record.until is None or record.until > draft.at:
        return False
    if record.state is STARTED and record.expires is not None and record.expires <= draft.at:
        error = Failure(TOTAL_TIMEOUT, "the step's time is over, all attempts together")
        fail_attempt(draft, position, error, unknown=not record.waiting)
    elif record.waiting:
        return False
    elif record.state is STARTED:
        fail_attempt(draft, position, Failure(TIMEOUT, "no result in time", retryable=True), unknown=True)
    else:
        fail_compensation(draft, position, Failure(TIMEOUT, "no result in time", retryable=True))
    return True


def deadline(draft: Draft) -> float:
    """Return when the saga times out: up to its pivot, and until what is out at the turn has ended."""
    forward = draft.state is SAGA_STARTED or draft.running
    return draft.plan.deadline if forward and not past_pivot(draft) else inf


def too_early(draft: Draft) -> bool:
    """Whether the saga's delayed start has not come yet."""
    start_at = draft.plan.options.start_at
    return start_at is not None and draft.at < start_at
