"""The moments when time alone moves a saga on, held in memory by the engine that learnt of them.

They fire to the millisecond. Those that are far away are not held: a sweep finds them in the store when they are due,
as it finds those of engines that have died.
"""

from collections.abc import Callable
from heapq import heappop, heappush

import anyio

from saga_core import Saga, wake_at

HORIZON = 60.0
"""Seconds. What is due later is left to the sweep."""


class Timers:
    """A heap of (moment, saga); a later moment for the same saga replaces nothing, and fires into the void."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: list[tuple[float, str]] = []
        self._known: set[tuple[float, str]] = set()
        self._sooner = anyio.Event()

    def hold(self, saga: Saga) -> None:
        """Remember when time will next change something in a saga."""
        moment = wake_at(saga)
        if (
            moment is None
            or (moment, saga.id) in self._known
            or moment > max(saga.updated_at, self._clock()) + HORIZON
        ):
            return
        self._known.add((moment, saga.id))
        heappush(self._due, (moment, saga.id))
        if self._due[0] == (moment, saga.id):
            self._sooner.set()

    async def run(self, fire: Callable[[str], None]) -> None:
        """Call `fire` with a saga's id when its moment has come, for ever. Cancel it at any time."""
        while True:
            self._sooner = anyio.Event()
            if not self._due:
                await self._sooner.wait()
            elif (left := self._due[0][0] - self._clock()) > 0:
                with anyio.move_on_after(left):
                    await self._sooner.wait()
            else:
                entry = heappop(self._due)
                self._known.discard(entry)
                fire(entry[1])
