"""The ceiling: four hot frames on an AnyIO socket and nothing else.

What the transport does, reduced until only the price of the frames is left. No TLS, no errors, no nacks and
returns, no back-pressure, no bodies above `frame_max`, no heartbeats, no closing on a fault: never use it for
anything else. The handshake is spoken with pamqp, so no second thread takes part.
"""

import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
import pamqp.frame
from pamqp import commands as spec
from pamqp.header import ProtocolHeader

from benchmarks.relays.course import BODY, LINGER, TYPE, Acknowledger, Course

CONSUMING, PUBLISHING = 1, 2
FRAME = struct.Struct(">BHI")
LONG_LONG = struct.Struct(">Q")
ACK = struct.Struct(">BHIHHQBB")
CONTENT = struct.Struct(">BHIHHQH")
JSON_PERSISTENT = b"\x10application/json\x02"
PROPERTIES = 0x8000 | 0x1000 | 0x0080 | 0x0020  # content type, delivery mode, message id, type


class Wire:
    """One connection: cuts what comes, packs what goes, and leaves with one `send` per turn of the loop."""

    def __init__(self, queue: str, course: Course, on_message: Callable[[int, str, bytes], None]) -> None:
        self.course, self.on_message = course, on_message
        self.acknowledger = Acknowledger(self._ack, course)
        self.prefix = _publish_prefix(queue)
        self.type = bytes([len(TYPE)]) + TYPE.encode()
        self.out: list[bytes] = []
        self.wake, self.closed = anyio.Event(), anyio.Event()
        self.waiting: deque[Callable[[], None]] = deque()  # what to do when the oldest publish is confirmed …
        self.oldest = 1  # … which has this tag; those confirmed out of order are kept until it is their turn
        self.early: set[int] = set()
        self.tag, self.id = 0, ""

    def publish(self, message_id: str, body: bytes, confirmed: Callable[[], None]) -> None:
        encoded = message_id.encode()
        properties = JSON_PERSISTENT + bytes([len(encoded)]) + encoded + self.type
        head = CONTENT.pack(2, PUBLISHING, 14 + len(properties), 60, 0, len(body), PROPERTIES)
        self.waiting.append(confirmed)
        self.send(
            b"".join(
                (self.prefix, head, properties, b"\xce", FRAME.pack(3, PUBLISHING, len(body)), body, b"\xce")
            )
        )

    def done(self, tag: int) -> None:
        self.acknowledger.add(tag)
        self.wake.set()

    def send(self, frames: bytes) -> None:
        self.out.append(frames)
        self.wake.set()

    async def write(self, stream: anyio.abc.ByteStream) -> None:
        while True:
            await self.wake.wait()
            self.acknowledger.flush()
            out, self.out, self.wake = self.out, [], anyio.Event()
            await stream.send(b"".join(out))

    async def read(self, stream: anyio.abc.ByteStream, rest: bytes) -> None:
        while True:
            chunk = rest + await stream.receive(131072) if rest else await stream.receive(131072)
            at, end = 0, len(chunk)
            while end - at > 7:
                kind, _, size = FRAME.unpack_from(chunk, at)
                start, following = at + 7, at + 8 + size
                if following > end:
                    break
                if kind == 1:
                    self._method(chunk, start)
                elif kind == 2:
                    # flags, a content type of 16 bytes and the delivery mode lie before the message id
                    length = chunk[start + 32]
                    self.id = chunk[start + 33 : start + 33 + length].decode()
                else:
                    self.on_message(self.tag, self.id, chunk[start : start + size])
                at = following
            rest = chunk[at:]

    def _method(self, chunk: bytes, at: int) -> None:
        if chunk[at + 3] == 60:  # basic.deliver: behind the consumer tag stands the delivery tag
            (self.tag,) = LONG_LONG.unpack_from(chunk, at + 5 + chunk[at + 4])
        elif chunk[at + 3] == 80:  # basic.ack: a confirm
            (tag,) = LONG_LONG.unpack_from(chunk, at + 4)
            if not chunk[at + 12]:
                self.early.add(tag)
                tag = self.oldest - 1
            while self.oldest <= tag or self.oldest in self.early:
                self.early.discard(self.oldest)
                self.oldest += 1
                self.waiting.popleft()()
        elif chunk[at + 3] == 51:  # connection.close-ok
            self.closed.set()
        else:
            raise RuntimeError(f"unexpected method {chunk[at + 3]}")

    def _ack(self, tag: int) -> None:
        self.send(ACK.pack(1, CONSUMING, 13, 60, 80, tag, 1, 0xCE))


