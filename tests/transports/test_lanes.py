"""What is acknowledged and settled, held against a broker that keeps count."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands as spec

from saga_amqp.contracts import Delivery, Message
from saga_amqp.errors import (
    ConnectionLostError,
    ConsumerCancelledError,
    FrameError,
    PublishError,
    QueueDeletedError,
    TransportError,
    UnroutableError,
)
from saga_amqp.transports.amqp.frames import Confirmed, Delivered, Returned
from saga_amqp.transports.amqp.lanes import PATIENCE, PREFIXES, ConsumeLane, PublishLane
from tests.transports.test_frames import encoded, unmarshal


class Sent:
    """Takes frames, and flushes when told to."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.to_flush: list[ConsumeLane] = []

    def send(self, data: bytes) -> None:
        self.frames += unmarshal(data)

    def flush_soon(self, lane: ConsumeLane) -> None:
        self.flush_later(lane)

    def flush_later(self, lane: ConsumeLane) -> None:
        if lane not in self.to_flush:
            self.to_flush.append(lane)

    def flush(self) -> None:
        to_flush, self.to_flush = self.to_flush, []
        for lane in to_flush:
            lane.flush()


class Broker:
    """Counts like RabbitMQ, which closes a channel over a tag that it does not wait for."""

    def __init__(self, count: int) -> None:
        self.waiting = set(range(1, count + 1))
        self.acknowledged: set[int] = set()
        self.rejected: set[int] = set()

    def take(self, frame: Any) -> None:
        assert frame.delivery_tag in self.waiting, f"unknown delivery tag {frame.delivery_tag}"
        if isinstance(frame, spec.Basic.Reject):
            self.rejected.add(frame.delivery_tag)
            self.waiting.remove(frame.delivery_tag)
            return
        tags = {tag for tag in self.waiting if frame.multiple and tag <= frame.delivery_tag} | {
            frame.delivery_tag
        }
        self.acknowledged |= tags
        self.waiting -= tags


def consume(
    out: Sent, count: int, prefetch: int = 1
) -> tuple[ConsumeLane, list[Delivery], list[TransportError]]:
    deliveries: list[Delivery] = []
    errors: list[TransportError] = []
    lane = ConsumeLane(1, out, "queue", prefetch, deliveries.append, errors.append)
    for tag in range(1, count + 1):
        lane.take(Delivered(1, tag, False, b"\x00\x00", b""))
    return lane, deliveries, errors


@given(
    st.permutations(range(12)),
    st.sets(st.integers(0, 11)),
    st.lists(st.integers(0, 2), min_size=12, max_size=12),
    st.sampled_from([1, 8, 12, 48]),
)
def test_whatever_the_order_each_delivery_is_settled_as_it_was_asked(
    order: list[int], rejected: set[int], flushes: list[int], prefetch: int
) -> None:
    out, broker = Sent(), Broker(12)
    lane, deliveries, _ = consume(out, 12, prefetch)
    asked: set[int] = set()
    for place, flush in zip(order, flushes, strict=True):
        if place in rejected:
            deliveries[place].reject(requeue=True)
        else:
            deliveries[place].acknowledge()
            asked.add(place + 1)
        for _ in range(flush):
            out.flush()
        for frame in out.frames:
            broker.take(frame)
        out.frames.clear()
        assert broker.acknowledged <= asked
        if flush:
            waiting = asked - broker.acknowledged
            assert len(waiting) <= prefetch // 4
            assert not waiting or max(waiting) > min(broker.waiting - waiting)  # there is a gap
    lane.flush(all_of_it=True)
    for frame in out.frames:
        broker.take(frame)
    assert not broker.waiting
    assert broker.rejected == {place + 1 for place in rejected}
    assert broker.acknowledged == asked


def test_a_turn_of_acknowledgements_without_a_gap_is_one_frame() -> None:
    out = Sent()
    _, deliveries, _ = consume(out, 1000)
    for delivery in reversed(deliveries[:999]):
        delivery.acknowledge()
    out.flush()
    (frame,) = out.frames
    assert (frame.delivery_tag, frame.multiple) == (999, True)


def test_what_lies_behind_a_gap_waits_for_some_turns_that_it_closes() -> None:
    out = Sent()
    _, deliveries, _ = consume(out, 4, 100)
    deliveries[1].acknowledge()
    deliveries[2].acknowledge()
    for _ in range(PATIENCE):
        out.flush()
        assert out.frames == []
    deliveries[0].acknowledge()
    out.flush()
    (frame,) = out.frames
    assert (frame.delivery_tag, frame.multiple) == (3, True)
    out.flush()
    assert len(out.frames) == 1


