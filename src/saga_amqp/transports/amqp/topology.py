"""Exchanges, queues and bindings as the broker wants to hear of them, and what it says of a queue."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import aiormq
from aiormq.exceptions import ChannelClosed, ChannelNotFoundEntity

from saga_amqp.contracts import Queue, Topology
from saga_amqp.errors import QueueNotFoundError, TopologyError
from saga_amqp.transports.amqp import refusals


async def missing(topology: Topology, connection: aiormq.Connection) -> frozenset[str]:
    """Return the names of the queues that do not exist."""
    return frozenset([queue.name for queue in topology.queues if not await _is_there(queue.name, connection)])


async def declare(topology: Topology, connection: aiormq.Connection) -> None:
    """Create what is missing, on a channel of its own: the broker closes it over the first difference.

    Raises: TopologyError, with the broker's words and what to do.
    """
    channel = await connection.channel(publisher_confirms=False)
    try:
        for exchange in topology.exchanges:
            with _named("exchange", f"Exchange {exchange.name!r}"):
                await channel.exchange_declare(
                    exchange.name, exchange_type=exchange.kind, durable=True, auto_delete=exchange.auto_delete
                )
        for queue in topology.queues:
            with _named("queue", f"Queue {queue.name!r}"):
                await channel.queue_declare(queue.name, durable=True, arguments=arguments(queue))
        # Only now, for a queue may be bound to an exchange that stands anywhere in the list.
        for queue in topology.queues:
            for exchange_name, pattern in queue.bindings:
                what = f"Binding of queue {queue.name!r} to exchange {exchange_name!r} for {pattern!r}"
                with _named("binding", what):
                    await channel.queue_bind(queue.name, exchange_name, pattern)
    finally:
        if not channel.is_closed:
            await channel.close()


async def depth(queue: str, connection: aiormq.Connection) -> int:
    """Return how many messages of a queue are ready, asked on a channel of its own, which closes if it is missing.

    Raises: QueueNotFoundError.
    """
    channel = await connection.channel(publisher_confirms=False)
    try:
        return (await channel.queue_declare(queue, passive=True)).message_count or 0
    except ChannelNotFoundEntity as error:
        raise QueueNotFoundError(f"There is no queue {queue!r} on the broker; declare it first") from error
    except ValueError as error:
        raise QueueNotFoundError(f"There can be no queue {queue!r}: {error}") from error
    finally:
        if not channel.is_closed:
            await channel.close()


async def _is_there(queue: str, connection: aiormq.Connection) -> bool:
    try:
        await depth(queue, connection)
    except QueueNotFoundError:
        return False
    return True


def arguments(queue: Queue) -> dict[str, Any]:
    """Return a queue's optional arguments."""
    given: dict[str, Any] = {"x-queue-type": queue.kind}
    if queue.dead_letter is not None:
        given["x-dead-letter-exchange"] = ""
        given["x-dead-letter-routing-key"] = queue.dead_letter
        if queue.kind == "quorum":  # so that no message is lost on the way to the dead letters
            given["x-dead-letter-strategy"] = "at-least-once"
            given["x-overflow"] = "reject-publish"  # without which the broker falls back to at-most-once
    if queue.delivery_limit is not None and queue.kind == "quorum":
        given["x-delivery-limit"] = queue.delivery_limit
    if queue.expires is not None:
        given["x-expires"] = max(1, round(queue.expires * 1000))
    return given


@contextmanager
def _named(part: refusals.Part, what: str) -> Generator[None, None, None]:
    try:
        yield
    except ChannelClosed as error:
        reason = str(error.args[-1] if error.args else repr(error))
        raise TopologyError(refusals.explain(part, what, reason)) from error
    except ValueError as error:  # of pamqp, which lets fewer names pass than RabbitMQ
        raise TopologyError(
            f"{what} cannot be declared: {error}. A name is made of the letters and digits of ASCII, blanks and "
            "-_.:@#,/+, and that of an exchange has 127 at most"
        ) from error
