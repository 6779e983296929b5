"""The part of the suite of transports that is about what is there: queues, exchanges, and the connection itself."""

import anyio
from anyio.lowlevel import checkpoint

from saga_amqp.contracts import Topology, Transport
from saga_amqp.errors import (
    ConsumerCancelledError,
    QueueNotFoundError,
    TopologyError,
    TransportClosedError,
    TransportError,
)
from saga_amqp.testing.orders import raises
from saga_amqp.testing.routing import Open
from saga_amqp.testing.traffic import (
    Inbox,
    Outbox,
    acknowledge,
    drain,
    expiring_queue,
    message_to,
    new_queue,
    passing_exchange,
    unique_name,
)


async def a_missing_queue_cannot_be_consumed_from(open: Open) -> None:
    """It is an error that names the queue, and leaves the transport usable."""
    async with open() as transport:
        missing = unique_name("missing")
        with raises(ConsumerCancelledError, missing):
            async with transport.consume(missing, 10, Inbox()):
                raise AssertionError("there is no such queue")
        await new_queue(transport)


async def declaring_again_changes_nothing(open: Open) -> None:
    """The same topology can be declared by everybody who needs it; messages stay where they are."""
    async with open() as one, open() as other:
        exchange, queue = unique_name("exchange"), unique_name("queue")
        topology = Topology((passing_exchange(exchange),), (expiring_queue(queue, ((exchange, "#"),)),))
        await one.declare(topology)
        await Outbox(one).publish(message_to(queue, "kept"))
        await other.declare(topology)
        assert await drain(other, queue) == [("kept", False)]


async def what_is_declared_differently_is_an_error(open: Open) -> None:
    """It is an error that names the exchange or queue, and leaves the transport usable."""
    async with open() as transport:
        exchange, queue = unique_name("exchange"), unique_name("queue")
        bound = expiring_queue(queue, ((exchange, "#"),))
        await transport.declare(Topology((passing_exchange(exchange),), (bound,)))
        with raises(TopologyError, exchange):
            await transport.declare(Topology((passing_exchange(exchange, "fanout"),), ()))
        with raises(TopologyError, queue):
            await transport.declare(
                Topology((), (expiring_queue(queue, bound.bindings, dead_letter=unique_name("dead")),))
            )
        await Outbox(transport).publish(message_to(queue, "0"))
        assert await drain(transport, queue) == [("0", False)]


async def the_depth_of_a_queue_is_what_nobody_has_in_hand(open: Open) -> None:
    """It counts what was confirmed and waits, and neither what a consumer holds nor what is done with."""
    async with open() as transport, open() as other:
        queue = await new_queue(transport)
        assert await transport.depth(queue) == 0
        await Outbox(transport).publish(*(message_to(queue, str(number)) for number in range(5)))
        await _until_depth(transport, queue, 5)
        await _until_depth(other, queue, 5)
        inbox = Inbox()
        async with transport.consume(queue, 2, inbox):
            acknowledge((await inbox.take(2))[:1])
            await inbox.take()
            await _until_depth(other, queue, 2)
        await _until_depth(other, queue, 4)


async def the_depth_of_a_missing_queue_is_an_error(open: Open) -> None:
    """It is an error that names the queue, and leaves the transport usable."""
    async with open() as transport:
        missing = unique_name("missing")
        with raises(QueueNotFoundError, missing):
            await transport.depth(missing)
        assert await transport.depth(await new_queue(transport)) == 0


async def a_closed_transport_says_so(open: Open) -> None:
    """Before it is entered and after it was closed every call raises TransportClosedError; closing again is fine."""
    transport = open()
    await _assert_closed(transport)
    async with transport:
        queue = await new_queue(transport)
        await transport.close()
        await transport.close()
        await _assert_closed(transport, queue)
    await _assert_closed(transport, queue)


async def the_end_of_a_connection_is_learnt(open: Open) -> None:
    """Whoever waits for it is told when it is closed, and not before; a renewed transport leads to the same broker."""
    ends: list[TransportError] = []
    queue = unique_name("queue")
    async with open() as transport, anyio.create_task_group() as tasks:
        await transport.declare(Topology((), (expiring_queue(queue),)))

        async def wait() -> None:
            ends.append(await transport.lost())

        tasks.start_soon(wait)
        await Outbox(transport).publish(message_to(queue, "kept"))
        assert ends == []
        await transport.close()
    assert [type(end) for end in ends] == [TransportClosedError]
    async with transport.renewed() as renewed:
        assert await drain(renewed, queue) == [("kept", False)]


BEING = (
    a_missing_queue_cannot_be_consumed_from,
    declaring_again_changes_nothing,
    what_is_declared_differently_is_an_error,
    the_depth_of_a_queue_is_what_nobody_has_in_hand,
    the_depth_of_a_missing_queue_is_an_error,
    a_closed_transport_says_so,
    the_end_of_a_connection_is_learnt,
)


async def _until_depth(transport: Transport, queue: str, depth: int) -> None:
    """Wait for it: a broker may take back what was in hand in its own time, and say 0 where a queue is busy."""
    while await transport.depth(queue) != depth:
        await checkpoint()


async def _assert_closed(transport: Transport, queue: str = "any") -> None:
    with raises(TransportClosedError, ""):
        await transport.publish(message_to(queue, "late"), lambda error: None)
    with raises(TransportClosedError, ""):
        await transport.declare(Topology((), ()))
    with raises(TransportClosedError, ""):
        await transport.depth(queue)
    with raises(TransportClosedError, ""):
        async with transport.consume(queue, 1, Inbox()):
            raise AssertionError("it is closed")
