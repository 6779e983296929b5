"""The dead letters: which there are, why, and what a person does about them.

Nothing here takes note of anything: the broker's queue is all there is. A letter is looked at by taking it in hand
without acknowledging it, and goes back to its place in the queue afterwards.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from types import TracebackType
from typing import Self

import anyio
from msgspec import Struct

from saga_amqp.config import Config
from saga_amqp.contracts import Consumer, Delivery, Message, Transport
from saga_amqp.errors import DeadLetterNotFoundError, FrameError, TransportError
from saga_amqp.poison import ADDED, DELIVERIES, ERROR, QUEUE, REASON, WHEN, Reason, short
from saga_amqp.transports import letters
from saga_core import addressed

MOST = 65_535
"""Letters that can be looked at, from the oldest on: no consumer may have more in hand."""

QUIET = 0.25
"""Seconds in which nothing comes, and nothing waits in the queue either, before that counts as its end."""


class DeadLetter(Struct, frozen=True):
    """A message that could not be handled.

    `id` names it for as long as it lies there: a digest of what it is, where it was, why it died and when. Of letters
    that are the same in all of that, the oldest is meant. `reason` is the code, `error` the same in words; `queue` is
    the one that it was in; `when` is in seconds since 1970. `saga`, `step` and `attempt` are there as far as its body
    can be read, `deliveries` where the broker counts them. `headers` are all that it has now.
    """

    id: str
    reason: str
    error: str
    queue: str
    saga: str | None
    step: str | None
    attempt: int | None
    when: float | None
    deliveries: int | None
    message_id: str
    headers: Mapping[str, object]
    body: bytes


class DeadLetters:
    """The dead letters of one dead-letter queue. Use it as an async context manager, which opens the transport.

    What somebody looks at is in his hands for that moment, and nobody else sees it. Every method has the whole queue
    pass by, up to 65,535 letters, keeps those that it was asked for, may be cancelled, and raises QueueNotFoundError,
    ConnectionLostError.
    """

    def __init__(self, transport: Transport, config: Config) -> None:
        self._transport = transport
        self._queue = config.on_broker(config.dead_letter_queue)

    async def __aenter__(self) -> Self:
        """Connect. Raises: ConnectFailedError, AuthenticationError, VirtualHostError."""
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self._transport.__aexit__(kind, error, trace)

    async def list(self, limit: int = 100) -> Sequence[DeadLetter]:
        """Return the first letters, up to `limit`, in the order of the queue. They stay there."""
        found: list[DeadLetter] = []

        def see(delivery: Delivery) -> None:
            if len(found) < limit:
                found.append(_letter(delivery))

        async with self._looking(see, lambda: bool(found)):
            return found

    async def show(self, letter_id: str) -> DeadLetter:
        """Return a letter, which stays where it is. Raises: DeadLetterNotFoundError."""
        async with self._holding((letter_id,)) as ((letter, _),):
            return letter

    async def requeue(self, *letter_ids: str) -> None:
        """Put letters back into the queues that they were in, in their order among the dead letters.

        Each is acknowledged when the broker has confirmed it, so whoever dies in between leaves it in both places, and
        never in none. Of its headers it keeps those that it was published with, as far as they are text and numbers.

        Raises: DeadLetterNotFoundError, before anything is done; UnroutableError for one whose queue is gone,
        PublishError: it and those after it are still dead letters.
        """
        async with self._holding(letter_ids) as held:
            for letter, delivery in held:
                await self._publish(_as_before(letter))
                delivery.acknowledge()
        await self._transport.depth(
            self._queue
        )  # raises if the acknowledgements were lost with the connection

    async def drop(self, *letter_ids: str) -> None:
        """Delete letters for good. Raises: DeadLetterNotFoundError, before anything is done."""
        async with self._holding(letter_ids) as held:
            for _, delivery in held:
                delivery.acknowledge()
        await self._transport.depth(self._queue)

    @asynccontextmanager
    async def _holding(
        self, letter_ids: Sequence[str]
    ) -> AsyncGenerator[Sequence[tuple[DeadLetter, Delivery]]]:
        """Find letters and hold them, in the order of the queue; at the end what was not acknowledged goes back."""
        missing, held = set(letter_ids), list[tuple[DeadLetter, Delivery]]()

        def see(delivery: Delivery) -> None:
            letter = _letter(delivery)
            if letter.id in missing:
                missing.remove(letter.id)
                held.append((letter, delivery))

        async with self._looking(see, lambda: not missing):
            if missing:
                raise DeadLetterNotFoundError(
                    f"Not among the first {MOST} letters in {self._queue!r}: {', '.join(sorted(missing))}. Was it "
                    "requeued or dropped, or does somebody look at it just now?"
                )
            yield held

    @asynccontextmanager
    async def _looking(
        self, see: Callable[[Delivery], None], content: Callable[[], bool]
    ) -> AsyncGenerator[None]:
        """Have `see` look at all letters; they are in our hands inside, and go back to the queue at the end.

        All, for where RabbitMQ gets only some of them back, these go behind the others. As long as `see` is not
        `content`, those that others have in hand are waited for a little.
        """
        look = _Look(see)
        expected = await self._transport.depth(self._queue)
        async with self._transport.consume(self._queue, MOST, look) as consumer:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(look.watch, consumer)
                try:
                    while not look.over:
                        if look.seen >= expected and content():
                            ready = await self._transport.depth(self._queue)
                            if not ready:
                                break
                            expected = look.seen + ready
                        elif not await look.more() and not await self._transport.depth(self._queue):
                            break
                except TransportError as error:
                    look.error = error
                look.over = True
                tasks.cancel_scope.cancel()
            if look.error is not None:
                raise look.error
            yield

    async def _publish(self, message: Message) -> None:
        outcome: list[TransportError | None] = []
        done = anyio.Event()

        def settled(error: TransportError | None) -> None:
            outcome.append(error)
            done.set()

        await self._transport.publish(message, settled)
        await done.wait()
        if outcome[0] is not None:
            raise outcome[0]


class _Look:
    """What has come in so far, and whether that is enough."""

    def __init__(self, see: Callable[[Delivery], None]) -> None:
        self.seen = 0
        self.over = False
        self.error: TransportError | None = None
        self._see = see
        self._changed = anyio.Event()

    def __call__(self, delivery: Delivery) -> None:
        """Receive a delivery; those that come after the end only go back."""
        if not self.over:
            self._see(delivery)
            self.seen += 1
            self.over = self.seen == MOST
            self._changed.set()

    async def watch(self, consumer: Consumer) -> None:
        """End it if the subscription breaks."""
        self.error = await consumer.failed()
        self.over = True
        self._changed.set()

    async def more(self) -> bool:
        """Wait a little for something to come, and say whether it did."""
        with anyio.move_on_after(QUIET):
            await self._changed.wait()
        came = self._changed.is_set()
        self._changed = anyio.Event()
        return came


def _letter(delivery: Delivery) -> DeadLetter:
    headers: Mapping[str, object]
    try:
        headers = delivery.headers
    except FrameError as unreadable:
        headers = {ERROR: str(unreadable)}
    reason, queue = str(headers.get(REASON, "unknown")), str(headers.get(QUEUE, ""))
    error, when = str(headers.get(ERROR, "")), _number(headers.get(WHEN))
    if REASON not in headers and (death := letters.death(headers)) is not None:
        reason, queue, when = Reason.of(death), death.queue, death.at
        error = f"The broker took it from queue {queue!r}: {death.reason}"
    about, deliveries = addressed(delivery.body), headers.get(DELIVERIES)
    digest = blake2b(digest_size=8)
    for part in (delivery.message_id, queue, reason, repr(when)):
        digest.update(part.encode(errors="replace") + b"\n")
    digest.update(delivery.body)
    return DeadLetter(
        digest.hexdigest(),
        reason,
        error,
        queue,
        None if about is None else about.saga,
        None if about is None else about.step,
        None if about is None else about.attempt,
        when,
        deliveries if isinstance(deliveries, int) else None,
        delivery.message_id,
        headers,
        delivery.body,
    )


def _as_before(letter: DeadLetter) -> Message:
    own = {name: value for name, value in letters.own(letter.headers).items() if name not in ADDED}
    return Message("", letter.queue, letter.body, short(letter.message_id), "saga.requeued", own)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
