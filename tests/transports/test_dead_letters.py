"""What becomes of messages that nobody wants, where it is RabbitMQ's affair more than ours."""

import anyio
import pytest

from saga_amqp.contracts import Queue, Topology
from saga_amqp.testing.traffic import Inbox, Outbox, expiring_queue, message_to, unique_name
from saga_amqp.transports.amqp import AmqpTransport
from saga_amqp.transports.amqp.topology import arguments
from tests.servers import RabbitMQ


async def test_a_dead_letter_waits_until_its_queue_is_there(private_rabbitmq: RabbitMQ) -> None:
    """As it does with a strategy of at-least-once; else the broker would have dropped it."""
    try_again = "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, {})."
    await anyio.to_thread.run_sync(private_rabbitmq.ctl, "eval", try_again.format(200))
    dead, queue = unique_name("dead"), unique_name("queue")
    try:
        with anyio.fail_after(30):
            async with AmqpTransport(private_rabbitmq.url()) as transport:
                await transport.declare(Topology((), (expiring_queue(queue, dead_letter=dead),)))
                await Outbox(transport).publish(message_to(queue, "kept"), message_to(queue, "last"))
                inbox = Inbox()
                async with transport.consume(queue, 1, inbox):
                    (delivery,) = await inbox.take()
                    delivery.reject(requeue=False)
                    await inbox.take()
                await transport.declare(Topology((), (expiring_queue(dead),)))
                async with transport.consume(dead, 1, inbox):
                    (letter,) = await inbox.take()
                    assert letter.message_id == "kept"
                    letter.acknowledge()
    finally:
        await anyio.to_thread.run_sync(private_rabbitmq.ctl, "eval", try_again.format(180_000))


async def test_what_a_lost_consumer_had_in_hand_counts_as_given_back(private_rabbitmq: RabbitMQ) -> None:
    """So a message that kills its worker dies in the end. RabbitMQ 4.3 counts rejections only."""
    dead, queue = unique_name("dead"), unique_name("queue")
    limited = expiring_queue(queue, dead_letter=dead, delivery_limit=1)
    counts = []
    with anyio.fail_after(30):
        async with AmqpTransport(private_rabbitmq.url()) as transport:
            await transport.declare(Topology((), (expiring_queue(dead), limited)))
            await Outbox(transport).publish(message_to(queue, "poison"))
            for _ in range(2):
                async with AmqpTransport(private_rabbitmq.url()) as worker:
                    inbox = Inbox()
                    consuming = worker.consume(queue, 1, inbox)
                    await consuming.__aenter__()
                    (delivery,) = await inbox.take()
                    counts.append(delivery.headers.get("x-delivery-count"))
                    assert worker._connection is not None
                    worker._connection.link.lose("it dies")
                    await consuming.__aexit__(None, None, None)
            inbox = Inbox()
            async with transport.consume(dead, 1, inbox):
                (letter,) = await inbox.take()
                assert letter.message_id == "poison"
                letter.acknowledge()
    assert counts == [None, 1]


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        (Queue("q"), {"x-queue-type": "quorum"}),
        (Queue("q", delivery_limit=0), {"x-queue-type": "quorum", "x-delivery-limit": 0}),
        (
            Queue("q", dead_letter="d"),
            {
                "x-queue-type": "quorum",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "d",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        ),
        (
            Queue("q", dead_letter="d", kind="classic", expires=0.0001, delivery_limit=3),
            {
                "x-queue-type": "classic",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "d",
                "x-expires": 1,
            },
        ),
    ],
)
def test_what_a_queue_is_declared_with(queue: Queue, expected: dict[str, object]) -> None:
    assert arguments(queue) == expected
