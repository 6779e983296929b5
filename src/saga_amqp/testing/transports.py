"""What every transport has to do, as runnable cases: the contract `saga_amqp.contracts.Transport`.

Each case is an async function of a way to make transports, all of which lead to the same broker. It returns when the
transport keeps that part of the contract, and raises AssertionError when not. It needs no test framework; with pytest:

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
    async def test_my_transport(case):
        await run_case(case, lambda: MyTransport(url))

Run them on asyncio and on trio. Queues and exchanges have names that nobody else uses, and go by themselves.
`pytest.register_assert_rewrite("saga_amqp.testing")` shows more of what differs.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import anyio

from saga_amqp.contracts import Delivery, Message
from saga_amqp.errors import (
    PublishError,
    TransportError,
    UnroutableError,
)
from saga_amqp.testing.being import BEING
from saga_amqp.testing.giving_back import GIVING_BACK
from saga_amqp.testing.routing import (
    Open,
    a_direct_exchange_compares,
    a_fanout_exchange_reaches_everybody,
    a_topic_exchange_follows_patterns,
)
from saga_amqp.testing.traffic import (
    Inbox,
    Outbox,
    acknowledge,
    drain,
    message_to,
    new_queue,
)

Case = Callable[[Open], Awaitable[None]]

DEADLINE = 30.0


async def a_message_arrives_as_it_was_published(open: Open) -> None:
    """Body, id and headers are what they were; nothing says that it was delivered before."""
    async with open() as transport:
        queue = await new_queue(transport)
        inbox, outbox = Inbox(), Outbox(transport)
        headers: Mapping[str, str | int] = {"text": "näive", "number": -(2**40), "empty": ""}
        message = Message("", queue, b'{"a":"\xc3\xa9"}', "id-é", "execute", headers)
        async with transport.consume(queue, 10, inbox):
            await outbox.publish(message)
            (delivery,) = await inbox.take()
            assert (delivery.body, delivery.message_id) == (message.body, message.id)
            assert {each: delivery.headers.get(each) for each in headers} == headers
            assert not delivery.redelivered
            delivery.acknowledge()
        assert outbox.outcomes == {"id-é": None}


async def bodies_of_any_size_arrive(open: Open) -> None:
    """Empty bodies, and those larger than what brokers take in one piece, arrive byte for byte."""
    bodies = [b"", b"x", bytes(range(256)) * 512, b"y" * 131_064, b"z" * 131_065, b"\xce\x00" * 400_000]
    async with open() as transport:
        queue = await new_queue(transport)
        inbox, outbox = Inbox(), Outbox(transport)
        async with transport.consume(queue, 10, inbox):
            await outbox.publish(*(message_to(queue, str(n), body) for n, body in enumerate(bodies)))
            deliveries = await inbox.take(len(bodies))
            assert [delivery.body for delivery in deliveries] == bodies
            assert [delivery.message_id for delivery in deliveries] == [str(n) for n in range(len(bodies))]
            acknowledge(deliveries)


async def many_messages_are_confirmed_once_each(open: Open) -> None:
    """Messages that are published without waiting are all confirmed, all delivered, in their order."""
    async with open() as transport:
        queue = await new_queue(transport)
        inbox, outbox = Inbox(), Outbox(transport)
        ids = [str(number) for number in range(500)]
        async with transport.consume(queue, 1000, inbox):
            await outbox.publish(*(message_to(queue, each) for each in ids))
            deliveries = await inbox.take(len(ids))
            assert [delivery.message_id for delivery in deliveries] == ids
            acknowledge(deliveries)
        assert outbox.outcomes == dict.fromkeys(ids)


async def an_unroutable_message_is_an_error(open: Open) -> None:
    """It settles with UnroutableError, which names it, and disturbs no other message."""
    async with open() as transport:
        queue = await new_queue(transport)
        outbox = Outbox(transport)
        await outbox.publish(
            message_to(queue, "before"),
            message_to(f"{queue}.nobody", "lost"),
            message_to(queue, "after"),
            message_to(f"{queue}.nobody", "lost too"),
        )
        assert outbox.outcomes["before"] is outbox.outcomes["after"] is None
        for lost in ("lost", "lost too"):
            error = outbox.outcomes[lost]
            assert isinstance(error, UnroutableError), error
            assert lost in str(error)


async def a_message_that_is_not_mandatory_may_go_nowhere(open: Open) -> None:
    """Where it is unroutable it is confirmed and gone; it is taken for no other message, and arrives where it can."""
    async with open() as transport:
        queue = await new_queue(transport)
        nowhere = f"{queue}.nobody"
        outcomes: list[tuple[int, TransportError | None]] = []
        done = anyio.Event()

        def settled(number: int, error: TransportError | None) -> None:
            outcomes.append((number, error))
            if len(outcomes) == 4:
                done.set()

        for number, (key, mandatory) in enumerate(
            ((nowhere, False), (nowhere, True), (queue, False), (nowhere, False))
        ):
            message = Message("", key, b"{}", "same", "t", mandatory=mandatory)
            await transport.publish(message, partial(settled, number))
        await done.wait()
        failed = {number: error for number, error in outcomes if error is not None}
        assert list(failed) == [1], outcomes
        assert isinstance(failed[1], UnroutableError)
        assert await drain(transport, queue) == [("same", False)]


async def a_message_id_may_be_under_way_twice(open: Open) -> None:
    """Each message has its own outcome, also when another one with the same id is under way."""
    async with open() as transport:
        queue = await new_queue(transport)
        outcomes: dict[int, TransportError | None] = {}
        done = anyio.Event()

        def settled(number: int, error: TransportError | None) -> None:
            outcomes[number] = error
            if len(outcomes) == 4:
                done.set()

        for number, key in enumerate((queue, f"{queue}.nobody", queue, f"{queue}.nobody")):
            await transport.publish(message_to(key, "same"), partial(settled, number))
        await done.wait()
        assert outcomes[0] is outcomes[2] is None
        assert isinstance(outcomes[1], UnroutableError)
        assert isinstance(outcomes[3], UnroutableError)


async def an_exchange_that_is_missing_is_an_error(open: Open) -> None:
    """It settles with PublishError, mandatory or not, and messages that are published after that arrive."""
    async with open() as transport:
        queue = await new_queue(transport)
        outbox = Outbox(transport)
        for id, mandatory in (("lost", True), ("lost too", False)):
            await outbox.publish(Message(f"{queue}.missing", "key", b"{}", id, "t", mandatory=mandatory))
            assert isinstance(outbox.outcomes[id], PublishError)
        await outbox.publish(message_to(queue, "after"))
        assert outbox.outcomes["after"] is None


async def prefetch_limits_what_is_in_hand(open: Open) -> None:
    """Never more than `prefetch` messages are unacknowledged; each acknowledgement makes room for one."""
    async with open() as transport:
        queue = await new_queue(transport)
        await Outbox(transport).publish(*(message_to(queue, str(number)) for number in range(30)))
        inbox, settled = Inbox(), 0
        async with transport.consume(queue, 3, inbox):
            for _ in range(10):
                deliveries = await inbox.take(3)
                assert len(inbox.received) == settled + 3
                for delivery in deliveries:
                    settled += 1
                    delivery.acknowledge()


async def a_slow_message_keeps_nobody_back(open: Open) -> None:
    """Acknowledgements count in any order: with one message held, all others still come, and go for good."""
    async with open() as transport:
        queue = await new_queue(transport)
        await Outbox(transport).publish(*(message_to(queue, str(number)) for number in range(60)))
        inbox = Inbox()
        async with transport.consume(queue, 4, inbox):
            (slow,) = await inbox.take()
            held: list[Delivery] = []
            for number in range(59):
                held += await inbox.take()
                if number % 3 == 2:
                    acknowledge(reversed(held))
                    held.clear()
            acknowledge(held)
            assert slow.message_id == "0"
        assert await drain(transport, queue) == [("0", True)]


async def leaving_gives_back_what_is_in_hand(open: Open) -> None:
    """What a consumer had acknowledged when it left is gone; the rest is delivered again, and says so."""
    async with open() as transport:
        queue = await new_queue(transport)
        await Outbox(transport).publish(*(message_to(queue, str(number)) for number in range(10)))
        inbox = Inbox()
        async with transport.consume(queue, 10, inbox):
            deliveries = await inbox.take(10)
            acknowledge(deliveries[number] for number in (0, 1, 4, 9))
        assert await drain(transport, queue) == [(str(number), True) for number in (2, 3, 5, 6, 7, 8)]


async def being_cancelled_gives_back_what_is_in_hand(open: Open) -> None:
    """A consumer that is cancelled leaves like any other."""
    async with open() as transport:
        queue = await new_queue(transport)
        await Outbox(transport).publish(message_to(queue, "done"), message_to(queue, "held"))
        inbox = Inbox()
        with anyio.CancelScope() as scope:
            async with transport.consume(queue, 10, inbox):
                (done, _) = await inbox.take(2)
                done.acknowledge()
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert await drain(transport, queue) == [("held", True)]


async def what_is_acknowledged_too_late_comes_again(open: Open) -> None:
    """Once the consumer has left, acknowledging and rejecting do nothing, and raise nothing."""
    async with open() as transport:
        queue = await new_queue(transport)
        await Outbox(transport).publish(message_to(queue, "0"), message_to(queue, "1"))
        inbox = Inbox()
        async with transport.consume(queue, 10, inbox):
            acknowledged, rejected = await inbox.take(2)
        acknowledged.acknowledge()
        rejected.reject(requeue=False)
        assert await drain(transport, queue) == [("0", True), ("1", True)]


async def a_cancelled_subscription_finishes_what_is_in_hand(open: Open) -> None:
    """After `cancel` nothing comes any more; what is in hand can still be acknowledged."""
    async with open() as transport:
        queue = await new_queue(transport)
        outbox = Outbox(transport)
        await outbox.publish(message_to(queue, "0"), message_to(queue, "1"))
        inbox = Inbox()
        async with transport.consume(queue, 10, inbox) as consumer:
            first, _ = await inbox.take(2)
            await consumer.cancel()
            await outbox.publish(message_to(queue, "2"))
            assert await drain(transport, queue) == [("2", False)]
            assert len(inbox.received) == 2
            first.acknowledge()
        assert await drain(transport, queue) == [("1", True)]


async def consumers_share_a_queue(open: Open) -> None:
    """Each message of a queue goes to one of its consumers, on whatever transport they are."""
    async with open() as one, open() as other:
        queue = await new_queue(one)
        inboxes = Inbox(), Inbox()
        async with one.consume(queue, 1, inboxes[0]), other.consume(queue, 1, inboxes[1]):
            await Outbox(other).publish(*(message_to(queue, str(number)) for number in range(2)))
            found = [*await inboxes[0].take(), *await inboxes[1].take()]
            assert sorted(delivery.message_id for delivery in found) == ["0", "1"]
            acknowledge(found)


async def messages_outlive_their_publisher(open: Open) -> None:
    """What was confirmed can be consumed after the transport that published it was closed."""
    async with open() as transport:
        queue = await new_queue(transport)
        await Outbox(transport).publish(message_to(queue, "kept"))
    async with open() as transport:
        assert await drain(transport, queue) == [("kept", False)]


CASES: tuple[Case, ...] = (
    *BEING,
    *GIVING_BACK,
    a_message_arrives_as_it_was_published,
    bodies_of_any_size_arrive,
    many_messages_are_confirmed_once_each,
    a_topic_exchange_follows_patterns,
    a_direct_exchange_compares,
    a_fanout_exchange_reaches_everybody,
    an_unroutable_message_is_an_error,
    a_message_that_is_not_mandatory_may_go_nowhere,
    a_message_id_may_be_under_way_twice,
    an_exchange_that_is_missing_is_an_error,
    prefetch_limits_what_is_in_hand,
    a_slow_message_keeps_nobody_back,
    leaving_gives_back_what_is_in_hand,
    being_cancelled_gives_back_what_is_in_hand,
    what_is_acknowledged_too_late_comes_again,
    a_cancelled_subscription_finishes_what_is_in_hand,
    consumers_share_a_queue,
    messages_outlive_their_publisher,
)


async def run_case(case: Case, open: Open) -> None:
    """Run one case, and fail it when it does not end: no case needs more than a moment."""
    with anyio.fail_after(DEADLINE):
        await case(open)
