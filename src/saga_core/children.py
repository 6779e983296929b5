"""Sagas within sagas: how a child is made, and what comes of an order to undo it."""

from saga_core.commands import CompensateChild, StartChild
from saga_core.events import ChildRested, CompensationFailed, CompensationRequested, Event
from saga_core.machine import begin
from saga_core.model import Saga
from saga_core.plan import Failure, plan_child
from saga_core.states import SagaState


def child_saga(parent: Saga, command: StartChild, at: float) -> Saga:
    """Build the child saga that a command asks for. The same command gives the same child but for the time.

    Raises: DefinitionError when the step has no child; UnknownStepError.
    """
    step = parent.plan.steps[parent.plan.position(command.step)]
    return begin(plan_child(parent.plan, step, command.attempt, at)).saga


def order_to_undo(
    parent: Saga, child: Saga | None, command: CompensateChild, at: float
) -> tuple[Saga, Event]:
    """Return the saga that an order to undo a child is about, its parent or itself, and the event that it is.

    `child` is None where it was never started.

    Raises: UnknownStepError.
    """
    if child is None or child.is_compensated:
        # There is nothing to undo: its parent asks for it no more, or it has told so before anybody would listen.
        attempt, asked = parent.progress_of(command.step).attempt, 0 if child is None else child.asked
        return parent, ChildRested(command.step, attempt, command.child, SagaState.COMPENSATED, at, asked)
    if child.past_pivot:
        error = Failure("child_past_pivot", f"the child saga {child.id} is past its pivot")
        return parent, CompensationFailed(command.step, command.attempt, error, at)
    return child, CompensationRequested(f"its parent {parent.id} is undone", at, attempt=command.attempt)
