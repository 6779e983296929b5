"""The loop that moves sagas on.

A message arrives → a handler runs → an event is made → the core decides → the store commits → the commands are
published → the message is acknowledged.

Commit before publish, and publish, confirmed, before acknowledge: whoever dies in between leaves the message with
the broker. Whoever gets it again finds its result committed, runs no handler, and publishes what that commit
caused. So the broker's redelivery is the recovery log, and nothing is written twice.
"""

import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup, TaskStatus

from saga_amqp.backoff import pauses
from saga_amqp.cancellation import without_cancellation
from saga_amqp.config import Config
from saga_amqp.contracts import Delivery, Message
from saga_amqp.errors import PublishError, TransportError
from saga_amqp.in_hand import InHand
from saga_amqp.intake import Intake
from saga_amqp.observer import Point
from saga_amqp.poison import Poison, burial, examine
from saga_amqp.reconnecting import Reconnecting
from saga_core import Carried

logger = logging.getLogger("saga_amqp.engine")


class Duty(Protocol):
    """What an engine does with its messages: that of an orchestrator, or that of a participant."""

    @property
    def queues(self) -> Sequence[str]:
        """The queues that it takes messages from."""
        ...

    async def settle(self, command: Carried, delivery: Delivery) -> Sequence[Message]:
        """Do what a command asks for, and return what has to be published before it is acknowledged.

        Raises: Poison; StoreError, TransportError, which end the engine.
        """
        ...

    async def give_up(self, poison: Poison) -> Sequence[Message]:
        """See to it that no saga waits for a message that cannot be handled, and return what has to be published."""
        ...

    async def attend(self, fail: Callable[[Exception], None]) -> None:
        """Do what else there is to do while the engine runs. For ever; what goes wrong is handed to `fail`."""
        ...


