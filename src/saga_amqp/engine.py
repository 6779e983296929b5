"""The loop that moves sagas on.

A message arrives → a handler runs → an event is made → the core decides → the store commits → the commands are
published → the message is acknowledged.

Commit before publish, and publish, confirmed, before acknowledge: whoever dies in between leaves the message with
the broker. Whoever gets it again finds its result committed, runs no handler, and publishes what that commit
caused. So the broker's redelivery is the recovery log, and nothing is written twice.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from contextvars import copy_context

import anyio
from anyio.abc import TaskGroup, TaskStatus

from saga_amqp.cancellation import without_cancellation
from saga_amqp.config import Config
from saga_amqp.contracts import Consumer, Delivery, Query, Store, Transport
from saga_amqp.errors import SagaNotFoundError, TransportError
from saga_amqp.execution import Execution
from saga_amqp.observer import Point
from saga_amqp.outgoing import publish
from saga_amqp.timers import Timers
from saga_core import CodecError, Command, Saga, UnknownStepError, decode_command
from saga_core.states import ACTIVE

logger = logging.getLogger("saga_amqp.engine")


class Engine:
    """Runs handlers for the messages of one transport, in one task group, until told to stop."""

    def __init__(
        self, transport: Transport, store: Store, config: Config, clock: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._store = store
        self._config = config
        self._timers = Timers(clock)
        self._execution = Execution(store, config, clock, self._timers)
        self.observe = self._execution.observe
        self._context = copy_context()
        self._workers: TaskGroup | None = None
        self._busy = 0
        self._waiting: deque[InHand] = deque()
        self._in_hand: set[InHand] = set()
        self._stopping = False
        self._ending = anyio.Event()
        self._idle = anyio.Event()
        self._error: BaseException | None = None

    async def run(self, task_status: TaskStatus[None]) -> None:
        """Work until `stop`, a failure, or cancellation.

        After `stop` running handlers have the grace period to finish. Whatever is not acknowledged in the end goes
        back to the broker. Raises the first error, as it is: TransportError, StoreError, or what a handler or an
        observer raised that is no Exception.
        """
        config = self._config
        try:
            async with AsyncExitStack() as stack:
                consumers: list[Consumer] = []
                for queue in (config.step_queue, config.compensate_queue):
                    consume = self._transport.consume(queue, config.messages_ahead, self._receive)
                    consumers.append(await stack.enter_async_context(consume))
                async with anyio.create_task_group() as self._workers:
                    try:
                        for consumer in consumers:
                            self._workers.start_soon(self._watch, consumer)
                        self._workers.start_soon(self._timers.run, self._pass_time)
                        for saga in (await self._store.find(Query(states=ACTIVE), limit=1_000_000)).sagas:
                            self._timers.hold(saga)
                        self._start_workers()
                        task_status.started()
                        await self._ending.wait()
                        if self._error is None:
                            await self._finish(consumers)
                    finally:
                        self._stopping = True
                    self._workers.cancel_scope.cancel()
        finally:
            self._in_hand.clear()
            if self._error is not None and not isinstance(self._error, Exception):
                raise self._error  # even where `run` is cancelled: nobody else would learn of it
        if self._error is not None:
            raise self._error

    def hold(self, saga: Saga) -> None:
        """Remember when time will next change something in a saga."""
        self._timers.hold(saga)

    def stop(self) -> None:
        """Begin to stop: `run` returns when what is in hand is done, or the grace period is over."""
        self._stopping = True
        self._ending.set()

    def fail(self, error: BaseException) -> None:
        """End with an error. The first one counts, but KeyboardInterrupt and its like outrank any other."""
        if self._error is None or (isinstance(self._error, Exception) and not isinstance(error, Exception)):
            self._error = error
        self._stopping = True
        self._ending.set()
        self._idle.set()
        if self._workers is not None:
            self._workers.cancel_scope.cancel()

    async def _finish(self, consumers: Sequence[Consumer]) -> None:
        with anyio.move_on_after(self._config.grace_period):
            try:
                for consumer in consumers:
                    await consumer.cancel()
            except TransportError as error:
                self.fail(error)
            # Only now: given back earlier, they would be handed to this very consumer again.
            while self._waiting:
                self._waiting.pop().give_back()
            if self._in_hand:
                await self._idle.wait()

    async def _watch(self, consumer: Consumer) -> None:
        self.fail(await consumer.failed())

    async def _pass_time(self, saga_id: str) -> None:
        try:
            commands = await self._execution.pass_time(saga_id)
            await publish(self._transport, self._config, commands)
        except Exception as error:
            self.fail(error)

    def _receive(self, delivery: Delivery) -> None:
        work = InHand(self, delivery)
        self._in_hand.add(work)
        self._waiting.append(work)
        self._start_workers()

    def _start_workers(self) -> None:
        if self._workers is not None and not self._stopping:
            while self._waiting and self._busy < self._config.concurrency:
                self._busy += 1
                # In the context of `run`: not of the task that publishes, nor of the handler that was here before.
                self._context.copy().run(self._workers.start_soon, self._work, self._waiting.popleft())

    async def _work(self, work: "InHand") -> None:
        try:
            await self._process(work)
        except BaseException as error:  # a worker ends here, and tells the engine why
            self._explain(work, error)
        finally:
            self._busy -= 1
            self._start_workers()

    def _explain(self, work: "InHand", error: BaseException) -> None:
        """Decide what an exception that ended a worker means for the engine.

        Where the engine ends, its consumers give the message back as they leave. Given back before, it would be
        handed to this very engine again.
        """
        rest = without_cancellation(error)
        ending = anyio.current_effective_deadline() == float("-inf")
        if ending:
            self._stopping = True
        if rest is not None and not (ending and isinstance(rest, Exception)):
            self.fail(rest)
        elif not ending:
            # Somebody cancelled this one task, as asyncio allows. The engine goes on.
            logger.warning(
                "A handler was cancelled from outside; its message goes back to the queue: %s", work
            )
            work.give_back()

    async def _process(self, work: "InHand") -> None:
        try:
            work.command = command = decode_command(work.delivery.body)
            self.observe(Point.RECEIVED, command.saga, command)
            commands = await self._execution.settle(command)
        except (CodecError, SagaNotFoundError, UnknownStepError) as error:
            logger.error("Message %s goes to the dead letters: %s", work.delivery.message_id, error)
            work.dead_letter()
            return
        work.unconfirmed = len(commands)
        if not commands:
            work.acknowledge()
        for one in commands:
            await self._transport.publish(self._config.message(one), work.settled)

    def let_go(self, work: "InHand") -> bool:
        """Note that a message leaves our hands, and say whether it was still in them."""
        if work not in self._in_hand:
            return False
        self._in_hand.remove(work)
        if self._stopping and not self._in_hand:
            self._idle.set()
        return True


class InHand:
    """One message from its arrival until it is acknowledged or given back."""

    __slots__ = ("_engine", "command", "delivery", "unconfirmed")

    def __init__(self, engine: Engine, delivery: Delivery) -> None:
        self._engine = engine
        self.delivery: Delivery = delivery
        self.command: Command | None = None
        self.unconfirmed = 0

    def __str__(self) -> str:
        return str(self.command or self.delivery.message_id)

    def settled(self, error: TransportError | None) -> None:
        """Take the outcome of one publish; the last good one acknowledges the message."""
        if error is not None:
            self._engine.fail(error)
            return
        try:
            if self.command is not None:
                self._engine.observe(Point.PUBLISHED, self.command.saga, self.command)
            self.unconfirmed -= 1
            if self.unconfirmed == 0:
                self.acknowledge()
        except BaseException as failure:  # an observer's; it must not reach the transport's tasks
            self._engine.fail(failure)

    def acknowledge(self) -> None:
        """Tell the broker that the message is done with."""
        if self._engine.let_go(self):
            self.delivery.acknowledge()
            if self.command is not None:
                self._engine.observe(Point.ACKNOWLEDGED, self.command.saga, self.command)

    def give_back(self) -> None:
        """Have the message delivered again, here or elsewhere."""
        if self._engine.let_go(self):
            self.delivery.reject(requeue=True)

    def dead_letter(self) -> None:
        """Have the message put where a person can look at it."""
        if self._engine.let_go(self):
            self.delivery.reject(requeue=False)
