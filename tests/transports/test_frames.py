"""The codec of the hot frames against pamqp, in both directions, and against bytes that make no sense."""

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pamqp.frame
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from saga_amqp.errors import FrameError
from saga_amqp.transports.amqp import frames, properties
from saga_amqp.transports.amqp.frames import Confirmed, Control, Decoder, Delivered, Event, Returned

LANES = (1, 2, 65535)
OTHERS = (3, 4)
FRAME_MAX = 4096

# What RabbitMQ and its clients put into tables, in what pamqp writes and reads again unchanged.
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=20)
    | st.decimals(-1000, 1000, places=2).map(lambda value: Decimal(str(value)))
    | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=6,
)
SHORT = st.text(max_size=20)
TAGS = st.integers(1, 2**63 - 1)
BODIES = st.binary(max_size=300)
PROPERTIES = st.builds(
    spec.Basic.Properties,
    content_type=st.none() | SHORT.filter(bool),
    content_encoding=st.none() | SHORT.filter(bool),
    headers=st.none() | st.dictionaries(st.text(max_size=20), VALUES, max_size=4),
    delivery_mode=st.none() | st.sampled_from((1, 2)),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | SHORT.filter(bool),
    reply_to=st.none() | SHORT.filter(bool),
    expiration=st.none() | st.just("60000"),
    message_id=st.none() | SHORT.filter(bool),
    message_type=st.none() | SHORT.filter(bool),
    app_id=st.none() | SHORT.filter(bool),
)

Incoming = tuple[bytes, Event]


def content(channel: int, kind: Any, about: spec.Basic.Properties, parts: Sequence[bytes]) -> bytes:
    size = sum(map(len, parts))
    bodies: list[Any] = [ContentBody(part) for part in parts if part]
    everything = [kind, ContentHeader(body_size=size, properties=about), *bodies]
    return b"".join(pamqp.frame.marshal(frame, channel) for frame in everything)


def encoded(about: spec.Basic.Properties) -> bytes:
    return ContentHeader(properties=about).marshal()[12:]


def delivery(
    channel: int, tag: int, redelivered: bool, names: Sequence[str], about: Any, parts: Sequence[bytes]
) -> Incoming:
    kind = spec.Basic.Deliver(names[0], tag, redelivered, names[1], names[2])
    return (
        content(channel, kind, about, parts),
        Delivered(channel, tag, redelivered, encoded(about), b"".join(parts)),
    )


def returned(channel: int, names: Sequence[str], about: Any, parts: Sequence[bytes]) -> Incoming:
    kind = spec.Basic.Return(312, names[0], names[1], names[2])
    return (
        content(channel, kind, about, parts),
        Returned(channel, 312, names[0], names[1], names[2], encoded(about), b"".join(parts)),
    )


def confirm(channel: int, tag: int, multiple: bool, taken: bool) -> Incoming:
    kind: Any = spec.Basic.Ack(tag, multiple) if taken else spec.Basic.Nack(tag, multiple, False)
    return pamqp.frame.marshal(kind, channel), Confirmed(channel, tag, multiple, taken)


def control(channel: int, frame: Any) -> Incoming:
    data = pamqp.frame.marshal(frame, channel)
    method = int.from_bytes(data[7:11], "big") if data[0] == frames.METHOD else 0
    return data, Control(channel, method, data)


