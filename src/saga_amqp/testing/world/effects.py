"""What handlers have done to the world outside, held against what the sagas say."""

from collections.abc import Collection, Iterator

import msgspec

from saga_amqp.testing.world.ledger import Key, Ledger
from saga_amqp.testing.world.services import Act, Behaviour
from saga_amqp.testing.world.trace import Trace
from saga_core import Progress, Saga, StepState
from saga_core.draft import positions
from saga_core.testing.invariants import shape_of


def check_effects(
    sagas: Collection[Saga], ledger: Ledger, resolved: Collection[tuple[str, str]], trace: Trace
) -> Iterator[str]:
    """Go through the steps whose effects are not what the saga says.

    Left out are those that a person has resolved, and those whose outcome the outside has told otherwise than it was.
    """
    first: dict[Key, int] = {}
    for place, key in enumerate(ledger.order):
        first.setdefault(key, place)
    for saga in sagas:
        sure: dict[int, tuple[int | None, int | None]] = {}
        for position, step in enumerate(saga.plan.steps):
            if step.child is not None or (saga.id, step.name) in resolved:
                continue
            behaviour = msgspec.json.decode(step.input, type=Behaviour)
            if any(_doubtful(act) for act in (*behaviour.do, *behaviour.undo)):
                continue
            done = ledger.effects.get(Key(saga.id, step.name, "execute"), 0)
            undone = ledger.effects.get(Key(saga.id, step.name, "compensate"), 0)
            record = saga.record(position)
            problem = _guarded(record, done, undone) if behaviour.guarded else _bare(record, done, undone)
            if problem:
                yield f"{trace.name(saga.id)}.{step.name} is {record.state}, and {problem}"
            if behaviour.guarded:
                sure[position] = (
                    first.get(Key(saga.id, step.name, "execute")),
                    first.get(Key(saga.id, step.name, "compensate")),
                )
        yield from _order(saga, sure, trace)


def _guarded(record: Progress, done: int, undone: int) -> str | None:
    if done > 1 or undone > 1:
        return f"behind its barrier it was done {done} times and undone {undone} times"
    if record.state is StepState.COMPLETED and (done, undone) != (1, 0):
        return f"it was done {done} times and undone {undone} times"
    if record.state is StepState.COMPENSATED and done != undone:
        return f"it was done {done} times and undone {undone} times (I5)"
    quiet = record.state in (StepState.PENDING, StepState.SKIPPED, StepState.FAILED)
    if quiet and not record.unknown and record.compensation_attempt == 0 and done:
        return "its effect stays, unknown to the saga"
    return None


def _bare(record: Progress, done: int, undone: int) -> str | None:
    if record.state is StepState.COMPLETED and not done:
        return "it was never done"
    if record.state is StepState.COMPENSATED and not undone:
        return "it was never undone (I5)"
    return None


def _order(saga: Saga, sure: dict[int, tuple[int | None, int | None]], trace: Trace) -> Iterator[str]:
    above = shape_of(saga.plan).above
    for position, (done, undone) in sure.items():
        for other in positions(above[position]):
            later_done, later_undone = sure.get(other, (None, None))
            name = f"{trace.name(saga.id)}: {saga.plan.steps[position].name}"
            if done is not None and later_done is not None and later_done < done:
                yield f"{name} was done after {saga.plan.steps[other].name}, which depends on it"
            if undone is not None and later_undone is not None and undone < later_undone:
                yield f"{name} was undone before {saga.plan.steps[other].name}, which depends on it (I4)"


def _doubtful(act: Act) -> bool:
    return act.call is not None and act.call.outcome != "well"
