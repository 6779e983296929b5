"""The loop that moves sagas on.

A message arrives → a handler runs → an event is made → the core decides → the store commits → the commands are
published → the message is acknowledged.

Commit before publish, and publish, confirmed, before acknowledge: whoever dies in between leaves the message with
the broker. Whoever gets it again finds its result committed, runs no handler, and publishes what that commit
caused. So the broker's redelivery is the recovery log, and nothing is written twice.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial

import anyio
from anyio.abc import TaskGroup, TaskStatus

from saga_amqp.backoff import pauses
from saga_amqp.cancellation import without_cancellation
from saga_amqp.config import Config
from saga_amqp.contracts import Commit, Consumer, Delivery
from saga_amqp.errors import (
    ConnectionLostError,
    SagaNotFoundError,
    TransportClosedError,
    TransportError,
)
from saga_amqp.execution import Execution
from saga_amqp.observer import Point
from saga_amqp.outgoing import Outgoing
from saga_amqp.patience import PatientStore
from saga_amqp.reconnecting import Reconnecting
from saga_amqp.sweep import Sweep
from saga_core import CodecError, Command, UnknownStepError, decode_command

logger = logging.getLogger("saga_amqp.engine")


class Engine:
    """Runs handlers for the messages of one broker, in one task group, until told to stop.

    It outlives the connection, and the store's absence: what handlers are doing then goes on, and what they bring is
    committed and published when that can be done again.
    """

    def __init__(
        self,
        broker: Reconnecting,
        store: PatientStore,
        config: Config,
        clock: Callable[[], float],
        outgoing: Outgoing,
        chance: Callable[[], float],
    ) -> None:
        self._broker = broker
        self._chance = chance
        self._config = config
        self._sweep = Sweep(store, config, clock, fire=self._pass_time, publish=self._publish_again)
        self.hold = self._sweep.timers.hold
        self._execution = Execution(store, config, clock, self.hold, outgoing)
        self.observe = self._execution.observe
        self._context = copy_context()
        self._workers: TaskGroup | None = None
        self._consumers: dict[str, Consumer] = {}
        self._busy = 0
        self._waiting: deque[InHand] = deque()
        self._in_hand: dict[Command, InHand] = {}
        self._stopping = False
        self._ready = anyio.Event()
        self._ending = anyio.Event()
        self._idle = anyio.Event()
        self._error: BaseException | None = None

    async def run(self, task_status: TaskStatus[None]) -> None:
        """Work until `stop`, a failure, or cancellation.

        After `stop` running handlers have the grace period to finish. Whatever is not acknowledged in the end goes
        back to the broker. Raises the first error, as it is: TransportError, StoreError, or what a handler or an
        observer raised that is no Exception.
        """
        try:
            async with anyio.create_task_group() as consuming:
                for queue in (self._config.step_queue, self._config.compensate_queue):
                    consuming.start_soon(self._consume, queue)
                await self._ready.wait()
                async with anyio.create_task_group() as self._workers:
                    try:
                        self._workers.start_soon(self._sweep.run)
                        self._start_workers()
                        task_status.started()
                        await self._ending.wait()
                        if self._error is None:
                            await self._finish()
                    finally:
                        self._stopping = True
                    self._workers.cancel_scope.cancel()
                # Only now, so that what was acknowledged is sent, and the broker takes back the rest.
                consuming.cancel_scope.cancel()
        finally:
            self._in_hand.clear()
            if self._error is not None and not isinstance(self._error, Exception):
                raise self._error  # even where `run` is cancelled: nobody else would learn of it
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Begin to stop: `run` returns when what is in hand is done, or the grace period is over."""
        self._stopping = True
        self._ready.set()
        self._ending.set()

    def fail(self, error: BaseException) -> None:
        """End with an error. The first one counts, but KeyboardInterrupt and its like outrank any other."""
        if self._error is None or (isinstance(self._error, Exception) and not isinstance(error, Exception)):
            self._error = error
        self.stop()
        self._idle.set()
        if self._workers is not None:
            self._workers.cancel_scope.cancel()

    async def _finish(self) -> None:
        with anyio.move_on_after(self._config.grace_period):
            for consumer in list(self._consumers.values()):
                with suppress(TransportError):  # the broker takes back what its consumer has lost
                    await consumer.cancel()
            # Only now: given back earlier, they would be handed to this very consumer again.
            while self._waiting:
                self._waiting.pop().give_back()
            if self._in_hand:
                await self._idle.wait()

    async def _consume(self, queue: str) -> None:
        """Take messages from a queue, and begin anew whenever the subscription breaks."""
        waiting = pauses(self._chance)
        while True:
            try:
                transport = await self._broker.restored()
                receive = partial(self._receive, queue)
                async with transport.consume(queue, self._config.messages_ahead, receive) as consumer:
                    self._consumers[queue] = consumer
                    if len(self._consumers) == 2:
                        self._ready.set()
                    waiting = pauses(self._chance)
                    error = await consumer.failed()
            except TransportClosedError as failure:
                self.fail(failure)
                return
            except TransportError as failure:
                error = failure
            self._consumers.pop(queue, None)
            for work in [one for one in self._waiting if one.queue == queue]:
                self._waiting.remove(work)
                work.give_back()
            logger.warning("Queue %r cannot be consumed from, and will be tried again: %s", queue, error)
            await anyio.sleep(next(waiting))
            with suppress(TransportError):
                await self._broker.declare()  # the queue may have been deleted

    async def _pass_time(self, saga_id: str) -> None:
        await self._or_fail(self._execution.pass_time(saga_id))

    async def _publish_again(self, commit: Commit) -> None:
        await self._or_fail(self._execution.publish_again(commit))

    async def _or_fail(self, doing: Awaitable[None]) -> None:
        try:
            await doing
        except Exception as error:
            self.fail(error)

    def _receive(self, queue: str, delivery: Delivery) -> None:
        try:
            command = decode_command(delivery.body)
        except CodecError as error:
            logger.error("Message %s goes to the dead letters: %s", delivery.message_id, error)
            delivery.reject(requeue=False)
            return
        if (work := self._in_hand.get(command)) is not None:
            # Its connection was lost, or it was published twice. One of them is done, and both are acknowledged.
            work.deliveries.append(delivery)
            return
        work = self._in_hand[command] = InHand(self, queue, command, delivery)
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
        command = work.command
        try:
            self.observe(Point.RECEIVED, command.saga, command)
            commands = await self._execution.settle(command)
        except (SagaNotFoundError, UnknownStepError) as error:
            message_id = work.deliveries[0].message_id
            logger.error("Message %s goes to the dead letters: %s", message_id, error)
            work.dead_letter()
            return
        work.unconfirmed = len(commands)
        if not commands:
            work.acknowledge()
            return
        self.observe(Point.PUBLISHING, command.saga, command)
        try:
            for one in commands:
                await self._broker.publish(self._config.message(one), work.settled)
        except ConnectionLostError as error:
            work.settled(error)

    def publish_later(self, work: "InHand") -> None:
        """Give a message back, for what it has caused could not be published; when it comes again, that is.

        Not at once: as long as a transport does not know yet that it is lost, it would come again at once as well.
        """
        if self._workers is None or self._stopping:
            work.give_back()
        else:
            self._context.copy().run(self._workers.start_soon, self._give_back_later, work)

    async def _give_back_later(self, work: "InHand") -> None:
        await anyio.sleep(next(pauses(self._chance)))
        work.give_back()

    def let_go(self, work: "InHand") -> bool:
        """Note that a message leaves our hands, and say whether it was still in them."""
        if self._in_hand.get(work.command) is not work:
            return False
        del self._in_hand[work.command]
        if self._stopping and not self._in_hand:
            self._idle.set()
        return True


