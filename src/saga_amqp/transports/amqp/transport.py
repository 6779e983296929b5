"""The transport to RabbitMQ: see `contracts.Transport` for what it promises."""

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from saga_amqp.contracts import Delivery, Message, Topology
from saga_amqp.errors import (
    AuthenticationError,
    ConnectFailedError,
    TransportClosedError,
    TransportError,
    VirtualHostError,
)
from saga_amqp.transports.amqp.address import parse
from saga_amqp.transports.amqp.control import Channel, Control
from saga_amqp.transports.amqp.lanes import ConsumeLane, PublishLane
from saga_amqp.transports.amqp.link import Link, dial
from saga_amqp.transports.amqp.topology import declare, depth

# Seconds that goodbyes may take: to a consumer's channel, to the connection, to the portal thread.
GOODBYE = 5.0

# Bytes that a message has around its body, or a little more, as long as its names are of a usual length.
ENVELOPE = 256

ACCESS_REFUSED, NOT_ALLOWED = 403, 530


class AmqpTransport:
    """A connection to RabbitMQ, on asyncio (also with uvloop) and on trio.

    `url` is `amqp://user:password@host:port/vhost`, or `amqps://…` for TLS, which verifies the broker's certificate
    by the system's authorities, or by `ssl_context`. `heartbeat` is in seconds, 0 for none; it can be part of the
    URL as well (`?heartbeat=10`) and is 60 by default. `connect_timeout` is in seconds. `buffer` is how many bytes may
    wait to be sent before `publish` waits.

    A broken connection is not made again: `renewed` gives another transport to enter. All methods belong to one event
    loop.

    Raises: ConnectFailedError, when the URL cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        heartbeat: int | None = None,
        connect_timeout: float = 10.0,
        buffer: int = 1_048_576,
    ) -> None:
        self._url, self._heartbeat = url, heartbeat
        self._address = parse(url, heartbeat)
        if ssl_context is not None and not self._address.tls:
            raise ConnectFailedError(
                "An ssl_context was given, but the URL is amqp://; write amqps:// for TLS"
            )
        self._ssl_context = ssl_context
        self._connect_timeout = connect_timeout
        self._buffer = buffer
        self._entered = False
        self._stack = AsyncExitStack()
        self._scope: anyio.CancelScope | None = None  # made inside, where there is an event loop
        self._link: Link | None = None
        self._control: Control | None = None
        self._publishing: PublishLane | None = None
        self._reopening = anyio.Lock()
        self._closed: anyio.Event | None = None
        self._lost: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<AmqpTransport {self._address!r}>"

    @property
    def is_blocked(self) -> bool:
        """Whether the broker, short of memory or disk, has asked publishers to wait."""
        return self._link is not None and self._link.blocked

    async def __aenter__(self) -> Self:
        """Connect. Cancelled, nothing stays behind.

        Raises: ConnectFailedError, AuthenticationError, VirtualHostError.
        """
        if self._entered:
            raise TransportClosedError("A transport can be entered once; make a new one")
        self._entered = True
        self._lost = anyio.Event()
        # The scope lies around the task group, so that leaving both can be shielded.
        self._scope = self._stack.enter_context(anyio.CancelScope())
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        try:
            await self._open(tasks)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, if `close` was not called before, and wait for the background tasks."""
        await self._leave()

    async def close(self) -> None:
        """Close in an orderly way; what is outstanding fails with TransportClosedError. Idempotent.

        Shielded from cancellation, and bounded in time: it never waits for a broker that has gone.
        """
        if self._closed is not None:
            with anyio.CancelScope(shield=True):
                await self._closed.wait()
            return
        self._closed = anyio.Event()
        link, control = self._link, self._control
        try:
            if link is not None and control is not None:
                link.closing = True
                link.wake_publishers()
                if link.open and link.lost is None:
                    with anyio.move_on_after(GOODBYE, shield=True):
                        await control.close()
        finally:
            if link is not None:
                link.closing = True
                link.lose("")
            try:
                if control is not None:
                    with anyio.move_on_after(GOODBYE, shield=True):
                        await control.stop()
            finally:
                self._closed.set()

    async def lost(self) -> TransportError:
        """Wait until the connection ends, and return why. Only inside the context."""
        link, lost = self._link, self._lost
        if link is None or lost is None:
            return TransportClosedError("The transport is not open; use it inside `async with`")
        await lost.wait()
        assert link.lost is not None
        return link.lost

    def renewed(self) -> Self:
        """Return another transport to the same broker, which is not entered yet."""
        return type(self)(
            self._url,
            ssl_context=self._ssl_context,
            heartbeat=self._heartbeat,
            connect_timeout=self._connect_timeout,
            buffer=self._buffer,
        )

    async def declare(self, topology: Topology) -> None:
        """Create what is missing; what exists must be as asked. Cancelled, some of it may have been created.

        Raises: TopologyError, ConnectionLostError, TransportClosedError.
        """
        _, control = self._up()
        await control.run(partial(declare, topology))

    async def depth(self, queue: str) -> int:
        """Return how many messages of a queue are ready; 0 as well where a quorum queue has no leader just now.

        Raises: QueueNotFoundError, ConnectionLostError, TransportClosedError.
        """
        _, control = self._up()
        return await control.run(partial(depth, queue))

    @asynccontextmanager
    async def consume(
        self, queue: str, prefetch: int, receive: Callable[[Delivery], None]
    ) -> AsyncGenerator["AmqpConsumer", None]:
        """Hand each message of a queue to `receive`, on a channel of its own.

        `prefetch`, from 1 to 65535, is how many messages may be unacknowledged at a time. On leaving, cancelled or
        not, what was acknowledged is sent, and the broker takes back all the rest.

        Raises: ConsumerCancelledError (no such queue), ConnectionLostError, TransportClosedError.
        """
        if not 0 < prefetch < 65536:
            raise ValueError(f"prefetch is {prefetch}, and has to be from 1 to 65535")
        link, control = self._up()
        channel = await control.open_channel(confirms=False)
        consumer = AmqpConsumer(control, channel)
        lane = ConsumeLane(channel.number, link, queue, receive, consumer.broke)
        link.open_lane(channel.number, lane)
        try:
            await consumer.begin(queue, prefetch)
            yield consumer
        finally:
            lane.flush()
            lane.leave()
            with anyio.move_on_after(GOODBYE, shield=True), suppress(TransportError):
                await consumer.leave()

    async def publish(self, message: Message, settled: Callable[[TransportError | None], None]) -> None:
        """Send a message; `settled` is called once, with None when the broker has confirmed it.

        Waits only while the outgoing buffer is full, the broker blocks publishers, or a new channel is opened
        because the broker closed the last one. Cancelled while it waits, nothing was sent and `settled` is not called.

        Raises: ConnectionLostError, TransportClosedError; then `settled` is not called.
        """
        admitted = False
        while True:
            link, _ = self._up()
            lane = self._publishing
            if lane is None or lane.dead:
                await self._reopen()
            elif admitted or link.has_room:
                break
            else:
                await link.room(len(message.body) + ENVELOPE)
                admitted = True
        lane.publish(message, settled)

    async def _open(self, tasks: TaskGroup) -> None:
        address = self._address
        try:
            with anyio.fail_after(self._connect_timeout):
                stream = await dial(address, self._ssl_context)
                link = self._link = Link(stream, address, self._buffer)
                tasks.start_soon(link.run)
                control = self._control = Control(address, link.send, self._gave_up)
                link.on_lost = self._ended
                control.start()
                link.feed_control = control.feed
                try:
                    link.decoder.frame_max = await control.open()
                    link.open = True
                    await self._reopen()
                except TransportError as error:
                    raise self._refused(link, error) from error
        except TimeoutError:
            raise ConnectFailedError(
                f"The broker at {address} did not answer within {self._connect_timeout:g} seconds"
            ) from None

    def _refused(self, link: Link, error: TransportError) -> ConnectFailedError:
        code, text = link.refusal or (0, "")
        if code == ACCESS_REFUSED:
            return AuthenticationError(
                f"The broker at {self._address} refused the user name or the password: {text}"
            )
        if code == NOT_ALLOWED:
            return VirtualHostError(
                f"The broker at {self._address} does not let this user into virtual host "
                f"{self._address.virtual_host!r}: {text}"
            )
        return ConnectFailedError(f"No connection to the broker at {self._address}: {error}")

    def _ended(self, error: TransportError) -> None:
        if self._control is not None:
            self._control.lose(error)
        if self._lost is not None:
            self._lost.set()

    def _gave_up(self) -> None:
        link = self._link
        if link is not None and link.open:
            link.lose("aiormq has not heard of it for too long")

    async def _reopen(self) -> None:
        async with self._reopening:
            link, control = self._up()
            if self._publishing is None or self._publishing.dead:
                channel = await control.open_channel(confirms=True)
                lane = PublishLane(channel.number, link, link.decoder.frame_max)
                link.open_lane(channel.number, lane)
                self._publishing = lane

    def _up(self) -> tuple[Link, Control]:
        link, control = self._link, self._control
        if link is None or control is None or self._closed is not None:
            raise TransportClosedError("The transport is not open; use it inside `async with`")
        if link.lost is not None:
            raise type(link.lost)(*link.lost.args) from link.lost.__cause__
        return link, control

    async def _leave(self) -> None:
        if self._scope is not None:
            self._scope.shield = True
        try:
            await self.close()
        finally:
            await self._stack.aclose()