PARTS = st.lists(BODIES, max_size=4)
NAMES = st.tuples(
    SHORT, st.from_regex(r"[a-zA-Z0-9-_.:]{0,20}", fullmatch=True), SHORT
)  # pamqp validates the exchange
CONTROL_FRAMES = st.one_of(
    st.just(spec.Basic.ConsumeOk("tag")),
    st.just(spec.Basic.CancelOk("tag")),
    st.just(spec.Basic.Cancel("tag")),
    st.just(spec.Basic.QosOk()),
    st.builds(
        spec.Queue.DeclareOk,
        queue=st.just("queue"),
        message_count=st.integers(0, 9),
        consumer_count=st.just(0),
    ),
)
INCOMING: st.SearchStrategy[Incoming] = st.one_of(
    st.builds(delivery, st.sampled_from(LANES), TAGS, st.booleans(), NAMES, PROPERTIES, PARTS),
    st.builds(returned, st.sampled_from(LANES), NAMES, PROPERTIES, PARTS),
    st.builds(confirm, st.sampled_from(LANES), st.integers(0, 2**63 - 1), st.booleans(), st.booleans()),
    st.builds(control, st.sampled_from(LANES + OTHERS), CONTROL_FRAMES),
    st.builds(control, st.just(0), st.just(Heartbeat())),
    st.builds(control, st.just(0), st.just(spec.Connection.Blocked("memory"))),
    # Content of a channel that is no lane passes through, frame by frame.
    st.builds(control, st.sampled_from(OTHERS), st.builds(ContentBody, BODIES.filter(bool))),
    st.builds(control, st.sampled_from(OTHERS), st.builds(ContentHeader, properties=PROPERTIES)),
)


def decoder() -> Decoder:
    new = Decoder(FRAME_MAX)
    for channel in LANES:
        new.open_lane(channel)
    return new


def decode(*chunks: bytes) -> list[Any]:
    """Events of chunks; a FrameError, always the last one, as its text."""
    taker = decoder()
    events: list[Any] = []
    for chunk in chunks:
        events += taker.feed(chunk)
        if events and isinstance(events[-1], FrameError):
            return [*events[:-1], f"FrameError: {events[-1]}"]
    return events


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in pairwise(bounds)]


@given(st.lists(INCOMING, max_size=6), st.lists(st.integers(0, 2**20), max_size=12))
def test_what_pamqp_writes_is_read_whatever_the_chunks(incoming: list[Incoming], places: list[int]) -> None:
    data = b"".join(frame for frame, _ in incoming)
    assert decode(*cut(data, places)) == [event for _, event in incoming]


def test_every_split_of_a_stream_gives_the_same_events() -> None:
    about = spec.Basic.Properties(message_id="m-1", headers={"x-death": [{"count": 1}], "n": -1})
    incoming = [
        delivery(1, 7, True, ("tag", "exchange", "key"), about, (b"one", b"two")),
        confirm(2, 9, True, True),
        delivery(65535, 8, False, ("", "", ""), spec.Basic.Properties(), ()),
        returned(2, ("NO_ROUTE", "", "nobody"), about, (b"back",)),
        control(0, Heartbeat()),
        confirm(2, 10, False, False),
        control(1, spec.Basic.Cancel("tag")),
    ]
    data = b"".join(frame for frame, _ in incoming)
    expected = [event for _, event in incoming]
    for place in range(len(data) + 1):
        assert decode(data[:place], data[place:]) == expected
    assert decode(*(data[at : at + 1] for at in range(len(data)))) == expected


def test_contents_of_several_channels_may_be_mixed() -> None:
    first, expected_first = delivery(
        1, 1, False, ("a", "b", "c"), spec.Basic.Properties(), (b"1" * 10, b"2" * 10)
    )
    other, expected_other = delivery(
        2, 1, False, ("a", "b", "c"), spec.Basic.Properties(), (b"3" * 10, b"4" * 10)
    )
    mixed = b"".join(
        part for pair in zip(split_frames(first), split_frames(other), strict=True) for part in pair
    )
    assert decode(mixed) == [expected_first, expected_other]


def split_frames(data: bytes) -> list[bytes]:
    found: list[bytes] = []
    while data:
        size = 8 + int.from_bytes(data[3:7], "big")
        found.append(data[:size])
        data = data[size:]
    return found


