"""The commonest events of all, answered in one stroke.

A step of a saga that runs has completed, and one other simply comes next, or nothing does. The answer is the one that
the rules and moves would give, which a test sees to for every state that sagas can reach, at a third of the cost.
"""

from saga_core.commands import Command, Execute
from saga_core.draft import COMPLETED, SAGA_COMPLETED, SAGA_STARTED, STARTED, Transition
from saga_core.events import StepSucceeded
from saga_core.graph import LAST, NOT_SIMPLE
from saga_core.model import CHUNK, FIRST_ATTEMPT, Chunks, Progress, Saga
from saga_core.payload import EMPTY


def advance(saga: Saga, event: StepSucceeded) -> Transition | None:
    """Answer an event, or return None to have it answered by the rules."""
    plan, at = saga.plan, event.at
    graph = plan.graph
    position = graph.positions.get(event.step, -1)
    if position < 0:
        return None
    following = graph.followers[position]
    if following == NOT_SIMPLE or saga.suspended:
        return None
    outer, inner = position // CHUNK, position % CHUNK
    chunks, running, tips = saga.progress, saga.running, saga.tips
    chunk = list(chunks[outer])
    record = chunk[inner]
    if record.state is not STARTED or record.attempt != event.attempt or record.until is not None:
        return None
    output = EMPTY if event.output == EMPTY else event.output  # see `draft.plain`
    commands: tuple[Command, ...]
    if following == LAST:
        bit = graph.bits[position]
        if running != bit or saga.ready or saga.stuck or plan.parent is not None:
            return None
        chunk[inner] = Progress(COMPLETED, event.attempt, 0, output, None, at, record.met)
        state, ended, running, tips = SAGA_COMPLETED, at, 0, tips | bit
        commands = ()
    else:
        beyond, place = following // CHUNK, following % CHUNK
        if chunks[beyond][place].skip:
            return None
        chunk[inner] = Progress(COMPLETED, event.attempt, 0, output, None, at, record.met, 1)
        if beyond == outer:
            chunk[place] = FIRST_ATTEMPT
        else:
            other = list(chunks[beyond])
            other[place] = FIRST_ATTEMPT
            chunks = _with(chunks, beyond, tuple(other))
        state, ended = SAGA_STARTED, None
        running = running ^ graph.bits[position] ^ graph.bits[following]
        step = plan.steps[following]
        commands = (Execute(plan.id, step.name, step.action, 1),)
    fresh = tuple(chunk)
    return Transition(
        Saga(
            plan,
            state,
            saga.revision + 1,
            (fresh,) if len(chunks) == 1 else _with(chunks, outer, fresh),
            at,
            ended,
            False,
            saga.asked,
            running,
            saga.undoing,
            saga.ready,
            tips,
            saga.stuck,
            saga.wakes,
        ),
        commands,
    )


def _with(chunks: Chunks, outer: int, fresh: tuple[Progress, ...]) -> Chunks:
    changed = list(chunks)
    changed[outer] = fresh
    return tuple(changed)
