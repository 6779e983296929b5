"""A broker in memory: for tests, trials and demonstrations. Nothing outlives the process.

It keeps the promises of the contract and no more: queues in order, prefetch, redelivery of what a leaving consumer
had not acknowledged, delivery limits, dead letters, unroutable messages as errors. It never fails on its own.
"""

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import anyio
import msgspec

from saga_amqp.contracts import Delivery, Exchange, Message, Queue, Topology
from saga_amqp.errors import (
    ConsumerCancelledError,
    PublishError,
    QueueNotFoundError,
    TopologyError,
    TransportClosedError,
    TransportError,
    UnroutableError,
)
from saga_amqp.patterns import matches
from saga_amqp.transports import letters


class MemoryBroker:
    """Exchanges and queues that several transports in one event loop can share."""

    def __init__(self) -> None:
        self.exchanges: dict[str, Exchange] = {}
        self.queues: dict[str, MemoryQueue] = {}

    def declare(self, topology: Topology) -> None:
        """Create what is missing. Raises: TopologyError when something exists and is different."""
        for exchange in topology.exchanges:
            if self.exchanges.setdefault(exchange.name, exchange) != exchange:
                raise TopologyError(f"Exchange {exchange.name!r} exists as {self.exchanges[exchange.name]}")
        for queue in topology.queues:
            existing = self.queues.setdefault(queue.name, MemoryQueue(self, queue))
            existing.declared = declared_again(existing.declared, queue)

    def route(self, message: Message) -> None:
        """Put a message into every queue that is bound for it. Raises: PublishError, UnroutableError."""
        if message.exchange == "":
            targets = [queue for queue in self.queues.values() if queue.declared.name == message.routing_key]
        elif message.exchange not in self.exchanges:
            raise PublishError(f"There is no exchange {message.exchange!r} to publish {message.id} to")
        else:
            kind = self.exchanges[message.exchange].kind
            targets = [
                queue
                for queue in self.queues.values()
                if any(
                    exchange == message.exchange and matches(kind, pattern, message.routing_key)
                    for exchange, pattern in queue.declared.bindings
                )
            ]
        if message.mandatory and not targets:
            raise UnroutableError(
                f"Message {message.id} has nowhere to go: no queue is bound to exchange {message.exchange!r} "
                f"for {message.routing_key!r}"
            )
        if message.headers:  # the publisher keeps its own, and may change it
            message = msgspec.structs.replace(message, headers=dict(message.headers))
        for queue in targets:
            queue.put(MemoryMessage(message))

    def held(self, queue: str) -> int:
        """Return how many messages a queue holds, those with consumers included."""
        return len(self.queues[queue].ready) + sum(len(one.in_hand) for one in self.queues[queue].consumers)


class MemoryMessage:
    """A message in a queue, how often it was handed out, and its headers with those that the broker added."""

    __slots__ = ("deliveries", "headers", "message")

    def __init__(self, message: Message, headers: Mapping[str, object] | None = None) -> None:
        self.message = message
        self.headers = headers or message.headers or {}
        self.deliveries = 0


class MemoryQueue:
    """One queue and its consumers, served in turn."""

    def __init__(self, broker: MemoryBroker, declared: Queue) -> None:
        self.broker = broker
        self.declared = declared
        self.ready: deque[MemoryMessage] = deque()
        self.consumers: deque[MemoryConsumer] = deque()

    def put(self, message: MemoryMessage) -> None:
        """Add a message at the end."""
        self.ready.append(message)
        self.serve()

    def serve(self) -> None:
        """Hand out what consumers have room for."""
        while self.ready and (consumer := self._next_with_room()) is not None:
            message = self.ready.popleft()
            message.deliveries += 1
            delivery = MemoryDelivery(consumer, message)
            consumer.in_hand[delivery] = None
            consumer.receive(delivery)

    def take_back(self, messages: Sequence[MemoryMessage]) -> None:
        """Put messages to the front again, in their order; those that come back too often are dead letters."""
        for message in reversed(messages):
            if not letters.is_given_up(self.declared, message.deliveries):
                self.ready.appendleft(message)
        for message in messages:
            if letters.is_given_up(self.declared, message.deliveries):
                self.dead_letter(message, "delivery_limit")
        self.serve()

    def dead_letter(self, message: MemoryMessage, reason: letters.Reason) -> None:
        """Move a message to where its queue says; without such a place it is gone."""
        name = self.declared.dead_letter
        if name is not None and name in self.broker.queues:
            was = message.message
            headers = letters.dead(
                message.headers, self.declared, reason, was.exchange, was.routing_key, time.time()
            )
            moved = msgspec.structs.replace(was, exchange="", routing_key=name)
            self.broker.queues[name].put(MemoryMessage(moved, headers))

    def _next_with_room(self) -> "MemoryConsumer | None":
        for _ in range(len(self.consumers)):
            consumer = self.consumers[0]
            self.consumers.rotate(-1)
            if consumer.active and len(consumer.in_hand) < consumer.prefetch:
                return consumer
        return None


