"""Hundreds of sagas in flight while something happens to their broker, and what has to hold of them afterwards."""

# Neither a broker nor a transport tells when it is in trouble: they have to be asked again and again.
# ruff: noqa: ASYNC110

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.to_thread

from saga_amqp import ChildSaga, Manager, Options, PublishError, Saga, SagaState, Step, StepError
from saga_amqp.contracts import Store
from saga_amqp.transports.amqp.transport import AmqpTransport
from saga_core import StepState
from tests.engine.world import steps
from tests.histories import check_histories
from tests.servers import RabbitMQ

from .proxy import Proxy, proxy_to
from .world import POLL_INTERVAL, RabbitWorld

AT_ONCE = 300
"""Sagas in flight. Until the fault is over, another one is started for each that has come to rest."""

BEFORE_THE_STORM = 100
"""Calls of handlers."""

HELD = 10
"""Handlers, at least, that begin before the fault and end after it."""

WORK = 0.01
"""Seconds that a handler waits."""

HEARTBEAT = 1

ANSWER_TIMEOUT = 2.0

REPUBLISH_AFTER = 1.0

CONCURRENCY = 100

DEADLINE = 30.0


# What RabbitMQ lists of a quorum queue may be seconds old; this asks its leader, and counts what is in hand as well.
COUNT = """lists:sum([begin
    {{ok, {{_, Count}}, _}} = ra:leader_query(amqqueue:get_pid(Q), fun rabbit_fifo:query_messages_total/1), Count
end || Q <- rabbit_amqqueue:list(<<"/">>), {{_, _, _, Name}} <- [amqqueue:get_name(Q)],
    binary:match(Name, <<"{prefix}">>) =/= nomatch])."""


class Looks(logging.Handler):
    """Hears in the log of engines that look again for what deleted queues have lost."""

    def __init__(self, engines: int) -> None:
        super().__init__()
        self._engines = engines
        self._begun = self._ended = 0
        self._changed = anyio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self._begun += record.msg.startswith("What was in the queues %s is looked for again")
        self._ended += record.msg.startswith("What was in the queues %s was looked for again")
        self._changed.set()

    async def over(self) -> None:
        """Wait until each engine has looked again, and none is about to."""
        while self._ended < max(self._begun, self._engines):
            self._changed = anyio.Event()
            await self._changed.wait()


