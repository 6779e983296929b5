"""Fold a stored history through the core of today: does a new release still decide as the old one did?"""

from collections.abc import Sequence

from msgspec import Struct

from saga_core.events import Event
from saga_core.model import Saga
from saga_core.shortcut import transition


class Replay(Struct, frozen=True):
    """The outcome of a replay. `different` is the place of the first event that is answered otherwise."""

    saga: Saga
    different: int | None
    why: str | None

    def __bool__(self) -> bool:
        return self.different is None


def replay(origin: Saga, history: Sequence[Event], stored: Saga | None = None) -> Replay:
    """Fold a history, starting from the saga as created, and compare the end with the saga as stored.

    Every event of a history was applied when it was kept; one that is ignored now is answered otherwise.

    Raises: UnknownStepError when the history belongs to another saga.
    """
    saga = origin
    for place, event in enumerate(history):
        answer = transition(saga, event)
        if answer.ignored is not None:
            return Replay(
                saga, place, f"{type(event).__name__} at {event.at} is ignored now: {answer.ignored}"
            )
        saga = answer.saga
    if stored is not None and saga != stored:
        fields = [name for name in Saga.__struct_fields__ if getattr(saga, name) != getattr(stored, name)]
        return Replay(saga, len(history), f"the saga differs from the stored one in: {', '.join(fields)}")
    return Replay(saga, None, None)
