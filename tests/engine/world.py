"""A world to run managers in: a broker and a store in memory, handlers that can be held, and what there is to see."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import anyio

from saga_amqp import (
    Config,
    DeadLetter,
    DeadLetters,
    Manager,
    MemoryBroker,
    MemoryStore,
    MemoryTransport,
    Moment,
    Participant,
    Point,
    TransportError,
)
from saga_amqp.contracts import Consumer, Delivery, Message, Query, Store, Topology, Transport
from saga_core import Command, Event, Saga, SagaState, Step

DEADLINE = 5.0

Handlers = Mapping[str, Callable[[Saga, Step[Any]], Awaitable[object]]]


async def nothing(saga: Saga, step: Step) -> None:
    """Do nothing, well."""


def steps(*names: str) -> list[Step[dict[str, object]]]:
    """Make steps: `a` runs the action `do.a` and is undone by `undo.a`; `a!` has no compensation."""
    return [
        Step(name=name, action=f"do.{name}", compensation=None if bare else f"undo.{name}")
        for name, bare in ((name.rstrip("!"), name.endswith("!")) for name in names)
    ]


class Watch:
    """An observer that keeps what it saw, and can be waited on."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self._changed = anyio.Event()

    def __call__(self, moment: Moment) -> None:
        self.moments.append(moment)
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, point: Point, times: int = 1) -> None:
        """Wait until a point was reached so many times."""
        with anyio.fail_after(DEADLINE):
            while self.count(point) < times:
                await self._changed.wait()

    def count(self, point: Point) -> int:
        return sum(moment.point is point for moment in self.moments)

    def in_hand(self) -> set[Command]:
        """Return what was received and not acknowledged since."""
        last = {moment.command: moment.point for moment in self.moments if moment.command is not None}
        return {command for command, point in last.items() if point is not Point.ACKNOWLEDGED}


@dataclass
class Services:
    """Handlers for the steps `a` to `e`, that note every call; any of them can be replaced."""

    calls: list[str] = field(default_factory=list)
    replaced: dict[str, Callable[[Saga, Step[Any]], Awaitable[object]]] = field(default_factory=dict)

    def handlers(self, prefix: str) -> Handlers:
        def handler(name: str) -> Callable[[Saga, Step[Any]], Awaitable[object]]:
            async def call(saga: Saga, step: Step[Any]) -> object:
                self.calls.append(name)
                if name in self.replaced:
                    return await self.replaced[name](saga, step)
                return None if prefix.startswith("un") else {"from": step.name}

            return call

        return {f"{prefix}.{letter}": handler(f"{prefix}.{letter}") for letter in "abcde"}


class World:
    """One broker and one store, which outlive any number of managers."""

    deadline = DEADLINE

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.store: Store = MemoryStore()
        self.watch = Watch()
        self.services = Services()

    @property
    def calls(self) -> list[str]:
        return self.services.calls

    def replace(self, name: str, handler: Callable[[Saga, Step[Any]], Awaitable[object]]) -> None:
        """Give the action `do.a`, or the compensation `undo.a`, another handler."""
        self.services.replaced[name] = handler

    def config(self, **changes: Any) -> Config:
        return Config(
            **{
                "step_handlers": self.services.handlers("do"),
                "compensation_handlers": self.services.handlers("undo"),
                "observer": self.watch,
                "sweep_interval": 0.05,
                **changes,
            }
        )

    def transport(self) -> Transport:
        return MemoryTransport(self.broker)

    def manager(self, *, transport: Any = None, store: Store | None = None, **changes: Any) -> Manager:
        return Manager(transport or self.transport(), store or self.store, self.config(**changes))

    async def letters(self) -> Sequence[DeadLetter]:
        """Return the dead letters that there are."""
        async with DeadLetters(self.transport(), self.config()) as letters:
            return await letters.list()

    @asynccontextmanager
    async def running(self, **changes: Any) -> AsyncIterator[Manager]:
        """Run a manager; stop it at the end, within the deadline."""
        with anyio.fail_after(self.deadline):
            async with self.manager(**changes) as manager, anyio.create_task_group() as tasks:
                await tasks.start(manager.run)
                yield manager
                manager.stop()

    async def finish(self, saga_id: str, *, dead_letters: int = 0, **changes: Any) -> Saga:
        """Let another engine bring a saga to rest, and everything on the broker to its end."""
        async with self.running(**changes) as manager:
            saga = await manager.wait(saga_id)
        self.assert_queues_are_empty(dead_letters=dead_letters)
        return saga

    async def all_sagas(self, *states: SagaState) -> Sequence[Saga]:
        """Return the sagas in these states, by default all."""
        return (await self.store.find(Query(states=frozenset(states or SagaState)))).sagas

    def depth(self, queue: str) -> int:
        return self.broker.held(queue)

    def assert_queues_are_empty(self, *more: str, dead_letters: int = 0) -> None:
        depths = {name: self.broker.held(name) for name in self.broker.queues}
        queues = ("saga.steps", "saga.compensate", "saga.orchestrator", *more)
        assert depths == {**dict.fromkeys(queues, 0), "saga.dead-letter": dead_letters}


class Gate:
    """A handler that says when it was called, and waits until it is let go."""

    def __init__(self, output: object = None) -> None:
        self.entered = anyio.Event()
        self.released = anyio.Event()
        self.cancelled = 0
        self.running = 0
        self.most = 0
        self.output = output
        self._changed = anyio.Event()

    async def __call__(self, saga: Saga, step: Step[Any]) -> object:
        self.running += 1
        self.most = max(self.most, self.running)
        self.entered.set()
        self._changed.set()
        self._changed = anyio.Event()
        try:
            await self.released.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return self.output

    async def until_running(self, count: int) -> None:
        with anyio.fail_after(DEADLINE):
            while self.running < count:
                await self._changed.wait()


