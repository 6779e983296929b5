"""What holds in every state that any saga can reach, and for every event: the rules of the design, as checks.

Each check returns a sentence on what is wrong, or None. They look at the records of steps only, and do not lean on
what the machine has worked out from them.
"""

from collections.abc import Sequence
from math import inf

from msgspec import Struct

from saga_core.codec import decode_saga, encode_saga
from saga_core.commands import Command, Compensate, CompensateChild, Execute, Report, StartChild
from saga_core.draft import Transition, positions
from saga_core.events import (
    CompensationDeferred,
    CompensationFailed,
    CompensationSucceeded,
    Event,
    StepDeferred,
    StepFailed,
    StepSkipped,
    StepSucceeded,
    TimePassed,
)
from saga_core.machine import TABLE, awaits, outstanding, wake_at
from saga_core.model import Progress, Saga, rebuild
from saga_core.plan import Plan
from saga_core.retry import NO_RETRY, PATIENT
from saga_core.shortcut import transition
from saga_core.states import ENDED_WELL, SagaState, StepState

PENDING, STARTED, COMPLETED = StepState.PENDING, StepState.STARTED, StepState.COMPLETED
FAILED, SKIPPED = StepState.FAILED, StepState.SKIPPED
COMPENSATING, COMPENSATED = StepState.COMPENSATING, StepState.COMPENSATED

HOPS: dict[StepState, frozenset[StepState]] = {
    PENDING: frozenset({STARTED, SKIPPED}),
    STARTED: frozenset({COMPLETED, FAILED, SKIPPED, COMPENSATING}),
    COMPLETED: frozenset({COMPENSATING}),
    FAILED: frozenset({COMPENSATING, STARTED, COMPLETED, SKIPPED, COMPENSATED}),
    SKIPPED: frozenset({COMPENSATING}),
    COMPENSATING: frozenset({COMPENSATED, FAILED}),
    COMPENSATED: frozenset(),
}
"""Where one event can take a step. From `started` to `compensating` leads the last result that a saga waited for."""

FORWARD = (StepSucceeded, StepSkipped, StepFailed, StepDeferred)
RESULTS = (*FORWARD, CompensationSucceeded, CompensationFailed, CompensationDeferred)

LONG = 1e9


class Shape(Struct, frozen=True):
    """What a plan says about order, by position; masks have a bit per step."""

    dependencies: tuple[int, ...]
    above: tuple[int, ...]
    compensable: int
    pivot: int | None
    behind: int


class Masks(Struct, frozen=True):
    """The steps of a saga by their state. `open` has had an effect that is not undone, or may have one yet."""

    by_state: dict[StepState, int]
    stuck: int
    open: int
    past_pivot: bool

    def __getitem__(self, state: StepState) -> int:
        """Return the steps in a state."""
        return self.by_state.get(state, 0)


def shape_of(plan: Plan) -> Shape:
    """Work out the order of a plan's steps from their names."""
    count = len(plan.steps)
    places = {step.name: position for position, step in enumerate(plan.steps)}
    dependencies: list[int] = []
    for position, step in enumerate(plan.steps):
        if step.depends_on is None:
            dependencies.append(1 << position - 1 if position else 0)
        else:
            dependencies.append(sum(1 << places[name] for name in step.depends_on))
    above = [0] * count
    for _ in range(count):
        for position in range(count):
            for below in positions(dependencies[position]):
                above[below] |= 1 << position | above[position]
    pivot = next((position for position, step in enumerate(plan.steps) if step.pivot), None)
    compensable = sum(
        1 << position
        for position, step in enumerate(plan.steps)
        if step.compensation is not None or step.child is not None
    )
    return Shape(tuple(dependencies), tuple(above), compensable, pivot, 0 if pivot is None else above[pivot])


