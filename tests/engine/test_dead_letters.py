"""What a person sees of the dead letters, and does about them: on the broker in memory and on RabbitMQ."""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest

from saga_amqp import (
    AmqpTransport,
    Config,
    ConnectionLostError,
    DeadLetter,
    DeadLetterNotFoundError,
    DeadLetters,
    MemoryBroker,
    MemoryTransport,
    QueueNotFoundError,
    UnroutableError,
)
from saga_amqp.contracts import Consumer, Delivery, Message, Queue, Topology, Transport
from saga_amqp.testing.traffic import Inbox, Outbox, drain
from saga_core import Execute, encode_command

DEADLINE = 30.0
NOW = 1_700_000_000

SAGA = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
BODY = encode_command(Execute(SAGA, "a", "do.a", 3))


class Place:
    """A broker, and names on it that nobody else has."""

    def __init__(self, open: Callable[[], Transport], prefix: str) -> None:
        self.open = open
        self.config = Config(prefix=f"{prefix}.", expires=60.0)
        self.steps, self.dead = (self.config.on_broker(name) for name in ("saga.steps", "saga.dead-letter"))

    @asynccontextmanager
    async def letters(self, transport: Transport | None = None) -> AsyncIterator[DeadLetters]:
        with anyio.fail_after(DEADLINE):
            async with DeadLetters(transport or self.open(), self.config) as letters:
                yield letters

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Transport]:
        with anyio.fail_after(DEADLINE):
            async with self.open() as transport:
                yield transport

    async def bury(self, *messages: Message) -> None:
        async with self.opened() as transport:
            await transport.declare(self.config.topology())
            for message in messages:
                outbox = Outbox(transport)
                await outbox.publish(message)
                assert outbox.outcomes == {message.id: None}

    async def look(self, limit: int = 100) -> Sequence[DeadLetter]:
        async with self.letters() as letters:
            return await letters.list(limit)

    async def ids(self) -> list[str]:
        """Return the message ids of the letters that there are."""
        return [letter.message_id for letter in await self.look()]

    def letter(self, message_id: str, body: bytes = BODY, **headers: str | int) -> Message:
        """Return a message that is a dead letter as an engine makes them; `x_own` becomes the header `x-own`."""
        told: dict[str, str | int] = {
            "x-saga-reason": "no_handler",
            "x-saga-error": "nobody can",
            "x-saga-queue": self.steps,
            "x-saga-when": NOW,
            "x-saga-deliveries": 2,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        return Message("", self.dead, body, message_id, "saga.dead-letter", told)


@pytest.fixture(params=["memory", "rabbitmq"])
def place(request: pytest.FixtureRequest, unique: str) -> Place:
    if request.param == "memory":
        broker = MemoryBroker()
        return Place(lambda: MemoryTransport(broker), unique)
    url: str = request.getfixturevalue("amqp_url")
    return Place(lambda: AmqpTransport(url), unique)


# Looking -----------------------------------------------------------------------------------------------------------


async def test_a_letter_tells_what_it_is_and_why_it_is_there(place: Place) -> None:
    await place.bury(
        place.letter("m-1", own="kept", number=7), place.letter("m-2", b"\xff", x_saga_reason="undecodable")
    )
    first, second = await place.look()
    assert (first.reason, first.error, first.queue) == ("no_handler", "nobody can", place.steps)
    assert (first.saga, first.step, first.attempt) == (SAGA, "a", 3)
    assert (first.when, first.deliveries) == (NOW, 2)
    assert (first.message_id, first.body) == ("m-1", BODY)
    assert first.headers.items() >= {"own": "kept", "number": 7}.items()
    assert (second.reason, second.body) == ("undecodable", b"\xff")
    assert (second.saga, second.step, second.attempt) == (None, None, None)


async def test_what_the_broker_gave_up_tells_so_without_an_engine(place: Place) -> None:
    """As where no engine runs, or where it is an orchestrator's queue that has lost a message."""
    queue = f"{place.config.prefix}other"
    limited = Queue(queue, dead_letter=place.dead, expires=60.0, delivery_limit=1)
    began = time.time()
    await place.bury()
    async with place.opened() as transport:
        await transport.declare(Topology((), (limited,)))
        await Outbox(transport).publish(*(Message("", queue, BODY, each, "t") for each in ("often", "once")))
        inbox = Inbox()
        async with transport.consume(queue, 1, inbox):
            for _ in range(3):
                (delivery,) = await inbox.take()
                delivery.reject(requeue=delivery.message_id == "often")
    letters = {letter.message_id: letter for letter in await place.look()}
    assert {id: letter.reason for id, letter in letters.items()} == {
        "often": "delivered_too_often",
        "once": "dropped_by_broker",
    }
    for letter in letters.values():
        assert letter.queue == queue
        assert letter.when is not None
        assert abs(letter.when - began) < 3600
        assert letter.saga == SAGA


async def test_looking_changes_nothing_and_has_the_order_of_the_queue(place: Place) -> None:
    names = [f"m-{number}" for number in range(20)]
    await place.bury(*(place.letter(name) for name in names))
    before = await place.look()
    assert [letter.message_id for letter in before] == names
    assert len({letter.id for letter in before}) == 20
    for _ in range(2):
        assert [letter.message_id for letter in await place.look(limit=3)] == names[:3]
    assert await place.look(limit=0) == []
    async with place.letters() as letters:
        shown = await letters.show(before[7].id)
        assert (shown.id, shown.message_id) == (before[7].id, "m-7")
    assert [letter.id for letter in await place.look()] == [letter.id for letter in before]


async def test_an_empty_queue_has_no_letters_and_a_missing_one_is_an_error(place: Place) -> None:
    async with place.letters() as letters:
        with pytest.raises(QueueNotFoundError, match="dead-letter"):
            await letters.list()
    await place.bury()
    assert await place.look() == []


async def test_of_letters_that_are_the_same_in_everything_the_oldest_is_meant(place: Place) -> None:
    await place.bury(place.letter("m"), place.letter("m"), place.letter("m", x_saga_when=NOW + 1))
    one, same, other = await place.look()
    assert one.id == same.id != other.id
    async with place.letters() as letters:
        await letters.drop(one.id)
    assert [letter.id for letter in await place.look()] == [one.id, other.id]


# Doing -------------------------------------------------------------------------------------------------------------


async def test_what_is_requeued_is_as_it_was_published_and_in_its_order(place: Place) -> None:
    await place.bury(*(place.letter(f"m-{number}", own=number) for number in range(6)))
    found = {letter.message_id: letter.id for letter in await place.look()}
    async with place.letters() as letters:
        await letters.requeue(found["m-4"], found["m-1"], found["m-3"])
    assert await place.ids() == ["m-0", "m-2", "m-5"]
    inbox = Inbox()
    async with place.opened() as transport, transport.consume(place.steps, 10, inbox):
        back = await inbox.take(3)
        assert [delivery.message_id for delivery in back] == ["m-1", "m-3", "m-4"]
        assert [delivery.headers for delivery in back] == [{"own": number} for number in (1, 3, 4)]
        assert {delivery.body for delivery in back} == {BODY}
        assert not any(delivery.redelivered for delivery in back)
        for delivery in back:
            delivery.acknowledge()


async def test_what_the_broker_wrote_into_the_headers_is_left_out_when_it_is_requeued(place: Place) -> None:
    queue = f"{place.config.prefix}other"
    await place.bury()
    async with place.opened() as transport:
        await transport.declare(Topology((), (Queue(queue, dead_letter=place.dead, expires=60.0),)))
        await Outbox(transport).publish(Message("", queue, BODY, "m", "t", {"own": "kept"}))
        inbox = Inbox()
        async with transport.consume(queue, 1, inbox):
            for requeue in (True, False):
                (delivery,) = await inbox.take()
                delivery.reject(requeue=requeue)
    (letter,) = await place.look()
    async with place.letters() as letters:
        await letters.requeue(letter.id)
    async with place.opened() as transport, transport.consume(queue, 1, inbox):
        (delivery,) = await inbox.take()
        assert delivery.headers == {"own": "kept"}
        delivery.acknowledge()
    assert await place.look() == []


async def test_what_is_dropped_is_gone_and_nothing_else(place: Place) -> None:
    await place.bury(*(place.letter(f"m-{number}") for number in range(4)))
    found = {letter.message_id: letter.id for letter in await place.look()}
    async with place.letters() as letters:
        await letters.drop(found["m-2"], found["m-0"])
        await letters.drop()
        await letters.requeue()
    assert await place.ids() == ["m-1", "m-3"]
    async with place.opened() as transport:
        assert await drain(transport, place.steps) == []


@pytest.mark.parametrize("what", ["show", "requeue", "drop"])
async def test_a_letter_that_is_not_there_is_an_error_before_anything_is_done(
    place: Place, what: str
) -> None:
    await place.bury(place.letter("m"))
    (letter,) = await place.look()
    async with place.letters() as letters:
        wanted = ("0123",) if what == "show" else (letter.id, "0123")
        with pytest.raises(DeadLetterNotFoundError, match="0123"):
            await getattr(letters, what)(*wanted)
    assert await place.ids() == ["m"]
    async with place.opened() as transport:
        assert await drain(transport, place.steps) == []


async def test_a_letter_whose_queue_is_gone_stays_a_letter(place: Place) -> None:
    await place.bury(place.letter("m-0"), place.letter("m-1", x_saga_queue="gone"), place.letter("m-2"))
    found = [letter.id for letter in await place.look()]
    async with place.letters() as letters:
        with pytest.raises(UnroutableError, match="gone"):
            await letters.requeue(*found)
    assert await place.ids() == ["m-1", "m-2"]
    async with place.opened() as transport:
        assert [name for name, _ in await drain(transport, place.steps)] == ["m-0"]


async def test_whoever_dies_between_requeueing_and_acknowledging_leaves_a_letter_in_both_places(
    place: Place,
) -> None:
    await place.bury(place.letter("m"), place.letter("n"))
    first, _ = await place.look()
    transport = place.open()
    publish = transport.publish

    async def publish_and_die(message: Message, settled: Callable[[Any], None]) -> None:
        await publish(message, lambda error: scope.cancel())

    cast("Any", transport).publish = publish_and_die
    with anyio.CancelScope() as scope:
        async with place.letters(transport) as letters:
            await letters.requeue(first.id)
    assert scope.cancelled_caught
    assert await place.ids() == ["m", "n"]
    async with place.opened() as transport:
        assert [name for name, _ in await drain(transport, place.steps)] == ["m"]


# At once ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def in_other_hands(place: Place, count: int) -> AsyncIterator[Consumer]:
    inbox = Inbox()
    async with place.opened() as transport, transport.consume(place.dead, count, inbox) as consumer:
        await inbox.take(count)
        yield consumer


async def test_what_somebody_looks_at_nobody_else_sees(place: Place) -> None:
    await place.bury(place.letter("m-0"), place.letter("m-1"), place.letter("m-2"))
    first, _, third = await place.look()
    async with in_other_hands(place, 2), place.letters() as letters:
        assert [letter.message_id for letter in await letters.list()] == ["m-2"]
        assert (await letters.show(third.id)).message_id == "m-2"
        with pytest.raises(DeadLetterNotFoundError, match="somebody"):
            await letters.drop(first.id)
    assert sorted(await place.ids()) == ["m-0", "m-1", "m-2"]


async def test_a_letter_is_waited_for_a_little_while_others_look_at_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga_amqp.dead_letters.QUIET", DEADLINE)
    await place.bury(place.letter("m-0"), place.letter("m-1"))
    _, last = await place.look()
    async with place.letters() as letters, anyio.create_task_group() as tasks:

        async def drop() -> None:
            await letters.drop(last.id)

        async with in_other_hands(place, 2):
            tasks.start_soon(drop)
            await anyio.wait_all_tasks_blocked()
    assert await place.ids() == ["m-0"]


async def test_two_who_drop_the_same_letter_drop_no_other(place: Place) -> None:
    await place.bury(*(place.letter(f"m-{number}") for number in range(10)))
    found = [letter.id for letter in await place.look()]
    missed = 0

    async def drop() -> None:
        nonlocal missed
        try:
            async with place.letters() as letters:
                await letters.drop(found[4])
        except DeadLetterNotFoundError:
            missed += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(drop)
    assert missed >= 1
    left = await place.look()
    assert {letter.id for letter in left} | {found[4]} == set(found)
    assert len(left) == 9 if missed == 1 else 10


async def test_a_connection_that_is_lost_is_an_error_and_not_the_end_of_the_queue(
    amqp_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga_amqp.dead_letters.QUIET", DEADLINE)
    place = Place(lambda: AmqpTransport(amqp_url), unique)
    await place.bury(place.letter("m"))
    transport = AmqpTransport(amqp_url)
    consume = transport.consume

    @asynccontextmanager
    async def lose(
        queue: str, prefetch: int, receive: Callable[[Delivery], None]
    ) -> AsyncIterator[Mapping[str, object]]:
        def take(delivery: Delivery) -> None:
            receive(delivery)
            transport._up().link.lose("it dies")

        async with consume(queue, prefetch, take) as consumer:
            yield cast("Any", consumer)

    cast("Any", transport).consume = lose
    async with place.letters(transport) as letters:
        with pytest.raises(ConnectionLostError):
            await letters.show("0123")
    assert await place.ids() == ["m"]