class RecordingStore:
    """A store that writes down what it is asked, and can be made to fail."""

    def __init__(self, inner: Store, log: list[str]) -> None:
        self.inner = inner
        self.log = log
        self.before_commit: Callable[[Saga, Event], Awaitable[None]] | None = None

    async def create(self, saga: Saga, *, unpublished: float | None = None) -> Saga:
        saga = await self.inner.create(saga, unpublished=unpublished)
        self.log.append("create")
        return saga

    async def load(self, saga_id: str) -> Saga:
        return await self.inner.load(saga_id)

    async def commit(self, saga: Saga, event: Event, *, unpublished: float | None = None) -> None:
        if self.before_commit is not None:
            await self.before_commit(saga, event)
        await self.inner.commit(saga, event, unpublished=unpublished)
        self.log.append(f"commit {saga.revision}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def history(self, saga_id: str) -> Any:
        return await self.inner.history(saga_id)

    async def rested(self, saga_id: str) -> Saga:
        return await self.inner.rested(saga_id)


class Changes:
    """Tells whoever waits for a condition when to look again."""

    def __init__(self) -> None:
        self._changed = anyio.Event()

    def tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(DEADLINE):
            while not condition():
                await self._changed.wait()


class RecordingTransport:
    """A transport that writes down what it is asked; its confirms can be held back, and its publishes refused."""

    def __init__(self, inner: MemoryTransport, log: list[str], changes: Changes | None = None) -> None:
        self.inner = inner
        self.log = log
        self.deliveries = 0
        self.changes = changes or Changes()
        self.hold_confirms = False
        self.held: list[Callable[[TransportError | None], None]] = []
        self.refuse: TransportError | None = None
        self.broken: anyio.Event = anyio.Event()
        self.why: TransportError | None = None
        self.next: RecordingTransport | None = None

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.inner.__aexit__(kind, error, trace)

    async def close(self) -> None:
        await self.inner.close()

    async def lost(self) -> TransportError:
        await self.broken.wait()
        assert self.why is not None
        return self.why

    def renewed(self) -> "RecordingTransport":
        """Return the next transport, which works again."""
        renewed = RecordingTransport(self.inner.renewed(), self.log, self.changes)
        renewed.hold_confirms = self.hold_confirms
        self.next = renewed
        return renewed

    async def missing(self, topology: Topology) -> Collection[str]:
        return await self.inner.missing(topology)

    async def declare(self, topology: Topology) -> None:
        await self.inner.declare(topology)

    @asynccontextmanager
    async def consume(
        self, queue: str, prefetch: int, receive: Callable[[Delivery], None]
    ) -> AsyncIterator[Consumer]:
        def take(delivery: Delivery) -> None:
            receive(RecordingDelivery(delivery, self.log, self.changes))
            self.deliveries += 1
            self.changes.tell()

        inner: AbstractAsyncContextManager[Consumer] = self.inner.consume(queue, prefetch, take)
        async with inner as consumer:
            yield RecordingConsumer(consumer, self)

    async def publish(self, message: Message, settled: Callable[[TransportError | None], None]) -> None:
        name = ".".join(message.id.split(".")[1:])
        if self.refuse is not None:
            raise self.refuse
        if self.why is not None:
            raise self.why
        self.log.append(f"publish {name}")

        def confirm(error: TransportError | None) -> None:
            self.log.append(f"confirm {name}")
            settled(error)

        def hold(error: TransportError | None) -> None:
            self.held.append(lambda failure=None: confirm(failure or error))
            self.changes.tell()

        await self.inner.publish(message, hold if self.hold_confirms else confirm)

    def fail_held(self, error: TransportError) -> None:
        """Let those confirms that were held back be failures instead."""
        held, self.held = self.held, []
        for settle in held:
            settle(error)

    def break_down(self, why: TransportError) -> None:
        """Let the connection end, and with it every consumer."""
        self.why = why
        self.broken.set()


class RecordingConsumer:
    def __init__(self, inner: Consumer, transport: RecordingTransport) -> None:
        self.inner = inner
        self.transport = transport

    async def cancel(self) -> None:
        await self.inner.cancel()

    async def failed(self) -> TransportError:
        await self.transport.broken.wait()
        assert self.transport.why is not None
        return self.transport.why


class RecordingDelivery:
    def __init__(self, inner: Delivery, log: list[str], changes: Changes) -> None:
        self.changes = changes
        self.inner = inner
        self.log = log
        self.name = ".".join(inner.message_id.split(".")[1:])

    @property
    def body(self) -> bytes:
        return self.inner.body

    @property
    def redelivered(self) -> bool:
        return self.inner.redelivered

    @property
    def message_id(self) -> str:
        return self.inner.message_id

    @property
    def headers(self) -> Mapping[str, object]:
        return self.inner.headers

    def acknowledge(self) -> None:
        self.log.append(f"acknowledge {self.name}")
        self.inner.acknowledge()
        self.changes.tell()

    def reject(self, *, requeue: bool) -> None:
        self.log.append(f"{'requeue' if requeue else 'dead-letter'} {self.name}")
        self.inner.reject(requeue=requeue)


async def run_alone(manager: Manager | Participant, during: Callable[[], Awaitable[object]]) -> None:
    """Run a manager and something beside it; what `run` raises comes out of here, as it is."""
    raised: list[BaseException] = []

    async def run(*, task_status: Any) -> None:
        try:
            await manager.run(task_status=task_status)
        except BaseException as error:
            if isinstance(error, anyio.get_cancelled_exc_class()):
                raise
            raised.append(error)
            tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(run)
            await during()
    finally:
        if raised:
            raise raised[0]
