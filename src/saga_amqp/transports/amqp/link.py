"""One socket to the broker: one task reads, one task writes, and two look whether the broker is alive, and answers.

What the lanes and the control plane want to send leaves together, with one `send` per turn of the event loop. The
link ends once, in `lose`, whatever the reason is; everybody who waits is told there.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Protocol

import anyio
import anyio.abc
import pamqp.frame
from pamqp import commands

from saga_amqp.errors import (
    ConnectionLostError,
    FrameError,
    TransportClosedError,
    TransportError,
)
from saga_amqp.transports.amqp import frames
from saga_amqp.transports.amqp.address import Address
from saga_amqp.transports.amqp.frames import Confirmed, Control, Decoder, Delivered, Returned
from saga_amqp.transports.amqp.lanes import ConsumeLane

logger = logging.getLogger("saga_amqp.transports.amqp")

CHUNK = 131_072

# Seconds after which there is another turn if something is to be flushed.
A_MOMENT = 0.002

# The broker sends something every half heartbeat, so silence is counted in halves; six of them are the grace
# period of aiormq, too. Counting turns instead of reading a clock forgives a program that blocked its own event loop.
SILENT_HALVES = 6

# An answer is waited for in so many turns, for the same reason.
TURNS = 6


class Lane(Protocol):
    """What a link knows of a lane."""

    def take(self, event: Delivered | Confirmed | Returned) -> None:
        """Deal with an event. Raises: FrameError, when it has no place on this channel."""
        ...

    def closed(self, reason: str) -> None:
        """Learn that the broker closed the channel."""
        ...

    def cancelled(self) -> None:
        """Learn that the broker ended the channel's consumer."""
        ...

    def fail(self, error: TransportError) -> None:
        """Learn that the connection is gone."""
        ...


class _Publisher:
    """Somebody who waits to send `size` bytes, or has been told to go on and not got to it yet."""

    __slots__ = ("admitted", "size", "turn")

    def __init__(self, size: int) -> None:
        self.size = size
        self.admitted = False
        self.turn = anyio.Event()


