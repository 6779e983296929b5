"""Which queues a message has to reach: cases of the suite in `transports`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from saga_amqp.contracts import Message, Topology, Transport
from saga_amqp.testing.traffic import Outbox, drain, expiring_queue, passing_exchange, unique_name

Open = Callable[[], Transport]


async def a_topic_exchange_follows_patterns(open: Open) -> None:
    """A star stands for one word, a hash for any number, and a message goes once to every queue that matches."""
    routed = {
        "order.paid": ["all", "one", "exact"],
        "order": ["all"],
        "order.paid.late": ["all", "late"],
        "refund.late": ["all", "one", "late"],
    }
    patterns = {"all": ["#"], "one": ["*.*"], "exact": ["order.paid", "order.*"], "late": ["#.late"]}
    assert await _route(open, "topic", patterns, list(routed)) == routed


async def a_direct_exchange_compares(open: Open) -> None:
    """A message goes to every queue that is bound with its very key; stars are nothing special."""
    routed = {"a.b": ["first", "second"], "a.*": ["star"], "c": ["first"]}
    patterns = {"first": ["a.b", "c"], "second": ["a.b"], "star": ["a.*"]}
    assert await _route(open, "direct", patterns, list(routed)) == routed


async def a_fanout_exchange_reaches_everybody(open: Open) -> None:
    """A message goes to every queue that is bound, whatever the keys are."""
    routed = {"a": ["first", "second"], "": ["first", "second"]}
    assert await _route(open, "fanout", {"first": ["x"], "second": [""]}, list(routed)) == routed


async def _route(
    open: Open,
    kind: Literal["topic", "direct", "fanout"],
    patterns: Mapping[str, Sequence[str]],
    keys: Sequence[str],
) -> dict[str, list[str]]:
    """Bind queues to an exchange, publish with each key, and return which queues got which."""
    async with open() as transport:
        exchange, names = unique_name("exchange"), {short: unique_name(short) for short in patterns}
        queues = [
            expiring_queue(names[short], tuple((exchange, each) for each in bound))
            for short, bound in patterns.items()
        ]
        await transport.declare(Topology((passing_exchange(exchange, kind),), tuple(queues)))
        outbox = Outbox(transport)
        await outbox.publish(*(Message(exchange, key, b"{}", key or "empty", "t") for key in keys))
        assert set(outbox.outcomes.values()) == {None}
        routed: dict[str, list[str]] = {key: [] for key in keys}
        for short, queue in names.items():
            for message_id, _ in await drain(transport, queue):
                routed["" if message_id == "empty" else message_id].append(short)
        return routed
