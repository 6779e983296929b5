"""What is to happen at which moment of virtual time, whoever lives or dies until then: packets on their way."""

from collections.abc import Callable
from heapq import heappop, heappush

import trio

EPOCH = 1_700_000_000.0
"""The moment at which a world begins, in seconds since 1970."""


class Agenda:
    """Calls functions when their moment has come, those of one moment in the order in which they were entered."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._entered = 0
        self._sooner = trio.Event()

    def at(self, moment: float, do: Callable[[], None]) -> None:
        """Call a function at a moment of trio's clock. It must neither wait nor raise."""
        self._entered += 1
        heappush(self._due, (moment, self._entered, do))
        if self._due[0][1] == self._entered:
            self._sooner.set()

    def after(self, delay: float, do: Callable[[], None]) -> None:
        """Call a function after so many seconds."""
        self.at(trio.current_time() + delay, do)

    async def run(self) -> None:
        """Do what is due, for ever. Cancel it at any time."""
        while True:
            self._sooner = trio.Event()
            if not self._due:
                await self._sooner.wait()
            elif (moment := self._due[0][0]) > trio.current_time():
                with trio.move_on_at(moment):
                    await self._sooner.wait()
            else:
                heappop(self._due)[2]()
                if self._entered % 64 == 0:
                    await trio.lowlevel.checkpoint()
