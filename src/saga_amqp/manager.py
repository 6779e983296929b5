"""The user's door: start sagas, watch them, undo them, and run the engine that moves them on."""

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import anyio
from anyio.abc import TaskStatus
from ulid import ULID

from saga_amqp.config import Config
from saga_amqp.connections import Dialect, adapt, adapt_async
from saga_amqp.contracts import EVERYTHING, Page, Query, Store, Transport
from saga_amqp.errors import RefusedError, StoreError, TransportError
from saga_amqp.lifecycle import Lifecycle
from saga_amqp.observer import Point
from saga_amqp.orchestrator import Orchestrator
from saga_amqp.patience import PatientStore
from saga_amqp.reconnecting import Reconnecting
from saga_amqp.stores.enlisting import InDatabase, enlist
from saga_amqp.stores.looking import RUNNING, find_all
from saga_amqp.work import Work, perform, perform_async
from saga_core import (
    CancelRequested,
    CompensationRequested,
    Event,
    Options,
    Outcome,
    ResumeRequested,
    RetryRequested,
    Saga,
    SagaState,
    SkipRequested,
    Step,
    StepResolved,
    SuspendRequested,
    encode_payload,
    failed,
    failure_of,
    redeem,
    saga_of,
    succeeded,
)
from saga_core.history import create
from saga_core.options import NO_OPTIONS
from saga_core.plan import plan_saga


def _new_id() -> str:
    return str(ULID())


def _new_secret() -> str:
    return os.urandom(16).hex()


