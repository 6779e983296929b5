"""What is fuzzed: everything that reads bytes or text from outside, and what is done with what it has read.

A target takes an input and says what came of it: "read", or the name of the error that it is documented to raise.
Whatever else escapes is a finding, and so is an input that is not read back as it was written.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pamqp.frame
from msgspec import Raw
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

from saga_amqp import Config, poison
from saga_amqp.contracts import Delivery, Message
from saga_amqp.errors import (
    ConnectFailedError,
    ConnectionLostError,
    FrameError,
    StoreError,
    TransportError,
    UnroutableError,
)
from saga_amqp.poison import Poison
from saga_amqp.retention import read_archived
from saga_amqp.stores.rows import read_cursor
from saga_amqp.transports.amqp import address, frames, properties
from saga_amqp.transports.amqp.frames import Control, Decoder, Delivered
from saga_amqp.transports.amqp.lanes import AmqpDelivery, ConsumeLane, PublishLane
from saga_amqp.transports.amqp.link import _reason
from saga_core import (
    Carried,
    ChildRested,
    CodecError,
    Compensate,
    CompensateChild,
    CompensationRequested,
    Defer,
    DefinitionError,
    Event,
    Execute,
    Failure,
    PayloadError,
    Reply,
    Report,
    RetryRequested,
    Saga,
    Skip,
    StartChild,
    Step,
    TimePassed,
    TokenError,
    UnknownStepError,
    answer_event,
    awaits,
    child_saga,
    consequences,
    decode_command,
    decode_event,
    decode_payload,
    decode_saga,
    decode_work,
    encode_command,
    encode_event,
    encode_payload,
    encode_saga,
    event_of,
    failure_event,
    order_to_undo,
    outstanding,
    redeem,
    reply_of,
    saga_at_work,
    saga_of,
    succeeded,
    transition,
    wake_at,
    work_of,
)
from tests.core import notation
from tests.core.test_codec import COMMANDS, EVENTS

READ = "read"

FIXTURES = Path(__file__).parents[1] / "formats"


async def _nothing(saga: Saga, step: Step[Any]) -> None:
    """Do nothing: a handler's name is all that is wanted."""


class Target(NamedTuple):
    """Something that reads: `take` is given an input and says what came of it; `seeds` are inputs as they should be."""

    take: Callable[[bytes], str]
    seeds: Sequence[bytes]


# Commands, events, sagas --------------------------------------------------------------------------------------------

SITUATIONS: list[tuple[Saga, list[Event]]] = [
    (saga, notation.events_of(events))
    for steps, events in (
        ("a b- c", ""),
        ("a b- c", "a ok, b ok"),
        ("a b- c", "a ok, b fails"),
        ("a b c", "a ok, b ok, c fails, undo b fails"),
        ("a b c", "a later"),
        ("a b c<", "suspend"),
        ("a b*", "a ok"),
        ("a b* c", "a ok, child b completed"),
        ("a b* c", "a ok, child b completed, c fails"),
        ("a! b c", "a ok, b fails"),
        ("a b", "a ok, b ok"),
        ("a b", "a ok, b fails, undo a ok"),
    )
    for saga in [notation.saga_of(steps)]
]


def _now(saga: Saga, events: Sequence[Event]) -> Saga:
    for event in events:
        saga = transition(saga, event).saga
    return saga


STANDING = [(origin, events, _now(origin, events)) for origin, events in SITUATIONS]


def _take_command(data: bytes) -> str:
    try:
        command = decode_command(data)
    except CodecError as error:
        return type(error).__name__
    again = encode_command(command)
    assert decode_command(again) == command
    assert encode_command(decode_command(again)) == again
    for origin, events, saga in STANDING:
        with contextlib.suppress(UnknownStepError):
            _follow(origin, events, saga, command)
    return READ


def _follow(origin: Saga, events: Sequence[Event], saga: Saga, command: Carried) -> None:
    """Do what an engine does with a command, but for the store, the broker and the handler."""
    at = saga.updated_at + 1
    if isinstance(command, Reply):
        _apply(saga, event_of(command, at))
    elif awaits(saga, command):
        if isinstance(command, StartChild):
            child = child_saga(saga, command, at)
            assert outstanding(child)
        elif isinstance(command, CompensateChild):
            for undone in (None, saga):
                about, event = order_to_undo(saga, undone, command, at)
                _apply(about, event)
        elif isinstance(command, Report):
            event = ChildRested(
                command.step, command.attempt, command.child, command.state, at, command.asked
            )
            _apply(saga, event)
    consequences(origin, events, command)


