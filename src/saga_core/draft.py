"""A saga while one event is being worked out: the only mutable thing in the core.

A `Draft` lives inside one call of `transition`, and nobody else ever sees it. `open_draft` makes one of a saga, the
rules and moves change it and note commands, and `close` makes a saga of it again.
"""

from math import inf

from msgspec import Raw, Struct

from saga_core.commands import Command, Compensate, CompensateChild, Execute, Report, StartChild
from saga_core.graph import CHUNK
from saga_core.ids import child_id
from saga_core.model import Chunks, Progress, Saga, earliest
from saga_core.payload import EMPTY
from saga_core.plan import Plan
from saga_core.states import ENDED_WELL, RESTING, SagaState, StepState

PENDING, STARTED, COMPLETED = StepState.PENDING, StepState.STARTED, StepState.COMPLETED
FAILED, SKIPPED = StepState.FAILED, StepState.SKIPPED
COMPENSATING, COMPENSATED = StepState.COMPENSATING, StepState.COMPENSATED
SAGA_STARTED, SAGA_COMPLETED, SAGA_FAILED = SagaState.STARTED, SagaState.COMPLETED, SagaState.FAILED
SAGA_COMPENSATING, SAGA_COMPENSATED = SagaState.COMPENSATING, SagaState.COMPENSATED


class Draft(Struct, gc=False):
    """A saga in the making. The fields are those of `Saga`."""

    plan: Plan
    state: SagaState
    progress: Chunks
    completed_at: float | None
    suspended: bool
    asked: int
    running: int
    undoing: int
    ready: int
    tips: int
    stuck: int
    wakes: tuple[float, ...]
    at: float
    commands: list[Command]

    def record(self, position: int) -> Progress:
        """Return what has become of a step."""
        return self.progress[position // CHUNK][position % CHUNK]


class Transition(Struct, frozen=True, gc=False):
    """The answer to an event: the saga after it, what to do next, and why if the event was ignored."""

    saga: Saga
    commands: tuple[Command, ...] = ()
    ignored: str | None = None


def open_draft(saga: Saga, at: float) -> Draft:
    """Begin to work out what an event does to a saga."""
    return Draft(
        saga.plan,
        saga.state,
        saga.progress,
        saga.completed_at,
        saga.suspended,
        saga.asked,
        saga.running,
        saga.undoing,
        saga.ready,
        saga.tips,
        saga.stuck,
        saga.wakes,
        at,
        [],
    )


def close(draft: Draft, revision: int) -> Transition:
    """Make a saga of a draft."""
    plan, state, at = draft.plan, draft.state, draft.at
    resting = state in RESTING
    if resting and plan.parent is not None:
        draft.commands.append(report(plan, state, draft.asked))
    ended = at if resting else None
    if state is SAGA_FAILED and draft.completed_at is not None:
        ended = draft.completed_at  # it had failed before: no other rest is followed by this one
    return Transition(
        Saga(
            plan,
            state,
            revision,
            draft.progress,
            at,
            ended,
            draft.suspended and not resting,
            draft.asked,
            draft.running,
            draft.undoing,
            draft.ready,
            draft.tips,
            draft.stuck,
            draft.wakes,
        ),
        tuple(draft.commands),
    )


def plain(output: Raw) -> Raw:
    """Return an empty output as the default itself, which alone is left out when a record is written.

    Else the same event would give other bytes when it comes from a store than when it comes from a handler.
    """
    return EMPTY if output == EMPTY else output


def put(draft: Draft, position: int, record: Progress) -> None:
    """Replace what has become of a step."""
    chunks = draft.progress
    outer, inner = divmod(position, CHUNK)
    chunk = list(chunks[outer])
    timed = record.until is not None or chunk[inner].until is not None
    chunk[inner] = record
    fresh = tuple(chunk)
    draft.progress = (fresh,) if len(chunks) == 1 else (*chunks[:outer], fresh, *chunks[outer + 1 :])
    if timed:
        draft.wakes = (*draft.wakes[:outer], earliest(fresh), *draft.wakes[outer + 1 :])


def positions(mask: int) -> list[int]:
    """Return the positions in a mask, in order."""
    found: list[int] = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def command_for(plan: Plan, position: int, record: Progress) -> Command:
    """Return the command of a step that is out."""
    step = plan.steps[position]
    if record.state is STARTED:
        if step.child is None:
            return Execute(plan.id, step.name, step.action, record.attempt, record.until)
        return StartChild(plan.id, step.name, record.attempt, child_id(plan.id, position, record.attempt))
    attempt = record.compensation_attempt
    if step.child is None:
        return Compensate(plan.id, step.name, step.compensation or "", attempt, record.until)
    return CompensateChild(plan.id, step.name, attempt, child_id(plan.id, position, record.attempt))


def report(plan: Plan, state: SagaState, asked: int) -> Report:
    """Return the command that tells a saga's parent how it came to rest."""
    parent = plan.parent
    assert parent is not None
    return Report(parent.saga, parent.step, parent.attempt, plan.id, state, asked)


def past_pivot(draft: Draft) -> bool:
    """Whether the saga goes forward only."""
    pivot = draft.plan.pivot
    return pivot is not None and draft.record(pivot).state in ENDED_WELL


def due(draft: Draft) -> list[int]:
    """Return the positions of the steps whose `until` has come."""
    if min(draft.wakes, default=inf) > draft.at:
        return []
    return [
        outer * CHUNK + inner
        for outer, wake in enumerate(draft.wakes)
        if wake <= draft.at
        for inner, record in enumerate(draft.progress[outer])
        if record.until is not None and record.until <= draft.at
    ]