class InHand:
    """One message from its arrival until it is acknowledged or given back; as often as it was delivered."""

    __slots__ = ("_engine", "command", "deliveries", "queue", "unconfirmed")

    def __init__(self, engine: Engine, queue: str, command: Command, delivery: Delivery) -> None:
        self._engine = engine
        self.queue = queue
        self.command = command
        self.deliveries = [delivery]
        self.unconfirmed = 0

    def __str__(self) -> str:
        return str(self.command)

    def settled(self, error: TransportError | None) -> None:
        """Take the outcome of one publish; the last good one acknowledges the message."""
        if isinstance(error, ConnectionLostError):
            self._engine.publish_later(self)
            return
        if error is not None:
            self._engine.fail(error)
            return
        try:
            self._engine.observe(Point.PUBLISHED, self.command.saga, self.command)
            self.unconfirmed -= 1
            if self.unconfirmed == 0:
                self.acknowledge()
        except BaseException as failure:  # an observer's; it must not reach the transport's tasks
            self._engine.fail(failure)

    def acknowledge(self) -> None:
        """Tell the broker that the message is done with."""
        self._engine.observe(Point.ACKNOWLEDGING, self.command.saga, self.command)
        if self._engine.let_go(self):
            for delivery in self.deliveries:
                delivery.acknowledge()
            self._engine.observe(Point.ACKNOWLEDGED, self.command.saga, self.command)

    def give_back(self) -> None:
        """Have the message delivered again, here or elsewhere."""
        if self._engine.let_go(self):
            for delivery in self.deliveries:
                delivery.reject(requeue=True)

    def dead_letter(self) -> None:
        """Have the message put where a person can look at it."""
        if self._engine.let_go(self):
            for delivery in self.deliveries:
                delivery.reject(requeue=False)
