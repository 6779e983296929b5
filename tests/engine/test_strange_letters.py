"""Messages that cannot be handled: what is read of them, and that each can be put where a person can look at it."""

import struct
from typing import Any

import anyio
import pytest
from pamqp import commands as spec
from pamqp.header import ContentHeader

from saga_amqp import Config, MemoryTransport, UnroutableError
from saga_amqp.contracts import Delivery, Message
from saga_amqp.poison import Examined, Poison, Reason, burial, examine, unroutable
from saga_amqp.transports.amqp import frames
from saga_amqp.transports.amqp.frames import Delivered
from saga_amqp.transports.amqp.lanes import AmqpDelivery, ConsumeLane
from saga_core import Execute, encode_command
from tests.fuzz.targets import _Nowhere

from .world import World, steps

ID = "01HZY3V9Q8W7X6T5S4R3P2N1M0"
RUN = Execute(ID, "a", "do.a", 1)
CONFIG = Config()

# A moment that no calendar has.
STRANGE = b"\x20\x00" + struct.pack(">I", 11) + b"\x01tT" + b"\xff" * 8


def delivery(about: bytes, body: bytes = encode_command(RUN), redelivered: bool = False) -> Delivery:
    lane = ConsumeLane(1, _Nowhere(), "queue", 1, lambda _: None, lambda _: None)
    return AmqpDelivery(lane, Delivered(1, 1, redelivered, about, body))


def properties(**given: Any) -> bytes:
    return ContentHeader(properties=spec.Basic.Properties(**given)).marshal()[12:]


def test_headers_that_cannot_be_read_are_no_matter_where_nobody_needs_them() -> None:
    assert examine(delivery(STRANGE), CONFIG.step_queue, CONFIG) == Examined(RUN, None)


@pytest.mark.parametrize(
    ("queue", "redelivered"),
    [(CONFIG.orchestrator, False), (CONFIG.step_queue, True)],
    ids=["whether it died", "how often it came back"],
)
def test_a_message_whose_headers_cannot_say_what_befell_it_is_not_run(queue: str, redelivered: bool) -> None:
    examined = examine(delivery(STRANGE, redelivered=redelivered), queue, CONFIG)
    command, poison = examined.command, examined.poison
    assert command == RUN
    assert poison is not None
    assert "headers of a message cannot be decoded" in str(poison)
    assert (poison.reason, poison.about) == (Reason.UNDECODABLE, RUN)


def why(dead: Delivery) -> Poison:
    return examine(dead, CONFIG.orchestrator, CONFIG).poison or Poison(Reason.NO_HANDLER, "nobody", RUN)


@pytest.mark.parametrize(
    "about",
    [
        b"\x00\x80\xff" + b"\xff" * 255,
        properties(headers={"x-death": [{"queue": "é" * 100_000, "reason": "r" * 10_000}]}),
        properties(headers={"x-death": [{"queue": ["no", "text"], "reason": 7}]}),
        properties(headers={"x-death": ["no table"]}),
        STRANGE,
        b"\xff\xff",
    ],
    ids=[
        "an id of no UTF-8",
        "a queue without end",
        "a queue that is none",
        "no table",
        "strange",
        "cut off",
    ],
)
def test_every_message_can_be_buried(about: bytes) -> None:
    dead = delivery(about, redelivered=True)
    letter = burial(why(dead), dead, CONFIG.orchestrator, CONFIG, 1.0)
    assert frames.content(1, letter.body, letter.id, letter.type, letter.headers)


@pytest.mark.parametrize(
    "body", [b"{", encode_command(RUN)], ids=["no command", "a command without a handler"]
)
def test_a_dead_letter_that_no_queue_takes_waits_for_its_queue(body: bytes) -> None:
    letter = burial(Poison(Reason.UNDECODABLE, "no", None), delivery(b"\0\0", body), "queue", CONFIG, 1.0)
    assert unroutable(letter, UnroutableError("it was deleted"), CONFIG) is None
    ours = Message(CONFIG.exchange, "execute.do.a", encode_command(RUN), "id", "saga.step.execute")
    assert unroutable(ours, UnroutableError("nobody has it"), CONFIG) is not None


@pytest.mark.parametrize("body", [b"{", encode_command(Execute(ID, "a", "do.nobody", 1))])
async def test_an_engine_makes_a_queue_of_dead_letters_again_that_was_deleted(
    world: World, body: bytes
) -> None:
    async with world.running() as manager:
        del world.broker.queues["saga.dead-letter"]
        async with MemoryTransport(world.broker) as transport:
            message = Message("sagas", "execute.do.a", body, "from-elsewhere", "saga.step.execute")
            await transport.publish(message, lambda error: None)
        with anyio.fail_after(world.deadline):
            while not (queue := world.broker.queues.get("saga.dead-letter")) or not queue.ready:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        saga = await manager.start("s", steps("a"))
        assert (await manager.wait(saga.id)).is_completed
    world.assert_queues_are_empty(dead_letters=1)
