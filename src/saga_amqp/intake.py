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
    """One queue, consumed from for as long as it can be; `concurrency` and `prefetch` are numbers of messages.

    Workers take what waits. Where a message comes and nobody is on his way, one who is free is woken, or else `begin`
    is called to have one more begin. Whoever takes a message wakes the next one, if there is more: he comes when the
    first has to wait for something. So a burst of messages that need no waiting is the work of one.
    """

    def __init__(
        self, queue: str, concurrency: int, prefetch: int, begin: Callable[["Intake"], bool]
    ) -> None:
        self.queue = queue
        self.subscribed = anyio.Event()
        self._concurrency = concurrency
        self._prefetch = prefetch
        self._begin = begin
        self._consumer: Consumer | None = None
        self._waiting: deque[InHand] = deque()
        self._workers = 0
        self._free: list[anyio.Event] = []
        self._coming = False

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
        """Have a message wait for a worker."""
        self._waiting.append(work)
        self.call()

    def call(self) -> None:
        """Have a worker come, if there is work and nobody on his way."""
        if self._waiting and not self._coming:
            if self._free:
                self._coming = True
                self._free.pop().set()
            elif self._workers < self._concurrency and self._begin(self):
                self._coming = True
                self._workers += 1

    def arrive(self) -> None:
        """Begin as a worker."""
        self._coming = False

    def leave(self) -> None:
        """End as a worker."""
        self._workers -= 1
        self.call()

    async def next(self) -> InHand:
        """Wait for something to do, as a worker that is free."""
        while not self._waiting:
            woken = anyio.Event()
            self._free.append(woken)
            try:
                await woken.wait()
            finally:
                if woken.is_set():
                    self._coming = False
                else:
                    self._free.remove(woken)
        work = self._waiting.popleft()
        self.call()
        return work

    def give_back(self, *, all_of_it: bool = True) -> None:
        """Give back what waits, or only that for which no worker is free."""
        free = len(self._free) + self._coming
        kept = 0 if all_of_it else self._concurrency - self._workers + free
        while len(self._waiting) > kept:
            self._waiting.pop().give_back()
