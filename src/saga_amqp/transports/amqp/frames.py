"""The hot frames of AMQP 0-9-1: bytes in, events out; calls out, bytes out. No I/O, no clock, no threads.

Channels that are marked as *lanes* are decoded here: basic.deliver, basic.ack and basic.nack (publisher confirms),
basic.return, each with its content. Every other frame comes out whole, for the control plane. Theory of operation:

* A frame is kind, channel, size, payload, 0xCE. Nothing is read before a frame is there in full; what can be
  judged from its head alone is judged at once, so that nonsense never makes anybody wait for more of it.
* A lane expects a method, then (after deliver and return) a header, then bodies until the declared size is there.
  Anything else is a `FrameError`, which is always the last event; there is no way to find the next frame after it.
* Slicing is all that a delivery costs. Properties are located when somebody asks; tables are decoded by pamqp.
"""

import struct
from collections.abc import Mapping
from typing import Final, NoReturn, cast

import msgspec

from saga_amqp.errors import FrameError
from saga_amqp.transports.amqp.properties import encode, short_string

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8
END: Final = b"\xce"
TLS_ALERT: Final = b"\x15\x03"

# Class in the upper half, method in the lower one: as the four bytes are on the wire.
CONNECTION_CLOSE: Final = 10 << 16 | 50
CONNECTION_CLOSE_OK: Final = 10 << 16 | 51
CONNECTION_BLOCKED: Final = 10 << 16 | 60
CONNECTION_UNBLOCKED: Final = 10 << 16 | 61
CHANNEL_CLOSE: Final = 20 << 16 | 40
CHANNEL_CLOSE_OK: Final = 20 << 16 | 41
BASIC_CANCEL: Final = 60 << 16 | 30
BASIC_RETURN: Final = 60 << 16 | 50
BASIC_DELIVER: Final = 60 << 16 | 60
BASIC_ACK: Final = 60 << 16 | 80
BASIC_NACK: Final = 60 << 16 | 120

HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
CLOSE_OK_FRAME: Final = b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x33\xce"

# RabbitMQ's default, and large enough for its first frames, which come before anything was agreed on.
DEFAULT_FRAME_MAX: Final = 131_072
FRAME_OVERHEAD: Final = 8

_KINDS = frozenset((METHOD, HEADER, BODY, HEARTBEAT))
_frame = struct.Struct(">BHI")
_index = struct.Struct(">I")
_octets = struct.Struct(">Q")
_content = struct.Struct(">HHQ")
_outgoing_content = struct.Struct(">BHIHHQH")
_confirm = struct.Struct(">QB")
_ack = struct.Struct(">BHIIQBB")


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """A message for a consumer. `properties` is the header's flags and all that follows them."""

    channel: int
    tag: int
    redelivered: bool
    properties: bytes
    body: bytes


class Confirmed(msgspec.Struct, frozen=True, gc=False):
    """The broker has taken (or, `taken` being false, has not taken) one message or all up to it."""

    channel: int
    tag: int
    multiple: bool
    taken: bool


class Returned(msgspec.Struct, frozen=True, gc=False):
    """A message came back because no queue wanted it. Its confirm follows."""

    channel: int
    code: int
    reason: str
    exchange: str
    routing_key: str
    properties: bytes
    body: bytes


class Control(msgspec.Struct, frozen=True, gc=False):
    """A whole frame for the control plane; `method` is 0 where it is not a method."""

    channel: int
    method: int
    frame: bytes


Event = Delivered | Confirmed | Returned | Control | FrameError


class _Lane:
    """What is still missing of the content that comes on one channel; `method` is the hot method it belongs to."""

    __slots__ = ("channel", "expects", "method", "missing", "parts", "properties")

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.expects = METHOD
        self.method: tuple[int, bool] | tuple[int, str, str, str] = (0, False)
        self.properties = b""
        self.missing = 0
        self.parts: list[bytes] = []

    def complete(self, body: bytes) -> Event:
        self.expects = METHOD
        if len(self.method) == 2:
            return Delivered(self.channel, self.method[0], self.method[1], self.properties, body)
        return Returned(self.channel, *self.method, self.properties, body)


