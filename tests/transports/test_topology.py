"""What the broker refuses to declare, and what we say about it."""

from collections.abc import Callable

import anyio
import pytest

from saga_amqp.contracts import Exchange, Queue, Topology
from saga_amqp.errors import ConsumerCancelledError, QueueNotFoundError, TopologyError
from saga_amqp.testing.traffic import (
    Inbox,
    drain,
    expiring_queue,
    new_queue,
    passing_exchange,
    unique_name,
)
from saga_amqp.transports.amqp import AmqpTransport, refusals
from tests.servers import RabbitMQ
from tests.transports.asking import ask


def queue(name: str, **changes: object) -> Topology:
    return Topology((), (Queue(name, **{"expires": 60.0, **changes}),))  # type: ignore[arg-type]


def exchange(name: str, **changes: object) -> Topology:
    return Topology((Exchange(name, **{"auto_delete": True, **changes}),), ())  # type: ignore[arg-type]


# What is there, what is asked for, and what the error has to say.
DIFFERENCES: dict[str, tuple[Callable[[str], Topology], Callable[[str], Topology], list[str]]] = {
    "kind": (
        lambda name: queue(name, kind="classic"),
        queue,
        [r"another x-queue-type: it has 'classic', and 'quorum' was asked for", r"Config\(queue_kind='classic'\)"],
    ),
    "expires": (
        queue,
        lambda name: queue(name, expires=90.0),
        ["another x-expires: it has '60000', and '90000' was", r"Config\(expires=60\)"],
    ),
    "expires or never": (
        queue,
        lambda name: queue(name, expires=None),
        ["x-expires: it has '60000', and none was asked for", r"Config\(expires=60\)"],
    ),
    "dead letters elsewhere": (
        lambda name: queue(name, dead_letter="old"),
        lambda name: queue(name, dead_letter="new"),
        ["x-dead-letter-routing-key: it has 'old', and 'new' was", r"Config\(dead_letter_queue='old'\)"],
    ),
    "no dead letters": (
        queue,
        lambda name: queue(name, dead_letter="new"),
        ["another x-dead-letter-exchange: it has none, and '' was asked for", "change that: delete the queue"],
    ),
    "limit": (
        lambda name: queue(name, delivery_limit=5),
        lambda name: queue(name, delivery_limit=20),
        ["x-delivery-limit: it has '5', and '20' was asked for", r"Config\(delivery_limit=5\)"],
    ),
    "no limit": (
        queue,
        lambda name: queue(name, delivery_limit=20),
        ["x-delivery-limit: it has none, and '20' was asked for", "change that: delete the queue when it is empty"],
    ),
    "kind of exchange": (
        exchange,
        lambda name: exchange(name, kind="fanout"),
        ["another type: it has 'topic', and 'fanout' was asked for", "delete the exchange when nobody uses it"],
    ),
    "exchange that stays": (
        exchange,
        lambda name: exchange(name, auto_delete=False),
        ["another auto_delete: it has 'true', and 'false' was asked for", r"Config\(expires=…\)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("there", "asked", "says"), DIFFERENCES.values(), ids=DIFFERENCES)
async def test_a_difference_is_named_with_both_values_and_what_to_do(
    amqp_url: str, there: Callable[[str], Topology], asked: Callable[[str], Topology], says: list[str]
) -> None:
    name = unique_name("there")
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            await transport.declare(there(name))
            with pytest.raises(TopologyError, match=name) as caught:
                await transport.declare(asked(name))
            for words in [*says, "or use another name or prefix", "The broker says: PRECONDITION_FAILED"]:
                assert caught.match(words)
            await transport.declare(there(name))
            await ask(amqp_url, lambda channel: channel.exchange_delete(name))


async def test_a_difference_is_named_where_a_long_name_leaves_no_room_for_the_values(amqp_url: str) -> None:
    name = unique_name("x" * 150)
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            await transport.declare(queue(name))
            with pytest.raises(TopologyError, match=rf"{name}' exists with another x-expires\. ") as caught:
                await transport.declare(queue(name, expires=90.0))
            assert caught.match(r"set Config\(expires=…\) to take it as it is")


async def test_what_another_program_has_declared_is_told_as_well(amqp_url: str) -> None:
    name = unique_name("foreign")
    foreign = {"x-queue-type": "quorum", "x-overflow": "drop-head", "x-expires": 60_000}
    await ask(amqp_url, lambda channel: channel.queue_declare(name, durable=True, arguments=foreign))
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            with pytest.raises(
                TopologyError, match="another x-overflow: it has 'drop-head', and none"
            ) as caught:
                await transport.declare(queue(name))
            assert caught.match("change that: delete the queue when it is empty")


async def test_a_binding_to_what_is_not_there_is_named(amqp_url: str) -> None:
    name, missing = unique_name("queue"), unique_name("missing")
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            with pytest.raises(
                TopologyError, match=f"Binding of queue '{name}' to exchange '{missing}'"
            ) as caught:
                await transport.declare(Topology((), (expiring_queue(name, ((missing, "#"),)),)))
            assert caught.match(f"no exchange '{missing}'")
            assert caught.match("Declare it with the same topology")


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        (queue("amq.direct"), "Queue 'amq.direct'.*reserved prefix.*The name is the broker's own"),
        (exchange("amq.mine"), "Exchange 'amq.mine'.*reserved prefix.*The name is the broker's own"),
        (exchange(""), "Exchange ''.*not permitted.*The name is the broker's own"),
        (queue("straße"), "Queue 'straße' cannot be declared.*letters and digits of ASCII"),
        (exchange("x" * 128), "Exchange 'x+' cannot be declared.*127 at most"),
    ],
)
async def test_a_name_that_cannot_be_had_is_named(amqp_url: str, topology: Topology, says: str) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            with pytest.raises(TopologyError, match=says):
                await transport.declare(topology)
            assert await drain(transport, await new_queue(transport)) == []


async def test_a_name_that_no_queue_can_have_is_that_of_a_missing_queue(amqp_url: str) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url) as transport:
            with pytest.raises(QueueNotFoundError, match="straße"):
                await transport.depth("straße")
            with pytest.raises(ConsumerCancelledError, match="straße"):
                async with transport.consume("straße", 1, Inbox()):
                    pass
            await transport.declare(Topology((), ()))


