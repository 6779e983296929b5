"""The load: so many clients, each of which starts an order and waits for its end, again and again."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import anyio
import msgspec

from benchmarks.orders.shop import CUSTOMER, STEPS, Shop
from benchmarks.runner import Latency
from saga_amqp import Manager, SagaState


class Outcome(msgspec.Struct, frozen=True):
    """What a load came to: steps per second, microseconds of processor time per step, and the times of whole sagas.

    A step is a handler that ran and whose result was committed; of an undone order there are five.
    """

    at_once: int
    rate: float
    cpu: float
    latency: Latency

    @classmethod
    def of_latency(cls, latency: Latency) -> Self:
        """Return the outcome of orders one after the other that take so long; nothing is known of processor time."""
        return cls(1, STEPS / latency.p50 * 1e3, 0.0, latency)


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

    What is counted is handlers that began: that many have ended too, but for the difference of what is under way at
    both ends. `watched` is entered while it is measured.

    Raises: BrokenOrderError.
    """
    rest = SagaState.COMPENSATED if declined else SagaState.COMPLETED
    ended, counting, going = 0, False, True
    times: list[float] = []

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

    async with anyio.create_task_group() as clients:
        for _ in range(at_once):
            clients.start_soon(client)
        await anyio.sleep(warm_up)
        counting = True
        with watched():
            ran, began, cpu = shop.ran, time.perf_counter(), time.process_time()
            await anyio.sleep(seconds)
            ran, taken, cpu = shop.ran - ran, time.perf_counter() - began, time.process_time() - cpu
        counting = going = False
    if shop.ran != ended * (2 * STEPS - 1 if declined else STEPS):
        raise BrokenOrderError(f"{ended} orders took {shop.ran} runs of handlers")
    return Outcome(at_once, ran / taken, cpu / max(ran, 1) * 1e6, latency(times))


def latency(times: Sequence[float]) -> Latency:
    """Sum up the seconds that single operations took."""
    if len(times) < 2:
        raise BrokenOrderError(f"only {len(times)} operations ended while it was measured")
    hundredths = statistics.quantiles(times, n=100, method="inclusive")
    return Latency(*(hundredths[part - 1] * 1e3 for part in (50, 95, 99)))
