"""When two worlds count as one: if whatever can happen to the one can happen to the other, to the same effect.

A key leaves out what has no effect any more: numbers of past attempts, errors, outputs, and when things happened.
Times count from now, and one that is over is simply over.
"""

from math import inf

from saga_core.model import Progress, Saga
from saga_core.plan import Plan
from saga_core.states import SagaState, StepState
from saga_core.testing.world import World

Key = tuple[object, ...]
Twins = tuple[tuple[int, ...], ...]


def world_key(world: World, twins: dict[str, Twins]) -> Key:
    """Return what is alike in all worlds that count as one. `twins` are those of each saga, by its id."""
    keys = [_saga_key(saga, world.now, twins[saga.id]) for saga in world.sagas]
    if len(keys) == 1:
        return (world.used, *keys[0])
    ids = [saga.id for saga in world.sagas]
    return (world.used, world.rested, *ids, *keys)


def twins_of(plan: Plan) -> Twins:
    """Return groups of steps that are alike in everything but their names, and so can change places."""
    if plan.options.compensation_order == "sequential":
        return ()
    graph = plan.graph
    alike: dict[str, list[int]] = {}
    for position, step in enumerate(plan.steps):
        if step.child is None and not step.pivot:
            what = (
                graph.dependencies[position],
                graph.dependents[position],
                step.when,
                step.retry,
                step.compensation_retry,
                step.timeout,
                step.total_timeout,
                step.compensation_timeout,
                step.compensation is None,
            )
            alike.setdefault(repr(what), []).append(position)
    return tuple(tuple(group) for group in alike.values() if len(group) > 1)


def _saga_key(saga: Saga, now: float, twins: Twins) -> Key:
    plan = saga.plan
    pivot_is_out = plan.pivot is not None and saga.running >> plan.pivot & 1
    forward = saga.state is SagaState.STARTED or bool(pivot_is_out)
    steps = [
        _step_key(record, now, step.child is not None, forward)
        for record, step in zip(saga.records(), plan.steps, strict=True)
    ]
    for group in twins:
        ordered = sorted((steps[position] for position in group), key=repr)
        for position, key in zip(group, ordered, strict=True):
            steps[position] = key
    bounded = (saga.state is SagaState.STARTED or saga.running) and not saga.past_pivot
    deadline = _left(plan.deadline, now) if bounded and plan.deadline < inf else None
    return (saga.state, saga.suspended, saga.asked, deadline, _left(plan.options.start_at, now), *steps)


def _step_key(record: Progress, now: float, child: bool, forward: bool) -> Key:
    state, standing, forgiven = record.state, record.standing, record.forgiven
    # The numbers of attempts, that of a child's in its id and that of the order to undo it in the child's own state;
    # without a child only how many of them count against the policy.
    attempt, undo = record.attempt, record.compensation_attempt
    numbers = (attempt, undo) if child else ()
    timers = (_left(record.until, now), _left(record.expires, now))
    flags = (record.waiting, record.deferred)
    if state is StepState.STARTED:
        return (
            state,
            *numbers,
            attempt - forgiven,
            *timers,
            *flags,
            record.unknown,
            record.met if forward else 0,
        )
    if state is StepState.COMPENSATING:
        return (state, *numbers, undo - forgiven, *timers, *flags, standing)
    if state is StepState.FAILED:
        return (state, *numbers, undo > 0, undo > forgiven, record.unknown and not undo, standing)
    if state is StepState.PENDING:
        return (state, record.skip, record.met) if forward else (state,)
    return (state, *numbers, record.unknown and state is StepState.SKIPPED, standing)


def _left(moment: float | None, now: float) -> float | None:
    return None if moment is None else round(max(moment - now, 0.0), 3)