def masks_of(saga: Saga, shape: Shape) -> Masks:
    """Sort the steps of a saga by their state."""
    by_state: dict[StepState, int] = {}
    half_undone = given_up = unknown = 0
    for position, record in enumerate(saga.records()):
        bit = 1 << position
        by_state[record.state] = by_state.get(record.state, 0) | bit
        if record.state is FAILED and record.compensation_attempt:
            half_undone |= bit
            # With every attempt forgiven it was asked for once more, and waits for its turn.
            given_up |= bit if record.compensation_attempt > record.forgiven else 0
        elif record.unknown and record.state in (FAILED, SKIPPED):
            unknown |= bit
    past = shape.pivot is not None and saga.record(shape.pivot).state in ENDED_WELL
    stuck = by_state.get(FAILED, 0) if past else given_up
    running = by_state.get(STARTED, 0) | by_state.get(COMPENSATING, 0)
    effect = (by_state.get(COMPLETED, 0) | unknown) & shape.compensable
    return Masks(by_state, stuck, running | effect | half_undone, past)


def check_state(saga: Saga, shape: Shape, now: float) -> str | None:
    """Check one saga at one moment."""
    masks = masks_of(saga, shape)
    if saga.at_rest:
        problem = _check_rest(saga, shape, masks)
    else:
        problem = _check_order(saga, shape, masks) or _check_progress(saga, shape, masks, now)
    return problem or _check_time(saga, now) or _check_kept(saga)


def check_transition(before: Saga, event: Event, answer: Transition, shape: Shape) -> str | None:
    """Check what an event that was applied has done."""
    after = answer.saga
    if after.revision != before.revision + 1:
        return f"the revision went from {before.revision} to {after.revision}"
    if after.updated_at != event.at:
        return f"it says that it changed at {after.updated_at}, not at {event.at}"
    came_to_rest = before.completed_at if after.state is before.state else event.at
    if after.completed_at not in (None, came_to_rest):
        return f"it says that it came to rest at {after.completed_at}, not at {came_to_rest}"
    row = TABLE[type(event)]
    if after.state not in row.leads.get(before.state, ()):
        return f"the table has no way from {before.state} to {after.state} by {type(event).__name__}"
    if problem := _check_awaited(before, event):
        return problem
    earlier, current = set(outstanding(before)), outstanding(after)
    emitted = set(answer.commands)
    if len(emitted) != len(answer.commands):
        return "a command is emitted twice"
    if forgotten := [command for command in current if command not in earlier and command not in emitted]:
        return f"nothing was emitted for {named(forgotten[0])}, which is outstanding now"
    # A report is made at each rest, though it may say what the last one said.
    if extra := [
        one
        for one in answer.commands
        if one not in current or (one in earlier and not isinstance(one, Report))
    ]:
        return f"{named(extra[0])} was emitted, and is not newly outstanding"
    for position, (old, new) in enumerate(zip(before.records(), after.records(), strict=True)):
        if old is not new and (problem := _check_step(before, event, after, shape, position, old, new)):
            return f"step {before.plan.steps[position].name!r} {problem}"
    if isinstance(event, StepFailed):
        return _check_retry(before, event, after)
    return None


def check_children(sagas: Sequence[Saga], first_resolved: bool) -> str | None:
    """Check that a parent and its children came to the same end, unless a person decided otherwise."""
    by_id = {saga.id: saga for saga in sagas}
    for child in sagas[1:]:
        assert child.plan.parent is not None
        parent = by_id[child.plan.parent.saga]
        if parent.progress_of(child.plan.parent.step).attempt != child.plan.parent.attempt:
            continue
        wanted = {SagaState.COMPLETED: SagaState.COMPLETED, SagaState.COMPENSATED: SagaState.COMPENSATED}
        if not first_resolved and child.state is not wanted.get(parent.state, child.state):
            return f"saga {parent.name!r} is {parent.state}, and its child {child.name!r} is {child.state}"
    return None


def check_stored(saga: Saga) -> str | None:
    """Check that a saga comes out of its bytes as it went in (I8)."""
    return None if decode_saga(encode_saga(saga)) == saga else "it is not read back as it was written"


def named(command: Command) -> str:
    """Return a command in words."""
    words = {
        Execute: "execute",
        Compensate: "undo",
        StartChild: "start the child of",
        CompensateChild: "undo the child of",
        Report: "report to",
    }
    return f"“{words[type(command)]} {command.step} #{command.attempt}”"


