"""What a saga is doing, for people: which steps have ended, what comes next, and what it is waiting for."""

from collections.abc import Callable, Iterable

from saga_core.draft import positions
from saga_core.model import Progress, Saga
from saga_core.plan import Step
from saga_core.states import ENDED_WELL, SagaState, StepState

MOST_NAMES = 5

Test = Callable[[Progress], bool]


def completed_steps(saga: Saga) -> tuple[Step, ...]:
    """Return the steps that have completed and are not undone, in order."""
    return tuple(step for step in saga.steps if step.state is StepState.COMPLETED)


def failed_steps(saga: Saga) -> tuple[Step, ...]:
    """Return the steps that have failed, or whose compensation has, in order."""
    return tuple(step for step in saga.steps if step.state is StepState.FAILED)


def next_steps(saga: Saga) -> tuple[Step, ...]:
    """Return the steps that begin when those that run now have ended well, in order; none if the saga turns round."""
    if saga.state is not SagaState.STARTED:
        return ()
    records = tuple(saga.records())
    dependencies = saga.plan.graph.dependencies
    return tuple(
        step
        for position, step in enumerate(saga.steps)
        if step.state is StepState.PENDING
        and all(
            records[other].state in ENDED_WELL or records[other].state is StepState.STARTED
            for other in dependencies[position]
        )
    )


def progress(saga: Saga) -> float:
    """Return how far a saga has come, from 0 to 1: through its steps, or on the way back through those to undo."""
    states = [record.state for record in saga.records()]
    if saga.state is SagaState.STARTED or saga.state is SagaState.COMPLETED or saga.past_pivot:
        return sum(state in ENDED_WELL for state in states) / len(states)
    undone = states.count(StepState.COMPENSATED)
    to_undo = undone + sum(
        (state is StepState.COMPLETED and (plan.compensation is not None or plan.child is not None))
        or state is StepState.COMPENSATING
        or (state is StepState.FAILED and bool(record.compensation_attempt))
        for state, plan, record in zip(states, saga.plan.steps, saga.records(), strict=True)
    )
    return undone / to_undo if to_undo else 1.0


def explain(saga: Saga) -> str:
    """Return one plain sentence on what a saga is waiting for, or how it came to rest."""
    what = f"Saga {saga.id} ({saga.name})"
    if saga.state is SagaState.COMPLETED:
        return f"{what} has completed."
    if saga.state is SagaState.COMPENSATED:
        return f"{what} is undone{_because(saga)}."
    if saga.state is SagaState.FAILED:
        return f"{what} has failed and needs a person: {_stuck(saga)}."
    parts = [
        part
        for part in (
            _named(saga, "the result of", lambda record: record.is_out and record.state is StepState.STARTED),
            _named(
                saga,
                "the compensation of",
                lambda record: record.is_out and record.state is StepState.COMPENSATING,
            ),
            _named(saga, "a callback for", lambda record: record.deferred),
            _waits(saga),
        )
        if part
    ]
    if saga.suspended:
        parts.append("somebody to resume it, for it is suspended")
    direction = "is being undone" if saga.state is SagaState.COMPENSATING else "is on its way"
    because = _because(saga) if saga.state is SagaState.COMPENSATING else ""
    return f"{what} {direction}{because}, and waits for {' and '.join(parts) or 'its turn'}."


def _named(saga: Saga, what: str, test: Test) -> str:
    active = positions(saga.running | saga.undoing)
    names = [saga.plan.steps[position].name for position in active if test(saga.record(position))]
    return f"{what} {_listed(names)}" if names else ""


def _waits(saga: Saga) -> str:
    waiting = [
        f"attempt {record.attempt if record.state is StepState.STARTED else record.compensation_attempt} of "
        f"{saga.plan.steps[position].name!r}{_after(record)}"
        for position in positions(saga.running | saga.undoing)
        if (record := saga.record(position)).waiting
    ]
    if waiting:
        return ", ".join(waiting[:MOST_NAMES])
    # What could begin and may not, although nobody suspended the saga, is there before its time.
    return f"its start at {saga.plan.options.start_at}" if saga.ready and not saga.suspended else ""


def _after(record: Progress) -> str:
    return f" at {record.until}, after {record.error.message!r}" if record.error is not None else ""


def _because(saga: Saga) -> str:
    for plan, record in zip(saga.plan.steps, saga.records(), strict=True):
        error = record.cause if record.compensation_attempt else record.error
        if error is not None:
            return f", because step {plan.name!r} failed: {error.message}"
    return ""


def _stuck(saga: Saga) -> str:
    found: list[str] = []
    for position in positions(saga.stuck):
        record = saga.record(position)
        operation = "the compensation of step" if record.compensation_attempt else "step"
        message = record.error.message if record.error is not None else "it failed"
        found.append(f"{operation} {saga.plan.steps[position].name!r} failed for good ({message})")
    return "; ".join(found[:MOST_NAMES])


def _listed(names: Iterable[str]) -> str:
    quoted = [repr(name) for name in names]
    more = f" and {len(quoted) - MOST_NAMES} more" if len(quoted) > MOST_NAMES else ""
    return f"{'step' if len(quoted) == 1 else 'steps'} {', '.join(quoted[:MOST_NAMES])}{more}"
