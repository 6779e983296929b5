"""The state machine: every decision about a saga is made here, from data alone.

A saga's steps run one after the other. The theory of operation:

* A step is *in flight* while it is `started` or `compensating`; exactly then a command for it is out, or should
  be. So `outstanding` can tell from the state alone what has to be published: the state is the outbox.
* An event that answers a command in flight is applied. Every other one (a duplicate, a late result of an earlier
  attempt, a result for a step that was never asked) leaves the saga as it is, and `Transition.ignored` says why.
* When a step fails nothing new starts, and the completed steps are undone in reverse order, each after the one
  behind it is undone (Garcia-Molina & Salem, *Sagas*, 1987). A step without a compensation is passed over.
* A compensation that fails leaves its step `failed`, never `compensated`, and everything before it as it is: the
  saga rests in `failed` until a person asks again.

To add an event: write its rule, and enter it in `RULES`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from saga_core.commands import Command, Compensate, Execute
from saga_core.events import (
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    StepFailed,
    StepSucceeded,
)
from saga_core.model import (
    CHUNK,
    PENDING,
    Operation,
    Plan,
    Progress,
    Saga,
    SagaState,
    Step,
    StepState,
    plan_saga,
)
from saga_core.payload import EMPTY

STARTED, COMPLETED, FAILED = StepState.STARTED, StepState.COMPLETED, StepState.FAILED
COMPENSATING, COMPENSATED = StepState.COMPENSATING, StepState.COMPENSATED
SAGA_STARTED, SAGA_COMPLETED, SAGA_FAILED = SagaState.STARTED, SagaState.COMPLETED, SagaState.FAILED
SAGA_COMPENSATING, SAGA_COMPENSATED = SagaState.COMPENSATING, SagaState.COMPENSATED

Chunks = tuple[tuple[Progress, ...], ...]


class Transition(Struct, frozen=True, gc=False):
    """The answer to an event: the saga after it, what to do next, and why if the event was ignored."""

    saga: Saga
    commands: tuple[Command, ...] = ()
    ignored: str | None = None


def new_saga(name: str, steps: Sequence[Step[Any]], context: object = None, *, id: str, at: float) -> Saga:
    """Build a saga whose first step is in flight; `outstanding` gives the command for it.

    `id` is a ULID, `at` the time in seconds since 1970, UTC.

    Raises: DefinitionError, PayloadError.
    """
    plan = plan_saga(name, steps, context, id=id, at=at)
    whole, rest = divmod(len(plan.steps), CHUNK)
    blank = ((PENDING,) * CHUNK,) * whole + (((PENDING,) * rest,) if rest else ())
    return Saga(plan, SAGA_STARTED, 0, _put(blank, 0, Progress(STARTED, 1)), at)


def transition(saga: Saga, event: Event) -> Transition:
    """Answer an event. Pure and total: the same arguments give the same answer, on every machine, for ever.

    Raises: UnknownStepError when the event names a step that the saga does not have: a caller's bug.
    """
    return RULES[type(event)](saga, event)


def outstanding(saga: Saga) -> tuple[Command, ...]:
    """Recompute from the state alone every command that is in flight, or should be."""
    return tuple(
        _command(saga.plan, position, progress)
        for position, progress in enumerate(progress for chunk in saga.progress for progress in chunk)
        if progress.state is STARTED or progress.state is COMPENSATING
    )


def awaits(saga: Saga, command: Command) -> bool:
    """Whether the command's result would still be applied.

    Raises: UnknownStepError.
    """
    progress = saga.progress_of(command.step)
    if isinstance(command, Execute):
        return progress.state is STARTED and progress.attempt == command.attempt
    return progress.state is COMPENSATING and progress.compensation_attempt == command.attempt


def _step_succeeded(saga: Saga, event: StepSucceeded) -> Transition:
    position = saga.position(event.step)
    progress = saga.progress[position // CHUNK][position % CHUNK]
    if progress.state is not STARTED or progress.attempt != event.attempt:
        return _ignored(saga, event.step, event.attempt, progress, "execute")
    # The default itself is not written down: else an event from a store would give other bytes.
    output = EMPTY if event.output == EMPTY else event.output
    done = Progress(COMPLETED, event.attempt, 0, output, None, event.at)
    plan = saga.plan
    if saga.state is SAGA_COMPENSATING:
        return _undo(saga, _put(saga.progress, position, done), position, event.at)
    following = position + 1
    if following == len(plan.steps):
        chunks = _put(saga.progress, position, done)
        return Transition(Saga(plan, SAGA_COMPLETED, saga.revision + 1, chunks, event.at, event.at))
    step = plan.steps[following]
    return Transition(
        Saga(plan, SAGA_STARTED, saga.revision + 1, _put2(saga.progress, position, done, _FIRST), event.at),
        (Execute(plan.id, step.name, step.action, 1),),
    )


def _step_failed(saga: Saga, event: StepFailed) -> Transition:
    position = saga.position(event.step)
    progress = saga.progress[position // CHUNK][position % CHUNK]
    if progress.state is not STARTED or progress.attempt != event.attempt:
        return _ignored(saga, event.step, event.attempt, progress, "execute")
    failed = Progress(FAILED, event.attempt, 0, progress.output, event.error, event.at)
    return _undo(saga, _put(saga.progress, position, failed), position - 1, event.at)


def _compensation_succeeded(saga: Saga, event: CompensationSucceeded) -> Transition:
    position = saga.position(event.step)
    progress = saga.progress[position // CHUNK][position % CHUNK]
    if progress.state is not COMPENSATING or progress.compensation_attempt != event.attempt:
        return _ignored(saga, event.step, event.attempt, progress, "compensate")
    undone = Progress(
        COMPENSATED, progress.attempt, event.attempt, progress.output, None, progress.executed_at
    )
    return _undo(saga, _put(saga.progress, position, undone), position - 1, event.at)


def _compensation_failed(saga: Saga, event: CompensationFailed) -> Transition:
    position = saga.position(event.step)
    progress = saga.progress[position // CHUNK][position % CHUNK]
    if progress.state is not COMPENSATING or progress.compensation_attempt != event.attempt:
        return _ignored(saga, event.step, event.attempt, progress, "compensate")
    failed = Progress(
        FAILED, progress.attempt, event.attempt, progress.output, event.error, progress.executed_at
    )
    chunks = _put(saga.progress, position, failed)
    return Transition(Saga(saga.plan, SAGA_FAILED, saga.revision + 1, chunks, event.at, event.at))


def _compensation_requested(saga: Saga, event: CompensationRequested) -> Transition:
    if saga.state is SAGA_STARTED:
        # The step in flight is awaited: what it did is known before anything is undone.
        return Transition(Saga(saga.plan, SAGA_COMPENSATING, saga.revision + 1, saga.progress, event.at))
    if saga.state is SAGA_COMPLETED or saga.state is SAGA_FAILED:
        return _undo(saga, saga.progress, len(saga.plan.steps) - 1, event.at)
    return Transition(saga, (), f"saga {saga.id} is {saga.state} already")


# What answers each event. An event type that is missing here is a bug, and raises KeyError.
RULES: dict[type[Event], Callable[[Saga, Any], Transition]] = {
    StepSucceeded: _step_succeeded,
    StepFailed: _step_failed,
    CompensationSucceeded: _compensation_succeeded,
    CompensationFailed: _compensation_failed,
    CompensationRequested: _compensation_requested,
}

_FIRST = Progress(STARTED, 1)


def _undo(saga: Saga, chunks: Chunks, position: int, at: float) -> Transition:
    """Compensate the last step at or before `position` that needs it; with none left the saga is compensated."""
    plan = saga.plan
    for place in range(position, -1, -1):
        progress = chunks[place // CHUNK][place % CHUNK]
        if not _needs_undoing(progress) or plan.steps[place].compensation is None:
            continue
        attempt = progress.compensation_attempt + 1
        undoing = Progress(
            COMPENSATING, progress.attempt, attempt, progress.output, None, progress.executed_at
        )
        return Transition(
            Saga(plan, SAGA_COMPENSATING, saga.revision + 1, _put(chunks, place, undoing), at),
            (_command(plan, place, undoing),),
        )
    return Transition(Saga(plan, SAGA_COMPENSATED, saga.revision + 1, chunks, at, at))


def _needs_undoing(progress: Progress) -> bool:
    return progress.state is COMPLETED or (progress.state is FAILED and progress.compensation_attempt > 0)


def _command(plan: Plan, position: int, progress: Progress) -> Command:
    step = plan.steps[position]
    if progress.state is STARTED:
        return Execute(plan.id, step.name, step.action, progress.attempt)
    return Compensate(plan.id, step.name, step.compensation or "", progress.compensation_attempt)


def _ignored(saga: Saga, step: str, attempt: int, progress: Progress, operation: Operation) -> Transition:
    current = progress.attempt if operation == "execute" else progress.compensation_attempt
    return Transition(
        saga,
        (),
        f"a result of attempt {attempt} to {operation} step {step!r} of saga {saga.id} is not awaited: "
        f"the step is {progress.state}, its latest attempt is {current}",
    )


def _put(chunks: Chunks, position: int, progress: Progress) -> Chunks:
    outer, inner = divmod(position, CHUNK)
    chunk = list(chunks[outer])
    chunk[inner] = progress
    if len(chunks) == 1:
        return (tuple(chunk),)
    return (*chunks[:outer], tuple(chunk), *chunks[outer + 1 :])


def _put2(chunks: Chunks, position: int, first: Progress, second: Progress) -> Chunks:
    """Replace two records that follow each other; mostly they share a chunk, and it is copied once."""
    outer, inner = divmod(position, CHUNK)
    if inner == CHUNK - 1:
        return _put(_put(chunks, position, first), position + 1, second)
    chunk = list(chunks[outer])
    chunk[inner] = first
    chunk[inner + 1] = second
    if len(chunks) == 1:
        return (tuple(chunk),)
    return (*chunks[:outer], tuple(chunk), *chunks[outer + 1 :])
