"""What only the AMQP transport has to do, against RabbitMQ."""

import logging
import threading
from contextlib import suppress
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from saga_amqp.contracts import Message, Queue, Topology
from saga_amqp.errors import (
    ConnectionLostError,
    ConsumerCancelledError,
    PublishError,
    QueueDeletedError,
    TransportClosedError,
    TransportError,
)
from saga_amqp.testing.traffic import (
    Inbox,
    Outbox,
    acknowledge,
    drain,
    message_to,
    new_queue,
    unique_name,
)
from saga_amqp.transports.amqp import AmqpTransport
from tests.servers import RabbitMQ
from tests.transports.asking import ask, delete_queue


@pytest.mark.uvloop
async def test_thousands_of_messages_are_in_flight_through_a_small_buffer(amqp_url: str) -> None:
    count, limit, body = 5000, 64 * 1024, b"x" * 1000
    fullest = 0
    with anyio.fail_after(60):
        async with AmqpTransport(amqp_url, buffer=limit) as transport, anyio.create_task_group() as tasks:
            queue = await new_queue(transport)
            inbox, outbox = Inbox(), Outbox(transport)
            assert transport._connection is not None

            async def publish(number: int) -> None:
                nonlocal fullest
                await outbox.begin(message_to(queue, str(number), body))
                assert transport._connection is not None
                fullest = max(fullest, transport._connection.link._buffered)

            async with transport.consume(queue, count, inbox):
                for number in range(count):
                    tasks.start_soon(publish, number)
                deliveries = await inbox.take(count)
                await outbox.settled()
                assert {each.message_id for each in deliveries} == {str(number) for number in range(count)}
                acknowledge(deliveries)
            assert outbox.outcomes == {str(number): None for number in range(count)}
            assert limit <= fullest < limit * 1.05
            assert await drain(transport, queue) == []


async def test_a_message_that_cannot_be_sent_is_settled(amqp_url: str) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            queue = await new_queue(transport)
            outbox = Outbox(transport)
            await outbox.publish(
                message_to(queue, "i" * 256),
                Message("", queue, b"{}", "headers", "t", {"large": "x" * 200_000}),
                message_to(queue, "good"),
            )
            assert isinstance(outbox.outcomes["i" * 256], PublishError)
            assert isinstance(outbox.outcomes["headers"], PublishError)
            assert outbox.outcomes["good"] is None


async def test_a_message_that_the_broker_does_not_take_is_an_error(amqp_url: str) -> None:
    """A queue that is full and says so answers with basic.nack."""
    full = unique_name("full")
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish", "x-expires": 60_000}
    await ask(amqp_url, lambda channel: channel.queue_declare(full, arguments=arguments))
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            outbox = Outbox(transport)
            for number in range(4):
                await outbox.publish(message_to(full, str(number)))
            refused = [error for error in outbox.outcomes.values() if error is not None]
            assert len(refused) in (2, 3)  # RabbitMQ counts roughly
            assert all(type(error) is PublishError and "did not take" in str(error) for error in refused)


async def test_when_aiormq_ends_the_conversation_everybody_learns(amqp_url: str) -> None:
    """As it does when it has not heard of the broker for too long."""
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            queue = await new_queue(transport)
            async with transport.consume(queue, 10, Inbox()) as consumer:
                assert transport._connection is not None
                with suppress(ConnectionLostError):
                    await transport._connection.control.run(lambda connection: connection.close())
                assert isinstance(await consumer.failed(), ConnectionLostError)
                with pytest.raises(ConnectionLostError):
                    await transport.declare(Topology((), ()))


async def test_a_missing_exchange_fails_what_is_under_way_and_nothing_after(amqp_url: str) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            queue = await new_queue(transport)
            outbox = Outbox(transport)
            for round in range(3):
                await outbox.begin(*(message_to(queue, f"{round}-{number}") for number in range(50)))
                await outbox.begin(Message(unique_name("missing"), "key", b"{}", f"lost-{round}", "t"))
                await outbox.begin(*(message_to(queue, f"{round}-{number}") for number in range(50, 100)))
                await outbox.settled()
                error = outbox.outcomes[f"lost-{round}"]
                assert type(error) is PublishError
                assert "no exchange" in str(error)
            await outbox.publish(message_to(queue, "after"))
            assert outbox.outcomes["after"] is None
            assert len(outbox.outcomes) == 304


