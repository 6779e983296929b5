"""What a saga's history tells: the state it leads to, and what one message of the past has caused."""

from collections.abc import Iterable

from saga_core.commands import Command, Compensate, Execute, Report
from saga_core.events import (
    ChildRested,
    CompensationDeferred,
    CompensationFailed,
    CompensationSucceeded,
    Event,
    StepDeferred,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)
from saga_core.machine import outstanding
from saga_core.model import Saga
from saga_core.shortcut import transition


def fold(origin: Saga, history: Iterable[Event]) -> Saga:
    """Return the saga that the events lead to, starting from the saga as created."""
    saga = origin
    for event in history:
        saga = transition(saga, event).saga
    return saga


def consequences(origin: Saga, history: Iterable[Event], command: Command) -> tuple[Command, ...]:
    """Return the commands that a command's committed result caused and that are still outstanding.

    Whoever committed the result may have died before publishing them. Publishing them again is harmless: at worst
    they are duplicates. Empty when the result was never committed.
    """
    caused: tuple[Command, ...] = ()
    saga = origin
    for event in history:
        answer = transition(saga, event)
        saga = answer.saga
        if answer.ignored is None and _answers(event, command):
            caused = answer.commands
    return _still(saga, caused)


def caused_by(origin: Saga, history: Iterable[Event], revision: int) -> tuple[Command, ...]:
    """Return the commands that the commit of a revision caused and that are still outstanding.

    Revision 0 is the saga's creation. Empty when there is no such revision.
    """
    caused = outstanding(origin) if revision == 0 else ()
    saga = origin
    for event in history:
        answer = transition(saga, event)
        saga = answer.saga
        if answer.ignored is None and saga.revision == revision:
            caused = answer.commands
    return _still(saga, caused)


def _still(saga: Saga, caused: tuple[Command, ...]) -> tuple[Command, ...]:
    still = set(outstanding(saga))
    return tuple(one for one in caused if one in still)


_ANSWERS: dict[type[Command], tuple[type[Event], ...]] = {
    Execute: (StepSucceeded, StepFailed, StepSkipped, StepDeferred),
    Compensate: (CompensationSucceeded, CompensationFailed, CompensationDeferred),
}


def _answers(event: Event, command: Command) -> bool:
    if isinstance(event, ChildRested) and isinstance(command, Report):
        # A child comes to rest more than once: it completes, and is undone later. Each rest has a report of its own.
        told = (event.step, event.attempt, event.state, event.asked)
        return told == (command.step, command.attempt, command.state, command.asked)
    if not isinstance(event, _ANSWERS.get(type(command), ())):
        return False
    return event.step == command.step and event.attempt == command.attempt  # type: ignore[union-attr]
