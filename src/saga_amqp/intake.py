"""What an engine has of one queue: its subscription, and the messages that wait for a free hand.

Each queue has hands of its own. So compensations never starve behind steps, nor replies behind either.

A message that kills its engine takes all with it that this engine has in hand, and they are counted as it is. So a
message that has come back half as often as it may is a suspect. Suspects are handled one at a time, those first that
came back least, now from the front and the next time from the back: in two times all have passed but the one.
"""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import anyio

from saga_amqp.backoff import pauses
from saga_amqp.contracts import Consumer, Delivery
from saga_amqp.errors import QueueDeletedError, TransportClosedError, TransportError
from saga_amqp.in_hand import InHand
from saga_amqp.reconnecting import Reconnecting

logger = logging.getLogger("saga_amqp.engine")

SETTLE = 0.1
"""Seconds for which the first suspect waits for those that come with it: else there would be no back."""


class Intake:
    """One queue, consumed from for as long as it can be; `concurrency` and `prefetch` are numbers of messages.

    `limit` is how often one of them may come back.

    Workers take what waits. Where a message comes and nobody is on his way, one who is free is woken, or else `begin`
    is called to have one more begin. Whoever takes a message wakes the next one, if there is more: he comes when the
    first has to wait for something. So a burst of messages that need no waiting is the work of one.
    """

    def __init__(
        self,
        queue: str,
        concurrency: int,
        prefetch: int,
        limit: int,
        begin: Callable[["Intake"], bool],
    ) -> None:
        self.queue = queue
        self.subscribed = anyio.Event()
        self._concurrency = concurrency
        self._prefetch = prefetch
        self._begin = begin
        self._consumer: Consumer | None = None
        self._cancelled = False
        self._waiting: deque[InHand] = deque()
        self._suspicious = max(1, limit // 2)
        self._suspects: list[InHand] = []
        self._suspect: InHand | None = None
        self._testing = self._settled = False
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
                    if self._cancelled:
                        await self.cancel()
                        self.give_back()
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
            if isinstance(error, QueueDeletedError):
                broker.miss(self.queue)

    async def cancel(self) -> None:
        """Ask for no more messages, now and whenever the connection is made again."""
        self._cancelled = True
        if self._consumer is not None:
            with suppress(TransportError):  # the broker takes back what its consumer has lost
                await self._consumer.cancel()

    def add(self, work: InHand) -> None:
        """Have a message wait for a worker."""
        if work.poison is None and work.given_back >= self._suspicious:
            self._suspects.append(work)
        else:
            self._waiting.append(work)
        self.call()

    def call(self) -> None:
        """Have a worker come, if there is work and nobody on his way."""
        if (self._waiting or self._may_test) and not self._coming:
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
        while True:
            while not (self._waiting or self._may_test):
                await self._woken()
            work = await self._next_suspect() if self._may_test else self._waiting.popleft()
            if work is not None:
                self.call()
                return work

    def let_go(self, work: InHand) -> None:
        """Note that a message is in hand no more; where it was a suspect, it is the next one's turn."""
        if self._suspect is work:
            self._suspect, self._testing = None, False
            self._settled = bool(self._suspects)
            self.call()

    def give_back(self, *, all_of_it: bool = True) -> None:
        """Give back what waits, or only that for which no worker is free."""
        free = len(self._free) + self._coming
        kept = 0 if all_of_it else self._concurrency - self._workers + free
        while self._suspects:
            self._suspects.pop().give_back()
        while len(self._waiting) > kept:
            self._waiting.pop().give_back()

    @property
    def _may_test(self) -> bool:
        return bool(self._suspects) and not self._testing

    async def _woken(self) -> None:
        woken = anyio.Event()
        self._free.append(woken)
        try:
            await woken.wait()
        finally:
            if woken.is_set():
                self._coming = False
            else:
                self._free.remove(woken)

    async def _next_suspect(self) -> InHand | None:
        """Take the suspect whose turn it is; None where all were given back meanwhile."""
        self._testing = True
        try:
            if not self._settled:
                await anyio.sleep(SETTLE)
            if self._suspects:
                least = min(work.given_back for work in self._suspects)
                places = [place for place, work in enumerate(self._suspects) if work.given_back == least]
                self._suspect = self._suspects.pop(places[0] if least % 2 else places[-1])
        finally:
            self._testing = self._suspect is not None
            self._settled = self._testing
        return self._suspect
