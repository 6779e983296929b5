"""The part of the suite of transports about what is given back: it comes again, and in the end is a dead letter."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from saga_amqp.contracts import Delivery, Message, Topology
from saga_amqp.testing.routing import Open
from saga_amqp.testing.traffic import (
    Inbox,
    Outbox,
    acknowledge,
    drain,
    expiring_queue,
    message_to,
    new_queue,
    unique_name,
)


async def a_requeued_message_comes_again(open: Open) -> None:
    """Rejected for requeueing, it is delivered again, and says so."""
    async with open() as transport:
        queue = await new_queue(transport)
        await Outbox(transport).publish(message_to(queue, "again"))
        inbox = Inbox()
        async with transport.consume(queue, 1, inbox):
            (first,) = await inbox.take()
            assert not first.redelivered
            first.reject(requeue=True)
            (second,) = await inbox.take()
            assert (second.message_id, second.redelivered) == ("again", True)
            second.acknowledge()
        assert await drain(transport, queue) == []


async def a_quorum_queue_counts_what_is_given_back(open: Open) -> None:
    """A header says how often a message was given back, beside its own ones; the first time there is none."""
    async with open() as transport:
        queue = await new_queue(transport)
        await Outbox(transport).publish(Message("", queue, b"{}", "again", "t", {"own": "kept"}))
        inbox = Inbox()
        async with transport.consume(queue, 1, inbox):
            for count in range(4):
                (delivery,) = await inbox.take()
                assert delivery.headers.get("x-delivery-count", 0) == count
                assert ("x-delivery-count" in delivery.headers) == (count > 0)
                assert delivery.headers["own"] == "kept"
                delivery.reject(requeue=True)
            (delivery,) = await inbox.take()
            delivery.acknowledge()


async def a_classic_queue_counts_nothing(open: Open) -> None:
    """There a message comes again as often as it is given back, whatever limit was asked for."""
    async with open() as transport:
        dead, queue = unique_name("dead"), unique_name("queue")
        classic = expiring_queue(queue, dead_letter=dead, kind="classic", delivery_limit=1)
        await transport.declare(Topology((), (expiring_queue(dead), classic)))
        await Outbox(transport).publish(message_to(queue, "again"))
        inbox = Inbox()
        async with transport.consume(queue, 1, inbox):
            for count in range(4):
                (delivery,) = await inbox.take()
                assert delivery.redelivered == (count > 0)
                assert "x-delivery-count" not in delivery.headers
                delivery.reject(requeue=True)
            (delivery,) = await inbox.take()
            delivery.acknowledge()
        assert await drain(transport, dead) == []


async def a_rejected_message_goes_to_the_dead_letters(open: Open) -> None:
    """Rejected for good, it is in the queue's dead-letter queue as it was published, and nowhere else; it says why."""
    async with open() as transport:
        dead, queue = unique_name("dead"), unique_name("queue")
        queues = (expiring_queue(dead), expiring_queue(queue, dead_letter=dead))
        await transport.declare(Topology((), queues))
        await Outbox(transport).publish(*(message_to(queue, str(number), b"body") for number in range(6)))
        inbox, letters = Inbox(), Inbox()
        async with transport.consume(queue, 10, inbox), transport.consume(dead, 10, letters):
            for number, delivery in enumerate(await inbox.take(6)):
                if number % 2:
                    delivery.acknowledge()
                else:
                    delivery.reject(requeue=False)
            found = await letters.take(3)
            assert sorted(delivery.message_id for delivery in found) == ["0", "2", "4"]
            assert {delivery.body for delivery in found} == {b"body"}
            for letter in found:
                assert _deaths(letter) == [("rejected", queue, 1, "", [queue])]
            acknowledge(found)
        assert await drain(transport, queue) == await drain(transport, dead) == []


async def a_message_that_is_given_back_too_often_is_a_dead_letter(open: Open) -> None:
    """More often than the limit, that is; it says why, has its own headers, counts anew, and keeps nobody back."""
    async with open() as transport:
        dead, queue = unique_name("dead"), unique_name("queue")
        limited = expiring_queue(queue, dead_letter=dead, delivery_limit=2)
        await transport.declare(Topology((), (expiring_queue(dead), limited)))
        await Outbox(transport).publish(
            Message("", queue, b"body", "poison", "t", {"own": "kept"}), message_to(queue, "good")
        )
        inbox, letters, times = Inbox(), Inbox(), 0
        async with transport.consume(queue, 1, inbox), transport.consume(dead, 1, letters):
            while times < 3:
                (delivery,) = await inbox.take()
                if delivery.message_id == "good":
                    delivery.acknowledge()
                else:
                    times += 1
                    delivery.reject(requeue=True)
            (letter,) = await letters.take()
            assert (letter.message_id, letter.body, letter.redelivered) == ("poison", b"body", False)
            assert _deaths(letter) == [("delivery_limit", queue, 1, "", [queue])]
            assert letter.headers["x-first-death-queue"] == queue
            assert letter.headers["x-first-death-reason"] == "delivery_limit"
            assert letter.headers["own"] == "kept"
            assert "x-delivery-count" not in letter.headers
            letter.reject(requeue=True)
            (letter,) = await letters.take()
            assert letter.headers["x-delivery-count"] == 1
            letter.acknowledge()
        assert await drain(transport, dead) == []
        assert ("poison", True) not in await drain(transport, queue)


async def a_dead_letter_may_die_again(open: Open) -> None:
    """Each of its deaths is told, the latest first; those of one queue for one reason are counted."""
    async with open() as transport:
        one, other = unique_name("one"), unique_name("other")
        queues = (expiring_queue(one, dead_letter=other), expiring_queue(other, dead_letter=one))
        await transport.declare(Topology((), queues))
        await Outbox(transport).publish(message_to(one, "restless"))
        inboxes = Inbox(), Inbox()
        told: list[Sequence[object]] = []
        async with transport.consume(one, 1, inboxes[0]), transport.consume(other, 1, inboxes[1]):
            for death in range(3):
                (delivery,) = await inboxes[death % 2].take()
                told.append(_deaths(delivery))
                delivery.reject(requeue=False)
            (delivery,) = await inboxes[1].take()
            told.append(_deaths(delivery))
            delivery.acknowledge()
        in_one, in_other = ("rejected", one, 1, "", [one]), ("rejected", other, 1, "", [other])
        assert told == [[], [in_one], [in_other, in_one], [("rejected", one, 2, "", [one]), in_other]]
        assert delivery.headers["x-first-death-queue"] == one


GIVING_BACK = (
    a_requeued_message_comes_again,
    a_quorum_queue_counts_what_is_given_back,
    a_classic_queue_counts_nothing,
    a_rejected_message_goes_to_the_dead_letters,
    a_message_that_is_given_back_too_often_is_a_dead_letter,
    a_dead_letter_may_die_again,
)


def _deaths(delivery: Delivery) -> Sequence[tuple[object, ...]]:
    deaths = cast("Sequence[Mapping[str, Any]]", delivery.headers.get("x-death", []))
    return [
        tuple(death[part] for part in ("reason", "queue", "count", "exchange", "routing-keys"))
        for death in deaths
    ]
