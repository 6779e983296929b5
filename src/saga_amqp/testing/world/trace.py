"""What happened in a world, line by line. Two runs of one seed write the same lines, and so have the same hash."""

from hashlib import blake2b

import trio
from msgspec import Struct

from saga_core import (
    Carried,
    ChildRested,
    Compensate,
    CompensateChild,
    Event,
    Execute,
    Reply,
    Report,
    Saga,
    StartChild,
    TimePassed,
)

_WORDS: dict[type[Carried], str] = {
    Execute: "execute",
    Compensate: "undo",
    StartChild: "start the child of",
    CompensateChild: "undo the child of",
    Report: "report to",
    Reply: "reply to",
}


class Line(Struct, frozen=True):
    """One thing that happened: when, in seconds of virtual time; where; and to which saga, if it was to one."""

    at: float
    who: str
    what: str
    saga: str = ""
    is_fault: bool = False

    def __str__(self) -> str:
        return f"{self.at:10.3f}  {self.who:<8} {'! ' if self.is_fault else ''}{self.what}"


class Trace:
    """The lines, and short names for sagas: `s1` is the first that was started, `s1.pay` the child of its step."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._names: dict[str, str] = {}

    def note(self, who: str, what: str, saga: str = "", *, is_fault: bool = False) -> None:
        """Write a line."""
        self.lines.append(Line(trio.current_time(), who, what, saga, is_fault))

    def digest(self) -> str:
        """Return a hash of all lines."""
        hashed = blake2b(digest_size=16)
        for line in self.lines:
            hashed.update(f"{line.at!r} {line.who} {line.what}\n".encode())
        return hashed.hexdigest()

    def baptise(self, saga: Saga) -> None:
        """Give a new saga its short name."""
        parent = saga.plan.parent
        if parent is None:
            self._names[saga.id] = f"s{1 + sum('.' not in name for name in self._names.values())}"
        else:
            self._names[saga.id] = f"{self.name(parent.saga)}.{parent.step}#{parent.attempt}"

    def name(self, saga_id: str) -> str:
        """Return the short name of a saga."""
        return self._names.get(saga_id, saga_id)

    def command(self, command: Carried) -> str:
        """Return a command in words."""
        return f"{_WORDS[type(command)]} {self.name(command.saga)}.{command.step} #{command.attempt}"

    def event(self, event: Event) -> str:
        """Return an event in words."""
        if isinstance(event, TimePassed):
            return "TimePassed"
        words = [type(event).__name__]
        if (step := getattr(event, "step", None)) is not None:
            words.append(step)
        if (attempt := getattr(event, "attempt", None)) is not None:
            words.append(f"#{attempt}")
        if isinstance(event, ChildRested):
            words.append(f"({event.state})")
        if (error := getattr(event, "error", None)) is not None:
            words.append(f"({error.code})")
        return " ".join(words)