class MemoryConsumer:
    """A subscription; see `contracts.Consumer`."""

    def __init__(self, queue: MemoryQueue, prefetch: int, receive: Callable[[Delivery], None]) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self.receive = receive
        self.active = True
        self.in_hand: dict[MemoryDelivery, None] = {}

    async def cancel(self) -> None:
        """Ask for no more deliveries."""
        self.active = False

    async def failed(self) -> TransportError:
        """Wait for a failure: here there is none."""
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    def leave(self) -> None:
        """Give back what is in hand, to the front of the queue and in its old order."""
        self.active = False
        self.queue.consumers.remove(self)
        in_hand = [delivery.held for delivery in self.in_hand]
        self.in_hand.clear()
        self.queue.take_back(in_hand)


class MemoryDelivery:
    """A message in a consumer's hands; see `contracts.Delivery`."""

    __slots__ = ("_consumer", "_given_back", "held")

    def __init__(self, consumer: MemoryConsumer, held: MemoryMessage) -> None:
        self._consumer = consumer
        self._given_back = held.deliveries - 1
        self.held = held

    @property
    def body(self) -> bytes:
        """The message's body."""
        return self.held.message.body

    @property
    def redelivered(self) -> bool:
        """Whether the message was handed out before."""
        return self._given_back > 0

    @property
    def message_id(self) -> str:
        """The message's id."""
        return self.held.message.id

    @property
    def headers(self) -> Mapping[str, object]:
        """The message's headers, and those that the broker added."""
        return letters.delivered(self.held.headers, self._consumer.queue.declared, self._given_back)

    def acknowledge(self) -> None:
        """Take the message off its queue."""
        if self._settle():
            self._consumer.queue.serve()

    def reject(self, *, requeue: bool) -> None:
        """Give the message back."""
        if self._settle():
            queue = self._consumer.queue
            if requeue:
                queue.take_back([self.held])
            else:
                queue.dead_letter(self.held, "rejected")
                queue.serve()

    def _settle(self) -> bool:
        if self not in self._consumer.in_hand:
            return False
        del self._consumer.in_hand[self]
        return True


class MemoryTransport:
    """A transport to a broker in this process; by default one of its own."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = broker or MemoryBroker()
        self._open = False

    async def __aenter__(self) -> Self:
        """Open."""
        self._open = True
        self._closed = anyio.Event()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close; consumers end with their contexts."""
        if self._open:
            self._open = False
            self._closed.set()

    async def lost(self) -> TransportError:
        """Wait for the end of the connection: it ends by being closed only."""
        if self._open:
            await self._closed.wait()
        return TransportClosedError("The transport was closed")

    def renewed(self) -> Self:
        """Return another transport to the same broker."""
        return type(self)(self.broker)

    async def missing(self, topology: Topology) -> Collection[str]:
        """Return the names of the queues that do not exist. Raises: TransportClosedError."""
        self._check_open()
        return [queue.name for queue in topology.queues if queue.name not in self.broker.queues]

    async def declare(self, topology: Topology) -> None:
        """Create what is missing. Raises: TopologyError, TransportClosedError."""
        self._check_open()
        self.broker.declare(topology)

    async def depth(self, queue: str) -> int:
        """Return how many messages of a queue are ready. Raises: QueueNotFoundError, TransportClosedError."""
        self._check_open()
        if queue not in self.broker.queues:
            raise QueueNotFoundError(f"There is no queue {queue!r} on the broker; declare it first")
        return len(self.broker.queues[queue].ready)

    @asynccontextmanager
    async def consume(
        self, queue: str, prefetch: int, receive: Callable[[Delivery], None]
    ) -> AsyncGenerator[MemoryConsumer, None]:
        """Hand each message of a queue to `receive`. Raises: ConsumerCancelledError, TransportClosedError."""
        self._check_open()
        if queue not in self.broker.queues:
            raise ConsumerCancelledError(f"There is no queue {queue!r} to consume from; declare it first")
        consumer = MemoryConsumer(self.broker.queues[queue], prefetch, receive)
        consumer.queue.consumers.append(consumer)
        consumer.queue.serve()
        try:
            yield consumer
        finally:
            consumer.leave()

    async def publish(self, message: Message, settled: Callable[[TransportError | None], None]) -> None:
        """Put a message into its queues at once. Raises: TransportClosedError."""
        self._check_open()
        try:
            self.broker.route(message)
        except PublishError as error:
            settled(error)
        else:
            settled(None)

    def _check_open(self) -> None:
        if not self._open:
            raise TransportClosedError("The transport is not open; use it inside `async with`")


def declared_again(existing: Queue, queue: Queue) -> Queue:
    """Return what a queue is when it is declared once more: bindings are added to those that it has.

    Raises: TopologyError when it is different in anything else.
    """
    bindings = tuple(dict.fromkeys((*existing.bindings, *queue.bindings)))
    declared = msgspec.structs.replace(queue, bindings=bindings)
    if msgspec.structs.replace(existing, bindings=bindings) != declared:
        raise TopologyError(f"Queue {queue.name!r} exists as {existing}, not as {queue}")
    return declared
