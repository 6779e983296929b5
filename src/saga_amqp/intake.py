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
        self._workers = 0
        self._idle: list[_Idle] = []

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

    def add(self, work: InHand) -> bool:
        """Hand a message to whoever is free. True when nobody is, and there is room for one more worker."""
        if self._idle:
            self._idle.pop().wake(work)
            return False
        self._waiting.append(work)
        return self.has_room

    @property
    def has_room(self) -> bool:
        """Whether there is work for one more worker, and a place for him; who enters it calls `enter`."""
        return self._workers < self._concurrency and bool(self._waiting)

    def enter(self) -> InHand:
        """Begin as a worker, with something to do."""
        self._workers += 1
        return self._waiting.popleft()

    def leave(self) -> None:
        """End as a worker."""
        self._workers -= 1

    def dismiss(self) -> None:
        """Give those who are free nothing to do any more."""
        self._idle.clear()

    async def next(self) -> InHand:
        """Wait for something to do, as a worker that is free."""
        if self._waiting:
            return self._waiting.popleft()
        idle = _Idle()
        self._idle.append(idle)
        try:
            return await idle.work()
        except BaseException:
            if idle.given is not None:
                self._waiting.appendleft(idle.given)
            elif idle in self._idle:
                self._idle.remove(idle)
            raise

    def give_back(self) -> None:
        """Give back what waits."""
        while self._waiting:
            self._waiting.pop().give_back()


class _Idle:
    """A worker that waits."""

    __slots__ = ("_woken", "given")

    def __init__(self) -> None:
        self._woken = anyio.Event()
        self.given: InHand | None = None

    def wake(self, work: InHand) -> None:
        self.given = work
        self._woken.set()

    async def work(self) -> InHand:
        await self._woken.wait()
        assert self.given is not None
        return self.given
