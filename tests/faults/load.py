"""Some dozens of sagas on one engine while its store is in trouble, and what has to hold of them."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from saga_amqp import Manager, Moment, Options, Point, Saga, Step, StepError, StoreUnavailableError
from saga_amqp.contracts import Store
from saga_core import Command, Compensate, Execute
from tests.engine.world import steps
from tests.histories import check_histories

from .world import RabbitWorld

SAGAS = 60
BEFORE_TROUBLE = 60
"""Commits."""

MOST_IN_HAND = 20

PACE = 0.03
"""Seconds between two customers, and for which a handler works: so that trouble meets some of everything."""

KINDS_OF_CALLS = 7
"""What an engine asks of its store, each of which may be logged once as failing."""


class Load:
    """Customers who start sagas, of which every third is undone, however often they have to try.

    `is_committed` looks into the database itself whether what a message asked for has been committed.
    """

    def __init__(
        self,
        world: RabbitWorld,
        store: Store,
        said: "Said",
        is_committed: Callable[[Execute | Compensate], bool] | None = None,
    ) -> None:
        self.said = said
        self.world = world
        self.store = store
        self.acknowledged = 0
        self.refusals = 0
        self._is_committed = is_committed
        self._commits = 0
        self._committed: set[Command] = set()
        self._too_early: list[Command] = []
        self._unheard = 0
        self._enough = anyio.Event()
        for name in ("do.a", "do.b", "do.c", "undo.a", "undo.b"):
            world.replace(name, self._work)

    async def run(self, trouble: Callable[[], Awaitable[None]]) -> None:
        """Let trouble come when there is much in hand, and see that all is well when it has gone."""
        async with self.world.running(
            store=self.store, observer=self._observe, concurrency=MOST_IN_HAND, republish_after=2.0
        ) as manager:
            async with anyio.create_task_group() as customers:
                for number in range(SAGAS):
                    customers.start_soon(self._buy, manager, number)
                await self._enough.wait()
                await trouble()
            await self.world.until_all_is_acknowledged()
            await self.said.works_again.wait()
        await self._check()

    async def _check(self) -> None:
        sagas = await check_histories(self.store)
        states = Counter(saga.state.value for saga in sagas)
        assert states == {"completed": SAGAS - SAGAS // 3, "compensated": SAGAS // 3}
        assert not self._too_early, "acknowledged before it was committed"
        assert self._unheard <= MOST_IN_HAND
        # What handlers have returned is kept for as long as it cannot be committed.
        expected = dict.fromkeys(("do.a", "do.b", "do.c"), SAGAS)
        expected |= dict.fromkeys(("undo.a", "undo.b"), SAGAS // 3)
        assert Counter(self.world.calls) == expected
        await self.world.until_ready()

    async def _work(self, saga: Saga, step: Step[Any]) -> None:
        await anyio.sleep(PACE)
        if step.name == "c" and saga.context["declined"]:
            raise StepError("card_declined", "no money")

    async def _buy(self, manager: Manager, number: int) -> None:
        await anyio.sleep(PACE * number)
        context, options = {"declined": number % 3 == 0}, Options(key=f"order-{number}")
        saga: Saga | None = None
        while saga is None or not saga.at_rest:
            try:
                saga = await manager.start("order", steps("a", "b", "c"), context, options=options)
                saga = await manager.wait(saga.id)
            except StoreUnavailableError:
                self.refusals += 1
                await anyio.sleep(0.2)

    def _observe(self, moment: Moment) -> None:
        self.world.watch(moment)
        command = moment.command
        if moment.point is Point.COMMITTED and command is not None:
            self._committed.add(command)
            self._commits += 1
            if self._commits == BEFORE_TROUBLE:
                self._enough.set()
        elif moment.point is Point.ACKNOWLEDGING and isinstance(command, Execute | Compensate):
            self.acknowledged += 1
            if self._is_committed is None:
                # Of a commit whose answer got lost nothing is told when it is found to have been made.
                self._unheard += command not in self._committed
            elif not self._is_committed(command):
                self._too_early.append(command)


class Said(logging.Handler):
    """What an engine says of its store."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.works_again = anyio.Event()
        self._logger = logging.getLogger("saga_amqp.store")

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if "works again" in self.lines[-1]:
            self.works_again.set()

    def __enter__(self) -> "Said":
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