def _check_rest(saga: Saga, shape: Shape, masks: Masks) -> str | None:
    names = _Names(saga)
    if active := masks[STARTED] | masks[COMPENSATING]:
        return f"the saga rests in {saga.state} while {names(active)} runs"
    if saga.completed_at is None or saga.suspended:
        return "a saga at rest must say when it came to rest, and cannot be suspended"
    if saga.state is SagaState.COMPLETED:
        if left := ~(masks[COMPLETED] | masks[SKIPPED]) & (1 << len(saga.plan.steps)) - 1:
            return f"the saga has completed, and {names(left)} has not ended well"
    elif saga.state is SagaState.COMPENSATED:
        if masks.past_pivot:
            return "the saga was undone past its pivot"
        if masks.open:
            return f"the saga rests in compensated, and {names(masks.open)} is not undone (I5)"
    else:
        if not masks.stuck:
            return "the saga has failed, and there is no step that a person could see to"
        if masks.past_pivot:
            if free := _free(shape, masks):
                return f"the saga has failed, and {names(free)} could still have gone forward"
        elif left := _undoable(shape, masks):
            return f"the saga has failed, and {names(left)} could still have been undone"
    return None


def _check_order(saga: Saga, shape: Shape, masks: Masks) -> str | None:
    names = _Names(saga)
    undone = masks[COMPENSATING] | masks[COMPENSATED]
    if masks.past_pivot and (undone or saga.state is not SagaState.STARTED):
        return "the saga turned round past its pivot"
    if masks[COMPENSATING] and masks[STARTED]:
        return f"{names(masks[COMPENSATING])} is being undone while {names(masks[STARTED])} may run (I4)"
    for position in positions(undone):
        if others := shape.above[position] & masks.open:
            return f"{names(1 << position)} is undone before {names(others)}, which stands on it (I4)"
    in_turn = saga.plan.options.compensation_order == "sequential"
    if in_turn and masks[COMPENSATING].bit_count() > 1:
        return f"{names(masks[COMPENSATING])} are undone side by side, not one after the other"
    return None


def _check_progress(saga: Saga, shape: Shape, masks: Masks, now: float) -> str | None:
    names = _Names(saga)
    if saga.completed_at is not None:
        return "the saga is not at rest, and says when it came to rest"
    out = outstanding(saga)
    for command in out:
        if not isinstance(command, Report) and not awaits(saga, command):
            return f"{named(command)} is outstanding, and its result is not awaited"
    if saga.suspended:
        return None
    deferred = any(record.deferred for record in saga.records())
    if not out and not deferred and wake_at(saga) is None:
        return "nothing is outstanding, no timer runs, and the saga is not at rest: a deadlock"
    if saga.state is SagaState.STARTED:
        early = saga.plan.options.start_at is not None and now < saga.plan.options.start_at
        if (free := _free(shape, masks)) and not early and not (_due(saga, now)):
            return f"{names(free)} could begin, and has not"
    elif not masks[STARTED] and (left := _undoable(shape, masks)):
        in_turn = saga.plan.options.compensation_order == "sequential"
        if not (in_turn and masks[COMPENSATING]):
            return f"{names(left)} could be undone, and is not"
    return None


def _check_time(saga: Saga, now: float) -> str | None:
    wake = wake_at(saga)
    if wake is not None and wake <= now:
        return None if transition(saga, TimePassed(now)).saga is not saga else f"nothing is due at {wake:g}"
    before = now + LONG if wake is None else (now + wake) / 2
    answer = transition(saga, TimePassed(before))
    if answer.saga is not saga or answer.commands:
        return f"the next moment is said to be {wake}, but something was due at {before:g}"
    return None


def _check_kept(saga: Saga) -> str | None:
    again = rebuild(
        saga.plan,
        saga.state,
        saga.revision,
        saga.progress,
        saga.updated_at,
        saga.completed_at,
        saga.suspended,
        saga.asked,
    )
    if again == saga:
        return None
    fields = [name for name in Saga.__struct_fields__ if getattr(again, name) != getattr(saga, name)]
    return f"what follows from its steps is worked out otherwise from the store: {', '.join(fields)} (I8)"


