"""What an engine has of one queue: its subscription, and the messages that wait for a free hand.

Each queue has hands of its own. So compensations never starve behind steps, nor replies behind either.

A message that kills its engine takes all with it that this engine has in hand, and they are counted as it is. So a
message that has come back half as often as it may is a suspect. Suspects are handled one at a time, those first that
came back least, now from the front and the next time from the back: in two times all have passed but the one.
Those that come together are waited for a little, so that there is a back.
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

SETTLE = 0.1
"""Seconds for which the first suspect waits for others."""


class Intake:
    """One queue, consumed from for as long as it can be; `concurrency` and `prefetch` are numbers of messages.

    `limit` is how often one of them may come back.
    """

    def __init__(self, queue: str, concurrency: int, prefetch: int, limit: int) -> None:
        self.queue = queue
        self.subscribed = anyio.Event()
        self._concurrency = concurrency
        self._prefetch = prefetch
        self._consumer: Consumer | None = None
        self._cancelled = False
        self._suspicious = max(1, limit // 2)
        self._waiting: deque[InHand] = deque()
        self._suspects: list[InHand] = []
        self._suspect: InHand | None = None
        self._settling = self._settled = False
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

    async def cancel(self) -> None:
        """Ask for no more messages, now and whenever the connection is made again."""
        self._cancelled = True
        if self._consumer is not None:
            with suppress(TransportError):  # the broker takes back what its consumer has lost
                await self._consumer.cancel()

    def add(self, work: InHand) -> None:
        """Have a message wait for a free hand."""
        if work.poison is None and work.given_back >= self._suspicious:
            self._suspects.append(work)
        else:
            self._waiting.append(work)

    def next(self) -> InHand | None:
        """Return the message that is to be worked on now, if there is one and a free hand for it; `done` frees it."""
        if self._busy >= self._concurrency:
            return None
        if self._settled and self._suspects and self._suspect is None:
            work = self._suspect = self._least_suspicious()
        elif self._waiting:
            work = self._waiting.popleft()
        else:
            return None
        self._busy += 1
        return work

    def must_settle(self) -> bool:
        """Whether suspects begin to come; then call `settle`, `SETTLE` seconds later."""
        if not self._suspects or self._settling or self._settled:
            return False
        self._settling = True
        return True

    def settle(self) -> None:
        """Let suspects be handled."""
        self._settling, self._settled = False, bool(self._suspects)

    def let_go(self, work: InHand) -> bool:
        """Note that a message is in hand no more, and say whether another one may have waited for that."""
        if self._suspect is not work:
            return False
        self._suspect = None
        self._settled = bool(self._suspects)
        return True

    def done(self) -> None:
        """Free a hand."""
        self._busy -= 1

    def give_back(self) -> None:
        """Give back what waits."""
        self._settled = self._suspect is not None
        while self._suspects:
            self._suspects.pop().give_back()
        while self._waiting:
            self._waiting.pop().give_back()

    def _least_suspicious(self) -> InHand:
        least = min(work.given_back for work in self._suspects)
        places = [place for place, work in enumerate(self._suspects) if work.given_back == least]
        return self._suspects.pop(places[0] if least % 2 else places[-1])