async def test_a_deleted_queue_ends_its_consumer_and_the_connection(
    amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            queue, other = await new_queue(transport), await new_queue(transport)
            inbox, other_inbox = Inbox(), Inbox()
            async with (
                transport.consume(queue, 10, inbox) as consumer,
                transport.consume(other, 10, other_inbox) as other_consumer,
            ):
                await Outbox(transport).publish(message_to(queue, "in hand"))
                (delivery,) = await inbox.take()
                await delete_queue(amqp_url, queue)
                error = await consumer.failed()
                assert isinstance(error, QueueDeletedError)
                assert queue in str(error)
                assert await consumer.failed() is error
                assert isinstance(await other_consumer.failed(), ConnectionLostError)
                assert "deleted" in str(await transport.lost())
                delivery.acknowledge()
    assert_nothing_of_aiormq(caplog)


async def test_a_connection_that_was_used_is_given_up_for_a_missing_queue(amqp_url: str) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            queue = await new_queue(transport)
            topology = Topology((), (Queue(queue),))
            await Outbox(transport).publish(message_to(queue, "0"))
            assert await transport.missing(topology) == set()
            await delete_queue(amqp_url, queue)
            with pytest.raises(ConnectionLostError, match=f"deleted: {queue}"):
                await transport.missing(topology)
            async with transport.renewed() as another:
                assert await another.missing(topology) == {queue}


async def test_a_channel_that_the_broker_closes_ends_its_consumer(
    amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            queue = await new_queue(transport)
            inbox = Inbox()
            await Outbox(transport).publish(message_to(queue, "0"))
            async with transport.consume(queue, 10, inbox) as consumer:
                (delivery,) = await inbox.take()
                assert transport._connection is not None
                for lane in transport._connection.link.lanes.values():
                    if hasattr(lane, "acknowledge"):
                        lane.acknowledge(17)  # which was never delivered
                error = await consumer.failed()
                assert isinstance(error, ConsumerCancelledError)
                assert "unknown delivery tag 17" in str(error)
                delivery.acknowledge()
            assert await drain(transport, queue) == [("0", True)]
    assert_nothing_of_aiormq(caplog)


@pytest.mark.uvloop
async def test_a_message_that_nobody_acknowledges_keeps_no_others_back(amqp_url: str) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            queue = await new_queue(transport)
            inbox, outbox = Inbox(), Outbox(transport)
            for number in range(40):
                await outbox.begin(message_to(queue, str(number)))
            async with transport.consume(queue, 8, inbox):
                (first,) = await inbox.take(1)
                for number in range(1, 40):
                    (delivery,) = await inbox.take(1)
                    assert delivery.message_id == str(number)
                    delivery.acknowledge()
            assert first.message_id == "0"
            assert len(await drain(transport, queue)) == 1


async def test_leaving_forgets_no_acknowledgement(amqp_url: str) -> None:
    """A channel that is closed at once forgets nearly half of so many acknowledgements of a quorum queue."""
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            for _ in range(5):
                queue = await new_queue(transport)
                await Outbox(transport).publish(*(message_to(queue, str(number)) for number in range(400)))
                inbox = Inbox()
                async with transport.consume(queue, 400, inbox):
                    deliveries = await inbox.take(400)
                    acknowledge(reversed(deliveries[1:]))
                assert await drain(transport, queue) == [("0", True)]


async def test_a_prefetch_out_of_range_is_refused(amqp_url: str) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            for prefetch in (0, -1, 65536):
                with pytest.raises(ValueError, match="prefetch"):
                    async with transport.consume("any", prefetch, Inbox()):
                        pass


async def test_a_broker_that_blocks_publishers_is_waited_for(
    private_rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: dict[str, TransportError | None] = {}
    sent: list[str] = []

    async def publish(id: str) -> None:
        await transport.publish(message_to(queue, id), partial(outcomes.__setitem__, id))

    async def publish_until_closed() -> None:
        with pytest.raises(TransportClosedError):
            await publish("never")

    async def set_alarm(*arguments: str) -> None:
        await anyio.to_thread.run_sync(private_rabbitmq.ctl, "set_vm_memory_high_watermark", *arguments)

    caplog.set_level(logging.ERROR, "saga_amqp")
    with anyio.fail_after(60):
        async with (
            AmqpTransport(private_rabbitmq.url(), answer_timeout=0.5) as transport,
            anyio.create_task_group() as tasks,
        ):
            queue = await new_queue(transport)
            assert not transport.is_blocked
            try:
                await set_alarm("0.0000001")
                # The connection learns of the alarm in its own time, and then says so in answer to a message.
                while not transport.is_blocked:
                    sent.append(str(len(sent)))
                    await publish(sent[-1])
                    while not (transport.is_blocked or sent[-1] in outcomes):
                        await checkpoint()
                with anyio.CancelScope() as scope:
                    tasks.start_soon(cancel_when_all_wait, scope)
                    await publish("cancelled")
                assert scope.cancelled_caught
                tasks.start_soon(publish, "waiting")
                await anyio.sleep(1.2)  # much longer than answers may take
                assert outcomes == dict.fromkeys(sent[:-1])
            finally:
                with anyio.CancelScope(shield=True):  # or no later test could publish
                    await set_alarm("0.4")
            sent.append("waiting")
            while len(outcomes) < len(sent):
                await checkpoint()
            assert not transport.is_blocked
            assert outcomes == dict.fromkeys(sent)
            assert [id for id, _ in await drain(transport, queue)] == sent
            transport._connection.link.blocked = True  # type: ignore[union-attr]
            tasks.start_soon(publish_until_closed)
            await anyio.wait_all_tasks_blocked()
            await transport.close()
    assert_nothing_of_aiormq(caplog)


async def cancel_when_all_wait(scope: anyio.CancelScope) -> None:
    await anyio.wait_all_tasks_blocked()
    scope.cancel()


async def test_closing_fails_what_is_outstanding(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "aiormq")
    outcomes: list[TransportError | None] = []
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            queue = await new_queue(transport)
            inbox = Inbox()
            async with transport.consume(queue, 10, inbox) as consumer:
                await Outbox(transport).publish(message_to(queue, "in hand"))
                (delivery,) = await inbox.take()
                await transport.publish(message_to(queue, "late"), outcomes.append)
                await transport.close()
                assert isinstance(await consumer.failed(), TransportClosedError)
                delivery.acknowledge()
                await consumer.cancel()
            assert len(outcomes) == 1
            assert outcomes[0] is None or isinstance(outcomes[0], TransportClosedError)
            assert "saga-amqp-control" not in {thread.name for thread in threading.enumerate()}
    assert_nothing_of_aiormq(caplog)


async def test_closing_by_several_tasks_waits_in_each(amqp_url: str) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport, anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(transport.close)


async def test_a_transport_is_entered_once(amqp_url: str) -> None:
    with anyio.fail_after(30):
        transport = AmqpTransport(amqp_url)
        async with transport:
            pass
        with pytest.raises(TransportClosedError):
            await transport.__aenter__()


async def test_what_the_body_raises_comes_out_as_it_is(amqp_url: str) -> None:
    with anyio.fail_after(30):
        with pytest.raises(KeyError):
            await fail_while_consuming(amqp_url)


async def fail_while_consuming(amqp_url: str) -> None:
    async with AmqpTransport(amqp_url) as transport:
        queue = await new_queue(transport)
        async with transport.consume(queue, 10, Inbox()):
            raise KeyError("the program's own")


async def test_a_connection_closed_by_the_broker_is_lost_with_its_reason(
    private_rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(60):
        async with AmqpTransport(private_rabbitmq.url()) as transport:
            queue = await new_queue(transport)
            async with transport.consume(queue, 10, Inbox()) as consumer:
                await anyio.to_thread.run_sync(private_rabbitmq.ctl, "close_all_connections", "maintenance")
                error = await consumer.failed()
                assert isinstance(error, ConnectionLostError)
                assert "maintenance" in str(error)
            for call in (
                partial(transport.publish, message_to(queue, "late"), lambda error: None),
                partial(transport.declare, Topology((), ())),
                transport.consume(queue, 1, Inbox()).__aenter__,
            ):
                with pytest.raises(ConnectionLostError, match="maintenance"):
                    await call()
    assert_nothing_of_aiormq(caplog)


def assert_nothing_of_aiormq(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is bothered with what aiormq logs on the way."""
    assert [record for record in caplog.records if record.name.startswith(("aiormq", "asyncio"))] == []
