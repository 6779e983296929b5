"""The load for rivals: the same as for ours, clients that start a saga and wait for its end, again and again."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

from benchmarks.orders.load import BrokenOrderError, Outcome, latency
from benchmarks.orders.shop import STEPS


class Clock:
    """Counts sagas that end while it is measured."""

    def __init__(self, warm_up: float, seconds: float) -> None:
        self.begin = time.perf_counter() + warm_up
        self.end = self.begin + seconds
        self._times: list[float] = []
        self._cpu = [0.0, 0.0]

    @property
    def running(self) -> bool:
        return time.perf_counter() < self.end

    def ended(self, began: float) -> None:
        """Take note of a saga that has just ended."""
        now = time.perf_counter()
        if self.begin <= now <= self.end:
            self._times.append(now - began)

    def outcome(self, at_once: int) -> Outcome:
        """Sum up. A saga has three steps; processor time is not known, for it is spent in many processes."""
        rate = len(self._times) * STEPS / (self.end - self.begin)
        return Outcome(at_once, rate, 0.0, latency(self._times))


async def load(do: Callable[[int], Awaitable[None]], at_once: int, seconds: float) -> Outcome:
    """Keep so many sagas going; `do` runs one, and is told which of the clients it is."""
    clock = Clock(seconds / 3, seconds)

    async def client(number: int) -> None:
        while clock.running:
            began = time.perf_counter()
            await do(number)
            clock.ended(began)

    await asyncio.gather(*(client(number) for number in range(at_once)))
    return clock.outcome(at_once)


def load_in_threads(do: Callable[[], None], at_once: int, seconds: float) -> Outcome:
    """Keep so many sagas going, each in a thread; `do` runs one."""
    clock, failures = Clock(seconds / 3, seconds), list[Exception]()

    def client() -> None:
        try:
            while clock.running:
                began = time.perf_counter()
                do()
                clock.ended(began)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise BrokenOrderError("a client failed") from failures[0]
    return clock.outcome(at_once)