class Decoder:
    """Cuts a stream of bytes into events.

    `frame_max` is the agreed size of a whole frame in bytes, 0 for no limit; set it once it is known.
    """

    def __init__(self, frame_max: int = DEFAULT_FRAME_MAX) -> None:
        self.frame_max = frame_max
        self._lanes: dict[int, _Lane] = {}
        self._rest = b""
        self._broken: FrameError | None = None

    def open_lane(self, channel: int) -> None:
        """Decode a channel's hot frames from now on, until it is closed by either side."""
        self._lanes[channel] = _Lane(channel)

    def feed(self, chunk: bytes) -> list[Event]:
        """Take bytes as they come, return what they complete; a FrameError at the end says that it is over.

        Raises: FrameError, when fed after that.
        """
        if self._broken is not None:
            raise FrameError(str(self._broken))
        data = self._rest + chunk if self._rest else chunk
        at, end = 0, len(data)
        payload_max = self.frame_max - FRAME_OVERHEAD if self.frame_max else 1 << 32
        lanes = self._lanes
        events: list[Event] = []
        try:
            while end - at >= 7:
                kind, channel, size = _frame.unpack_from(data, at)
                if size > payload_max or kind not in _KINDS:
                    self._refuse(kind, size, data[at : at + 7])
                start = at + 7
                stop = start + size
                if stop >= end:
                    break
                if data[stop] != 0xCE:
                    raise FrameError(
                        f"A frame on channel {channel} ends with {data[stop]:#04x} instead of 0xce"
                    )
                lane = lanes.get(channel)
                if lane is None:
                    events.append(_control(kind, channel, size, data, at))
                elif kind == METHOD:
                    event = self._method(lane, data, at, start, stop)
                    if event is not None:
                        events.append(event)
                elif kind == lane.expects == HEADER:
                    missing = _header(lane, data, start, stop)
                    if missing == 0:
                        events.append(lane.complete(b""))
                elif kind == lane.expects == BODY:
                    if size == lane.missing and not lane.parts:
                        events.append(lane.complete(data[start:stop]))
                    elif (body := _body(lane, data[start:stop])) is not None:
                        events.append(lane.complete(body))
                else:
                    raise FrameError(_unexpected(kind, lane))
                at = stop + 1
        except FrameError as error:
            self._broken = error
            self._rest = b""
            events.append(error)
            return events
        self._rest = data[at:]
        return events

    def _method(self, lane: _Lane, data: bytes, at: int, start: int, stop: int) -> Event | None:
        if lane.expects != METHOD:
            raise FrameError(_unexpected(METHOD, lane))
        if stop - start < 4:
            raise FrameError(f"A method frame on channel {lane.channel} is too short to name its method")
        (method,) = _index.unpack_from(data, start)
        if method == BASIC_DELIVER:
            lane.method = _deliver(lane.channel, data, start + 4, stop)
        elif method in (BASIC_ACK, BASIC_NACK):
            if stop - start != 13:
                raise FrameError(
                    f"A confirm on channel {lane.channel} has {stop - start} bytes instead of 13"
                )
            tag, multiple = _confirm.unpack_from(data, start + 4)
            return Confirmed(lane.channel, tag, bool(multiple & 1), method == BASIC_ACK)
        elif method == BASIC_RETURN:
            lane.method = _return(lane.channel, data[start + 4 : stop])
        else:
            if method in (CHANNEL_CLOSE, CHANNEL_CLOSE_OK):
                del self._lanes[lane.channel]
            return Control(lane.channel, method, data[at : stop + 1])
        lane.expects = HEADER
        return None

    def _refuse(self, kind: int, size: int, head: bytes) -> NoReturn:
        if kind not in _KINDS:
            hint = "; it is TLS, for which the URL begins with amqps://" if head[:2] == TLS_ALERT else ""
            raise FrameError(f"This is not AMQP 0-9-1: a frame begins with {head!r}{hint}")
        raise FrameError(
            f"A frame announces {size} bytes, but only frames of up to {self.frame_max} bytes were agreed on"
        )


def _control(kind: int, channel: int, size: int, data: bytes, at: int) -> Control:
    method = 0
    if kind == METHOD:
        if size < 4:
            raise FrameError(f"A method frame on channel {channel} is too short to name its method")
        (method,) = _index.unpack_from(data, at + 7)
    elif kind == HEARTBEAT:
        if channel or size:
            raise FrameError(f"A heartbeat of {size} bytes came on channel {channel}")
    elif channel == 0:
        raise FrameError("Content came on channel 0, where there is none")
    return Control(channel, method, data[at : at + size + FRAME_OVERHEAD])


