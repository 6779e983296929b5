"""The duty of an engine that has a store: handlers run and results committed, children, replies, timers, recovery."""

import logging
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager

import anyio

from saga_amqp.config import Config
from saga_amqp.contracts import Commit, Delivery, Message
from saga_amqp.errors import PublishError, SagaExistsError, SagaNotFoundError
from saga_amqp.handling import run_handler
from saga_amqp.outgoing import Outgoing
from saga_amqp.patience import PatientStore
from saga_amqp.poison import Poison, Reason
from saga_amqp.recent import Recent
from saga_amqp.reconnecting import Reconnecting
from saga_amqp.stores.looking import RUNNING
from saga_amqp.sweep import Sweep
from saga_core import (
    WITH_HANDLER,
    CancelRequested,
    Carried,
    ChildRested,
    CodecError,
    Compensate,
    CompensateChild,
    Event,
    Execute,
    Outcome,
    Reply,
    Saga,
    SagaError,
    StartChild,
    TimePassed,
    UnknownStepError,
    awaits,
    caused_by,
    child_saga,
    consequences,
    created,
    event_of,
    news,
    order_to_undo,
    outstanding,
)

logger = logging.getLogger("saga_amqp.engine")


class Orchestrator:
    """Does what commands ask for, on one store with one set of handlers; see `engine.Duty`."""

    def __init__(
        self,
        broker: Reconnecting | None,
        store: PatientStore,
        config: Config,
        clock: Callable[[], float],
    ) -> None:
        self.outgoing = Outgoing(broker, store, config, clock, self.remember)
        self.queues = tuple(config.limits())
        self._broker = broker
        self._store = store
        self._config = config
        self._clock = clock
        self._sweep: Sweep | None = None
        self._recent = Recent(clock, lambda: 0 if broker is None else broker.line)

    @property
    def waits_for(self) -> tuple[str, ...]:
        """What is away, of "broker" and "store"."""
        away = {"broker": self._broker is not None and self._broker.is_away, "store": self._store.is_away}
        return tuple(name for name, is_away in away.items() if is_away)

    def hold(self, saga: Saga) -> None:
        """Remember when time will next change something in a saga, if an engine is there to see to it."""
        if self._sweep is not None:
            self._sweep.timers.hold(saga)

    def remember(self, outcome: Outcome) -> None:
        """Remember a commit, for the next message about its saga, and its timers."""
        if self._sweep is not None:
            self._sweep.timers.hold(outcome.saga)
            if outcome.ignored is None:
                self._recent.keep(outcome)

    async def attend(self, fail: Callable[[Exception], None]) -> None:
        """Sweep the store, while an engine runs. For ever."""
        assert self._broker is not None
        self._sweep = Sweep(
            self._store,
            self._config,
            self._clock,
            fire=self._pass_time,
            publish=self._publish_again,
            until_up=self._broker.restored,
            fail=fail,
        )
        try:
            await self._sweep.run()
        finally:
            self._sweep = None

    async def settle(self, command: Carried, delivery: Delivery) -> Sequence[Message]:
        """Bring a command's result into the store, and return what has to be published before it is acknowledged.

        Raises: Poison, StoreError, TransportError.
        """
        try:
            return self._config.messages(await self._settle(command, delivery.redelivered))
        except SagaNotFoundError as error:
            raise Poison(Reason.UNKNOWN_SAGA, str(error), None) from error
        except UnknownStepError as error:
            raise Poison(Reason.UNKNOWN_STEP, str(error), None) from error
        except CodecError as error:
            raise Poison(Reason.UNREADABLE_SAGA, str(error), None) from error

    async def give_up(self, poison: Poison) -> Sequence[Message]:
        """Tell a saga that a message about it cannot be handled, and return what has to be published for it.

        Raises: StoreError.
        """
        command = poison.about
        event = poison.event(self._clock())
        if command is None or event is None:
            return ()
        try:
            saga = await self._store.load(command.saga)
            # With a note: the message may be another one, which does not bring up again what comes of this.
            outcome = await self._apply(saga, event, command)
            if isinstance(command, StartChild | CompensateChild):
                return self._config.messages(await self._abandon(outcome.saga, command))
            return self._config.messages(await self._caused(command)) if outcome.ignored is not None else ()
        except (SagaNotFoundError, UnknownStepError, CodecError):
            return ()

    async def meanwhile(self) -> None:
        """Publish, take notes off, and make good what went with deleted queues, for as long as the manager is open."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.outgoing.run)
            while self._broker is not None:
                await self._broker.misses()
                queues = self._broker.missed()
                await self._make_good(queues)
                tasks.start_soon(self._make_good_again, queues)

    async def make_good(self) -> None:
        """Publish what went with queues that were deleted; they are new on the broker."""
        if self._broker is not None:
            await self._make_good(self._broker.missed())

    async def _make_good_again(self, queues: frozenset[str]) -> None:
        """Publish once more what is still waited for.

        As long as a channel has not heard that a quorum queue is gone, RabbitMQ confirms what is published over it and
        may lose it, even when a new queue has the name (3.10).
        """
        after, names = self._config.republish_after, sorted(queues)
        logger.debug("What was in the queues %s is looked for again in %g s", names, after)
        await anyio.sleep(after)
        await self._make_good(queues)
        logger.debug("What was in the queues %s was looked for again", names)

    async def _make_good(self, queues: frozenset[str]) -> None:
        """Publish again all that running sagas wait for, where one of our queues was missing.

        Not only what was in that queue: a message from it may have been in hand, and what it had caused on its way to
        another queue when the connection was lost. It is not delivered again to bring that up.
        """
        if queues.isdisjoint(self.queues):
            return
        count, cursor, more = 0, None, True
        try:
            while more:
                page = await self._store.find(RUNNING, cursor)
                cursor, more = page.cursor, page.cursor is not None
                waiting = [Outcome(saga, outstanding(saga)) for saga in page.sagas]
                messages = [message for one in waiting for message in self._config.messages(one)]
                count += len(messages)
                await self.outgoing.send(messages)
        except SagaError as error:
            logger.error("What was in the queues %s is not made good: %s", sorted(queues), error)
        if count:
            logger.warning(
                "Queues %s were missing, and what was in them is gone; what sagas wait for was published again: %d",
                ", ".join(sorted(queues)),
                count,
            )

    async def _settle(self, command: Carried, redelivered: bool) -> Outcome:
        if redelivered:
            self._recent.forget(command.saga)
        if isinstance(command, WITH_HANDLER):
            return await self._execute(command)
        saga = await self._load(command)
        if isinstance(command, StartChild):
            return await self._start_child(saga, command)
        if isinstance(command, CompensateChild):
            return await self._compensate_child(saga, command)
        if isinstance(command, Reply):
            return await self._bring(saga, event_of(command, self._clock()), command)
        if not awaits(saga, command):
            return await self._caused(command)
        event = ChildRested(
            command.step, command.attempt, command.child, command.state, self._clock(), command.asked
        )
        return await self._bring(saga, event, command)

    async def _execute(self, command: Execute | Compensate) -> Outcome:
        """Run a handler, unless its result is not awaited any more, and commit what it brings."""
        saga = self._recent.find(command)
        if saga is None:
            saga = await self._load(command)
            if not awaits(saga, command):
                return await self._caused(command)
        event = await run_handler(self._config, self._clock, saga, command)
        if isinstance(event, TimePassed):
            # Another delivery may have brought a result before, and its engine may have died before it published.
            await self._apply(saga, event, command)
            return await self._caused(command)
        return await self._bring(saga, event, command)

    async def _load(self, command: Carried) -> Saga:
        saga = await self._store.load(command.saga)
        self.hold(saga)
        return saga

    async def _bring(self, saga: Saga, event: Event, command: Carried) -> Outcome:
        """Commit an event, or return what a commit of it has caused that was made before."""
        outcome = await self._commit(saga, event, command)
        return outcome if outcome.ignored is None else await self._caused(command)

    async def _caused(self, command: Carried) -> Outcome:
        origin, events = await self._store.history(command.saga)
        return consequences(origin, events, command)

    def _commit(self, saga: Saga, event: Event, command: Carried) -> Awaitable[Outcome]:
        return self.outgoing.commit(self._store, saga, event, command)

    async def _start_child(self, parent: Saga, command: StartChild) -> Outcome:
        if awaits(parent, command):
            child = await self._child(parent, command)
            # The parent may have turned round before the child was there to be undone.
            if awaits(await self._store.load(parent.id), command):
                return created(child)
        try:
            child = await self._store.load(command.child)
        except SagaNotFoundError:
            return Outcome(parent)
        reason = f"its parent {parent.id} does not wait for it any more"
        outcome = await self._commit(child, CancelRequested(reason, self._clock()), command)
        return _as_it_stands(outcome.saga)

    async def _child(self, parent: Saga, command: StartChild) -> Saga:
        try:
            child = child_saga(parent, command, self._clock())
            await self._store.create(child)
        except SagaExistsError:
            child = await self._store.load(command.child)
        self.hold(child)
        return child

    async def _abandon(self, parent: Saga, command: StartChild | CompensateChild) -> Outcome:
        """See to it that a child goes on whose order was given up: who worked on that may not have published for it."""
        if isinstance(command, StartChild):
            return await self._start_child(parent, command)
        try:
            child = await self._store.load(command.child)
        except SagaNotFoundError:
            return Outcome(parent)
        return Outcome(child, outstanding(child))

    async def _compensate_child(self, parent: Saga, command: CompensateChild) -> Outcome:
        if not awaits(parent, command):
            return Outcome(parent)
        try:
            child = await self._store.load(command.child)
        except SagaNotFoundError:
            child = None
        while True:
            about, event = order_to_undo(parent, child, command, self._clock())
            if about is not child:
                await self._apply(about, event, command)
                return Outcome(about)
            outcome = await self._commit(about, event, command)
            if outcome.ignored is None:
                # What else is outstanding is with the broker, or runs: it is left alone.
                return outcome
            if not (outcome.saga.past_pivot or outcome.saga.is_compensated):
                return _as_it_stands(outcome.saga)
            child = outcome.saga  # it went past its pivot, or was undone, before it could be told

    async def _pass_time(self, saga_id: str) -> None:
        """Do what is due in a saga, and publish what comes of it; nothing if the saga is gone.

        Raises: StoreError, TransportError.
        """
        with _as_far_as_possible(saga_id):
            saga = await self._store.load(saga_id)
            await self._apply(saga, TimePassed(self._clock()))

    async def _publish_again(self, commit: Commit) -> None:
        """Publish what a commit has caused and is still outstanding; nothing if the saga is gone.

        Raises: StoreError, TransportError.
        """
        with _as_far_as_possible(commit[0]):
            origin, events = await self._store.history(commit[0])
            outcome = caused_by(origin, events, commit[1])
            await self.outgoing.publish(commit, self._config.messages(outcome))

    async def _apply(self, saga: Saga, event: Event, command: Carried | None = None) -> Outcome:
        """Commit an event with a note, and publish what comes of it; what the broker does not take now waits."""
        try:
            return await self.outgoing.apply(self._store, saga, event, command)
        except PublishError as error:
            logger.warning("What is next in saga %s is left to the sweep: %s", saga.id, error)
            return Outcome(await self._store.load(saga.id))


@contextmanager
def _as_far_as_possible(saga_id: str) -> Generator[None]:
    """Let no single saga end the engine: one that is gone needs nothing more, and the others do not wait for it."""
    try:
        yield
    except SagaNotFoundError:
        pass
    except PublishError as error:
        logger.warning("What is next in saga %s is left to the sweep: %s", saga_id, error)
    except CodecError as error:
        logger.error("What is due in saga %s cannot be done: %s", saga_id, error)


def _as_it_stands(saga: Saga) -> Outcome:
    """Return what a saga waits for, and its state as news: whoever committed it may have told nobody."""
    return Outcome(saga, outstanding(saga), news(None, saga))
