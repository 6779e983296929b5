"""Processes with an engine that the message for one step kills, beside others that do no harm.

Run by `generations`: one life after the other, on the same store and queues. One that survives lives until all sagas
rest.
"""

# A broker tells nobody when a queue is empty.
# ruff: noqa: ASYNC110

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import anyio
from msgspec import Struct

from saga_amqp import AmqpTransport, Moment, Point, Saga, Step
from saga_amqp.contracts import Consumer, Delivery
from saga_core import Execute
from tests.engine.world import Services

from .durable import Place, WrittenDown
from .generations import main
from .world import POLL_INTERVAL, RabbitWorld

PATIENCE = 0.2
"""Seconds that the handler of step `c` takes, which does no harm."""


class Life(Struct, frozen=True):
    """One process. The handler of step `b` kills it, or, if `reading` is set, the mere reading of its message does.

    `limit` is how often a message may come back. With `point` it dies there, over the action of step `b`.
    """

    url: str
    prefix: str
    place: Place
    calls: str
    limit: int
    reading: bool = False
    point: Point | None = None


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class Fragile(AmqpTransport):
    """Dies of reading the message for step `b` from the step queue, before any engine sees it."""

    @asynccontextmanager
    async def consume(
        self, queue: str, prefetch: int, receive: Callable[[Delivery], None]
    ) -> AsyncIterator[Consumer]:
        def take(delivery: Delivery) -> None:
            if queue.endswith("steps") and ".b.execute." in delivery.message_id:
                die()
            receive(delivery)

        async with super().consume(queue, prefetch, take) as consumer:
            yield consumer


async def live(life: Life) -> None:
    async def kill(saga: Saga, step: Step[Any]) -> None:
        die()

    async def take_time(saga: Saga, step: Step[Any]) -> None:
        await anyio.sleep(PATIENCE)

    def observe(moment: Moment) -> None:
        command = moment.command
        if moment.point is life.point and isinstance(command, Execute) and command.step == "b":
            die()

    world = RabbitWorld(life.url, life.prefix)
    world.services = Services(WrittenDown(life.calls), {"do.b": kill, "do.c": take_time})
    transport = Fragile(life.url) if life.reading else AmqpTransport(life.url)
    async with (
        life.place.open() as world.store,
        world.running(
            transport=transport, observer=observe, delivery_limit=life.limit, republish_after=0.5
        ) as manager,
    ):
        while sagas := await manager.list_active():
            for saga in sagas:
                await manager.wait(saga.id)
        while any(world.ready()[:-1]):
            await anyio.sleep(POLL_INTERVAL)


if __name__ == "__main__":
    main(Life, live)