@pytest.mark.parametrize("size", [0, 1, FRAME_MAX - 8, FRAME_MAX - 7, 3 * FRAME_MAX, 100_000])
def test_bodies_are_split_on_the_way_out_and_put_together_on_the_way_in(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    sent = frames.content(1, body[:size], "id", "type", None, FRAME_MAX)
    assert all(len(frame) <= FRAME_MAX for frame in split_frames(sent))
    about = pamqp.frame.unmarshal(sent)[2]
    assert isinstance(about, ContentHeader)
    parts = [part.value for part in unmarshal(sent)[1:]]
    assert b"".join(parts) == body[:size]
    data, expected = delivery(1, 1, False, ("", "", ""), about.properties, parts)
    assert decode(data) == [expected]


def unmarshal(data: bytes) -> list[Any]:
    return [pamqp.frame.unmarshal(frame)[2] for frame in split_frames(data)]


@given(
    st.text(max_size=60),
    st.text(max_size=60),
    BODIES,
    st.text(max_size=60),
    st.text(max_size=60),
    st.none()
    | st.dictionaries(st.text(max_size=30), st.text(max_size=30) | st.integers(-(2**63), 2**63 - 1)),
    st.booleans(),
)
@example("", "", b"", "", "", {}, True)
def test_pamqp_reads_what_is_published(
    exchange: str,
    key: str,
    body: bytes,
    message_id: str,
    kind: str,
    table: dict[str, str | int] | None,
    mandatory: bool,
) -> None:
    sent = frames.publish_prefix(5, exchange, key, mandatory) + frames.content(
        5, body, message_id, kind, table
    )
    assert {pamqp.frame.unmarshal(frame)[1] for frame in split_frames(sent)} == {5}
    publish, header, *bodies = unmarshal(sent)
    assert (publish.exchange, publish.routing_key, publish.mandatory, publish.immediate) == (
        exchange,
        key,
        mandatory,
        False,
    )
    assert header.body_size == len(body)
    assert b"".join(part.value for part in bodies) == body
    about = header.properties
    assert (about.content_type, about.delivery_mode) == ("application/json", 2)
    assert (about.message_id, about.message_type) == (message_id, kind)
    assert (about.headers or {}) == (table or {})


@given(TAGS, st.booleans())
def test_pamqp_reads_what_is_acknowledged_and_rejected(tag: int, flag: bool) -> None:
    (ack,) = unmarshal(frames.acknowledge(3, tag, multiple=flag))
    assert isinstance(ack, spec.Basic.Ack)
    assert (ack.delivery_tag, ack.multiple) == (tag, flag)
    (reject,) = unmarshal(frames.reject(3, tag, requeue=flag))
    assert isinstance(reject, spec.Basic.Reject)
    assert (reject.delivery_tag, reject.requeue) == (tag, flag)


def test_the_fixed_frames_are_those_of_pamqp() -> None:
    assert pamqp.frame.marshal(Heartbeat(), 0) == frames.HEARTBEAT_FRAME
    assert pamqp.frame.marshal(spec.Connection.CloseOk(), 0) == frames.CLOSE_OK_FRAME


@pytest.mark.parametrize(
    ("names", "about"),
    [
        (("x" * 256, ""), ("id", "type", None)),
        (("", "é" * 128), ("id", "type", None)),
        (("", ""), ("i" * 256, "type", None)),
        (("", ""), ("id", "t" * 256, None)),
        (("", ""), ("id", "type", {"h": 2**63})),
        (("", ""), ("id", "type", {"h" * 129: 1})),
        (("", ""), ("id", "type", {"h": object()})),
        (("", ""), ("id", "type", {"h": "x" * FRAME_MAX})),
        (("", ""), ("\ud800", "type", None)),
    ],
)
def test_what_does_not_fit_is_refused_in_full(names: tuple[str, str], about: tuple[str, str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        frames.publish_prefix(1, *names, True) + frames.content(1, b"", *about, FRAME_MAX)


@given(PROPERTIES)
def test_properties_are_those_of_pamqp(about: spec.Basic.Properties) -> None:
    data = encoded(about)
    expected = ContentHeader()
    expected.unmarshal(struct.pack(">HHQ", 60, 0, 0) + data)
    assert properties.message_id(data) == (expected.properties.message_id or "")
    assert properties.headers(data) == (expected.properties.headers or {})


def test_more_words_of_flags_are_passed_over() -> None:
    data = struct.pack(">HHH", 0x0080 | 1, 1, 0) + b"\x03m-1"
    assert properties.message_id(data) == "m-1"


@given(st.binary(max_size=60))
@example(b"\xff\xff")
@example(b"\xff\xfe\x00")
def test_properties_that_make_no_sense_are_an_error_or_nothing(data: bytes) -> None:
    for read in (properties.message_id, properties.headers):
        try:
            read(data)
        except FrameError as error:
            assert str(error)


def test_foreign_ids_and_headers_that_are_no_utf8_are_read_as_far_as_possible() -> None:
    assert properties.message_id(b"\x00\x80\x02\xff\xfe") == "\ufffd\ufffd"
    table = b"\x01kS\x00\x00\x00\x01\xff"
    assert properties.headers(b"\x20\x00" + struct.pack(">I", len(table)) + table) == {"k": b"\xff"}
    nonsense = b"\x01\xffV"
    with pytest.raises(FrameError, match="headers"):
        properties.headers(b"\x20\x00" + struct.pack(">I", len(nonsense)) + nonsense)


def test_a_table_within_tables_without_end_is_an_error() -> None:
    table = b""
    for _ in range(3000):
        table = b"\x01tF" + struct.pack(">I", len(table)) + table
    with pytest.raises(FrameError, match="headers"):
        properties.headers(b"\x20\x00" + struct.pack(">I", len(table)) + table)


def frame(kind: int, channel: int, payload: bytes, end: int = 0xCE) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes((end,))


DELIVER = bytes.fromhex("003c003c") + b"\x01t" + bytes(8) + b"\x00" + b"\x01e" + b"\x01k"
RETURN = bytes.fromhex("003c0032") + b"\x01\x38" + b"\x01r\x01e\x01k"


def header(size: int, kind: int = 60) -> bytes:
    return struct.pack(">HHQH", kind, 0, size, 0)


BEGUN = frame(1, 1, DELIVER)
EXPECTS_BODY = BEGUN + frame(2, 1, header(5))


MALFORMED = {
    "another protocol": (b"HTTP/1.1 400", "not AMQP"),
    "another version": (b"AMQP\x00\x00\x09\x01", "not AMQP"),
    "an unknown kind": (frame(4, 1, b"1234"), "not AMQP"),
    "larger than agreed, head alone": (struct.pack(">BHI", 3, 1, FRAME_MAX - 7), "agreed on"),
    "four gigabytes, head alone": (struct.pack(">BHI", 1, 9, 2**32 - 1), "agreed on"),
    "a wrong end": (frame(1, 1, DELIVER, end=0xCD), "0xcd instead of 0xce"),
    "a wrong end elsewhere": (frame(1, 0, b"\x00\x0a\x00\x3c", end=0), "instead of 0xce"),
    "a method without a name": (frame(1, 1, b"\x00\x3c\x00"), "too short"),
    "the same on another channel": (frame(1, 3, b""), "too short"),
    "a delivery cut short": (frame(1, 1, DELIVER[:-1]), "deliver .* malformed"),
    "a delivery without arguments": (frame(1, 1, DELIVER[:4]), "deliver .* malformed"),
    "a delivery with too long a tag": (frame(1, 1, DELIVER[:4] + b"\xff" + DELIVER[5:]), "malformed"),
    "a delivery with too much": (frame(1, 1, DELIVER + b"\x00"), "deliver .* malformed"),
    "a return cut short": (frame(1, 1, RETURN[:-1]), "return .* malformed"),
    "a return with too much": (frame(1, 1, RETURN + b"\x00"), "return .* malformed"),
    "a return without arguments": (frame(1, 1, RETURN[:4]), "return .* malformed"),
    "a confirm cut short": (frame(1, 1, bytes.fromhex("003c0050") + bytes(8)), "12 bytes"),
    "a confirm with too much": (frame(1, 1, bytes.fromhex("003c0078") + bytes(10)), "14 bytes"),
    "a header out of nowhere": (frame(2, 1, header(1)), "content header .* method is due"),
    "a body out of nowhere": (frame(3, 1, b"body"), "content body .* method is due"),
    "a body without a header": (BEGUN + frame(3, 1, b"body"), "content body .* content header is due"),
    "a method without a header": (BEGUN + BEGUN, "method .* content header is due"),
    "a header after a header": (EXPECTS_BODY + frame(2, 1, header(5)), "content header .* body is due"),
    "a method within a body": (EXPECTS_BODY + frame(3, 1, b"123") + BEGUN, "method .* body is due"),
    "a header cut short": (BEGUN + frame(2, 1, header(5)[:-1]), "only 13 bytes"),
    "a header of another class": (BEGUN + frame(2, 1, header(5, 61)), "class 61"),
    "a body longer than declared": (EXPECTS_BODY + frame(3, 1, b"123456"), "6 bytes where 5"),
    "bodies longer than declared": (
        EXPECTS_BODY + frame(3, 1, b"123") + frame(3, 1, b"456"),
        "3 bytes where 2",
    ),
    "a body where none was declared": (
        BEGUN + frame(2, 1, header(0)) + frame(3, 1, b"1"),
        "method is due",
    ),
    "content on channel 0": (frame(2, 0, header(1)), "channel 0"),
    "a body on channel 0": (frame(3, 0, b"1"), "channel 0"),
    "a heartbeat on a lane": (frame(8, 1, b""), "heartbeat"),
    "a heartbeat on another channel": (frame(8, 3, b""), "heartbeat"),
    "a heartbeat with something in it": (frame(8, 0, b"1"), "heartbeat"),
}


@pytest.mark.parametrize(("data", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_frames_are_an_error_that_says_what_is_wrong(data: bytes, message: str) -> None:
    taker = decoder()
    good, event = confirm(2, 1, False, True)
    events = taker.feed(good + data + good)
    assert events[0] == event
    assert isinstance(events[-1], FrameError)
    with pytest.raises(FrameError, match=message):
        raise events[-1]
    with pytest.raises(FrameError, match=message):  # there is no going on after that
        taker.feed(good)
    # Nothing depends on how the bytes were cut, and nothing waits for more of what is wrong already.
    assert decode(*(bytes((each,)) for each in good + data)) == decode(good + data)


@given(
    st.lists(INCOMING, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=4),
    st.lists(st.integers(0, 2**20), max_size=4),
)
def test_damaged_streams_give_events_or_an_error_and_the_same_ones_whatever_the_chunks(
    incoming: list[Incoming], damage: list[tuple[int, int]], places: list[int]
) -> None:
    data = bytearray(b"".join(part for part, _ in incoming))
    for place, value in damage:
        data[place % len(data)] = value
    assert decode(*cut(bytes(data), places)) == decode(bytes(data))


@given(st.binary(max_size=200))
def test_any_bytes_give_events_or_an_error(data: bytes) -> None:
    decode(data)


def test_without_a_limit_frames_of_any_size_are_read() -> None:
    taker = Decoder(0)
    taker.open_lane(1)
    data, expected = delivery(1, 1, False, ("", "", ""), spec.Basic.Properties(), (b"x" * 300_000,))
    assert taker.feed(data) == [expected]


def test_a_channel_is_no_lane_any_more_once_it_is_closed() -> None:
    for closing in (spec.Channel.Close(404, "gone", 60, 40), spec.Channel.CloseOk()):
        taker = decoder()
        taker.feed(BEGUN[:0] + pamqp.frame.marshal(closing, 1))
        data, expected = control(1, spec.Basic.Ack(1))
        assert taker.feed(data) == [expected]