def test_what_lies_behind_a_gap_does_not_wait_for_ever() -> None:
    out = Sent()
    _, deliveries, _ = consume(out, 4, 100)
    deliveries[1].acknowledge()
    deliveries[3].acknowledge()
    for _ in range(PATIENCE + 1):
        assert out.frames == []
        out.flush()
    assert [(frame.delivery_tag, frame.multiple) for frame in out.frames] == [(2, False), (4, False)]
    out.flush()
    assert len(out.frames) == 2


def test_what_was_delivered_before_does_not_wait_at_all() -> None:
    """It may be the company of a message that kills the next moment: this time it is to get out of it."""
    out = Sent()
    lane, deliveries, _ = consume(out, 2, 100)
    lane.take(Delivered(1, 3, True, b"\x00\x00", b""))
    deliveries[1].acknowledge()
    out.flush()
    assert out.frames == []
    deliveries[2].acknowledge()
    out.flush()
    assert [frame.delivery_tag for frame in out.frames] == [2, 3]


def test_no_more_than_a_quarter_of_the_prefetch_lies_behind_a_gap() -> None:
    out = Sent()
    _, deliveries, _ = consume(out, 10, 8)
    for place in (1, 3):
        deliveries[place].acknowledge()
    out.flush()
    assert out.frames == []
    deliveries[5].acknowledge()
    out.flush()
    assert [frame.delivery_tag for frame in out.frames] == [2, 4, 6]


def test_a_message_whose_properties_make_no_sense_has_no_id_and_can_be_rejected() -> None:
    out = Sent()
    lane, deliveries, _ = consume(out, 0)
    lane.take(Delivered(1, 1, False, b"\xff\xff", b"{}"))
    (delivery,) = deliveries
    assert delivery.message_id == ""
    with pytest.raises(FrameError):
        str(delivery.headers)
    delivery.reject(requeue=False)
    assert [frame.delivery_tag for frame in out.frames] == [1]


def test_a_delivery_is_settled_once() -> None:
    out = Sent()
    _, (delivery,), _ = consume(out, 1)
    delivery.acknowledge()
    delivery.acknowledge()
    delivery.reject(requeue=True)
    out.flush()
    assert len(out.frames) == 1


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (lambda lane: lane.fail(ConnectionLostError("gone")), ConnectionLostError),
        (lambda lane: lane.closed("406 PRECONDITION_FAILED"), ConsumerCancelledError),
        (lambda lane: lane.leave(), None),
    ],
)
def test_after_the_end_nothing_is_sent_or_received(
    end: Callable[[ConsumeLane], None], kind: type[TransportError] | None
) -> None:
    out = Sent()
    lane, deliveries, errors = consume(out, 3)
    deliveries[0].acknowledge()
    end(lane)
    deliveries[1].acknowledge()
    deliveries[2].reject(requeue=True)
    lane.take(Delivered(1, 4, False, b"\x00\x00", b""))
    lane.fail(ConnectionLostError("later"))
    lane.cancelled()
    out.flush()
    assert out.frames == []
    assert len(deliveries) == 3
    assert [type(error) for error in errors] == ([] if kind is None else [kind])


def test_after_the_brokers_cancel_what_is_in_hand_is_acknowledged() -> None:
    out = Sent()
    lane, (delivery,), errors = consume(out, 1)
    lane.cancelled()
    delivery.acknowledge()
    out.flush()
    assert len(out.frames) == 1
    assert [type(error) for error in errors] == [QueueDeletedError]
    assert "queue" in str(errors[0])


def test_a_receiver_that_raises_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    received: list[int] = []

    def receive(delivery: Delivery) -> None:
        received.append(1)
        raise ValueError("a defect of the program")

    lane = ConsumeLane(1, Sent(), "queue", 1, receive, lambda error: None)
    with caplog.at_level(logging.CRITICAL, "saga_amqp.transports.amqp"):
        for tag in (1, 2):
            lane.take(Delivered(1, tag, False, b"\x00\x00", b""))
    assert len(received) == 2


def publish(
    out: Sent, ids: list[str], key: str = "key"
) -> tuple[PublishLane, dict[int, TransportError | None]]:
    lane = PublishLane(1, out, 131_072)
    outcomes: dict[int, TransportError | None] = {}

    def settled(number: int, error: TransportError | None) -> None:
        assert number not in outcomes, "settled twice"
        outcomes[number] = error

    for number, each in enumerate(ids, 1):
        lane.publish(Message("", key, b"{}", each, "type"), partial(settled, number))
    return lane, outcomes


