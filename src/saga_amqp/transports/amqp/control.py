"""aiormq, which leads the conversation: connection, authentication, heartbeats, channels, topology, consumers.

It runs in a portal thread with an event loop of its own, whatever the caller's event loop is, behind a virtual
reader and writer. So there is one code path for asyncio and trio, and cancelling a caller's task never cuts an
exchange of frames in half: what was asked is finished, and then undone.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar, cast

import aiormq
import aiormq.abc
import anyio
import anyio.from_thread
import anyio.lowlevel
from aiormq.connection import TransportFactory
from aiormq.exceptions import ChannelClosed, ChannelInvalidStateError

from saga_amqp.errors import (
    AuthenticationError,
    ConnectionLostError,
    ConsumerCancelledError,
    TransportClosedError,
    TransportError,
)
from saga_amqp.transports.amqp.address import Address
from saga_amqp.transports.amqp.frames import CLOSE_OK_FRAME, HEARTBEAT_FRAME

logger = logging.getLogger("saga_amqp.transports.amqp")

T = TypeVar("T")
Work = Callable[[aiormq.Connection], Coroutine[Any, Any, T]]
Channel = aiormq.abc.AbstractChannel

# Seconds that aiormq's last tasks get once its connection has ended; they need none of it.
LAST_TASKS = 1.0


class Control:
    """A conversation of aiormq with the broker.

    `write` is called in the caller's event loop with what aiormq wants to be sent, `gave_up` when aiormq has closed
    the connection, for whatever reason.
    """

    def __init__(self, address: Address, write: Callable[[bytes], None], gave_up: Callable[[], None]) -> None:
        self._address = address
        self._write = write
        self._gave_up = gave_up
        self._soon = _caller_of_this_loop()
        self._portal = contextlib.ExitStack()
        self._lost: TransportError | None = None
        self._waiting: set[anyio.Event] = set()
        self._loop: asyncio.AbstractEventLoop
        self._reader: asyncio.StreamReader
        self._connection: aiormq.Connection
        self._own_tasks: set[asyncio.Task[Any]]
        self._started = False
        self._closing = False

    def start(self) -> None:
        """Start the portal thread; blocks for a millisecond or two."""
        self._quiet = self._portal.enter_context(_Quiet())
        portal = self._portal.enter_context(
            anyio.from_thread.start_blocking_portal("asyncio", name="saga-amqp-control")
        )
        portal.call(self._prepare)
        self._started = True

    async def open(self) -> int:
        """Shake hands, and return the agreed size of a frame in bytes. Raises: TransportError."""
        return await self.run(_open)

    async def open_channel(self, *, confirms: bool) -> Channel:
        """Open a channel. Cancelled, it is closed again. Raises: TransportError."""

        async def work(connection: aiormq.Connection) -> Channel:
            return await connection.channel(publisher_confirms=confirms)

        return await self.run(work, undo=_close)

    async def leave(self, channel: Channel, consumer_tag: str | None) -> None:
        """Stop consuming, if there is something to stop, and close the channel. Raises: TransportError."""

        async def work(_: aiormq.Connection) -> None:
            if consumer_tag is not None:
                # Not for the sake of manners: a channel hands acknowledgements on to a quorum queue a few at a time,
                # and forgets the others when it is closed (RabbitMQ 3.10). The queue answers to this after them.
                with contextlib.suppress(ChannelClosed, ChannelInvalidStateError):
                    await channel.basic_cancel(consumer_tag)
            await channel.close()

        await self.run(work)

    async def consume(self, channel: Channel, queue: str, prefetch: int) -> str:
        """Begin to consume, and return the consumer's tag. Raises: ConsumerCancelledError, TransportError."""

        async def work(_: aiormq.Connection) -> str:
            try:
                await channel.basic_qos(prefetch_count=prefetch)
                return cast(str, (await channel.basic_consume(queue, _never_called)).consumer_tag)
            except ChannelClosed as error:
                raise ConsumerCancelledError(
                    f"Queue {queue!r} cannot be consumed from: {error.args[-1] if error.args else error!r}"
                ) from error
            except ValueError as error:  # of pamqp, which lets fewer names pass than RabbitMQ
                raise ConsumerCancelledError(f"There can be no queue {queue!r}: {error}") from error

        return await self.run(work)

    async def cancel(self, channel: Channel, consumer_tag: str) -> None:
        """Stop consuming; returns when the broker agreed. Raises: TransportError."""

        async def work(_: aiormq.Connection) -> None:
            await channel.basic_cancel(consumer_tag)

        await self.run(work)

    async def run(self, work: Work[T], undo: Callable[[T], Coroutine[Any, Any, None]] | None = None) -> T:
        """Have something done in the portal, and return the result.

        Cancelled, it goes on there, and `undo` is called with its result. Raises: TransportError.
        """
        if self._lost is not None:
            raise self._again()
        done = anyio.Event()
        self._waiting.add(done)
        future = asyncio.run_coroutine_threadsafe(self._perform(work), self._loop)
        future.add_done_callback(lambda _: self._soon(done.set))
        try:
            await done.wait()
        except BaseException:
            if undo is not None:
                future.add_done_callback(lambda _: self._undo(future, undo))
            raise
        finally:
            self._waiting.discard(done)
        if self._lost is not None:
            raise self._again()
        return future.result()

    @property
    def unanswered(self) -> frozenset[object]:
        """What is being waited for; something else for each call of `run`."""
        return frozenset(self._waiting)

    def feed(self, data: bytes) -> None:
        """Hand whole frames from the broker to aiormq."""
        self._in_portal(self._reader.feed_data, data)

    def lose(self, error: TransportError) -> None:
        """Learn that the connection is gone: whatever is being waited for fails with the error.

        To aiormq it looks like an orderly end, which is the one that it doesn't complain about in the logs.
        """
        self._lost = error
        for done in self._waiting:
            done.set()
        if self._started:
            self._in_portal(self._end_reader)

    async def close(self) -> None:
        """Say goodbye to the broker, and wait for its answer."""
        self._closing = True
        # aiormq doesn't say goodbye on a connection that it hasn't heard of for long.
        self.feed(HEARTBEAT_FRAME)
        with contextlib.suppress(TransportError):
            await self.run(_close_connection)

    async def stop(self) -> None:
        """End the portal thread; call it after `lose`. Blocks for a millisecond at the end."""
        if not self._started:
            self._portal.close()
            return
        self._started = False
        done = anyio.Event()
        future = asyncio.run_coroutine_threadsafe(self._finish(), self._loop)
        future.add_done_callback(lambda _: self._soon(done.set))
        try:
            await done.wait()
        finally:
            self._portal.close()

    async def _perform(self, work: Work[T]) -> T:
        try:
            return await work(self._connection)
        except TransportError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if self._closing:
                raise TransportClosedError("The transport was closed") from error
            raise ConnectionLostError(
                f"The conversation with the broker at {self._address} failed: {str(error) or type(error).__name__}"
            ) from error

    def _again(self) -> TransportError:
        assert self._lost is not None
        error = type(self._lost)(*self._lost.args)
        error.__cause__ = self._lost.__cause__
        return error

    def _undo(self, future: "Future[T]", undo: Callable[[T], Coroutine[Any, Any, None]]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._in_portal(self._spawn, undo, future.result())

    def _spawn(self, undo: Callable[[T], Coroutine[Any, Any, None]], result: T) -> None:
        async def quietly() -> None:
            with contextlib.suppress(Exception):
                await undo(result)

        self._background.add(task := self._loop.create_task(quietly()))
        task.add_done_callback(self._background.discard)

    def _in_portal(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the portal's loop has ended
            self._loop.call_soon_threadsafe(function, *arguments)

    # From here on everything runs in the portal thread.

    def _prepare(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_keep_quiet)
        self._own_tasks = asyncio.all_tasks()
        self._background: set[asyncio.Task[None]] = set()
        self._reader = asyncio.StreamReader()
        self._quiet.thread = threading.get_ident()
        self._connection = aiormq.Connection(
            self._address.secret_url,
            transport_factory=_Factory(
                self._reader,
                _Writer(lambda data: self._soon(self._write, data), lambda: self._soon(self._gave_up)),
            ),
        )

    def _end_reader(self) -> None:
        self._reader.feed_data(CLOSE_OK_FRAME)
        self._reader.feed_eof()

    async def _finish(self) -> None:
        with contextlib.suppress(Exception):
            await self._connection.close()
        rest = asyncio.all_tasks() - self._own_tasks - {asyncio.current_task()}
        if rest:
            _, rest = await asyncio.wait(rest, timeout=LAST_TASKS)
        for task in rest:
            task.cancel()


class _Factory(TransportFactory):
    def __init__(self, reader: asyncio.StreamReader, writer: "_Writer") -> None:
        self._reader = reader
        self._writer = writer

    async def create(self, url: Any, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return self._reader, cast(asyncio.StreamWriter, self._writer)


class _Writer:
    """As much of an asyncio.StreamWriter as aiormq uses."""

    def __init__(self, write: Callable[[bytes], None], closed: Callable[[], None]) -> None:
        self.write = write
        self.transport = self
        self._closed = closed
        self._closing = False

    async def drain(self) -> None:
        """Return at once: what aiormq sends is little, and the link bounds the rest."""

    async def wait_closed(self) -> None:
        """Return at once: the socket is the link's."""

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        """Do nothing: the socket is the link's."""

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._closed()

    abort = close


class _Quiet(logging.Filter):
    """Turns what aiormq logs in one thread into our debug messages; other users of aiormq notice nothing."""

    LOGGERS = ("aiormq.connection", "aiormq.channel")

    def __init__(self) -> None:
        super().__init__()
        self.thread: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if threading.get_ident() != self.thread:
            return True
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("aiormq: %s", record.getMessage(), exc_info=record.exc_info)
        return False

    def __enter__(self) -> "_Quiet":
        for name in self.LOGGERS:
            logging.getLogger(name).addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).removeFilter(self)


def _keep_quiet(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    logger.debug("aiormq: %s", context.get("message"), exc_info=context.get("exception"))


def _caller_of_this_loop() -> Callable[..., None]:
    """Return a function that has a function called soon in this event loop, from any thread."""
    token = cast(Any, anyio.lowlevel.current_token().native_token)
    call = token.call_soon_threadsafe if hasattr(token, "call_soon_threadsafe") else token.run_sync_soon

    def soon(function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # that loop has ended
            call(function, *arguments)

    return soon


async def _open(connection: aiormq.Connection) -> int:
    try:
        await cast(Any, connection).connect()
    except aiormq.exceptions.AuthenticationError as error:
        raise AuthenticationError(f"it offers {error.args[0]}") from error
    return connection.connection_tune.frame_max


async def _close_connection(connection: aiormq.Connection) -> None:
    await connection.close()


async def _close(channel: Channel) -> None:
    await channel.close()


async def _never_called(_: object) -> None:
    """Stand in for the callback that aiormq wants: deliveries never get as far as that."""
