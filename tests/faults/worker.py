"""A process that runs one engine for one saga of two steps, and reports what happens, one JSON object a line.

    python -m tests.faults.worker URL PREFIX BACKEND hang|work

Every worker creates the same saga in a store of its own, so that each knows it: a store that processes share is no
part of this. With `hang`, the first step's handler never returns.
"""

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from saga_amqp import Manager, MemoryStore, Saga, Step
from saga_amqp.contracts import Consumer, Delivery
from saga_amqp.transports.amqp.transport import AmqpTransport
from saga_core import new_saga
from tests.engine.world import steps
from tests.faults.world import RabbitWorld

SAGA_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
AT = 1_700_000_000.0


def the_saga() -> Saga:
    return new_saga("s", steps("a", "b"), id=SAGA_ID, at=AT)


def report(**what: object) -> None:
    print(json.dumps(what), flush=True)


class Reporting(AmqpTransport):
    """Reports each delivery, and whether the broker has delivered it before."""

    @asynccontextmanager
    async def consume(
        self, queue: str, prefetch: int, receive: Callable[[Delivery], None]
    ) -> AsyncIterator[Consumer]:
        def take(delivery: Delivery) -> None:
            report(
                delivered=delivery.message_id.removeprefix(f"{SAGA_ID}."), redelivered=delivery.redelivered
            )
            receive(delivery)

        async with super().consume(queue, prefetch, take) as consumer:
            yield consumer


async def main(url: str, prefix: str, how: str) -> None:
    world = RabbitWorld(url, prefix)

    async def hang(saga: Saga, step: Step[Any]) -> None:
        report(handling=step.name)
        await anyio.sleep_forever()

    async def work(saga: Saga, step: Step[Any]) -> dict[str, object]:
        report(handling=step.name)
        return {"done": step.name}

    for name in ("do.a", "do.b"):
        world.replace(name, hang if how == "hang" else work)
    store = MemoryStore()
    await store.create(the_saga())
    async with (
        Manager(Reporting(url), store, world.config()) as manager,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(manager.run)
        report(running=True)
        saga = await manager.wait(SAGA_ID)
        manager.stop()
    report(state=saga.state, outputs=[step.output for step in saga.steps])


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[4], backend=sys.argv[3])
