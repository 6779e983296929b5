"""What a saga's history tells: the state it leads to, and what one message of the past has caused."""

from collections.abc import Callable, Iterable

from msgspec import Struct

from saga_core.commands import Carried, Command, Compensate, Execute, Reply, Report, StateChanged
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
from saga_core.machine import begin, outstanding
from saga_core.model import Saga
from saga_core.plan import Plan
from saga_core.remote import asked_by
from saga_core.shortcut import transition


def fold(origin: Saga, history: Iterable[Event]) -> Saga:
    """Return the saga that the events lead to, starting from the saga as created."""
    saga = origin
    for event in history:
        saga = transition(saga, event).saga
    return saga


class Outcome(Struct, frozen=True, gc=False):
    """What a commit has caused: the saga as it stands by now, the commands that are still outstanding, and the news.

    The news is there where the commit brought the saga to another state, or made it. Where an event was ignored, there
    was no commit, and `ignored` says why.
    """

    saga: Saga
    commands: tuple[Command, ...] = ()
    news: StateChanged | None = None
    ignored: str | None = None


def create(plan: Plan) -> Outcome:
    """Make the saga of a plan, and return what its creation causes."""
    first = begin(plan)
    return Outcome(first.saga, first.commands, news(None, first.saga))


def created(saga: Saga) -> Outcome:
    """Return what the creation of a saga has caused, from the saga as it was created."""
    return Outcome(saga, outstanding(saga), news(None, saga))


def news(before: Saga | None, saga: Saga) -> StateChanged | None:
    """Return what to tell whoever listens, if a commit brought a saga to another state, or made it."""
    if before is not None and before.state is saga.state:
        return None
    tags = saga.plan.options.tags
    return StateChanged(saga.id, saga.name, saga.state, saga.revision, saga.updated_at, tags)


def consequences(origin: Saga, history: Iterable[Event], command: Carried) -> Outcome:
    """Return what a command's committed result has caused.

    Whoever committed the result may have died before publishing that. Publishing it again is harmless: at worst
    it is a duplicate. Nothing when the result was never committed.
    """
    return _caused(origin, history, Outcome(origin), lambda saga, event: _answers(event, command))


def caused_by(origin: Saga, history: Iterable[Event], revision: int) -> Outcome:
    """Return what the commit of a revision has caused.

    Revision 0 is the saga's creation. Nothing when there is no such revision.
    """
    first = created(origin) if revision == 0 else Outcome(origin)
    return _caused(origin, history, first, lambda saga, event: saga.revision == revision)


def _caused(
    origin: Saga,
    history: Iterable[Event],
    first: Outcome,
    is_it: Callable[[Saga, Event], bool],
) -> Outcome:
    saga, commands, told = origin, first.commands, first.news
    for event in history:
        before = saga
        answer = transition(before, event)
        saga = answer.saga
        if answer.ignored is None and is_it(saga, event):
            commands, told = answer.commands, news(before, saga)
    still = set(outstanding(saga))
    return Outcome(saga, tuple(one for one in commands if one in still), told)


_ANSWERS: dict[type[Command], tuple[type[Event], ...]] = {
    Execute: (StepSucceeded, StepFailed, StepSkipped, StepDeferred),
    Compensate: (CompensationSucceeded, CompensationFailed, CompensationDeferred),
}


def _answers(event: Event, command: Carried) -> bool:
    if isinstance(command, Reply):
        command = asked_by(command)
    if isinstance(event, ChildRested) and isinstance(command, Report):
        # A child comes to rest more than once: it completes, and is undone later. Each rest has a report of its own.
        told = (event.step, event.attempt, event.state, event.asked)
        return told == (command.step, command.attempt, command.state, command.asked)
    if not isinstance(event, _ANSWERS.get(type(command), ())):
        return False
    return event.step == command.step and event.attempt == command.attempt  # type: ignore[union-attr]
