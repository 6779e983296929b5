"""Sagas as this engine left them a moment ago, so that the next message about one needs no read.

What is remembered may be behind the store: others may have committed since. The compare-and-set of the commit is the
guard. And so that no handler runs for a result that others have committed, only those commands count that this engine's
own commits have caused: they are in two queues at once only if a confirm was lost with its connection, when all is
forgotten; or if a sweep takes them for lost, which waits for longer than anything is remembered.
"""

from collections.abc import Callable

from msgspec import Struct

from saga_core import Carried, Compensate, Execute, Outcome, Saga, awaits

FRESH = 1.0
"""Seconds for which a saga is remembered."""


class _Left(Struct, frozen=True, gc=False):
    at: float
    line: int
    saga: Saga
    commands: tuple[Carried, ...]


class Recent:
    """Sagas for a second. `clock` gives seconds, `line` tells one connection from the next."""

    def __init__(self, clock: Callable[[], float], line: Callable[[], int]) -> None:
        self._clock = clock
        self._line = line
        self._left: dict[str, _Left] = {}

    def keep(self, outcome: Outcome) -> None:
        """Remember what this engine has committed."""
        saga, now, line = outcome.saga, self._clock(), self._line()
        saga_id = saga.plan.id
        before = self._left.pop(saga_id, None)
        if not saga.at_rest:
            commands: tuple[Carried, ...] = outcome.commands
            if before is not None and before.line == line and before.saga.revision + 1 == saga.revision:
                commands += before.commands
            self._left[saga_id] = _Left(now, line, saga, commands)
        for oldest in self._left:
            if abs(now - self._left[oldest].at) > FRESH:
                del self._left[oldest]
            break

    def find(self, command: Execute | Compensate) -> Saga | None:
        """Return the saga that a command is about, if it is remembered and awaits it.

        Not so for a report or a reply: what is behind the store may ignore what the store would not.
        """
        left = self._left.get(command.saga)
        if left is None or left.line != self._line() or abs(self._clock() - left.at) > FRESH:
            return None
        return left.saga if command in left.commands and awaits(left.saga, command) else None

    def forget(self, saga_id: str) -> None:
        """Forget a saga, which need not be known."""
        self._left.pop(saga_id, None)