def _apply(saga: Saga, event: Event) -> None:
    answer = transition(saga, event)
    if answer.ignored is None:
        assert decode_saga(encode_saga(answer.saga)) == answer.saga
        wake_at(answer.saga)
    for command in answer.commands:
        assert decode_command(encode_command(command)) == command


def _take_event(data: bytes) -> str:
    try:
        event = decode_event(data)
    except CodecError as error:
        return type(error).__name__
    again = encode_event(event)
    assert encode_event(decode_event(again)) == again
    for _, _, saga in STANDING:
        with contextlib.suppress(UnknownStepError):
            _apply(saga, event)
    return READ


def _take_saga(data: bytes) -> str:
    try:
        saga = decode_saga(data)
    except CodecError as error:
        return type(error).__name__
    again = encode_saga(saga)
    assert encode_saga(decode_saga(again)) == again
    outstanding(saga)
    wake_at(saga)
    for event in (TimePassed(1e12), CompensationRequested("why", 1e12), RetryRequested("why", 1e12)):
        transition(saga, event)
    return READ


def _take_archived(data: bytes) -> str:
    try:
        read_archived(data)
    except CodecError as error:
        return type(error).__name__
    return READ


def _written(file: str, field: str) -> list[bytes]:
    """Return what releases have written, from their fixtures."""
    return [
        json.loads(line)[field].encode()
        for path in sorted(FIXTURES.glob(f"*/{file}"))
        for line in path.read_bytes().splitlines()
    ]


def _of_steps(data: bytes) -> list[bytes]:
    return [data.replace(b'"pay"', name) for name in (b'"pay"', b'"a"', b'"b"', b'"c"')]


COMMAND_SEEDS = [seed for _, data in COMMANDS for seed in _of_steps(data)] + _written(
    "messages.jsonl", "body"
)
EVENT_SEEDS = [seed for _, data in EVENTS for seed in _of_steps(data)]
SAGA_SEEDS = [encode_saga(saga) for _, _, saga in STANDING] + _written("sagas.jsonl", "bytes")
ARCHIVE_SEEDS = [
    b'{"saga":%s,"events":[%s]}' % (encode_saga(origin), b",".join(map(encode_event, events)))
    for origin, events, _ in STANDING
]


# Payloads and tokens ------------------------------------------------------------------------------------------------


class Line(msgspec.Struct):
    """An input as a handler may want it."""

    product: str
    quantity: int
    price: float
    tags: dict[str, str | None] = {}
    parts: "list[Line]" = []


@dataclasses.dataclass
class Note:
    """Another one."""

    text: str
    number: int | None = None
    deep: Any = None


PAYLOAD_TYPES: tuple[type[Any], ...] = (Line, Note, dict[str, object], dict[str, Note])
PAYLOAD_SEEDS = [
    b'{"product":"p-1","quantity":2,"price":9.99,"tags":{"a":"b","c":null},'
    b'"parts":[{"product":"p-2","quantity":1,"price":1}]}',
    b'{"text":"h\\u00e9llo \\ud83d\\ude00","number":null,"deep":[[],{},[{"x":[1,2.5,true]}]]}',
    b'{"a":{"text":"x"},"b":{"text":"y","number":-9223372036854775808}}',
    b"{}",
]


def _take_payload(data: bytes) -> str:
    outcome = PayloadError.__name__
    for type_ in PAYLOAD_TYPES:
        try:
            value = decode_payload(Raw(data), type_, "The input")
            written = encode_payload(value, "The output")
        except PayloadError:
            continue
        assert decode_payload(written, type_, "The output") == value
        outcome = READ
    return outcome


def _take_token(data: bytes) -> str:
    token = data.decode("utf-8", "surrogateescape")
    try:
        assert saga_of(token)
        for _, _, saga in STANDING:
            callback = redeem(saga, token)
            _apply(saga, succeeded(callback, saga.updated_at + 1))
    except TokenError as error:
        return type(error).__name__
    return READ


