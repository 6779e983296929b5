"""The user's door: start sagas, watch them, undo them, and run the engine that moves them on."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskStatus
from ulid import ULID

from saga_amqp.config import Config
from saga_amqp.contracts import Store, Transport
from saga_amqp.engine import Engine, decide
from saga_amqp.errors import ManagerError, TransportError
from saga_amqp.observer import Moment, Point
from saga_core import Command, CompensationRequested, Saga, Step, new_saga, outstanding
from saga_core.model import ACTIVE


def _new_id() -> str:
    return str(ULID())


class Manager:
    """Starts and watches sagas, and runs their handlers while `run` runs.

    Use it as an async context manager: entering connects the transport and declares the topology, leaving closes
    it. A transport belongs to one manager. `clock` gives seconds since 1970, UTC; `new_id` gives ULIDs.
    """

    def __init__(
        self,
        transport: Transport,
        store: Store,
        config: Config,
        *,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = _new_id,
    ) -> None:
        self._transport = transport
        self._store = store
        self._config = config
        self._clock = clock
        self._new_id = new_id
        self._engine: Engine | None = None
        self._ended = anyio.Event()
        self._life = "new"

    async def __aenter__(self) -> Self:
        """Connect, and declare what is missing on the broker.

        Raises: ConnectFailedError, AuthenticationError, VirtualHostError, TopologyError; ManagerError when entered
        a second time.
        """
        if self._life != "new":
            raise ManagerError(f"This manager is {self._life}; make a new one")
        await self._transport.__aenter__()
        try:
            await self._transport.declare(self._config.topology())
        except BaseException as error:
            await self._transport.__aexit__(type(error), error, error.__traceback__)
            raise
        self._life = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, as `close` does."""
        try:
            await self.close()
        finally:
            await self._transport.__aexit__(kind, error, trace)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run handlers for arriving messages until `stop`; meant for `await task_group.start(manager.run)`.

        Cancelled, it ends at once: running handlers are cancelled, and their messages are delivered again.

        Raises: ManagerError when it is running already; ConnectionLostError and other TransportErrors; StoreError.
        """
        self._check_open()
        if self._engine is not None:
            raise ManagerError("This manager is running already; one manager runs one engine at a time")
        self._engine = engine = Engine(self._transport, self._store, self._config, self._clock)
        self._ended = anyio.Event()
        try:
            await engine.run(task_status)
        finally:
            self._engine = None
            self._ended.set()

    def stop(self) -> None:
        """Stop `run` in an orderly way: no new messages, and the grace period for running handlers.

        Returns at once; `run` returns when it is done. Does nothing when nothing runs.
        """
        if self._engine is not None:
            self._engine.stop()

    async def close(self) -> None:
        """Stop `run` and wait for its end, then close the transport. Any later call raises ManagerError.

        Until then running handlers may still use the manager. Leaving the context does the same. Cancelled, it closes
        without waiting.
        """
        try:
            if self._engine is not None:
                self.stop()
                await self._ended.wait()
        finally:
            self._life = "closed"
            await self._transport.close()

    async def start(self, name: str, steps: Sequence[Step[Any]], context: object = None) -> Saga:
        """Start a saga: store it, publish its first step, and return it once the broker has confirmed that.

        `context` is a dict, Struct or dataclass that all steps can read.

        Raises: DefinitionError and PayloadError, before anything is done; StoreError; TransportError, after which the
        saga is in the store and its first step may not have been published. Cancelled, either may be so.
        """
        self._check_open()
        saga = new_saga(name, steps, context, id=self._new_id(), at=self._clock())
        self._config.check(saga.plan)
        await self._store.create(saga)
        self._observe(Point.COMMITTED, saga.id)
        await self._publish(saga, outstanding(saga))
        return saga

    async def get(self, saga_id: str) -> Saga:
        """Return a saga as it stands.

        Raises: SagaNotFoundError.
        """
        self._check_open()
        return await self._store.load(saga_id)

    async def list_active(self) -> Sequence[Saga]:
        """Return the sagas that are started or compensating, oldest first."""
        self._check_open()
        return await self._store.list(ACTIVE)

    async def wait(self, saga_id: str) -> Saga:
        """Wait until a saga is completed, compensated or failed, and return it. Cancel it at any time.

        Raises: SagaNotFoundError.
        """
        self._check_open()
        return await self._store.rested(saga_id)

    async def compensate(self, saga_id: str, *, reason: str = "asked for") -> Saga:
        """Undo a saga: one that runs, that has completed, or whose undoing failed and is to be tried again.

        A step that runs now is awaited first. Returns the saga once the request is stored and published; a saga that
        is compensating or compensated already is returned as it is.

        Raises: SagaNotFoundError, StoreError, TransportError.
        """
        self._check_open()
        saga = await self._store.load(saga_id)
        answer = await decide(self._store, saga, CompensationRequested(reason, self._clock()))
        if answer.ignored is None:
            self._observe(Point.COMMITTED, saga_id)
        await self._publish(answer.saga, answer.commands)
        return answer.saga

    async def _publish(self, saga: Saga, commands: Sequence[Command]) -> None:
        """Publish commands and wait until the broker has confirmed them all."""
        done = anyio.Event()
        errors: list[TransportError] = []
        left = len(commands)

        def settled(error: TransportError | None) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                errors.append(error)
            if left == 0:
                done.set()

        if not commands:
            return
        for command in commands:
            try:
                await self._transport.publish(self._config.message(command), settled)
            except TransportError as error:
                settled(error)
        await done.wait()
        if errors:
            raise type(errors[0])(
                f"Saga {saga.id} ({saga.name}) is stored as {saga.state}, but its next step was not published: "
                f"{errors[0]}"
            ) from errors[0]
        self._observe(Point.PUBLISHED, saga.id)

    def _observe(self, point: Point, saga_id: str) -> None:
        if self._config.observer is not None:
            self._config.observer(Moment(point, saga_id))

    def _check_open(self) -> None:
        if self._life != "open":
            raise ManagerError(
                f"This manager is {self._life}; use it inside `async with Manager(…) as manager`"
            )
