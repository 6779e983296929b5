"""The way to the broker, which is made anew whenever it is lost: new socket, new connection, topology declared again.

What was under way on a lost connection is not saved here. What was published and not confirmed fails; what was
not acknowledged is delivered again. Both are the engine's daily bread.
"""

import logging
import random
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from saga_amqp.backoff import pauses
from saga_amqp.contracts import Message, Settled, Topology, Transport
from saga_amqp.errors import ConnectionLostError, TransportClosedError, TransportError

logger = logging.getLogger("saga_amqp.connection")


class Reconnecting:
    """A line of transports to one broker, of which at most one is open at a time; `line` counts them."""

    def __init__(
        self, transport: Transport, topology: Topology, chance: Callable[[], float] = random.random
    ) -> None:
        self._first = transport
        self._topology = topology
        self._chance = chance
        self._current: Transport | None = None
        self._restored = anyio.Event()
        self._settled = anyio.Event()
        self._refusal: BaseException | None = None
        self._scope: anyio.CancelScope | None = None
        self._ended = anyio.Event()
        self._closing = False
        self.line = 0
        self._missing: set[str] = set()
        self._noticed = anyio.Event()
        self._declaring = anyio.Lock()
        self._asked = self._declared = 0

    async def open(self, tasks: TaskGroup) -> None:
        """Connect, declare what is missing on the broker, and stay connected until `close`, in a task of its own.

        Raises: ConnectFailedError, AuthenticationError, VirtualHostError, TopologyError; then nothing is left open.
        """
        # Not `tasks.start`: cancelled, it would wait for a task that only `close` ends, and never get there.
        self._scope = anyio.CancelScope()
        tasks.start_soon(self._keep, self._scope)
        await self._settled.wait()
        if self._refusal is not None:
            raise self._refusal
        if self._current is None:
            raise TransportClosedError("The connection to the broker was closed while it was being made")

    async def close(self) -> None:
        """End the connection in an orderly way. Shielded, and bounded in time as the transport's own closing is."""
        self._closing = True
        if self._scope is not None:
            self._scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._ended.wait()

    @property
    def is_away(self) -> bool:
        """Whether there is no connection."""
        return self._current is None

    async def restored(self) -> Transport:
        """Wait until there is a connection, and return its transport."""
        while self._current is None:
            if self._scope is None or self._closing:
                raise TransportClosedError("The connection to the broker was closed")
            await self._restored.wait()
        return self._current

    async def declare(self) -> None:
        """Declare what is missing on the broker once more. Raises: TopologyError, ConnectionLostError.

        Of hundreds that find a queue gone at the same time, one does it for all who asked before he began.
        """
        asked = self._asked
        async with self._declaring:
            if self._declared > asked:
                return
            self._asked = now = self._asked + 1
            await self._declare(self._open())
            self._declared = now

    def miss(self, queue: str) -> None:
        """Note that a queue was deleted. Who declares it again may not see that: the broker takes a while to delete."""
        self._missing.add(queue)
        self._noticed.set()

    def missed(self) -> frozenset[str]:
        """Return which queues were missing on the broker, each once."""
        missing, self._missing = frozenset(self._missing), set()
        return missing

    async def misses(self) -> None:
        """Wait until there is something that was missing."""
        while not self._missing:
            self._noticed = anyio.Event()
            await self._noticed.wait()

    def publish(self, message: Message, settled: Settled) -> Awaitable[None]:
        """Send a message over the connection that there is now; see `contracts.Transport.publish`.

        Raises: ConnectionLostError, also while there is none; TransportClosedError.
        """
        return self._open().publish(message, settled)

    async def _declare(self, transport: Transport) -> None:
        # Noted before anything is made: once it is there, nobody can tell that it was missing.
        missing = await transport.missing(self._topology)
        if missing:
            self._missing.update(missing)
            self._noticed.set()
        await transport.declare(self._topology)

    def _open(self) -> Transport:
        if self._current is None:
            if self._closing or self._scope is None:
                raise TransportClosedError("The connection to the broker was closed")
            raise ConnectionLostError("There is no connection to the broker; it is being made again")
        return self._current

    async def _keep(self, scope: anyio.CancelScope) -> None:
        transport, waiting = self._first, pauses(self._chance)
        try:
            with scope:
                while True:
                    try:
                        async with transport:
                            await self._declare(transport)
                            self._come_up(transport, scope)
                            waiting = pauses(self._chance)
                            error: Exception = await transport.lost()
                            self._current = None
                    except TransportError as failure:
                        if not scope.shield:
                            self._refusal = failure
                            return
                        error = failure
                    if self._restored.is_set():
                        self._restored = anyio.Event()
                        logger.warning("The broker is gone, and will be connected to again: %s", error)
                    else:
                        logger.info("The broker is not back yet: %s", error)
                    await anyio.sleep(next(waiting))
                    transport = transport.renewed()
        finally:
            self._current = None
            self._closing = True
            self._restored.set()
            self._settled.set()
            self._ended.set()

    def _come_up(self, transport: Transport, scope: anyio.CancelScope) -> None:
        self._current = transport
        self.line += 1
        self._restored.set()
        if transport is self._first:
            # Whoever is cancelled from now on may still have something to say on the way out, and closes it then.
            scope.shield = True
            self._settled.set()
        else:
            logger.warning("The broker is connected again")