class AmqpConsumer:
    """A running subscription; see `contracts.Consumer`."""

    def __init__(self, control: Control, channel: Channel) -> None:
        self._control = control
        self._channel = channel
        self._tag: str | None = None
        self._error: TransportError | None = None
        self._broken = anyio.Event()

    async def begin(self, queue: str, prefetch: int) -> None:
        """Ask for deliveries. Raises: ConsumerCancelledError, ConnectionLostError."""
        self._tag = await self._control.consume(self._channel, queue, prefetch)

    async def cancel(self) -> None:
        """Ask for no more deliveries; those in hand can still be acknowledged. Returns when the broker agreed.

        Cancelled, it is asked all the same. A broken subscription is cancelled already.

        Raises: ConnectionLostError, TransportClosedError.
        """
        if self._tag is not None and self._error is None:
            await self._control.cancel(self._channel, self._tag)
            self._tag = None

    async def leave(self) -> None:
        """Give everything back that is in hand. Raises: ConnectionLostError, TransportClosedError."""
        await self._control.leave(self._channel, self._tag if self._error is None else None)

    async def failed(self) -> TransportError:
        """Wait until the subscription breaks, and return why. Never returns after an orderly end."""
        await self._broken.wait()
        assert self._error is not None
        return self._error

    def broke(self, error: TransportError) -> None:
        """Take note of why it broke; the first reason counts."""
        if self._error is None:
            self._error = error
            self._broken.set()
