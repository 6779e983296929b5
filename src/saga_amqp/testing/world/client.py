"""The simulated transport: one process's handle on the broker, which is cut when the process dies."""

from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import msgspec
import trio

from saga_amqp.contracts import Delivery, Message, Settled, Topology
from saga_amqp.errors import (
    ConnectFailedError,
    ConnectionLostError,
    QueueNotFoundError,
    TopologyError,
    TransportClosedError,
    TransportError,
)
from saga_amqp.testing.world.broker import Broker, Held
from saga_amqp.testing.world.link import Link
from saga_amqp.testing.world.network import Network
from saga_amqp.testing.world.pulse import Pulse

POLITENESS = 1.0
"""Seconds that a transport waits for the broker when it closes."""


class WorldTransport:
    """A transport to the broker of a world; see `contracts.Transport`.

    `acknowledging` is told of every message just before its acknowledgement is sent.
    """

    def __init__(
        self,
        broker: Broker,
        network: Network,
        pulse: Pulse,
        acknowledging: Callable[[Held], None] = lambda held: None,
    ) -> None:
        self._broker = broker
        self._network = network
        self._pulse = pulse
        self._acknowledging = acknowledging
        self._link: Link | None = None
        self._consumers = 0

    async def __aenter__(self) -> Self:
        """Connect. Raises: ConnectFailedError."""
        self._pulse.check()
        await trio.sleep(3 * self._network.delay(self._pulse.who, f"connect {self._pulse.who}"))
        self._pulse.check()
        if not self._broker.up:
            raise ConnectFailedError("Nobody answers at this address")
        link = self._link = Link(self._broker, self._network, self._pulse.who)
        self._pulse.at_death(link.forget_client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close in an orderly way."""
        link = self._link
        if link is None or not link.is_up or not self._pulse.alive:
            return
        with trio.CancelScope(shield=True), trio.move_on_after(POLITENESS):
            done = trio.Event()

            def end() -> None:
                link.take_back()
                link.answer(f"closed {link.who}", done.set)

            link.send(f"close {link.who}", end)
            await done.wait()
        link.gone(TransportClosedError("The transport was closed"))
        self._network.agenda.after(0.0, link.end_at_broker)

    async def lost(self) -> TransportError:
        """Wait for the end of the connection."""
        if self._link is None:
            return TransportClosedError("The transport is not open")
        await self._link.lost.wait()
        assert self._link.why is not None
        return self._link.why

    def renewed(self) -> Self:
        """Return another transport to the same broker."""
        return type(self)(self._broker, self._network, self._pulse, self._acknowledging)

    async def missing(self, topology: Topology) -> Collection[str]:
        """Return the names of the queues that do not exist. Raises: ConnectionLostError, TransportClosedError."""
        missing: list[str] = []

        def ask() -> TransportError | None:
            missing.extend(queue.name for queue in topology.queues if queue.name not in self._broker.queues)
            return None

        await self._ask(self._open(), ask)
        return missing

    async def declare(self, topology: Topology) -> None:
        """Create what is missing. Raises: TopologyError, ConnectionLostError, TransportClosedError."""

        def ask() -> TransportError | None:
            try:
                self._broker.declare(topology)
            except TopologyError as error:
                return error
            return None

        await self._ask(self._open(), ask)

    async def depth(self, queue: str) -> int:
        """Return how many messages of a queue are ready. Raises: QueueNotFoundError, ConnectionLostError."""
        found: list[int] = []

        def ask() -> TransportError | None:
            try:
                found.append(self._broker.depth(queue))
            except QueueNotFoundError as error:
                return error
            return None

        await self._ask(self._open(), ask)
        return found[0]

    @asynccontextmanager
    async def consume(
        self, queue: str, prefetch: int, receive: Callable[[Delivery], None]
    ) -> AsyncGenerator["Consuming", None]:
        """Hand each message of a queue to `receive`. Raises: ConsumerCancelledError, ConnectionLostError."""
        link = self._open()
        self._consumers += 1
        number = self._consumers
        consuming = Consuming(link, number, receive, self._acknowledging, self._pulse)
        link.consuming[number] = consuming
        try:
            await self._ask(link, lambda: link.subscribe(number, queue, prefetch))
            yield consuming
        finally:
            consuming.left = True
            if link.is_up and self._pulse.alive:
                link.send(f"unsubscribe {link.who}", lambda: link.unsubscribe(number))

    async def publish(self, message: Message, settled: Settled) -> None:
        """Send a message. Raises: ConnectionLostError, TransportClosedError."""
        link = self._open()
        if message.headers:  # the publisher keeps its own, and may change it
            message = msgspec.structs.replace(message, headers=dict(message.headers))
        await trio.lowlevel.checkpoint()
        while link.is_up and link.blocked:
            await link.unblocked.wait()
        self._pulse.check()
        if link.why is not None:
            raise type(link.why)(*link.why.args)
        link.publish(message, settled)

    async def _ask(self, link: Link, do: Callable[[], TransportError | None]) -> None:
        answers: list[TransportError | None] = []
        answered = trio.Event()

        def arrive() -> None:
            answers.append(do())
            link.answer(f"answer {link.who}", answered.set)

        link.send(f"ask {link.who}", arrive)
        await link.until(answered)
        self._pulse.check()
        if not answered.is_set():
            assert link.why is not None
            raise type(link.why)(*link.why.args)
        if (error := answers[0]) is not None:
            raise error

    def _open(self) -> Link:
        self._pulse.check()
        if self._link is None:
            raise TransportClosedError("The transport is not open; use it inside `async with`")
        if self._link.why is not None:
            raise type(self._link.why)(*self._link.why.args)
        return self._link


class Consuming:
    """A client's side of a subscription; see `contracts.Consumer`."""

    def __init__(
        self,
        link: Link,
        number: int,
        receive: Callable[[Delivery], None],
        acknowledging: Callable[[Held], None],
        pulse: Pulse,
    ) -> None:
        self.link = link
        self.number = number
        self.left = False
        self.acknowledging = acknowledging
        self.pulse = pulse
        self._receive = receive
        self._why: TransportError | None = None
        self._ended = trio.Event()

    def take(self, tag: int, held: Held, redelivered: bool, headers: Mapping[str, object]) -> None:
        """Take a message that has arrived."""
        if not self.left and self.pulse.alive:
            self._receive(InHand(self, tag, held, redelivered, headers))

    def end(self, why: TransportError) -> None:
        """Let the subscription break."""
        self.left = True
        self._why = why
        self._ended.set()

    async def cancel(self) -> None:
        """Ask for no more deliveries. Raises: ConnectionLostError."""
        done = trio.Event()

        def arrive() -> None:
            self.link.pause(self.number)
            self.link.answer(f"paused {self.link.who}", done.set)

        self.link.send(f"pause {self.link.who}", arrive)
        await self.link.until(done)
        if not done.is_set():
            raise ConnectionLostError("The connection to the broker was lost")

    async def failed(self) -> TransportError:
        """Wait until the subscription breaks."""
        await self.link.until(self._ended)
        error = self._why or self.link.why
        assert error is not None
        return error


class InHand:
    """A message in a consumer's hands; see `contracts.Delivery`."""

    __slots__ = ("_consuming", "_held", "_settled", "_tag", "headers", "redelivered")

    def __init__(
        self, consuming: Consuming, tag: int, held: Held, redelivered: bool, headers: Mapping[str, object]
    ) -> None:
        self._consuming = consuming
        self._tag = tag
        self._held = held
        self._settled = False
        self.redelivered = redelivered
        self.headers = headers

    @property
    def body(self) -> bytes:
        """The message's body."""
        return self._held.message.body

    @property
    def message_id(self) -> str:
        """The message's id."""
        return self._held.message.id

    def acknowledge(self) -> None:
        """Take the message off its queue."""
        if self._settle(None):
            self._consuming.acknowledging(self._held)

    def reject(self, *, requeue: bool) -> None:
        """Give the message back."""
        self._settle(requeue)

    def _settle(self, requeue: bool | None) -> bool:
        consuming, tag = self._consuming, self._tag
        if self._settled or consuming.left or not consuming.pulse.alive or not consuming.link.is_up:
            return False
        self._settled = True
        about = f"settle {self._held.message.id}"
        consuming.link.send(about, lambda: consuming.link.settle(consuming.number, tag, requeue))
        return True
