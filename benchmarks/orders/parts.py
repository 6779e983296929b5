"""The parts of an order that is alone, each measured alone: hops, commits, handlers. What a whole one adds is ours.

Three hops through the broker, each with its confirm; the creation of a saga and three commits; three calls of
handlers. Nothing else has to happen before a saga of three steps has ended.
"""

import time
from collections.abc import Awaitable, Callable

import anyio
import msgspec
from msgspec import Raw
from ulid import ULID

from benchmarks.orders.load import latency
from benchmarks.orders.shop import CUSTOMER, STEPS, Shop
from benchmarks.runner import Latency
from saga_amqp import AmqpTransport
from saga_amqp.contracts import Delivery, Message, Queue, Store, Topology
from saga_amqp.errors import TransportError
from saga_core import Saga, StepSucceeded, new_saga, transition

BODY = msgspec.json.encode({"saga": str(ULID()), "pad": "x" * 200})
OUTPUT = Raw(b'{"reserved":2}')


class Parts(msgspec.Struct, frozen=True):
    """What the parts of one order take, in milliseconds."""

    hops: Latency
    commits: Latency
    handlers: Latency

    def together(self) -> Latency:
        """Return the sum: of the medians, of the others."""
        parts = (self.hops, self.commits, self.handlers)
        return Latency(*(sum(getattr(part, name) for part in parts) for name in Latency.__struct_fields__))


async def parts(url: str, store: Store, times: int = 150) -> Parts:
    """Measure each of them so many times."""
    return Parts(
        await _hops(url, times),
        await _repeatedly(lambda: _commits(store), times),
        await _repeatedly(_handlers, times),
    )


async def _hops(url: str, times: int) -> Latency:
    queue = f"bench-{ULID()}"
    async with AmqpTransport(url) as transport:
        await transport.declare(Topology(exchanges=(), queues=(Queue(queue, expires=60.0),)))
        arrived: list[Delivery] = []
        left, both = 0, anyio.Event()

        def one_came() -> None:
            nonlocal left
            left -= 1
            if not left:
                both.set()

        def receive(delivery: Delivery) -> None:
            arrived.append(delivery)
            one_came()

        def settled(error: TransportError | None) -> None:
            if error is not None:
                raise error
            one_came()

        async def three_hops() -> None:
            nonlocal left, both
            for _ in range(STEPS):
                left, both = 2, anyio.Event()
                await transport.publish(Message("", queue, BODY, str(ULID()), "hop"), settled)
                await both.wait()
                arrived.pop().acknowledge()

        async with transport.consume(queue, 10, receive):
            return await _repeatedly(three_hops, times)


async def _commits(store: Store) -> None:
    saga = await store.create(_saga(), unpublished=time.time() + 60)
    for step in saga.steps:
        event = StepSucceeded(step.name, 1, OUTPUT, time.time())
        saga = transition(saga, event).saga
        await store.commit(saga, event)


async def _handlers() -> None:
    shop, saga = Shop(), _saga()
    for step, handler in zip(saga.steps, shop.registry.actions.values(), strict=True):
        await handler.function(saga, saga.step(step.name, handler.input_type))


def _saga() -> Saga:
    return new_saga("order", Shop().order(), CUSTOMER, id=str(ULID()), at=time.time())


async def _repeatedly(do: Callable[[], Awaitable[None]], times: int) -> Latency:
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        await do()
        taken.append(time.perf_counter() - began)
    return latency(taken[times // 10 :])