@given(st.lists(st.tuples(st.integers(1, 10), st.booleans(), st.booleans()), max_size=20))
def test_confirms_settle_each_message_once(confirms: list[tuple[int, bool, bool]]) -> None:
    lane, outcomes = publish(Sent(), [str(number) for number in range(1, 11)])
    expected: dict[int, bool] = {}
    for tag, multiple, taken in confirms:
        lane.take(Confirmed(1, tag, multiple, taken))
        for each in range(1 if multiple else tag, tag + 1):
            expected.setdefault(each, taken)
        assert {number: error is None for number, error in outcomes.items()} == expected
    assert all(error is None or type(error) is PublishError for error in outcomes.values())
    lane.fail(ConnectionLostError("gone"))
    assert len(outcomes) == 10
    lost = {number for number, error in outcomes.items() if isinstance(error, ConnectionLostError)}
    assert lost == set(range(1, 11)) - set(expected)


def test_tag_0_confirms_everything() -> None:
    lane, outcomes = publish(Sent(), ["a", "b"])
    lane.take(Confirmed(1, 0, True, True))
    assert outcomes == {1: None, 2: None}


def returned(message_id: str, key: str = "key") -> Returned:
    return Returned(1, 312, "NO_ROUTE", "", key, encoded(spec.Basic.Properties(message_id=message_id)), b"{}")


def test_a_returned_message_is_unroutable_once_its_confirm_comes() -> None:
    lane, outcomes = publish(Sent(), ["a", "b", "c"])
    lane.take(returned("b"))
    assert outcomes == {}
    lane.take(Confirmed(1, 3, True, True))
    assert outcomes[1] is outcomes[3] is None
    assert isinstance(outcomes[2], UnroutableError)


def test_messages_with_the_same_id_come_back_in_their_order() -> None:
    lane, outcomes = publish(Sent(), ["same", "other", "same", "same"])
    lane.take(returned("same"))
    lane.take(returned("same"))
    lane.take(returned("unknown"))
    lane.take(Confirmed(1, 4, True, True))
    assert [number for number, error in outcomes.items() if error is not None] == [1, 3]


def test_only_what_is_mandatory_comes_back() -> None:
    out, outcomes = Sent(), dict[int, TransportError | None]()
    lane = PublishLane(1, out, 131_072)
    for number in (1, 2, 3):
        message = Message("", "key", b"{}", "same", "type", mandatory=number == 2)
        lane.publish(message, partial(outcomes.__setitem__, number))
    assert [frame.mandatory for frame in out.frames[::3]] == [False, True, False]
    lane.take(returned("same"))
    lane.take(Confirmed(1, 3, True, True))
    assert outcomes[1] is outcomes[3] is None
    assert isinstance(outcomes[2], UnroutableError)


def test_what_cannot_be_sent_is_settled_and_takes_no_tag() -> None:
    out = Sent()
    lane, outcomes = publish(out, ["x" * 256, "good"])
    assert isinstance(outcomes.pop(1), PublishError)
    lane.take(Confirmed(1, 1, False, True))
    assert outcomes == {2: None}


def test_a_closed_channel_fails_all_that_is_under_way() -> None:
    lane, outcomes = publish(Sent(), ["a", "b"])
    lane.closed("404 NOT_FOUND - no exchange 'x'")
    assert lane.dead
    assert all(type(error) is PublishError and "no exchange" in str(error) for error in outcomes.values())


def test_a_callback_that_raises_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    lane, outcomes = publish(Sent(), ["a"])

    def fail(error: TransportError | None) -> None:
        raise ValueError("a defect of the program")

    lane.publish(Message("", "key", b"", "b", "type"), fail)
    with caplog.at_level(logging.CRITICAL, "saga_amqp.transports.amqp"):
        lane.take(Confirmed(1, 2, True, True))
    assert outcomes == {1: None}


def test_what_has_no_place_on_a_channel_is_an_error() -> None:
    publisher, _ = publish(Sent(), ["a"])
    consumer, _, _ = consume(Sent(), 0)
    with pytest.raises(FrameError, match="consumes nothing"):
        publisher.take(Delivered(1, 1, False, b"\x00\x00", b""))
    with pytest.raises(FrameError, match="before it was published"):
        publisher.take(Confirmed(1, 2, False, True))
    with pytest.raises(FrameError, match="nothing is published"):
        consumer.take(Confirmed(1, 1, False, True))


def test_the_cache_of_publish_frames_is_bounded() -> None:
    lane = PublishLane(1, Sent(), 131_072)
    for number in range(PREFIXES + 100):
        lane.publish(Message("", f"key-{number}", b"", "id", "type"), lambda error: None)
    assert lane._prefix.cache_info().currsize == PREFIXES