def _check_awaited(before: Saga, event: Event) -> str | None:
    if not isinstance(event, RESULTS):
        return None
    record = before.progress_of(event.step)
    forward = isinstance(event, FORWARD)
    state, attempt = (STARTED, record.attempt) if forward else (COMPENSATING, record.compensation_attempt)
    if record.state is state and attempt == event.attempt and not record.waiting:
        return None
    what = "execute" if forward else "undo"
    return f"a result of attempt {event.attempt} to {what} step {event.step!r} was taken, and was not awaited (I2)"


def _check_step(
    before: Saga, event: Event, after: Saga, shape: Shape, position: int, old: Progress, new: Progress
) -> str | None:
    if new.state is not old.state and new.state not in HOPS[old.state]:
        return f"went from {old.state} to {new.state}"
    if old.state is FAILED and new.state is not FAILED and old.compensation_attempt == 0:
        past = shape.pivot is not None and before.record(shape.pivot).state in ENDED_WELL
        if not past and not (old.unknown and new.state is COMPENSATING):
            return f"went from failed to {new.state}"
    if old.state is SKIPPED and new.state is not SKIPPED and not old.unknown:
        return "is undone though it was skipped, and no attempt has an unknown outcome"
    if old.state is PENDING and new.state in (STARTED, SKIPPED):
        others = positions(shape.dependencies[position])
        if any(after.record(other).state not in ENDED_WELL for other in others):
            return "began before what it depends on had ended well"
        if after.state in (SagaState.COMPENSATING, SagaState.COMPENSATED):
            return "began though the saga turned round"
    if old.unknown and not new.unknown and new.state is SKIPPED:
        return "had an attempt with an unknown outcome, and this is forgotten"
    if isinstance(event, StepFailed | TimePassed) and old.state is STARTED and not old.waiting:
        left = new.state is not STARTED or new.attempt != old.attempt
        lost = isinstance(event, TimePassed) or event.unknown
        if left and lost and not (new.unknown or new.state is COMPENSATED):
            return "ended with an outcome that nobody knows, and this is not kept"
    if new.is_out:
        forward = new.state is STARTED
        was = old.attempt if forward else old.compensation_attempt
        number = new.attempt if forward else new.compensation_attempt
        if old.is_out and old.state is new.state and was == number:
            return None
        going = old.state is new.state and old.waiting
        if number != (was if going else was + 1):
            return f"began attempt {number} after attempt {was}"
        if after.suspended:
            return f"began attempt {number} while the saga is suspended"
        if forward and after.state is not SagaState.STARTED:
            return f"began attempt {number} though the saga turned round"
    return None


def _check_retry(before: Saga, event: StepFailed, after: Saga) -> str | None:
    position = before.plan.position(event.step)
    step, new = before.plan.steps[position], after.record(position)
    if new.state is not STARTED or step.child is not None:
        return None
    behind = bool(before.plan.graph.behind >> position & 1)
    policy = step.retry or (PATIENT if behind else NO_RETRY)
    most = inf if behind or policy.max_attempts is None else policy.max_attempts
    if not event.error.retryable or new.attempt - new.forgiven > most:
        return f"step {event.step!r} is tried again, though its failure was final"
    return None


def _free(shape: Shape, masks: Masks) -> int:
    """Return the steps that could begin."""
    well = masks[COMPLETED] | masks[SKIPPED]
    return sum(
        1 << position for position in positions(masks[PENDING]) if not shape.dependencies[position] & ~well
    )


def _undoable(shape: Shape, masks: Masks) -> int:
    """Return the steps that could be undone now."""
    left = masks.open & ~(masks[STARTED] | masks[COMPENSATING] | masks.stuck)
    return sum(1 << position for position in positions(left) if not shape.above[position] & masks.open)


def _due(saga: Saga, now: float) -> bool:
    wake = wake_at(saga)
    return wake is not None and wake <= now


class _Names:
    """Names the steps of a mask."""

    def __init__(self, saga: Saga) -> None:
        self.steps = saga.plan.steps

    def __call__(self, mask: int) -> str:
        return " and ".join(repr(self.steps[position].name) for position in positions(mask))
