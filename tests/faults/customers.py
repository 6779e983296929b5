"""Processes that place orders, each in one transaction with its saga, and are killed; and an engine that comes after.

Run by `generations`.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import anyio
from msgspec import Struct

from saga_amqp import Manager, Options, Saga
from tests.barrier.banks import ASYNC_KINDS, KINDS, Desk
from tests.engine.world import Services, Watch, World, steps

from .durable import Place, WrittenDown
from .generations import main
from .world import RabbitWorld

MOMENTS = (
    "before the order",
    "between order and saga",
    "after the saga",
    "just before COMMIT",
    "just after COMMIT",
)


class Life(Struct, frozen=True):
    """A customer who dies at a moment, or is killed after so many seconds; or, without a kind, an engine."""

    place: Place
    order: str = ""
    kind: str = ""
    moment: str = ""
    seconds: float = 0.0
    url: str = ""
    prefix: str = ""
    calls: str = ""


def nowhere(moment: str) -> None:
    """Survive."""


def options(order: str) -> Options:
    return Options(key=order, tags={"order": order})


def place_order(
    manager: Manager, kind: str, url: str, order: str, reached: Callable[[str], None] = nowhere
) -> Saga:
    """Write an order and start its saga, in one transaction."""
    with KINDS[kind][1](url) as desk:
        reached(MOMENTS[0])
        desk.write(f"INSERT INTO orders VALUES ('{order}')")
        reached(MOMENTS[1])
        saga = manager.start_in(
            desk.connection, "order", steps("a", "b"), {"order": order}, options=options(order)
        )
        reached(MOMENTS[2])
        desk.write("INSERT INTO orders VALUES ('one more')")
        desk.write("DELETE FROM orders WHERE id = 'one more'")
        reached(MOMENTS[3])
    reached(MOMENTS[4])
    return saga


async def place_order_async(
    manager: Manager, kind: str, url: str, order: str, reached: Callable[[str], None] = nowhere
) -> Saga:
    """Do the same on an asynchronous connection."""
    desk: Desk
    async with ASYNC_KINDS[kind][1](url) as desk:
        reached(MOMENTS[0])
        await desk.write(f"INSERT INTO orders VALUES ('{order}')")
        reached(MOMENTS[1])
        saga = await manager.start_in_async(
            desk.connection, "order", steps("a", "b"), {"order": order}, options=options(order)
        )
        reached(MOMENTS[2])
        await desk.write("INSERT INTO orders VALUES ('one more')")
        await desk.write("DELETE FROM orders WHERE id = 'one more'")
        reached(MOMENTS[3])
    reached(MOMENTS[4])
    return saga


async def live(life: Life) -> None:
    await (buy(life) if life.kind else run_engine(life))


async def buy(life: Life) -> None:
    def die(moment: str) -> None:
        if moment == life.moment:
            os.kill(os.getpid(), signal.SIGKILL)

    async with life.place.open() as store, Manager(None, store, World().config()) as manager:
        with killer(life.seconds):
            for number in count():
                order = f"{life.order}.{number}"
                arguments: tuple[Any, ...] = (manager, life.kind, life.place.url, order, die)
                if life.kind in ASYNC_KINDS:
                    await place_order_async(*arguments)
                else:
                    place_order(*arguments)


@contextmanager
def killer(seconds: float) -> Iterator[None]:
    """Have another process kill this one, wherever it is then."""
    victim = os.getpid()
    if seconds and not os.fork():
        time.sleep(seconds)
        os.kill(victim, signal.SIGKILL)
        os._exit(0)
    yield


async def run_engine(life: Life) -> None:
    """Bring every saga to rest."""
    world = RabbitWorld(life.url, life.prefix)
    world.services = Services(WrittenDown(life.calls))
    async with life.place.open() as world.store:
        while True:
            world.watch = Watch()
            async with world.running() as manager:
                while sagas := await manager.list_active():
                    async with anyio.create_task_group() as tasks:
                        for saga in sagas:
                            tasks.start_soon(manager.wait, saga.id)
                await world.until_all_is_acknowledged()
            if not any(world.ready()):
                return


if __name__ == "__main__":
    main(Life, live)
