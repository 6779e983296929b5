"""A process that is one of two services: orders, with the sagas and their store, or payments, with a broker only.

    python -m tests.faults.services URL PREFIX orders|payments DIRECTORY ORDERS HANGS_AFTER BACKEND

Each writes what took effect to a database of its own, under the barrier, and reports what happens, one JSON object a
line. After as many effects as it is told (0: never) it reports `hanging`, in a handler that has just committed and that
never returns: whoever kills the process then has it die between effect and answer. Told to end, by SIGTERM, it does so
when its queues are empty.
"""

import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import anyio
import anyio.to_thread

from saga_amqp import Config, Options, Participant, Saga, SagaState, SQLiteStore, Step, StepError, barrier
from saga_amqp.transports.amqp.transport import AmqpTransport
from tests.engine.world import Watch

from .worker import report
from .world import RabbitWorld

PAYMENTS = ("payments.steps", "payments.compensate")
AT_ONCE = 50
LINGER = 0.005
"""Seconds that a handler takes, so that several are under way when their process is killed."""

Effect = tuple[str, str, str]
"""A saga, a step, and `execute` or `compensate`."""


class Effects:
    """What has taken effect, in a file. A kill loses nothing of it, so nothing waits for the disk."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("CREATE TABLE IF NOT EXISTS effects (saga TEXT, step TEXT, operation TEXT)")
        barrier.create_table(self._connection)
        self._lock = Lock()

    def take(self, saga: Saga, step: Step[Any]) -> object:
        """Take effect, once, and return the handler's answer."""
        operation = "compensate" if step.state == "compensating" else "execute"

        def body() -> dict[str, object]:
            self._connection.execute("INSERT INTO effects VALUES (?, ?, ?)", (saga.id, step.name, operation))
            return {"done": step.name}

        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:
                return barrier.run(self._connection, saga, step, body)

    def counted(self) -> Counter[Effect]:
        """Return how often each has happened."""
        return Counter(self._connection.execute("SELECT saga, step, operation FROM effects").fetchall())

    def close(self) -> None:
        self._connection.close()


def declined(number: int) -> bool:
    """Whether the payment of an order fails."""
    return number % 5 == 0


def unsendable(number: int) -> bool:
    """Whether an order that was paid cannot be sent."""
    return number % 5 == 1


def order() -> list[Step[Any]]:
    return [
        Step(name="create", action="order.create", compensation="order.delete"),
        Step(name="pay", action="payment.charge", compensation="payment.refund"),
        Step(name="send", action="order.send"),
    ]


def expected(saga: Saga) -> tuple[SagaState, set[Effect]]:
    """Return how an order has to end, and what has to have taken effect then."""
    number = saga.context["number"]
    assert isinstance(number, int)
    create, uncreate = (saga.id, "create", "execute"), (saga.id, "create", "compensate")
    pay, refund = (saga.id, "pay", "execute"), (saga.id, "pay", "compensate")
    if declined(number):
        return SagaState.COMPENSATED, {create, uncreate}
    if unsendable(number):
        return SagaState.COMPENSATED, {create, pay, refund, uncreate}
    return SagaState.COMPLETED, {create, pay, (saga.id, "send", "execute")}


class Service:
    """What the two have in common: effects, and when to hang."""

    def __init__(self, directory: Path, name: str, hangs_after: int) -> None:
        self.effects = Effects(directory / f"{name}.effects")
        self._left = hangs_after

    async def act(self, saga: Saga, step: Step[Any]) -> object:
        await anyio.sleep(LINGER)
        answer = await anyio.to_thread.run_sync(self.effects.take, saga, step)
        self._left -= 1
        if self._left == 0:
            report(hanging=step.name)
            await anyio.sleep_forever()
        return answer

    def failing(
        self, when: Callable[[int], bool], code: str
    ) -> Callable[[Saga, Step[Any]], Awaitable[object]]:
        """Return a handler that does not act for some of the orders."""

        async def handler(saga: Saga, step: Step[Any]) -> object:
            number = saga.context["number"]
            assert isinstance(number, int)
            if when(number):
                raise StepError(code, f"it is order {number}")
            return await self.act(saga, step)

        return handler


@asynccontextmanager
async def until_told_to_end() -> AsyncIterator[anyio.Event]:
    """Give an event that comes with SIGTERM."""
    told = anyio.Event()

    async def listen() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                told.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        yield told
        tasks.cancel_scope.cancel()


async def payments(world: RabbitWorld, service: Service) -> None:
    names = {"step_queue": PAYMENTS[0], "compensate_queue": PAYMENTS[1]}
    config: Config = world.config(
        **names,
        step_handlers={"payment.charge": service.failing(declined, "declined")},
        compensation_handlers={"payment.refund": service.act},
    )
    world.queues = [f"{world.prefix}.{queue}" for queue in PAYMENTS]
    async with (
        Participant(AmqpTransport(world.url), config) as participant,
        until_told_to_end() as told,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(participant.run)
        report(running=True)
        await told.wait()
        await world.until_all_is_acknowledged()
        participant.stop()


async def orders(world: RabbitWorld, service: Service, directory: Path, count: int) -> None:
    numbers = list(range(count))
    async with SQLiteStore(directory / "sagas.db") as world.store:
        running = world.running(
            remote=("payment.*",),
            republish_after=1.0,
            step_handlers={
                "order.create": service.act,
                "order.send": service.failing(unsendable, "unsendable"),
            },
            compensation_handlers={"order.delete": service.act},
        )
        async with until_told_to_end() as told, running as manager:

            async def customer() -> None:
                while numbers:
                    number = numbers.pop()
                    options = Options(key=f"order-{number}")
                    saga = await manager.start("order", order(), {"number": number}, options=options)
                    await manager.wait(saga.id)

            report(running=True)
            async with anyio.create_task_group() as customers:
                for _ in range(AT_ONCE):
                    customers.start_soon(customer)
            report(rested=count)
            await told.wait()
            await world.until_all_is_acknowledged()


async def main(url: str, prefix: str, name: str, folder: str, count: str, hangs_after: str) -> None:
    world, directory = RabbitWorld(url, prefix), Path(folder)
    world.deadline = 120.0
    world.watch = Watch()
    service = Service(directory, name, int(hangs_after))
    try:
        if name == "payments":
            await payments(world, service)
        else:
            await orders(world, service, directory, int(count))
    finally:
        service.effects.close()


if __name__ == "__main__":
    url, prefix, name, folder, count, hangs_after, backend = sys.argv[1:]
    anyio.run(main, url, prefix, name, folder, count, hangs_after, backend=backend)
