"""What is under way on one channel: unconfirmed messages of a publisher, unacknowledged ones of a consumer.

No I/O and no waiting: events of `frames` go in, callbacks are called and frames go out through a function.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Protocol

from saga_amqp.contracts import Delivery, Message
from saga_amqp.errors import (
    ConsumerCancelledError,
    FrameError,
    PublishError,
    QueueDeletedError,
    TransportError,
    UnroutableError,
)
from saga_amqp.transports.amqp import frames, properties
from saga_amqp.transports.amqp.frames import Confirmed, Delivered, Returned

logger = logging.getLogger("saga_amqp.transports.amqp")

# Frames of basic.publish that are kept ready, per channel: one for each exchange and routing key, mandatory or not.
PREFIXES = 1024

# Turns for which acknowledgements behind a gap wait for it to close. In most gaps a confirm is on its way.
PATIENCE = 4

Settled = Callable[[TransportError | None], None]


class Outgoing(Protocol):
    """Where the frames of a lane go."""

    def send(self, data: bytes) -> None:
        """Have whole frames sent, in the order of the calls."""
        ...

    def flush_soon(self, lane: "ConsumeLane") -> None:
        """Call `lane.flush` once, before the next sending."""
        ...

    def flush_later(self, lane: "ConsumeLane") -> None:
        """Do the same, and have a turn for it a moment later if nobody sends anything until then."""
        ...


class PublishLane:
    """Messages on their way to the broker, until each is settled."""

    def __init__(self, channel: int, out: Outgoing, frame_max: int) -> None:
        self.channel = channel
        self.dead = False
        self._out = out
        self._frame_max = frame_max
        self._unconfirmed: dict[int, tuple[Message, Settled]] = {}
        self._refused: dict[int, TransportError] = {}
        self._last = 0
        self._oldest = 1
        self._returned = 0
        self._prefix = lru_cache(PREFIXES)(self._make_prefix)

    @property
    def oldest(self) -> int | None:
        """The first message that is not settled, by its number."""
        return next(iter(self._unconfirmed), None)

    @property
    def is_used(self) -> bool:
        """Whether anything was published."""
        return self._last > 0

    def publish(self, message: Message, settled: Settled) -> None:
        """Send a message; one that cannot be sent is settled with PublishError at once."""
        try:
            prefix = self._prefix(message.exchange, message.routing_key, message.mandatory)
            data = prefix + frames.content(
                self.channel, message.body, message.id, message.type, message.headers, self._frame_max
            )
        except ValueError as error:
            _call(settled, PublishError(f"Message {message.id} cannot be sent: {error}"))
            return
        self._last += 1
        self._unconfirmed[self._last] = message, settled
        self._out.send(data)

    def take(self, event: Delivered | Confirmed | Returned) -> None:
        """Settle what an event is about. Raises: FrameError, when it has no place on this channel."""
        if type(event) is Confirmed:
            self._confirm(event)
        elif type(event) is Returned:
            self._take_back(event)
        else:
            raise FrameError(f"A message was delivered on channel {self.channel}, which consumes nothing")

    def closed(self, reason: str) -> None:
        """Learn that the broker closed the channel: it does so for an exchange that does not exist."""
        self.fail(PublishError(f"The broker refused a message and all that were under way with it: {reason}"))

    def cancelled(self) -> None:
        """Ignore the end of a consumer that this channel never had."""

    def fail(self, error: TransportError) -> None:
        """Settle all that is unconfirmed with an error."""
        self.dead = True
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        self._oldest = self._last + 1
        for _, settled in unconfirmed.values():
            _call(settled, error)

    def _make_prefix(self, exchange: str, routing_key: str, mandatory: bool) -> bytes:
        return frames.publish_prefix(self.channel, exchange, routing_key, mandatory)

    def _confirm(self, event: Confirmed) -> None:
        tag = event.tag
        if tag > self._last:
            raise FrameError(f"Message {tag} of channel {self.channel} was confirmed before it was published")
        if not event.multiple:
            self._settle(tag, event.taken)
        else:
            for each in range(self._oldest, (tag or self._last) + 1):  # 0 stands for all
                self._settle(each, event.taken)
        while self._oldest <= self._last and self._oldest not in self._unconfirmed:
            self._oldest += 1

    def _settle(self, tag: int, taken: bool) -> None:
        entry = self._unconfirmed.pop(tag, None)
        if entry is None:
            return
        error: TransportError | None = None
        if self._refused:
            error = self._refused.pop(tag, None)
        if error is None and not taken:
            error = PublishError(f"The broker did not take message {entry[0].id} (basic.nack)")
        _call(entry[1], error)

    def _take_back(self, event: Returned) -> None:
        message_id = properties.message_id(event.properties)
        # A channel's messages come back in the order of publishing. So no message is looked at twice, and of two
        # with the same id the right one is found.
        for tag in range(max(self._oldest, self._returned + 1), self._last + 1):
            entry = self._unconfirmed.get(tag)
            if entry is None or not entry[0].mandatory:
                continue
            message = entry[0]
            if (message.id, message.exchange, message.routing_key) == (
                message_id,
                event.exchange,
                event.routing_key,
            ):
                self._returned = tag
                self._refused[tag] = UnroutableError(
                    f"Message {message_id} has nowhere to go: exchange {event.exchange!r}, "
                    f"routing key {event.routing_key!r}: {event.code} {event.reason}"
                )
                return
        logger.debug("Message %s came back, but is not under way", message_id)


class ConsumeLane:
    """Messages in hand, until each is acknowledged or rejected, and the acknowledgements that are still to be sent.

    Delivery tags count up from 1. Acknowledgements are sent once per turn: one for all tags without a gap before
    them, and one for each of the others, so that a slow handler keeps nobody else's message back. These are dearer for
    the broker, so they wait for some turns whether the gap closes, unless a quarter of the prefetch waits by now; or
    unless one was delivered before: perhaps together with a message that kills whoever takes it, and will in a moment.
    """

    def __init__(
        self,
        channel: int,
        out: Outgoing,
        queue: str,
        prefetch: int,
        receive: Callable[[Delivery], None],
        broken: Callable[[TransportError], None],
    ) -> None:
        self.channel = channel
        self.dead = False
        self._out = out
        self._queue = queue
        self._most_waiting = prefetch // 4
        self._receive = receive
        self._broken = broken
        self._settled_up_to = 0
        self._settled_beyond: set[int] = set()
        self._unsent: list[int] = []
        self._waiting: list[int] = []
        self._turns = 0
        self._in_haste = False

    def take(self, event: Delivered | Confirmed | Returned) -> None:
        """Hand a message on. Raises: FrameError, when the event has no place on this channel."""
        if type(event) is not Delivered:
            raise FrameError(f"A confirm came on channel {self.channel}, where nothing is published")
        if self.dead:
            return
        try:
            self._receive(AmqpDelivery(self, event))
        except Exception:
            logger.exception("Message %s was not received; its consumer keeps it until it leaves", event.tag)

    def acknowledge(self, tag: int, *, in_haste: bool = False) -> None:
        """Take note of an acknowledgement; `in_haste`, it does not wait for a gap to close."""
        if self.dead:
            return
        self._in_haste = self._in_haste or in_haste
        if not self._unsent:
            self._out.flush_soon(self)
        self._unsent.append(tag)

    def reject(self, tag: int, requeue: bool) -> None:
        """Send a rejection: before the next acknowledgement, which may reach beyond it."""
        if self.dead:
            return
        self._out.send(frames.reject(self.channel, tag, requeue=requeue))
        self._note((tag,))

    def flush(self, *, all_of_it: bool = False) -> None:
        """Send the acknowledgements that have come together; `all_of_it` those behind a gap as well."""
        if self.dead or not (self._unsent or self._waiting):
            return
        new, self._unsent = self._unsent, []
        up_to = self._note(new)
        # The broker knows only tags that it still waits for, so the highest must be one that is acknowledged now.
        highest, beyond = 0, list[int]()
        for tag in self._waiting + new:
            if tag > up_to:
                beyond.append(tag)
            elif tag > highest:
                highest = tag
        data = frames.acknowledge(self.channel, highest, multiple=True) if highest else b""
        self._turns = self._turns + 1 if beyond else 0
        if all_of_it or self._in_haste or self._turns > PATIENCE or len(beyond) > self._most_waiting:
            data += b"".join([frames.acknowledge(self.channel, tag, multiple=False) for tag in beyond])
            beyond, self._turns, self._in_haste = [], 0, False
        self._waiting = beyond
        if beyond:
            self._out.flush_later(self)
        if data:
            self._out.send(data)

    def closed(self, reason: str) -> None:
        """Learn that the broker closed the channel."""
        self.fail(ConsumerCancelledError(f"The broker closed the channel of queue {self._queue!r}: {reason}"))

    def cancelled(self) -> None:
        """Learn that the broker ended the consumer; what is in hand can still be acknowledged."""
        if not self.dead:
            self._broken(
                QueueDeletedError(
                    f"The broker cancelled the consumer of queue {self._queue!r}: was it deleted?"
                )
            )

    def fail(self, error: TransportError) -> None:
        """Drop everything: the broker delivers it again."""
        if not self.dead:
            self.leave()
            self._broken(error)

    def leave(self) -> None:
        """Send and hand on nothing from now on."""
        self.dead = True
        self._unsent.clear()
        self._waiting.clear()

    def _note(self, tags: Iterable[int]) -> int:
        """Count tags as settled, and return up to where there is no gap."""
        beyond, up_to = self._settled_beyond, self._settled_up_to
        beyond.update(tags)
        while up_to + 1 in beyond:
            up_to += 1
            beyond.remove(up_to)
        self._settled_up_to = up_to
        return up_to


class AmqpDelivery:
    """A message in hand; see `contracts.Delivery`."""

    __slots__ = ("_lane", "_properties", "_tag", "body", "redelivered")

    def __init__(self, lane: ConsumeLane, event: Delivered) -> None:
        self._lane: ConsumeLane | None = lane
        self._tag = event.tag
        self._properties = event.properties
        self.body = event.body
        self.redelivered = event.redelivered

    @property
    def message_id(self) -> str:
        """The id that it was published with, or an empty string, also where a foreign publisher's cannot be found."""
        try:
            return properties.message_id(self._properties)
        except FrameError:
            return ""

    @property
    def headers(self) -> Mapping[str, object]:
        """The headers that it was published with, and those that the broker added.

        Raises: FrameError, when a foreign publisher's headers cannot be decoded.
        """
        return properties.headers(self._properties)

    def acknowledge(self) -> None:
        """Tell the broker that the message is done with."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.acknowledge(self._tag, in_haste=self.redelivered)

    def reject(self, *, requeue: bool) -> None:
        """Give the message back: to its queue, or else to the queue's dead-letter queue."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.reject(self._tag, requeue)


def _call(settled: Settled, error: TransportError | None) -> None:
    try:
        settled(error)
    except Exception:
        logger.exception("What was to be told of a message's fate failed itself")