def _unexpected(kind: int, lane: _Lane) -> str:
    names = {METHOD: "method", HEADER: "content header", BODY: "content body", HEARTBEAT: "heartbeat"}
    return f"A {names[kind]} came on channel {lane.channel} where a {names[lane.expects]} is due"


def _deliver(channel: int, data: bytes, at: int, stop: int) -> tuple[int, bool]:
    # consumer tag, delivery tag, redelivered, exchange, routing key
    tag_at = at + 1 + data[at]
    exchange_at = tag_at + 9
    if exchange_at < stop:
        key_at = exchange_at + 1 + data[exchange_at]
        if key_at < stop and key_at + 1 + data[key_at] == stop:
            return _octets.unpack_from(data, tag_at)[0], bool(data[tag_at + 8] & 1)
    raise FrameError(f"A basic.deliver on channel {channel} is malformed")


def _return(channel: int, arguments: bytes) -> tuple[int, str, str, str]:
    texts: list[str] = []
    at = 2
    while at < len(arguments) and len(texts) < 3:
        following = at + 1 + arguments[at]
        if following > len(arguments):
            break
        texts.append(arguments[at + 1 : following].decode(errors="replace"))
        at = following
    if len(texts) != 3 or at != len(arguments):
        raise FrameError(f"A basic.return on channel {channel} is malformed")
    return int.from_bytes(arguments[:2], "big"), texts[0], texts[1], texts[2]


def _header(lane: _Lane, data: bytes, start: int, stop: int) -> int:
    if stop - start < 14:
        raise FrameError(f"A content header on channel {lane.channel} has only {stop - start} bytes")
    kind, _, size = _content.unpack_from(data, start)
    if kind != 60:
        raise FrameError(
            f"A content header on channel {lane.channel} belongs to class {kind} instead of basic"
        )
    lane.properties = data[start + 12 : stop]
    lane.missing = size
    lane.parts = []
    lane.expects = BODY
    return cast(int, size)


def _body(lane: _Lane, part: bytes) -> bytes | None:
    if len(part) > lane.missing:
        raise FrameError(
            f"A content body on channel {lane.channel} has {len(part)} bytes where {lane.missing} were missing"
        )
    lane.missing -= len(part)
    lane.parts.append(part)
    if lane.missing:
        return None
    body = b"".join(lane.parts)
    lane.parts = []
    return body


def publish_prefix(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """Return the frame of basic.publish. Raises: ValueError, when a name is too long."""
    names = short_string(exchange) + short_string(routing_key)
    method = b"\x00\x3c\x00\x28\x00\x00" + names + (b"\x01" if mandatory else b"\x00")
    return _frame.pack(METHOD, channel, len(method)) + method + END


def content(
    channel: int,
    body: bytes,
    message_id: str,
    kind: str,
    table: Mapping[str, str | int] | None = None,
    frame_max: int = DEFAULT_FRAME_MAX,
) -> bytes:
    """Return header and bodies of a persistent JSON message. Raises: ValueError, when something does not fit."""
    flags, properties = encode(message_id, kind, table)
    if len(properties) + 14 > (frame_max or 1 << 32) - FRAME_OVERHEAD:
        raise ValueError(f"its headers do not fit into a frame of {frame_max} bytes")
    head = _outgoing_content.pack(HEADER, channel, 14 + len(properties), 60, 0, len(body), flags)
    size = len(body)
    limit = (frame_max or DEFAULT_FRAME_MAX) - FRAME_OVERHEAD
    if 0 < size <= limit:
        return b"".join((head, properties, END, _frame.pack(BODY, channel, size), body, END))
    frames = [head, properties, END]
    for at in range(0, size, limit):
        part = body[at : at + limit]
        frames += (_frame.pack(BODY, channel, len(part)), part, END)
    return b"".join(frames)


def acknowledge(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return basic.ack for one delivery, or for all up to it."""
    return _ack.pack(METHOD, channel, 13, BASIC_ACK, tag, multiple, 0xCE)


def reject(channel: int, tag: int, *, requeue: bool) -> bytes:
    """Return basic.reject for one delivery."""
    return _ack.pack(METHOD, channel, 13, 60 << 16 | 90, tag, requeue, 0xCE)
