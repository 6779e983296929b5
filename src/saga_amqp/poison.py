"""Messages that cannot be handled: why, what their saga is told, and how they come to the dead letters.

Whoever finds one publishes it to the dead-letter queue with the reason in its headers, and only then acknowledges it.
So it is never gone without a trace, and never blocks the others. What the broker itself gives up on, for example
because it killed every engine that took it, comes to an orchestrator's queue, whose engine does the same.
"""

from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum

from msgspec import Struct

from saga_amqp.config import COMMAND, Config
from saga_amqp.contracts import Delivery, Message
from saga_amqp.errors import FrameError, UnroutableError
from saga_amqp.transports import letters
from saga_core import (
    WITH_HANDLER,
    Carried,
    CodecError,
    Event,
    Failure,
    Reply,
    SagaError,
    addressed,
    asked_by,
    decode_command,
    undeliverable,
)

REASON, ERROR, QUEUE = "x-saga-reason", "x-saga-error", "x-saga-queue"
"""Headers of a dead letter: the reason, the same in words, and the queue that it comes from."""

WHEN, DELIVERIES = "x-saga-when", "x-saga-deliveries"
"""The same: when it was given up, seconds since 1970, and how often it had been delivered, where that is known."""

ADDED = (REASON, ERROR, QUEUE, WHEN, DELIVERIES)

LONGEST_ERROR = 1_000
LONGEST_ID = 255
"""Bytes, as for every short string of AMQP."""

MOST_HEADERS = 65_536
"""Bytes of its own headers that a dead letter keeps: with those that are added they have to fit in one frame."""


class Reason(StrEnum):
    """Why a message is among the dead letters; also the code of the error that its step fails with."""

    UNDECODABLE = "undecodable"
    OVERSIZE = "oversize"
    UNKNOWN_SAGA = "unknown_saga"
    UNKNOWN_STEP = "unknown_step"
    UNREADABLE_SAGA = "unreadable_saga"
    NO_HANDLER = "no_handler"
    DELIVERED_TOO_OFTEN = "delivered_too_often"
    DROPPED = "dropped_by_broker"
    UNROUTABLE = "unroutable"

    @classmethod
    def of(cls, death: letters.Death) -> "Reason":
        """Return what it is that a broker has given a message up."""
        return cls.DELIVERED_TOO_OFTEN if death.reason == "delivery_limit" else cls.DROPPED


class Poison(SagaError):
    """A message cannot be handled. `about` is the attempt that it is about, as far as it can be read and be told of.

    `unknown`: it may have been handled before, at least in part. `queue` is where it comes from, if not from where it
    was taken.
    """

    def __init__(
        self, reason: Reason, text: str, about: Carried | None, *, queue: str = "", unknown: bool = True
    ) -> None:
        super().__init__(text[:LONGEST_ERROR])
        self.reason = reason
        self.about = about
        self.queue = queue
        self.unknown = unknown

    def event(self, at: float) -> Event | None:
        """Return what the saga is to be told, if anything."""
        if self.about is None:
            return None
        return undeliverable(self.about, Failure(self.reason, str(self)), at, unknown=self.unknown)


class Examined(Struct, frozen=True):
    """What a message carries, if that can be read; why it cannot be handled, if it cannot; how often it came back."""

    command: Carried | None
    poison: Poison | None
    given_back: int = 0


def examine(delivery: Delivery, queue: str, config: Config) -> Examined:
    """Read a message from a queue, and find what can be known to be wrong with it before anybody handles it."""
    read = _read(delivery.body, config)
    for_orchestrators = queue == config.orchestrator
    if not (for_orchestrators or delivery.redelivered):
        return read
    command, poison = read.command, read.poison
    about = command if poison is None else poison.about
    try:
        headers = delivery.headers
    except FrameError as error:
        return Examined(command, poison or Poison(Reason.UNDECODABLE, str(error), about))
    if for_orchestrators and (death := letters.death(headers)) is not None and death.queue != queue:
        text = f"The broker took it from queue {death.queue!r}: {death.reason}"
        if poison is None:
            poison = Poison(Reason.of(death), text, about, queue=death.queue)
        else:
            poison = Poison(poison.reason, f"{poison}. {text}", about, queue=death.queue)
    count = letters.given_back(headers)
    if count >= config.delivery_limit and poison is None:
        # The last time, nobody is asked to handle it any more.
        text = (
            f"It came back {count} times: did it kill the engines that ran it, or were all connections lost?"
        )
        poison = Poison(Reason.DELIVERED_TOO_OFTEN, text, about)
    return Examined(command, poison, count)


def unroutable(message: Message, error: UnroutableError, config: Config) -> Poison | None:
    """Return what it means that no queue takes a message; None where it is for a queue of our own that was deleted."""
    if not _is_command(message):
        return None
    command = decode_command(message.body)
    if not isinstance(command, WITH_HANDLER) or config.handler(command) is not None:
        return None
    text = f"No service has a queue for {message.routing_key!r}; was it ever started? {error}"
    return Poison(Reason.UNROUTABLE, text, command, unknown=False)


def oversize(message: Message, config: Config) -> Poison | None:
    """Return what is wrong with a message that is too long to be published; None where it is not."""
    size = len(message.body)
    if size <= config.max_message_size or not _is_command(message):
        return None
    command = decode_command(message.body)
    what = f"The message for {message.routing_key!r}"
    text = f"{what} would have {size} bytes, and max_message_size is {config.max_message_size}"
    if isinstance(command, Reply):  # its handler has run
        return Poison(Reason.OVERSIZE, text, asked_by(command))
    return Poison(Reason.OVERSIZE, text, command, unknown=False)


def burial(poison: Poison, delivery: Delivery, queue: str, config: Config, at: float) -> Message:
    """Return the message that takes another one to the dead letters. `at` is in seconds since 1970."""
    headers: Mapping[str, object] = {}
    with suppress(FrameError):
        headers = delivery.headers
    added: dict[str, str | int] = {
        REASON: poison.reason,
        ERROR: str(poison),
        QUEUE: short(poison.queue or queue),
        WHEN: int(at),
    }
    deliveries = 1 + letters.given_back(headers)
    if not poison.queue and (deliveries > 1 or not delivery.redelivered):
        added[DELIVERIES] = deliveries
    return Message(
        "",
        config.on_broker(config.dead_letter_queue),
        delivery.body,
        short(delivery.message_id),
        "saga.dead-letter",
        _own(headers) | added,
    )


def short(name: str) -> str:
    """Return an id or a name as it can be published: those of others need not be UTF-8, and grow when read as that."""
    return name.encode(errors="replace")[:LONGEST_ID].decode(errors="ignore")


def _is_command(message: Message) -> bool:
    return message.type.startswith(COMMAND)


def _own(headers: Mapping[str, object]) -> dict[str, str | int]:
    own, room = letters.own(headers), MOST_HEADERS
    for name, value in own.items():
        room -= len(name.encode(errors="replace")) + len(str(value).encode(errors="replace")) + 8
    return {} if room < 0 else own


def _read(body: bytes, config: Config) -> Examined:
    if len(body) > config.max_message_size:
        text = f"It has {len(body)} bytes, and max_message_size is {config.max_message_size}"
        return Examined(None, Poison(Reason.OVERSIZE, text, addressed(body)))
    try:
        return Examined(decode_command(body), None)
    except CodecError as error:
        return Examined(None, Poison(Reason.UNDECODABLE, str(error), addressed(body)))
