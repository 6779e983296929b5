"""The loads: clients that start orders and wait for their end, and orders that all wait at once."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from resource import getpagesize
from typing import Self

import anyio
import msgspec

from benchmarks.orders.shop import CUSTOMER, STEPS, Shop
from benchmarks.runner import Latency
from saga_amqp import Manager, SagaState

FEWEST = 2
"""Orders that a latency can be told of."""


class Outcome(msgspec.Struct, frozen=True):
    """What a load came to: steps per second, microseconds of processor time per step, and the times of whole sagas.

    A step is a handler that ran and whose result was committed; of an undone order there are five. `ran` and `ended`
    count handlers and orders, warm-up included.
    """

    at_once: int
    rate: float
    cpu: float
    latency: Latency
    ran: int = 0
    ended: int = 0

    @classmethod
    def of_latency(cls, latency: Latency) -> Self:
        """Return the outcome of orders one after the other that take so long; nothing is known of processor time."""
        return cls(1, STEPS / latency.p50 * 1e3, 0.0, latency)


class Weight(msgspec.Struct, frozen=True):
    """Bytes of memory that a process has: of an engine that has nothing to do, and more for each saga in flight."""

    idle: float
    per_saga: float


class BrokenOrderError(AssertionError):
    """An order did not end as it must, or a handler ran more than once: the figure is worth nothing."""


async def drive(
    manager: Manager,
    shop: Shop,
    at_once: int,
    *,
    declined: bool,
    warm_up: float,
    seconds: float,
    watched: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Outcome:
    """Keep so many orders going, and measure for so many seconds once they have warmed up; then let them end.

    On a busy machine it is measured for longer, until there is a latency to tell of.

    What is counted is handlers that began: that many have ended too, but for the difference of what is under way at
    both ends. `watched` is entered while it is measured.

    Raises: BrokenOrderError.
    """
    rest = SagaState.COMPENSATED if declined else SagaState.COMPLETED
    ended, counting, going = 0, False, True
    times: list[float] = []
    enough = anyio.Event()

    async def client() -> None:
        nonlocal ended
        while going:
            began = time.perf_counter()
            saga = await manager.start("order", shop.order(declined=declined), CUSTOMER)
            saga = await manager.wait(saga.id)
            if saga.state is not rest:
                raise BrokenOrderError(f"{saga.id} is {saga.state}")
            ended += 1
            if counting:
                times.append(time.perf_counter() - began)
                if len(times) == FEWEST:
                    enough.set()

    async with anyio.create_task_group() as clients:
        for _ in range(at_once):
            clients.start_soon(client)
        await anyio.sleep(warm_up)
        counting = True
        with watched():
            ran, began, cpu = shop.ran, time.perf_counter(), time.process_time()
            await anyio.sleep(seconds)
            await enough.wait()
            ran, taken, cpu = shop.ran - ran, time.perf_counter() - began, time.process_time() - cpu
        counting = going = False
    return Outcome(at_once, ran / taken, cpu / max(ran, 1) * 1e6, latency(times), shop.ran, ended)


def check(outcomes: Sequence[Outcome], *, declined: bool = False) -> None:
    """See that engines that share their queues ran each handler once. Raises: BrokenOrderError."""
    ran, ended = sum(one.ran for one in outcomes), sum(one.ended for one in outcomes)
    if ran != ended * (2 * STEPS - 1 if declined else STEPS):
        raise BrokenOrderError(f"{ended} orders took {ran} runs of handlers")


async def chain(manager: Manager, shop: Shop, at_once: int, steps: int, total: int) -> Outcome:
    """Run orders of so many steps each, so many at once and with about so many steps in all, each from start to end."""
    each = max(1, total // (steps * at_once))
    times: list[float] = []

    async def client() -> None:
        for _ in range(each):
            began = time.perf_counter()
            saga = await manager.start("order", shop.chain(steps), CUSTOMER)
            saga = await manager.wait(saga.id)
            if not saga.is_completed:
                raise BrokenOrderError(f"{saga.id} is {saga.state}")
            times.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as clients:
        for _ in range(at_once):
            clients.start_soon(client)
    taken, cpu = time.perf_counter() - began, time.process_time() - cpu
    if shop.ran != each * at_once * steps:
        raise BrokenOrderError(f"{each * at_once} orders of {steps} steps took {shop.ran} runs of handlers")
    return Outcome(at_once, shop.ran / taken, cpu / shop.ran * 1e6, latency(times), shop.ran, each * at_once)


async def weigh(manager: Manager, shop: Shop, count: int) -> Weight:
    """See what memory an idle engine has, and how much more with so many orders whose first handlers all wait."""
    await anyio.sleep(0.5)
    idle = resident()
    async with anyio.create_task_group() as clients:
        for _ in range(count):
            clients.start_soon(manager.start, "order", shop.order(), CUSTOMER)
    await shop.has_run(count)
    return Weight(idle, (resident() - idle) / count)


def latency(times: Sequence[float]) -> Latency:
    """Sum up the seconds that single operations took."""
    if len(times) < FEWEST:
        raise BrokenOrderError(f"only {len(times)} operations ended while it was measured")
    hundredths = statistics.quantiles(times, n=100, method="inclusive")
    return Latency(*(hundredths[part - 1] * 1e3 for part in (50, 95, 99)))


def resident() -> float:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
