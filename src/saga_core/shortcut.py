"""The door of the machine, and the commonest event of all, which is answered at the door.

A step of a saga that runs has completed, and one other simply comes next, or nothing does. The answer is the one that
the rules and moves would give, which a test sees to for every state that sagas can reach, at a fifth of the cost.
"""

from saga_core.commands import Command, Execute
from saga_core.draft import COMPLETED, SAGA_COMPLETED, SAGA_STARTED, STARTED, Transition
from saga_core.events import Event, StepSucceeded
from saga_core.machine import decide
from saga_core.model import FIRST_ATTEMPT, Progress, Saga
from saga_core.payload import EMPTY


def transition(saga: Saga, event: Event) -> Transition:
    """Answer an event. Pure and total: the same arguments give the same answer, on every machine, for ever.

    Raises: UnknownStepError when the event names a step that the saga does not have: a caller's bug.
    """
    if not isinstance(event, StepSucceeded) or saga.state is not SAGA_STARTED or saga.suspended:
        return decide(saga, event)
    plan = saga.plan
    handover = plan.graph.handovers.get(event.step)
    if handover is None:
        return decide(saga, event)
    chunks, outer, inner = saga.progress, handover.outer, handover.inner
    chunk = list(chunks[outer])
    record = chunk[inner]
    if record.state is not STARTED or record.attempt != event.attempt or record.until is not None:
        return decide(saga, event)
    attempt, output, at = event.attempt, event.output, event.at
    if output == EMPTY:
        output = EMPTY  # see `draft.plain`
    follower, beyond = handover.follower, handover.beyond
    other = chunk if beyond == outer else list(chunks[beyond])
    commands: tuple[Command, ...]
    if follower is None:  # the saga is at its end
        if saga.running != handover.mask or saga.ready or saga.stuck or plan.parent is not None:
            return decide(saga, event)
        chunk[inner] = Progress(COMPLETED, attempt, 0, output, None, at, record.met)
        state, ended, commands = SAGA_COMPLETED, at, ()
        running, tips = 0, saga.tips | handover.mask
    else:
        if other[handover.place].skip:
            return decide(saga, event)
        chunk[inner] = Progress(COMPLETED, attempt, 0, output, None, at, record.met, 1)
        other[handover.place] = FIRST_ATTEMPT
        step = plan.steps[follower]
        state, ended, commands = SAGA_STARTED, None, (Execute(plan.id, step.name, step.action, 1),)
        running, tips = saga.running ^ handover.mask, saga.tips
    if len(chunks) == 1:
        chunks = (tuple(chunk),)
    else:
        changed = list(chunks)
        changed[outer] = tuple(chunk)
        if other is not chunk:
            changed[beyond] = tuple(other)
        chunks = tuple(changed)
    return Transition(
        Saga(
            plan,
            state,
            saga.revision + 1,
            chunks,
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