async def add_users(rabbitmq: RabbitMQ, permissions: list[tuple[str, str, str]]) -> list[str]:
    """Add users who may configure, write and read so much; return their URLs."""
    names, commands = [unique_name("user") for _ in permissions], []
    for name, given in zip(names, permissions, strict=True):
        patterns = ", ".join(f'<<"{pattern}">>' for pattern in given)
        commands += [
            f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"weak">>, <<"tests">>)',
            f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"/">>, {patterns}, <<"tests">>)',
        ]
    await anyio.to_thread.run_sync(rabbitmq.ctl, "eval", ", ".join(commands) + ".")
    return [rabbitmq.url().replace("guest:guest", f"{name}:weak") for name in names]


async def test_the_permission_that_is_missing_is_named(private_rabbitmq: RabbitMQ) -> None:
    exchange_name, name = unique_name("exchange"), unique_name("queue")
    bound = expiring_queue(name, ((exchange_name, "#"),))
    everything = Topology((passing_exchange(exchange_name),), (bound,))
    with_dead_letters = Topology((), (expiring_queue(unique_name("queue"), dead_letter="d"),))
    cases = [
        (("^$", "^$", "^$"), everything, "Exchange.*permission to configure it"),
        ((exchange_name, "^$", "^$"), everything, "Queue.*permission to configure it"),
        ((".*", "^$", exchange_name), everything, "Binding.*to write to the queue and to read from the exch"),
        ((".*", ".*", "^$"), everything, "Binding.*to write to the queue and to read from the exch"),
        ((".*", ".*", "^$"), with_dead_letters, "Queue.*also to read it and to write to amq.default"),
    ]
    with anyio.fail_after(60):
        urls = await add_users(private_rabbitmq, [given for given, _, _ in cases])
        for url, (_, topology, says) in zip(urls, cases, strict=True):
            async with AmqpTransport(url) as transport:
                with pytest.raises(TopologyError, match=says) as caught:
                    await transport.declare(topology)
                assert caught.match("ACCESS_REFUSED")


def test_what_the_broker_says_otherwise_is_handed_on() -> None:
    said = "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'"
    assert refusals.explain("queue", "Queue 'q'", said) == f"Queue 'q' cannot be declared as asked: {said}"