def _publish_prefix(queue: str) -> bytes:
    frame: bytes = pamqp.frame.marshal(spec.Basic.Publish(routing_key=queue, mandatory=True), PUBLISHING)
    return frame


class _Talk:
    """Request and reply, for as long as nothing else is on the wire."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.stream, self.rest = stream, b""

    async def ask(self, request: Any, channel: int = 0) -> Any:
        await self.stream.send(pamqp.frame.marshal(request, channel))
        return await self.reply()

    async def reply(self) -> Any:
        while True:
            used, _, frame = pamqp.frame.unmarshal(self.rest) if len(self.rest) > 7 else (0, 0, None)
            if used and frame is not None:
                self.rest = self.rest[used:]
                return frame
            self.rest += await self.stream.receive()


async def _shake_hands(stream: anyio.abc.ByteStream, url: str, queue: str, prefetch: int) -> _Talk:
    parts, talk = urlsplit(url), _Talk(stream)
    await talk.ask(ProtocolHeader())
    tune = await talk.ask(
        spec.Connection.StartOk(
            client_properties={},
            mechanism="PLAIN",
            response=f"\0{parts.username}\0{parts.password}",
            locale="en_US",
        )
    )
    await stream.send(pamqp.frame.marshal(spec.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0))
    await talk.ask(spec.Connection.Open(virtual_host=parts.path[1:].replace("%2F", "/") or "/"))
    for channel in (CONSUMING, PUBLISHING):
        await talk.ask(spec.Channel.Open(), channel)
    await talk.ask(spec.Confirm.Select(), PUBLISHING)
    await talk.ask(spec.Basic.Qos(prefetch_count=prefetch), CONSUMING)
    await talk.ask(spec.Basic.Consume(queue=queue, consumer_tag="bare"), CONSUMING)
    return talk


async def relay(
    url: str,
    queue: str,
    course: Course,
    prefetch: int,
    *,
    task: Callable[[bytes, Callable[[bytes], None]], Awaitable[None]] | None,
    seeds: Sequence[bytes] | None = None,
) -> None:
    """Run the course on the bare wire, with a task for each message, which says what to publish, or with none."""
    parts = urlsplit(url)
    finished = anyio.Event()
    course.finished = finished.set
    async with (
        await anyio.connect_tcp(parts.hostname or "localhost", parts.port or 5672) as stream,
        anyio.create_task_group() as tasks,
    ):
        talk = await _shake_hands(stream, url, queue, prefetch)

        def receive(tag: int, message_id: str, body: bytes) -> None:
            following = course.received(message_id, body)
            if following is None:
                wire.done(tag)
            elif task is None:
                publish(tag, following, body)
            else:
                tasks.start_soon(task, body, partial(publish, tag, following))

        def publish(tag: int, following: str, body: bytes) -> None:
            def confirmed() -> None:
                course.confirmed()
                wire.done(tag)

            wire.publish(following, body, confirmed)

        wire = Wire(queue, course, receive)
        tasks.start_soon(wire.write, stream)
        tasks.start_soon(wire.read, stream, talk.rest)
        for seed, body in zip(course.seeds(), seeds or [BODY] * course.in_flight, strict=True):
            wire.publish(seed, body, course.seeded)
        await finished.wait()
        await anyio.sleep(LINGER)
        # The broker answers when it has read everything before: no acknowledgement is lost with the socket.
        wire.send(pamqp.frame.marshal(spec.Connection.Close(reply_code=200, class_id=0, method_id=0), 0))
        await wire.closed.wait()
        tasks.cancel_scope.cancel()


async def pass_on(body: bytes, publish: Callable[[bytes], None]) -> None:
    """Publish what came."""
    publish(body)