class Manager:
    """Starts and watches sagas, and runs their handlers while `run` runs.

    Use it as an async context manager, inside that of its store: entering connects the transport and declares the
    topology, leaving closes it. A connection that is lost is made again. A transport belongs to one manager; without
    one (None) the manager works on the store alone, and leaves publishing to the engines that share it.

    `clock` gives seconds since 1970, UTC; `new_id` gives ULIDs; `new_secret` what makes the tokens of deferred steps
    unguessable; `chance` numbers from 0 to 1, which keep the retries of many engines apart.
    """

    def __init__(
        self,
        transport: Transport | None,
        store: Store,
        config: Config,
        *,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = _new_id,
        new_secret: Callable[[], str] = _new_secret,
        chance: Callable[[], float] = random.random,
    ) -> None:
        broker = None if transport is None else Reconnecting(transport, config.topology(), chance)
        self._orchestrator = Orchestrator(broker, PatientStore(store, chance), config, clock)
        self._outgoing = self._orchestrator.outgoing
        doing = (self._orchestrator.make_good, self._orchestrator.meanwhile, self._outgoing.finish)
        self._life = Lifecycle("manager", broker, config, self._orchestrator, clock, chance, *doing)
        self._store = store
        self._config = config
        self._clock = clock
        self._new_id = new_id
        self._new_secret = new_secret

    async def __aenter__(self) -> Self:
        """Connect, and declare what is missing on the broker.

        Raises: ConnectFailedError, AuthenticationError, VirtualHostError, TopologyError; ManagerError when entered
        a second time.
        """
        await self._life.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, as `close` does."""
        await self._life.leave()

    @property
    def waits_for(self) -> tuple[str, ...]:
        """What is away, of "broker" and "store". What needs it waits, and goes on by itself when it is back."""
        return self._orchestrator.waits_for

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run handlers for arriving messages until `stop`; meant for `await task_group.start(manager.run)`.

        Cancelled, it ends at once: running handlers are cancelled, and their messages are delivered again.

        Raises: ManagerError when it is running already, or has no transport; TransportError, StoreError, but not for a
        broker or a store that is away: it waits for them.
        """
        await self._life.run(task_status)

    def stop(self) -> None:
        """Stop `run` in an orderly way: no new messages, and the grace period for running handlers.

        Returns at once; `run` returns when it is done. Does nothing when nothing runs.
        """
        self._life.stop()

    async def close(self) -> None:
        """Stop `run` and wait for its end, then close the transport. Any later call raises ManagerError.

        Until then running handlers may still use the manager. Leaving the context does the same. Cancelled, it closes
        without waiting.
        """
        await self._life.close()

    async def start(
        self,
        name: str,
        steps: Sequence[Step[Any]],
        context: object = None,
        *,
        options: Options = NO_OPTIONS,
    ) -> Saga:
        """Start a saga: store it, publish its first steps, and return it once the broker has confirmed that.

        `context` is a dict, Struct or dataclass that all steps can read. With a key in `options` it is started once:
        who does so again gets the saga that is there. While the broker is away the saga is returned as soon as it is
        stored, and goes on when the broker is back.

        Raises: DefinitionError and PayloadError, before anything is done; StoreError; PublishError, after which the
        saga is in the store, and a sweep will try to publish its first step again. Cancelled, or after
        StoreUnavailableError, it may be in the store, and then goes on: a key makes it safe to start it again.
        """
        self._life.check_open()
        outcome = self._new(name, steps, context, options)
        saga = outcome.saga
        self._config.observe(Point.COMMITTING, saga.id)
        stored = await self._store.create(saga, unpublished=self._outgoing.note(outcome))
        if stored.id == saga.id:
            self._config.observe(Point.COMMITTED, saga.id)
            self._orchestrator.remember(outcome)
            if self._config.publishes(outcome):
                try:
                    await self._outgoing.publish((saga.id, saga.revision), self._config.messages(outcome))
                except TransportError as error:
                    raise _unpublished(saga, error) from error
        return stored

    def start_in(
        self,
        connection: object,
        name: str,
        steps: Sequence[Step[Any]],
        context: object = None,
        *,
        options: Options = NO_OPTIONS,
    ) -> Saga:
        """Start a saga inside a transaction of your own: it comes to be when that commits, or not at all.

        `connection` is one of sqlite3, psycopg or SQLAlchemy (Connection or Session) to the database of the store, with
        a transaction open. When that has committed, an engine goes on at once on PostgreSQL; on SQLite after `hint`,
        called in the process of an engine, or else with its next sweep. It may be called in any thread.

        Raises: DefinitionError, PayloadError, before anything is done; SagaExistsError; NoTransactionError,
        UnsupportedConnectionError; StoreError, when the store is in no database, or in another kind of one; whatever
        the driver raises.
        """
        self._life.check_open()
        adapted = adapt(connection)
        return perform(adapted, self._enlist(adapted.dialect, self._new(name, steps, context, options)))

    async def start_in_async(
        self,
        connection: object,
        name: str,
        steps: Sequence[Step[Any]],
        context: object = None,
        *,
        options: Options = NO_OPTIONS,
    ) -> Saga:
        """Start a saga inside a transaction of your own, as `start_in` does, on an asynchronous connection.

        `connection` is one of psycopg, aiosqlite or SQLAlchemy (AsyncConnection or AsyncSession). Cancelled, it leaves
        the transaction to its owner, who rolls it back.

        Raises: as `start_in`.
        """
        self._life.check_open()
        adapted = adapt_async(connection)
        work = self._enlist(adapted.dialect, self._new(name, steps, context, options))
        return await perform_async(adapted, work)

    def hint(self) -> None:
        """Have engines look at once for sagas that were started in transactions; call it when they have committed.

        It reaches the engines of this process, and of others where the store has a way to.
        """
        self._store.hint()

    async def get(self, saga_id: str) -> Saga:
        """Return a saga as it stands.

        Raises: SagaNotFoundError.
        """
        self._life.check_open()
        return await self._store.load(saga_id)

    async def list_active(self) -> Sequence[Saga]:
        """Return the sagas that are started or compensating, oldest first."""
        self._life.check_open()
        return await find_all(self._store, RUNNING)

    async def find(self, query: Query = EVERYTHING, *, limit: int = 100, cursor: str | None = None) -> Page:
        """Return the first sagas that a query finds, oldest first, or those after a cursor.

        Raises: StoreError.
        """
        self._life.check_open()
        return await self._store.find(query, limit=limit, cursor=cursor)

    async def count(self) -> Mapping[SagaState, int]:
        """Return how many sagas there are in each state. Raises: StoreError."""
        self._life.check_open()
        return await self._store.count()

    async def history(self, saga_id: str) -> tuple[Saga, Sequence[Event]]:
        """Return a saga as created, and every event committed since, in order. Each has its time, `at`.

        Raises: SagaNotFoundError, StoreError.
        """
        self._life.check_open()
        return await self._store.history(saga_id)

    def dead_lettered(self) -> Mapping[str, int]:
        """Return how many messages this manager's engine has put to the dead letters, by reason."""
        return {str(reason): count for reason, count in self._life.buried.items()}

    async def wait(self, saga_id: str) -> Saga:
        """Wait until a saga is completed, compensated or failed, and return it. Cancel it at any time.

        Raises: SagaNotFoundError.
        """
        self._life.check_open()
        return await self._store.rested(saga_id)

    async def compensate(self, saga_id: str, *, reason: str = "asked for", by: str = "") -> Saga:
        """Undo a saga: one that runs, that has completed, or whose undoing failed and is to be tried again.

        A step that runs now is awaited first. Returns the saga once the request is stored and published; a saga that
        is compensating or compensated already is returned as it is.

        Raises: RefusedError past the pivot; SagaNotFoundError, StoreError, TransportError.
        """
        saga = await self.get(saga_id)
        if saga.is_compensating or saga.is_compensated:
            return saga
        return await self._ask(saga, CompensationRequested(reason, self._clock(), by))

    async def cancel(self, saga_id: str, *, reason: str = "asked for", by: str = "") -> Saga:
        """Give up a saga that has not ended yet, and undo it.

        Raises: RefusedError; SagaNotFoundError, StoreError, TransportError.
        """
        return await self._ask(await self.get(saga_id), CancelRequested(reason, self._clock(), by))

    async def retry(self, saga_id: str, *, reason: str = "asked for", by: str = "") -> Saga:
        """Try what failed for good once more, or at once what waits for its next attempt.

        Raises: RefusedError; SagaNotFoundError, StoreError, TransportError.
        """
        return await self._ask(await self.get(saga_id), RetryRequested(reason, self._clock(), by))

    async def suspend(self, saga_id: str, *, reason: str = "asked for", by: str = "") -> Saga:
        """Start nothing new in a saga until it is resumed; what runs is awaited.

        Raises: RefusedError; SagaNotFoundError, StoreError, TransportError.
        """
        return await self._ask(await self.get(saga_id), SuspendRequested(reason, self._clock(), by))

    async def resume(self, saga_id: str, *, reason: str = "asked for", by: str = "") -> Saga:
        """Let a suspended saga go on.

        Raises: RefusedError; SagaNotFoundError, StoreError, TransportError.
        """
        return await self._ask(await self.get(saga_id), ResumeRequested(reason, self._clock(), by))

    async def skip(self, saga_id: str, step: str, *, reason: str, by: str = "") -> Saga:
        """Do without a step that has not begun, waits for another attempt, or failed behind the pivot.

        Raises: RefusedError; UnknownStepError, SagaNotFoundError, StoreError, TransportError.
        """
        return await self._ask(await self.get(saga_id), SkipRequested(step, reason, self._clock(), by))

    async def resolve(
        self,
        saga_id: str,
        step: str,
        state: Literal["completed", "failed", "compensated"],
        *,
        reason: str,
        by: str = "",
        output: object = None,
    ) -> Saga:
        """Say how a step ended, in its worker's place; `output` goes with `completed`.

        Raises: RefusedError; PayloadError, UnknownStepError, SagaNotFoundError, StoreError, TransportError.
        """
        raw = encode_payload(output, f"The output of step {step!r} of saga {saga_id}")
        event = StepResolved(step, state, reason, self._clock(), by, raw)
        return await self._ask(await self.get(saga_id), event)

    async def complete(self, token: str, output: object = None) -> Saga:
        """Bring the result of a deferred step, or the end of a deferred compensation, from outside.

        A token that comes twice, or late, changes nothing: the saga is returned as it is.

        Raises: TokenError, PayloadError, SagaNotFoundError, StoreError, TransportError.
        """
        saga = await self.get(saga_of(token))
        callback = redeem(saga, token)
        raw = encode_payload(output, f"The output of step {callback.step!r} of saga {saga.id}")
        return (await self._apply(saga, succeeded(callback, self._clock(), raw))).saga

    async def fail(self, token: str, error: Exception) -> Saga:
        """Bring the failure of a deferred step or compensation from outside; see `complete`.

        `error` is treated as if the handler had raised it.
        """
        saga = await self.get(saga_of(token))
        return (await self._apply(saga, failed(redeem(saga, token), self._clock(), failure_of(error)))).saga

    def _new(self, name: str, steps: Sequence[Step[Any]], context: object, options: Options) -> Outcome:
        id, secret = self._new_id(), self._new_secret()
        plan = plan_saga(name, steps, context, id=id, at=self._clock(), options=options, secret=secret)
        self._config.check(name, plan.steps)
        return create(plan)

    def _enlist(self, dialect: Dialect, outcome: Outcome) -> Work[Saga]:
        store = self._store
        if not isinstance(store, InDatabase):
            raise StoreError(
                f"{type(store).__name__} is in no database, and shares no transaction; use `start`"
            )
        if store.tables.dialect != dialect:
            raise StoreError(f"This connection is to {dialect}, and the store is in {store.tables.dialect}")
        return enlist(outcome.saga, store.tables, publishes=self._config.publishes(outcome))

    async def _ask(self, saga: Saga, event: Event) -> Saga:
        answer = await self._apply(saga, event)
        if answer.ignored is not None:
            raise RefusedError(answer.ignored)
        return answer.saga

    async def _apply(self, saga: Saga, event: Event) -> Outcome:
        try:
            return await self._outgoing.apply(self._store, saga, event)
        except TransportError as error:
            raise _unpublished(saga, error) from error


def _unpublished(saga: Saga, error: TransportError) -> TransportError:
    return type(error)(
        f"What was asked of saga {saga.id} ({saga.name}) is stored, but what comes next was not published, and "
        f"will be: {error}"
    )