class Engine:
    """Runs handlers for the messages of one broker, in one task group, until told to stop.

    It outlives the connection, and the store's absence: what handlers are doing then goes on, and what they bring is
    committed and published when that can be done again.
    """

    def __init__(
        self,
        broker: Reconnecting,
        config: Config,
        duty: Duty,
        clock: Callable[[], float],
        chance: Callable[[], float],
        buried: Counter[str],
    ) -> None:
        self.broker = broker
        self.config = config
        self._duty = duty
        self._clock = clock
        self._chance = chance
        self._buried = buried
        limits = config.limits()
        self._intakes = [
            Intake(queue, *limits[queue], config.delivery_limit, self._begin) for queue in duty.queues
        ]
        self._context = copy_context()
        self._workers: TaskGroup | None = None
        self._in_hand: dict[Hashable, InHand] = {}
        self._stopping = False
        self._ended = False
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
                for intake in self._intakes:
                    consuming.start_soon(self._consume, intake)
                await self._until_subscribed()
                async with anyio.create_task_group() as self._workers:
                    try:
                        self._workers.start_soon(self._duty.attend, self.fail)
                        for intake in self._intakes:
                            intake.call()
                        task_status.started()
                        await self._ending.wait()
                        if self._error is None:
                            await self._finish()
                    finally:
                        self._stopping = self._ended = True
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
        self._ending.set()

    def fail(self, error: BaseException) -> None:
        """End with an error. The first one counts, but KeyboardInterrupt and its like outrank any other."""
        if self._error is None or (isinstance(self._error, Exception) and not isinstance(error, Exception)):
            self._error = error
        self._ended = True
        self.stop()
        self._idle.set()
        if self._workers is not None:
            self._workers.cancel_scope.cancel()

    def publish_later(self, work: InHand) -> None:
        """Give a message back, for what it has caused could not be published; when it comes again, that is.

        Not at once: as long as a transport does not know yet that it is lost, it would come again at once as well.
        """
        self._start_or_give_back(work, self._give_back_later, work)

    def publish_again(self, work: InHand, message: Message, error: PublishError) -> None:
        """Publish a message once more that the broker did not take; meanwhile what has caused it stays in hand."""
        if work.pauses is None:
            work.pauses = pauses(self._chance)
            logger.warning("%s: what comes next will be published again: %s", work, error)
        self._start_or_give_back(work, self._publish_again, work, message, next(work.pauses))

    def refused(self, work: InHand, poison: Poison) -> None:
        """See to a message that a message has caused and that cannot be published: its saga is told."""
        self._start_or_give_back(work, self._tell, work, poison)

    def buried(self, work: InHand, poison: Poison) -> None:
        """Note that a message has come to the dead letters."""
        about = poison.about or work.command
        logger.error(
            "Message %s from queue %r is now a dead letter, %s: %s (saga %s, step %r, attempt %s)",
            work.deliveries[0].message_id,
            poison.queue or work.intake.queue,
            poison.reason,
            poison,
            "unknown" if about is None else about.saga,
            None if about is None else about.step,
            None if about is None else about.attempt,
        )
        self._buried[poison.reason] += 1

    def let_go(self, work: InHand) -> bool:
        """Note that a message leaves our hands, and say whether it was still in them."""
        if self._in_hand.get(work.key) is not work:
            return False
        del self._in_hand[work.key]
        work.intake.let_go(work)
        if self._stopping and not self._in_hand:
            self._idle.set()
        return True

    async def _until_subscribed(self) -> None:
        async with anyio.create_task_group() as waiting:

            async def stopped() -> None:
                await self._ending.wait()
                waiting.cancel_scope.cancel()

            waiting.start_soon(stopped)
            for intake in self._intakes:
                await intake.subscribed.wait()
            waiting.cancel_scope.cancel()

    async def _consume(self, intake: Intake) -> None:
        self.fail(await intake.keep(self.broker, self._receive, self._chance))

    async def _finish(self) -> None:
        with anyio.move_on_after(self.config.grace_period):
            for intake in self._intakes:
                await intake.cancel()
            # Only now: given back earlier, they would be handed to this very consumer again.
            for intake in self._intakes:
                intake.give_back(all_of_it=False)
            if self._in_hand:
                await self._idle.wait()

    def _receive(self, intake: Intake, delivery: Delivery) -> None:
        examined = examine(delivery, intake.queue, self.config)
        key = examined.command or (delivery.message_id, delivery.body)
        same = self._in_hand.get(key)
        if same is not None and (examined.command is not None or delivery.redelivered):
            # Its connection was lost, or it was published twice. One of them is done, and both are acknowledged.
            same.deliveries.append(delivery)
            return
        work = InHand(self, intake, delivery, examined, key if same is None else object())
        self._in_hand[work.key] = work
        intake.add(work)

    def _begin(self, intake: Intake) -> bool:
        if self._workers is None or self._ended:
            return False
        self._start(self._work, intake)
        return True

    def _start(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        # In the context of `run`: not of the task that publishes, nor of the handler that was here before.
        assert self._workers is not None
        self._context.copy().run(self._workers.start_soon, function, *arguments)

    async def _work(self, intake: Intake) -> None:
        """Work on one message after the other, as long as no handler leaves anything behind in the context."""
        intake.arrive()
        context = copy_context()
        work: InHand | None = None
        try:
            while not self._ended and copy_context() == context:
                work = await intake.next()
                await self._process(work)
                work = None
        except BaseException as error:  # a worker ends here, and tells the engine why
            if work is not None:
                self._explain(work, error)
        finally:
            intake.leave()

    def _explain(self, work: InHand, error: BaseException) -> None:
        """Decide what an exception that ended a worker means for the engine.

        Where the engine ends, its consumers give the message back as they leave. Given back before, it would be
        handed to this very engine again.
        """
        rest = without_cancellation(error)
        ending = anyio.current_effective_deadline() == float("-inf")
        if ending:
            self._stopping = self._ended = True
        if rest is not None and not (ending and isinstance(rest, Exception)):
            self.fail(rest)
        elif not ending:
            # Somebody cancelled this one task, as asyncio allows. The engine goes on.
            logger.warning(
                "A handler was cancelled from outside; its message goes back to the queue: %s", work
            )
            work.give_back()

    async def _process(self, work: InHand) -> None:
        work.observe(Point.RECEIVED)
        try:
            if work.poison is not None:
                raise work.poison
            assert work.command is not None
            messages = await self._duty.settle(work.command, work.deliveries[0])
        except Poison as poison:
            work.poison = poison
            told = await self._duty.give_up(poison)
            letter = burial(poison, work.deliveries[0], work.intake.queue, self.config, self._clock())
            messages = [*told, letter]
        await work.publish(messages)

    async def _tell(self, work: InHand, poison: Poison) -> None:
        logger.error("%s, whose saga is told: %s", poison.about, poison)
        await work.publish_instead(await self._duty.give_up(poison))

    async def _publish_again(self, work: InHand, message: Message, pause: float) -> None:
        await anyio.sleep(pause)
        with suppress(TransportError):
            await self.broker.declare()  # the queue may have been deleted
        await work.publish_again(message)

    async def _give_back_later(self, work: InHand) -> None:
        await anyio.sleep(next(pauses(self._chance)))
        work.give_back()

    def _start_or_give_back(
        self, work: InHand, function: Callable[..., Coroutine[Any, Any, None]], *arguments: object
    ) -> None:
        async def attempt() -> None:
            try:
                await function(*arguments)
            except BaseException as error:  # as in `_work`
                self._explain(work, error)

        if self._workers is None or self._stopping:
            work.give_back()
        else:
            self._start(attempt)