TOKEN_SEEDS = [
    saga.token("a", operation).encode() for _, _, saga in STANDING for operation in ("execute", "compensate")
]


# Frames -------------------------------------------------------------------------------------------------------------

PUBLISHING, CONSUMING, OTHER = 1, 2, 3
FRAME_MAX = 4096
DEATHS = {
    "x-death": [
        {
            "count": 3,
            "reason": "rejected",
            "queue": "saga.steps",
            "exchange": "sagas",
            "routing-keys": ["execute.a"],
        }
    ],
    "x-first-death-queue": "saga.steps",
    "x-delivery-count": 2,
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
ABOUT = spec.Basic.Properties(
    content_type="application/json",
    delivery_mode=2,
    headers=DEATHS,
    message_id=f"{notation.ID}.pay.execute.1",
    message_type="saga.step.execute",
)


def _content(channel: int, kind: Any, body: bytes, about: spec.Basic.Properties = ABOUT) -> bytes:
    parts: list[Any] = [kind, ContentHeader(body_size=len(body), properties=about)]
    parts += [ContentBody(part) for part in (body[:50], body[50:]) if part]
    return b"".join(pamqp.frame.marshal(part, channel) for part in parts)


BODY = COMMANDS[0][1]
DELIVERY = _content(CONSUMING, spec.Basic.Deliver("tag", 1, True, "sagas", "execute.charge_card"), BODY)
BARE = _content(CONSUMING, spec.Basic.Deliver("", 2, False, "", ""), b"", spec.Basic.Properties())
RETURN = _content(PUBLISHING, spec.Basic.Return(312, "NO_ROUTE", "sagas", "execute.a"), BODY)
FRAME_SEEDS = [
    DELIVERY + BARE,
    RETURN + pamqp.frame.marshal(spec.Basic.Ack(1, True), PUBLISHING),
    pamqp.frame.marshal(spec.Basic.Nack(1, False, False), PUBLISHING) + DELIVERY,
    pamqp.frame.marshal(Heartbeat(), 0) + pamqp.frame.marshal(spec.Connection.Blocked("memory"), 0) + BARE,
    pamqp.frame.marshal(spec.Channel.Close(404, "NOT_FOUND - no exchange", 60, 40), PUBLISHING) + BARE,
    pamqp.frame.marshal(spec.Connection.Close(320, "CONNECTION_FORCED", 0, 0), 0),
    pamqp.frame.marshal(spec.Basic.Cancel("tag"), CONSUMING) + _content(OTHER, spec.Basic.GetEmpty(), b"x"),
]
PROPERTY_SEEDS = [
    ContentHeader(properties=about).marshal()[12:]
    for about in (
        ABOUT,
        spec.Basic.Properties(),
        spec.Basic.Properties(correlation_id="c", priority=9, reply_to="r"),
    )
]


class _Nowhere:
    """Where the frames of a lane go; they are only counted."""

    def __init__(self) -> None:
        self.sent = 0

    def send(self, data: bytes) -> None:
        self.sent += len(data)

    def flush_soon(self, lane: ConsumeLane) -> None:
        lane.flush()


def _take_stream(data: bytes) -> str:
    whole = _events(data, [])
    # Cut in two at a place that the input itself draws, and byte by byte where it is short.
    assert _events(data, [sum(data[:64]) % (len(data) + 1)]) == whole
    if len(data) <= 128:
        assert _events(data, range(1, len(data))) == whole
    kept = sum(len(event.body) + len(event.properties) for event in whole if isinstance(event, Delivered))
    assert kept <= len(data)
    return _through_lanes(whole)


def _events(data: bytes, places: Sequence[int]) -> list[Any]:
    decoder = Decoder(FRAME_MAX)
    for channel in (PUBLISHING, CONSUMING):
        decoder.open_lane(channel)
    events: list[Any] = []
    for start, stop in zip([0, *places], [*places, len(data)], strict=True):
        events += decoder.feed(data[start:stop])
        if events and isinstance(events[-1], FrameError):
            return [*events[:-1], str(events[-1])]
    return events


def _through_lanes(events: Sequence[Any]) -> str:
    """Do with events what a link does."""
    settled: list[TransportError | None] = []
    received: list[Delivery] = []
    publishing = PublishLane(PUBLISHING, _Nowhere(), FRAME_MAX)
    consuming = ConsumeLane(CONSUMING, _Nowhere(), "saga.steps", 1, received.append, lambda _: None)
    publishing.publish(
        Message("sagas", "execute.a", BODY, f"{notation.ID}.pay.execute.1", "type"), settled.append
    )
    lanes = {PUBLISHING: publishing, CONSUMING: consuming}
    try:
        for event in events:
            if isinstance(event, str):
                return FrameError.__name__
            if isinstance(event, Control):
                if event.method in (frames.CHANNEL_CLOSE, frames.CONNECTION_CLOSE):
                    _reason(event.frame)
            else:
                lanes[event.channel].take(event)
        for delivery in received:
            assert isinstance(delivery.message_id, str)
            try:
                str(delivery.headers)
            except FrameError:
                delivery.reject(requeue=False)
            delivery.acknowledge()
    except FrameError as error:
        return type(error).__name__
    finally:
        publishing.fail(ConnectionLostError("gone"))
        assert len(settled) == 1
    return READ


def _take_properties(data: bytes) -> str:
    outcome = READ
    for read in (properties.message_id, properties.headers):
        try:
            read(data)
        except FrameError as error:
            outcome = type(error).__name__
    return outcome


# What an engine makes of a message ----------------------------------------------------------------------------------

CONFIG = Config(
    step_handlers={"do_a": _nothing, "do_b": _nothing}, compensation_handlers={"undo_a": _nothing}
)
WORKS = [
    encode_command(command, work_of(saga, command))
    for _, _, saga in STANDING
    for command in outstanding(saga)
    if isinstance(command, Execute | Compensate)
]
REPLIES = [
    encode_command(reply_of(command, event))
    for _, _, saga in STANDING
    for command in outstanding(saga)
    if isinstance(command, Execute | Compensate)
    for event in (
        answer_event(command, {"id": 7}, 1.5),
        answer_event(command, Skip("nothing"), 1.5),
        answer_event(command, Defer(), 1.5),
        failure_event(command, Failure("no_funds", "refused", True, Raw(b'{"left":3}')), 1.5),
    )
]


def _letter(properties_: bytes, body: bytes, where: int) -> bytes:
    return bytes((where,)) + len(properties_).to_bytes(2, "big") + properties_ + body


# Names that are as long as AMQP lets them be, and longer when what is no UTF-8 in them is mended.
LONG = [
    b"\x00\x80\xff" + b"\xff" * 255,
    ContentHeader(
        properties=spec.Basic.Properties(headers={"x-death": [{"queue": "q" * 4_000, "reason": "r" * 4_000}]})
    ).marshal()[12:],
]
LETTER_SEEDS = [
    _letter(about, body, where)
    for body in (*WORKS[:4], *REPLIES[:6], *(data for _, data in COMMANDS), b"{", b"")
    for where, about in (
        (3, PROPERTY_SEEDS[0]),
        (1, PROPERTY_SEEDS[0]),
        (2, PROPERTY_SEEDS[1]),
        (0, PROPERTY_SEEDS[2]),
    )
] + [_letter(about, body, 2) for about in LONG for body in (b"", *WORKS[:1])]


def _take_letter(data: bytes) -> str:
    """Take a message as an engine does: from the orchestrator's queue or from that of steps, come back or not."""
    where, size = data[:1] or b"\x00", int.from_bytes(data[1:3], "big")
    lane = ConsumeLane(CONSUMING, _Nowhere(), "queue", 1, lambda _: None, lambda _: None)
    event = Delivered(CONSUMING, 1, bool(where[0] & 1), data[3 : 3 + size], data[3 + size :])
    delivery = AmqpDelivery(lane, event)
    queue = CONFIG.orchestrator if where[0] & 2 else CONFIG.step_queue
    examined = poison.examine(delivery, queue, CONFIG)
    command, found = examined.command, examined.poison
    if found is not None:
        _bury(found, delivery, queue)
        return Poison.__name__
    assert command is not None
    for origin, events, saga in STANDING[1::4]:
        with contextlib.suppress(UnknownStepError):
            _follow(origin, events, saga, command)
    if isinstance(command, Execute | Compensate):
        _participate(command, delivery, queue)
    return READ


def _bury(found: Poison, delivery: Delivery, queue: str) -> None:
    for _, _, saga in STANDING[::4]:
        told = found.event(saga.updated_at + 1)
        if told is not None:
            with contextlib.suppress(UnknownStepError):
                _apply(saga, told)
    letter = poison.burial(found, delivery, queue, CONFIG, 1_700_000_000.0)
    frames.publish_prefix(PUBLISHING, letter.exchange, letter.routing_key, mandatory=True)
    frames.content(PUBLISHING, letter.body, letter.id, letter.type, letter.headers)
    assert poison.unroutable(letter, UnroutableError("the queue is gone"), CONFIG) is None


def _participate(command: Execute | Compensate, delivery: Delivery, queue: str) -> None:
    try:
        work = decode_work(delivery.body)
        saga = saga_at_work(command, work)
    except (CodecError, DefinitionError) as error:
        _bury(Poison(poison.Reason.UNDECODABLE, str(error), command), delivery, queue)
        return
    with contextlib.suppress(
        msgspec.DecodeError, UnicodeDecodeError
    ):  # an error of the handler's, as it is in an engine
        str(saga.step(command.step))
    for end in (answer_event(command, None, 1.5), failure_event(command, Failure("a", "b"), 1.5)):
        message = CONFIG.message(reply_of(command, end))
        frames.content(PUBLISHING, message.body, message.id, message.type, message.headers)


# Addresses and cursors ----------------------------------------------------------------------------------------------

PASSWORD = "hunter2hunter2"
ADDRESS_SEEDS = [
    f"amqp://user:{PASSWORD}@localhost:5672/vhost?heartbeat=10".encode(),
    f"amqps://user:{PASSWORD}@broker.example/%2F?cafile=ca.pem&heartbeat=0".encode(),
    b"amqp://[::1]:5673",
    b"amqp://guest:guest@127.0.0.1/a%20b",
    f"amqp://us%40er:{PASSWORD}%2F%23@h\u00e9.example:1/\u00e9".encode(),
]


def _take_address(data: bytes) -> str:
    url = data.decode("utf-8", "surrogateescape")
    try:
        read = address.parse(url)
    except ConnectFailedError as error:
        assert PASSWORD not in str(error)
        assert error.__cause__ is None
        assert error.__context__ is None
        return type(error).__name__
    # What is part of a host or of a virtual host is no password.
    if f":{PASSWORD}@" in url and url.count(PASSWORD) == 1:
        assert PASSWORD not in repr(read)
    # What aiormq, and then the system, do with it.
    again = URL(read.secret_url)
    assert again.host
    assert again.query["heartbeat"] == str(read.heartbeat)
    str((again.port, again.user, again.password, again.path))
    assert read.host.isascii()
    return READ


def _take_cursor(data: bytes) -> str:
    try:
        read_cursor(data.decode("utf-8", "surrogateescape"))
    except StoreError as error:
        return type(error).__name__
    return READ


CURSOR_SEEDS = [f"1700000000.0/{notation.ID}".encode(), b"-inf/x", json.dumps(1e308).encode() + b"/x"]

TARGETS = {
    "commands": Target(_take_command, COMMAND_SEEDS),
    "events": Target(_take_event, EVENT_SEEDS),
    "sagas": Target(_take_saga, SAGA_SEEDS),
    "archives": Target(_take_archived, ARCHIVE_SEEDS),
    "payloads": Target(_take_payload, PAYLOAD_SEEDS),
    "tokens": Target(_take_token, TOKEN_SEEDS),
    "streams": Target(_take_stream, FRAME_SEEDS),
    "properties": Target(_take_properties, PROPERTY_SEEDS),
    "letters": Target(_take_letter, LETTER_SEEDS),
    "addresses": Target(_take_address, ADDRESS_SEEDS),
    "cursors": Target(_take_cursor, CURSOR_SEEDS),
}
