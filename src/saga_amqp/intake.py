"""What an engine has of one queue: its subscription, and the messages that wait for a free hand.

Each queue has hands of its own. So compensations never starve behind steps, nor replies behind either.
"""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import anyio

from saga_amqp.backoff import pauses
from saga_amqp.contracts import Consumer, Delivery
from saga_amqp.errors import TransportClosedError, TransportError
from saga_amqp.in_hand import InHand
from saga_amqp.reconnecting import Reconnecting

logger = logging.getLogger("saga_amqp.engine")


class Intake:
    """One queue, consumed from for as long as it can be; `concurrency` and `prefetch` are numbers of messages."""

    def __init__(self, queue: str, concurrency: int, prefetch: int) -> None:
        self.queue = queue
        self.subscribed = anyio.Event()
        self._concurrency = concurrency
        self._prefetch = prefetch
        self._consumer: Consumer | None = None
        self._waiting: deque[InHand] = deque()
        self._busy = 0

    async def keep(
        self,
        broker: Reconnecting,
        receive: Callable[["Intake", Delivery], None],
        chance: Callable[[], float],
    ) -> TransportClosedError:
        """Take messages, and begin anew whenever the subscription breaks; return why when the transport is closed."""
        waiting = pauses(chance)
        while True:
            try:
                transport = await broker.restored()
                take = partial(receive, self)
                async with transport.consume(self.queue, self._prefetch, take) as self._consumer:
                    self.subscribed.set()
                    waiting = pauses(chance)
                    error = await self._consumer.failed()
            except TransportClosedError as failure:
                return failure
            except TransportError as failure:
                error = failure
            finally:
                self._consumer = None
            self.give_back()
            logger.warning("Queue %r cannot be consumed from, and will be tried again: %s", self.queue, error)
            await anyio.sleep(next(waiting))
            with suppress(TransportError):
                await broker.declare()  # the queue may have been deleted

    async def cancel(self) -> None:
        """Ask for no more messages."""
        if self._consumer is not None:
            with suppress(TransportError):  # the broker takes back what its consumer has lost
                await self._consumer.cancel()

    def add(self, work: InHand) -> None:
        """Have a message wait for a free hand."""
        self._waiting.append(work)

    def next(self) -> InHand | None:
        """Return the message that is to be worked on now, if there is one and a free hand for it; `done` frees it."""
        if not self._waiting or self._busy >= self._concurrency:
            return None
        self._busy += 1
        return self._waiting.popleft()

    def done(self) -> None:
        """Free a hand."""
        self._busy -= 1

    def give_back(self) -> None:
        """Give back what waits."""
        while self._waiting:
            self._waiting.pop().give_back()
