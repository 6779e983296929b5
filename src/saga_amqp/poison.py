"""Messages that cannot be handled: why, what their saga is told, and how they come to the dead letters.

Whoever finds one publishes it to the dead-letter queue with the reason in its headers, and only then acknowledges it.
So it is never gone without a trace, and never blocks the others. What the broker itself gives up on, for example
because it killed every engine that took it, comes to an orchestrator's queue, whose engine does the same.
"""

import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import cast

from saga_amqp.config import Config
from saga_amqp.contracts import Delivery, Message
from saga_amqp.errors import FrameError, UnroutableError
from saga_amqp.transports import letters
from saga_core import (
    Carried,
    CodecError,
    Compensate,
    Event,
    Execute,
    Failure,
    SagaError,
    addressed,
    decode_command,
    undeliverable,
)

logger = logging.getLogger("saga_amqp.engine")

REASON, ERROR, QUEUE = "x-saga-reason", "x-saga-error", "x-saga-queue"
"""Headers of a dead letter: the reason, the same in words, and the queue that it comes from."""

DEAD_LETTER = "saga.dead-letter"
"""The type of a dead letter."""

LONGEST_ERROR = 1_000
LONGEST_NAME = 255
"""Bytes, of a message's id and of a queue's name."""


class Reason(StrEnum):
    """Why a message is among the dead letters; also the code of the error that its step fails with."""

    UNDECODABLE = "undecodable"
    OVERSIZE = "oversize"
    UNKNOWN_SAGA = "unknown_saga"
    UNKNOWN_STEP = "unknown_step"
    NO_HANDLER = "no_handler"
    DELIVERED_TOO_OFTEN = "delivered_too_often"
    DROPPED = "dropped_by_broker"
    UNROUTABLE = "unroutable"


class Poison(SagaError):
    """A message cannot be handled. `about` is the attempt that it is about, as far as it can be read.

    `unknown`: it may have been handled before, at least in part.
    """

    def __init__(
        self, reason: Reason, text: str, about: Carried | None, *, queue: str = "", unknown: bool = True
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.about = about
        self.queue = queue
        self.unknown = unknown

    def event(self, at: float) -> Event | None:
        """Return what the saga is to be told, if anything."""
        if self.about is None:
            return None
        return undeliverable(self.about, Failure(self.reason, str(self)), at, unknown=self.unknown)


def read(delivery: Delivery, queue: str, config: Config) -> Carried:
    """Read the command that a message from a queue carries.

    Raises: Poison.
    """
    body = delivery.body
    if len(body) > config.max_message_size:
        text = f"It has {len(body)} bytes, and max_message_size is {config.max_message_size}"
        raise Poison(Reason.OVERSIZE, text, None)
    try:
        command = decode_command(body)
    except CodecError as error:
        raise Poison(Reason.UNDECODABLE, str(error), addressed(body)) from error
    if queue == config.orchestrator:
        died = _headers(delivery, command).get("x-death")
        if isinstance(died, list) and died:
            _check_death(cast("list[object]", died)[0], command)
    return command


def check_count(delivery: Delivery, command: Carried, config: Config) -> None:
    """Check that a message has not come back too often. The last time, nobody is asked to handle it any more.

    Raises: Poison.
    """
    if delivery.redelivered:
        count = _headers(delivery, command).get(letters.DELIVERY_COUNT)
        if isinstance(count, int) and count >= config.delivery_limit:
            text = f"It came back {count} times: did it kill the engines that ran it, or were all connections lost?"
            raise Poison(Reason.DELIVERED_TOO_OFTEN, text, command)


def unroutable(message: Message, error: UnroutableError, config: Config) -> Poison | None:
    """Return what it means that no queue takes a message; None where it is for a queue of our own that was deleted."""
    if message.type == DEAD_LETTER:
        return None
    command = decode_command(message.body)
    if not isinstance(command, Execute | Compensate) or config.handler(command) is not None:
        return None
    text = f"No service has a queue for {message.routing_key!r}; was it ever started? {error}"
    return Poison(Reason.UNROUTABLE, text, command, unknown=False)


def burial(poison: Poison, delivery: Delivery, queue: str, config: Config) -> Message:
    """Return the message that takes another one to the dead letters."""
    return Message(
        "",
        config.on_broker(config.dead_letter_queue),
        delivery.body,
        _name(delivery.message_id),
        DEAD_LETTER,
        {REASON: poison.reason, ERROR: str(poison)[:LONGEST_ERROR], QUEUE: _name(poison.queue or queue)},
    )


def _headers(delivery: Delivery, command: Carried) -> Mapping[str, object]:
    """Return a message's headers. One that may have died before, and cannot say so, is not run. Raises: Poison."""
    try:
        return delivery.headers
    except FrameError as error:
        raise Poison(Reason.UNDECODABLE, str(error), command) from error


def _name(text: str) -> str:
    """Cut off what does not fit. A name may come from anybody, and have been mended where it was no UTF-8."""
    return text.encode()[:LONGEST_NAME].decode(errors="ignore")


def _check_death(died: object, command: Carried) -> None:
    death = cast("Mapping[str, object]", died if isinstance(died, Mapping) else {})
    why, queue = str(death.get("reason", "unknown")), str(death.get("queue", ""))
    text = f"The broker took it from queue {queue!r}: {why}"
    reason = Reason.DELIVERED_TOO_OFTEN if why == "delivery_limit" else Reason.DROPPED
    raise Poison(reason, text, command, queue=queue)
