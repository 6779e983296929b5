"""The transport to RabbitMQ: see `contracts.Transport` for what it promises."""

import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from saga_amqp.contracts import Delivery, Message, Topology
from saga_amqp.errors import ConnectFailedError, TransportClosedError, TransportError
from saga_amqp.transports.amqp.address import Address, parse
from saga_amqp.transports.amqp.connection import GOODBYE, Connection
from saga_amqp.transports.amqp.control import Channel, Control
from saga_amqp.transports.amqp.dialling import dial
from saga_amqp.transports.amqp.lanes import ConsumeLane
from saga_amqp.transports.amqp.topology import declare, depth, missing

logger = logging.getLogger("saga_amqp.transports.amqp")

# Bytes that a message has around its body, or a little more, as long as its names are of a usual length.
ENVELOPE = 256


class AmqpTransport:
    """A connection to RabbitMQ, on asyncio (also with uvloop) and on trio.

    `url` is `amqp://user:password@host:port/vhost`, or `amqps://…` for TLS, which verifies the broker's name and
    certificate by the system's authorities, or those in a file (`?cafile=ca.pem`). `?certfile=…&keyfile=…` name a
    certificate of our own; with `auth=external` it says who we are, instead of a password. An `ssl_context` stands for
    all these files. `heartbeat` is in seconds, 0 for none; it can be part of the URL as well (`?heartbeat=10`), and is
    60 by default. `?name=…` is what the broker's operators see. `connect_timeout` is in seconds. `buffer` is how many
    bytes may wait to be sent before `publish` waits.

    The connection is given up when a message is not confirmed, or a question not answered, for `answer_timeout`,
    seconds, or at most twice as long. The time in which the broker blocks publishers does not count.

    Of several URLs, say of a cluster's nodes, each is tried in its turn, and given `connect_timeout`, until one works.

    A broken connection is not made again: `renewed` gives another transport to enter, which begins with the next URL.
    All methods belong to one event loop.

    Raises: ConnectFailedError, when a URL cannot be used; ValueError.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        ssl_context: ssl.SSLContext | None = None,
        heartbeat: int | None = None,
        connect_timeout: float = 10.0,
        answer_timeout: float = 60.0,
        buffer: int = 1_048_576,
    ) -> None:
        self._urls = (url,) if isinstance(url, str) else tuple(url)
        self._addresses = tuple(parse(each, heartbeat) for each in self._urls)
        if not answer_timeout > 0:
            raise ValueError(f"answer_timeout is {answer_timeout}, and has to be above 0")
        self._heartbeat = heartbeat
        self._tried = 0
        if not self._urls:
            raise ConnectFailedError("There is no URL of a broker to connect to")
        for address in self._addresses:
            _check_security(address, ssl_context)
        self._ssl_context = ssl_context
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout
        self._buffer = buffer
        self._entered = False
        self._stack = AsyncExitStack()
        self._scope: anyio.CancelScope | None = None  # made inside, where there is an event loop
        self._connection: Connection | None = None
        self._closed: anyio.Event | None = None
        self._lost: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<AmqpTransport {', '.join(map(repr, self._addresses))}>"

    @property
    def is_blocked(self) -> bool:
        """Whether the broker, short of memory or disk, has asked publishers to wait."""
        return self._connection is not None and self._connection.link.blocked

    async def __aenter__(self) -> Self:
        """Connect. Cancelled, nothing stays behind.

        Raises: ConnectFailedError, AuthenticationError, VirtualHostError. Of several URLs it is one that tells of all.
        """
        if self._entered:
            raise TransportClosedError("A transport can be entered once; make a new one")
        self._entered = True
        self._lost = anyio.Event()
        # The scope lies around the task group, so that leaving both can be shielded.
        self._scope = self._stack.enter_context(anyio.CancelScope())
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        try:
            self._connection = await self._open(tasks)
            if self._connection.link.lost is not None:
                self._lost.set()
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
        try:
            if self._connection is not None:
                await self._connection.close()
        finally:
            self._closed.set()

    async def lost(self) -> TransportError:
        """Wait until the connection ends, and return why. Only inside the context."""
        connection, lost = self._connection, self._lost
        if connection is None or lost is None:
            return TransportClosedError("The transport is not open; use it inside `async with`")
        await lost.wait()
        assert connection.link.lost is not None
        return connection.link.lost

    def renewed(self) -> Self:
        """Return another transport to the same broker, which is not entered yet. It begins with the next URL."""
        following = (self._tried + 1) % len(self._urls)
        return type(self)(
            self._urls[following:] + self._urls[:following],
            ssl_context=self._ssl_context,
            heartbeat=self._heartbeat,
            connect_timeout=self._connect_timeout,
            answer_timeout=self._answer_timeout,
            buffer=self._buffer,
        )

    async def missing(self, topology: Topology) -> Collection[str]:
        """Return the names of the queues that do not exist.

        If there are any, and the connection was used, it is given up: RabbitMQ goes on with what its channels knew of a
        quorum queue when a new one has the name, and then neither confirms nor delivers (3.10).

        Raises: ConnectionLostError, TransportClosedError.
        """
        connection = self._up()
        names = await connection.control.run(partial(missing, topology))
        if names and connection.is_used:
            connection.link.lose(f"queues were deleted: {', '.join(sorted(names))}")
            self._up()
        return names

    async def declare(self, topology: Topology) -> None:
        """Create what is missing; what exists must be as asked. Cancelled, some of it may have been created.

        Raises: TopologyError, ConnectionLostError, TransportClosedError.
        """
        await self._up().control.run(partial(declare, topology))

    async def depth(self, queue: str) -> int:
        """Return how many messages of a queue are ready; 0 as well where a quorum queue does not answer at once.

        Raises: QueueNotFoundError, ConnectionLostError, TransportClosedError.
        """
        return await self._up().control.run(partial(depth, queue))

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
        connection = self._up()
        link, control = connection.link, connection.control
        channel = await control.open_channel(confirms=False)
        consumer = AmqpConsumer(control, channel)
        lane = ConsumeLane(channel.number, link, queue, prefetch, receive, consumer.broke)
        link.open_lane(channel.number, lane)
        try:
            await consumer.begin(queue, prefetch)
            yield consumer
        finally:
            lane.flush(all_of_it=True)
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
            connection = self._up()
            lane, link = connection.publishing, connection.link
            if lane.dead:
                await connection.reopen()
            elif admitted or link.has_room:
                break
            else:
                await link.room(len(message.body) + ENVELOPE)
                admitted = True
        lane.publish(message, settled)

    async def _open(self, tasks: TaskGroup) -> Connection:
        """Connect to the first address that can be connected to."""
        errors: list[ConnectFailedError] = []
        for number, address in enumerate(self._addresses):
            self._tried = number
            try:
                return await self._connect(address, tasks)
            except ConnectFailedError as error:
                errors.append(error)
                if number + 1 < len(self._addresses):
                    logger.info("%s. The next address is tried", error)
        raise errors[0] if len(errors) == 1 else _none_of(errors)

    async def _connect(self, address: Address, tasks: TaskGroup) -> Connection:
        connection: Connection | None = None
        try:
            with anyio.fail_after(self._connect_timeout):
                stream = await dial(address, self._ssl_context)
                connection = Connection(address, stream, self._buffer, self._answer_timeout, self._ended)
                return await connection.open(tasks)
        except BaseException as error:
            if connection is not None:
                await connection.close()
            if isinstance(error, TimeoutError):
                raise ConnectFailedError(
                    f"The broker at {address} did not answer within {self._connect_timeout:g} seconds"
                ) from None
            raise

    def _ended(self, _: TransportError) -> None:
        if self._connection is not None and self._lost is not None:
            self._lost.set()

    def _up(self) -> Connection:
        connection = self._connection
        if connection is None or self._closed is not None:
            raise TransportClosedError("The transport is not open; use it inside `async with`")
        if (lost := connection.link.lost) is not None:
            raise type(lost)(*lost.args) from lost.__cause__
        return connection

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


def _check_security(address: Address, ssl_context: ssl.SSLContext | None) -> None:
    if ssl_context is not None and not address.tls:
        raise ConnectFailedError(
            f"An ssl_context was given, but the URL of {address} is amqp://; write amqps:// for TLS"
        )
    if ssl_context is not None and (address.cafile or address.certfile):
        raise ConnectFailedError(
            f"An ssl_context was given, and the URL of {address} names files for TLS; give one of the two"
        )
    if address.external and ssl_context is None and address.certfile is None:
        raise ConnectFailedError(
            f"The URL of {address} says auth=external, and no certificate of ours was given: name a certfile, "
            "or give an ssl_context that has loaded one"
        )


def _none_of(errors: Sequence[ConnectFailedError]) -> ConnectFailedError:
    """Return one error that tells of all; of their own kind, if that is one."""
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else ConnectFailedError
    failure = kind(f"No broker of {len(errors)} can be used: {'; '.join(map(str, errors))}")
    failure.__cause__ = ExceptionGroup("each of them", errors)
    return failure