class Link:
    """The bytes of one connection, from the first to the last.

    `open` is whether hands were shaken; `lost` is why it ended, None while it is up. `buffer` is how many bytes may
    wait to be sent before publishers have to wait.
    """

    def __init__(
        self, stream: anyio.abc.ByteStream, address: Address, buffer: int, answer_timeout: float
    ) -> None:
        self.decoder = Decoder()
        self.lanes: dict[int, Lane] = {}
        self.lost: TransportError | None = None
        self.open = False
        self.closing = False
        self.blocked = False
        self.refusal: tuple[int, str] | None = None
        self.feed_control: Callable[[bytes], None] = lambda data: None
        self.on_lost: Callable[[TransportError], None] = lambda error: None
        self.unanswered: Callable[[], frozenset[object]] = frozenset
        self._stream = stream
        self._address = address
        self._scope = anyio.CancelScope(shield=True)
        self._limit = buffer
        self._answer_timeout = answer_timeout
        self._out: list[bytes] = []
        self._to_flush: list[ConsumeLane] = []
        self._buffered = 0
        self._wake = anyio.Event()
        self._publishers: deque[_Publisher] = deque()
        self._admitted = 0
        self._heard = self._fed = False

    @property
    def has_room(self) -> bool:
        """Whether a publisher may go on without waiting."""
        return self._buffered < self._limit and not self.blocked and not self._publishers

    def open_lane(self, channel: int, lane: Lane) -> None:
        """Have a channel's hot frames go to a lane, until the channel is closed."""
        self.decoder.open_lane(channel)
        self.lanes[channel] = lane

    def send(self, data: bytes) -> None:
        """Have whole frames sent, in the order of the calls."""
        if not self._out:
            self._wake.set()
        self._out.append(data)
        self._buffered += len(data)

    def flush_soon(self, lane: ConsumeLane) -> None:
        """Call `lane.flush` once, before the next sending."""
        self.flush_later(lane)
        self._wake.set()

    def flush_later(self, lane: ConsumeLane) -> None:
        """Do the same, and have a turn for it a moment later if nobody sends anything until then."""
        if lane not in self._to_flush:
            self._to_flush.append(lane)

    async def room(self, size: int) -> None:
        """Wait until it is one's turn to send so many bytes, or the link is gone. Cancelled, the next one's turn comes.

        Only as many are woken as there is room for, or thousands would wake each time to find that it is gone.
        """
        publisher = _Publisher(size)
        self._publishers.append(publisher)
        try:
            await publisher.turn.wait()
        except BaseException:
            if not publisher.admitted and publisher in self._publishers:
                self._publishers.remove(publisher)
            raise
        finally:
            if publisher.admitted:
                self._admitted -= size
                self._admit()

    async def run(self) -> None:
        """Read and write until the link is lost, then close the socket. Never raises.

        Shielded from the caller's cancellation: whoever is cancelled still says goodbye over this link.
        """
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._guard, self._read)
                tasks.start_soon(self._guard, self._write)
                tasks.start_soon(self._guard, self._watch)
                tasks.start_soon(self._guard, self._expect)
        await self.discard()

    async def discard(self) -> None:
        """Close the socket without ceremony."""
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(self._stream)

    def lose(self, reason: str, cause: BaseException | None = None) -> None:
        """End the link, once, and tell everybody who waits for something that it will not come."""
        if self.lost is not None:
            return
        if self.closing:
            self.lost = TransportClosedError("The transport was closed")
        else:
            self.lost = ConnectionLostError(
                f"The connection to the broker at {self._address} was lost: {reason}"
            )
            self.lost.__cause__ = cause
        self._scope.cancel()
        self._out.clear()
        self._to_flush.clear()
        lanes, self.lanes = self.lanes, {}
        for lane in lanes.values():
            lane.fail(self.lost)
        self.wake_publishers()
        self.on_lost(self.lost)

    def wake_publishers(self) -> None:
        """Have everybody who waits in `room` go on, whether there is room or not."""
        publishers, self._publishers = self._publishers, deque()
        for publisher in publishers:
            publisher.turn.set()

    def _admit(self) -> None:
        room = self._limit - self._buffered - self._admitted
        while room > 0 and self._publishers and not self.blocked:
            publisher = self._publishers.popleft()
            publisher.admitted = True
            publisher.turn.set()
            self._admitted += publisher.size
            room -= publisher.size

    async def _guard(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except anyio.EndOfStream:
            self.lose("the broker closed it")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            cause = error.__cause__ or error
            self.lose(f"{type(cause).__name__}: {cause}", error)
        except FrameError as error:
            self.lose(f"the broker sent something that cannot be read. {error}", error)
        except Exception as error:
            logger.exception("A defect in the AMQP transport ended a connection; please report it")
            self.lose(f"{type(error).__name__}: {error}", error)

    async def _read(self) -> None:
        while True:
            chunk = await self._stream.receive(CHUNK)
            self._heard = True
            lanes = self.lanes
            control: list[bytes] = []
            for event in self.decoder.feed(chunk):
                if isinstance(event, Control):
                    self._peek(event)
                    control.append(event.frame)
                elif isinstance(event, FrameError):
                    raise event
                elif (lane := lanes.get(event.channel)) is not None:
                    lane.take(event)
            if control:
                self._fed = True
                self.feed_control(b"".join(control))

    async def _write(self) -> None:
        while True:
            with anyio.move_on_after(A_MOMENT) if self._to_flush else nullcontext():
                await self._wake.wait()
            to_flush, self._to_flush = self._to_flush, []
            for lane in to_flush:
                lane.flush()
            out, self._out, self._wake = self._out, [], anyio.Event()
            data = b"".join(out)
            if data:  # a consumer that has gone in the meantime has nothing to say
                await self._stream.send(data)
            self._buffered -= len(data)
            self._admit()

    async def _watch(self) -> None:
        heartbeat, silent = self._address.heartbeat, 0
        while heartbeat:
            await anyio.sleep(heartbeat / 2)
            if self._heard:
                silent = 0
                if not self._fed:  # aiormq, which sees nothing of the lanes, would give the connection up
                    self.feed_control(frames.HEARTBEAT_FRAME)
            elif self.open:
                silent += 1
                if silent == SILENT_HALVES:
                    self.lose(f"no sign of life for {heartbeat * SILENT_HALVES / 2:g} seconds")
            self._heard = self._fed = False

    async def _expect(self) -> None:
        """See to it that what the broker is to answer is answered in time, or the link is lost.

        Its heartbeats go on where a channel or a queue of it hangs. While it blocks us it answers nothing.
        """
        expected, turns = frozenset[object](), 0
        while True:
            await anyio.sleep(self._answer_timeout / TURNS)
            unanswered = self.unanswered()
            expected &= unanswered
            if self.blocked or not expected:
                expected, turns = unanswered, 0
            elif (turns := turns + 1) == TURNS:
                self.lose(f"it has not answered for {self._answer_timeout:g} seconds")

    def _peek(self, event: Control) -> None:
        """Learn from a frame, which is the control plane's, what it means for the lanes."""
        method = event.method
        if event.channel == 0:
            if method == frames.CONNECTION_CLOSE:
                self.refusal = code, text = _reason(event.frame)
                self.lose(f"the broker closed it: {code} {text}")
            elif method == frames.CONNECTION_BLOCKED:
                self.blocked = True
                logger.warning(
                    "The broker at %s blocks publishers, being short of memory or disk", self._address
                )
            elif method == frames.CONNECTION_UNBLOCKED:
                self.blocked = False
                logger.warning("The broker at %s lets publishers go on", self._address)
                self._admit()
        elif method == frames.CHANNEL_CLOSE:
            if (lane := self.lanes.pop(event.channel, None)) is not None:
                code, text = _reason(event.frame)
                lane.closed(f"{code} {text}")
        elif method == frames.CHANNEL_CLOSE_OK:
            self.lanes.pop(event.channel, None)
        elif method == frames.BASIC_CANCEL and (lane := self.lanes.get(event.channel)) is not None:
            lane.cancelled()
            self.lose("a queue that was consumed from was deleted")


def _reason(frame: bytes) -> tuple[int, str]:
    try:
        _, _, method = pamqp.frame.unmarshal(frame)
    except Exception as error:  # whatever pamqp says to a malformed frame
        raise FrameError(f"A close frame cannot be decoded: {error!r}") from error
    assert isinstance(method, commands.Connection.Close | commands.Channel.Close)
    return method.reply_code or 0, method.reply_text or ""