class Storm(RabbitWorld):
    """A world with customers who go on until the fault is over, and a record of every call of a handler."""

    deadline = DEADLINE

    def __init__(self, node: RabbitMQ, prefix: str) -> None:
        super().__init__(f"{node.url()}?heartbeat={HEARTBEAT}", prefix)
        self.node = node
        self.proxy: Proxy
        self.exchanges = [
            f'rabbit_misc:r(<<"/">>, exchange, <<"{prefix}.{name}">>)' for name in ("sagas", "sagas.direct")
        ]
        """How Erlang names them."""
        self.transports: list[AmqpTransport] = []
        self.managers: list[Manager] = []
        self.begun: Counter[tuple[str, str]] = Counter()
        self.done: Counter[tuple[str, str]] = Counter()
        self.cancelled = 0
        self.too_late: list[tuple[str, str]] = []
        self.started = 0
        self.rested = 0
        self._held = 0
        self._undoing = False
        self._near = anyio.Event()
        self._over = anyio.Event()
        for name in ("do.a", "do.b", "do.c", "do.d", "undo.a", "undo.b", "undo.d"):
            self.replace(name, self._handler(name))

    async def rage(
        self,
        fault: Callable[["Storm"], Awaitable[None]],
        *stores: Store,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Run an engine on each of these stores, or one, with customers; strike, and check what follows."""
        async with proxy_to(self.url) as self.proxy, AsyncExitStack() as stack:
            for store in stores or (self.store,):
                self.transports.append(AmqpTransport(self.proxy.url, answer_timeout=ANSWER_TIMEOUT))
                manager = self.running(
                    transport=self.transports[-1],
                    store=store,
                    expires=None,
                    concurrency=CONCURRENCY,
                    observer=None,
                    republish_after=REPUBLISH_AFTER,
                )
                self.managers.append(await stack.enter_async_context(manager))
            if before is not None:
                await before()
            async with anyio.create_task_group() as customers:
                for number in range(AT_ONCE):
                    customers.start_soon(self._customer, number)
                await self._near.wait()
                assert self.started - self.rested > AT_ONCE / 2
                await fault(self)
                self._over.set()
            while await self._in_queues() > 0:  # what was published twice
                await anyio.sleep(POLL_INTERVAL)
            assert not any(manager.waits_for for manager in self.managers)
            assert [manager.dead_lettered() for manager in self.managers] == [{}] * len(self.managers)
        await self._check(once=len(self.managers) == 1)

    async def buy(self, number: int, turn: int, started: Callable[[], None] = lambda: None) -> None:
        """Start a saga, however often that has to be tried, and see it to its end."""
        manager = self.managers[number % len(self.managers)]
        order = steps("a", "b", "c")
        if number % 3 == 0:
            order[1] = Step(name="b", child=ChildSaga("part", steps("d")))
        context = {"declined": number % 5 == 0, "holds": number % 4 == 0}
        saga: Saga | None = None
        while saga is None:
            try:
                saga = await manager.start("order", order, context, options=Options(key=f"{number}-{turn}"))
            except PublishError:
                continue  # it is in the store, and goes on
        started()
        self.started += 1
        self._look()
        saga = await manager.wait(saga.id)
        assert saga.state is (SagaState.COMPENSATED if context["declined"] else SagaState.COMPLETED)
        self.rested += 1

    async def _customer(self, number: int) -> None:
        turn = 0
        while turn == 0 or not self._over.is_set():
            await self.buy(number, turn)
            turn += 1

    def _handler(self, name: str) -> Callable[[Saga, Step[Any]], Awaitable[None]]:
        async def handle(saga: Saga, step: Step[Any]) -> None:
            call = saga.id, name
            self.begun[call] += 1
            self._undoing |= name.startswith("undo")
            self._look()
            try:
                now = (await self.managers[0].get(saga.id)).step(step.name)
                if now.state not in (StepState.STARTED, StepState.COMPENSATING):
                    self.too_late.append(call)
                if name == "do.b" and saga.context["holds"] and not self._over.is_set():
                    self._held += 1
                    self._look()
                    await self._over.wait()
                await anyio.sleep(WORK)
                self.done[call] += 1
            except anyio.get_cancelled_exc_class():
                self.cancelled += 1
                raise
            if name == "do.c" and saga.context["declined"]:
                raise StepError("card_declined", "no money")

        return handle

    def _look(self) -> None:
        if (
            self.started >= AT_ONCE
            and self.begun.total() >= BEFORE_THE_STORM
            and self._held >= HELD
            and self._undoing
        ):
            self._near.set()

    async def _check(self, *, once: bool) -> None:
        assert self.cancelled == 0
        assert self.done == self.begun
        sagas = {saga.id: saga for saga in await check_histories(self.store)}
        expected: Counter[tuple[str, str]] = Counter()
        for saga in sagas.values():
            parent = saga.plan.parent
            order = saga if parent is None else sagas[parent.saga]
            declined = order.context["declined"]
            assert saga.state is (SagaState.COMPENSATED if declined else SagaState.COMPLETED)
            for step in saga.plan.steps:
                if step.child is None:
                    expected[saga.id, f"do.{step.name}"] = 1
                    if declined and step.name != "c":
                        expected[saga.id, f"undo.{step.name}"] = 1
        assert self.done.keys() == expected.keys()
        if once:
            # Whoever is delivered again finds its handler running, or its result committed.
            assert not self.too_late
            assert self.done == expected
        assert await self._in_queues() == 0

    async def _in_queues(self) -> int:
        """Count the messages in the queues and in hand, and the dead letters."""
        return int(await self.evaluate(COUNT.format(prefix=self.prefix)))

    async def evaluate(self, expression: str) -> str:
        return await anyio.to_thread.run_sync(self.node.evaluate, expression)

    async def ctl(self, *arguments: str) -> str:
        return await anyio.to_thread.run_sync(self.node.ctl, *arguments)

    @asynccontextmanager
    async def connecting_again(self) -> AsyncIterator[None]:
        """Wait at the end until every engine has made a new connection."""
        before = self.proxy.accepted
        yield
        while self.proxy.accepted < before + len(self.managers) or any(
            one.waits_for for one in self.managers
        ):
            await anyio.sleep(POLL_INTERVAL)

    @contextmanager
    def looking_again(self) -> Iterator[Looks]:
        """Hear of engines that look again for what deleted queues have lost."""
        looks, logger = Looks(len(self.managers)), logging.getLogger("saga_amqp.engine")
        level = logger.level
        logger.addHandler(looks)
        logger.setLevel(logging.DEBUG)
        try:
            yield looks
        finally:
            logger.setLevel(level)
            logger.removeHandler(looks)

    async def until_rested(self, count: int) -> None:
        """Wait until so many sagas have come to rest."""
        while self.rested < count:
            await anyio.sleep(POLL_INTERVAL)

    async def until_true(self, expression: str) -> None:
        """Wait until the node says so."""
        while await self.evaluate(expression) != "true":
            await anyio.sleep(POLL_INTERVAL)
