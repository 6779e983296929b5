"""Messages for tests of transports, on queues and exchanges that nobody else has and that go by themselves."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

import anyio
from ulid import ULID

from saga_amqp.contracts import Delivery, Exchange, Message, Queue, Topology, Transport
from saga_amqp.errors import TransportError

EXPIRES = 60.0


class Inbox:
    """Keeps what a consumer receives, in its order."""

    def __init__(self) -> None:
        self.received: list[Delivery] = []
        self._taken = 0
        self._more = anyio.Event()

    def __call__(self, delivery: Delivery) -> None:
        """Receive a delivery."""
        self.received.append(delivery)
        self._more.set()

    async def take(self, count: int = 1) -> Sequence[Delivery]:
        """Wait for the next deliveries, and return them."""
        while len(self.received) < self._taken + count:
            self._more = anyio.Event()
            await self._more.wait()
        taken = self.received[self._taken : self._taken + count]
        self._taken += count
        return taken


class Outbox:
    """Publishes, and keeps what became of each message."""

    def __init__(self, transport: Transport) -> None:
        self.outcomes: dict[str, TransportError | None] = {}
        self._transport = transport
        self._pending = 0
        self._more = anyio.Event()

    async def publish(self, *messages: Message) -> None:
        """Publish, and wait until all is settled."""
        await self.begin(*messages)
        await self.settled()

    async def begin(self, *messages: Message) -> None:
        """Publish, and go on."""
        for message in messages:
            self._pending += 1
            await self._transport.publish(message, partial(self._settled, message.id))

    async def settled(self) -> None:
        """Wait until all is settled."""
        while self._pending:
            self._more = anyio.Event()
            await self._more.wait()

    def _settled(self, message_id: str, error: TransportError | None) -> None:
        assert message_id not in self.outcomes, f"message {message_id} was settled twice"
        self.outcomes[message_id] = error
        self._pending -= 1
        self._more.set()


def unique_name(kind: str) -> str:
    """Return a name that nobody else uses."""
    return f"conformance.{kind}.{ULID()}"


def expiring_queue(
    name: str,
    bindings: tuple[tuple[str, str], ...] = (),
    dead_letter: str | None = None,
    kind: Literal["quorum", "classic"] = "quorum",
    delivery_limit: int | None = None,
) -> Queue:
    """Return a queue that the broker deletes when nobody has used it for a minute."""
    return Queue(name, bindings, dead_letter, kind, EXPIRES, delivery_limit)


def passing_exchange(name: str, kind: Literal["topic", "direct", "fanout"] = "topic") -> Exchange:
    """Return an exchange that the broker deletes with its last binding."""
    return Exchange(name, kind, auto_delete=True)


async def new_queue(transport: Transport) -> str:
    """Declare a queue, and return its name."""
    name = unique_name("queue")
    await transport.declare(Topology((), (expiring_queue(name),)))
    return name


def message_to(queue: str, id: str, body: bytes = b"{}") -> Message:
    """Return a message for a queue."""
    return Message("", queue, body, id, "conformance")


def acknowledge(deliveries: Iterable[Delivery]) -> None:
    """Acknowledge deliveries, in the order given."""
    for delivery in deliveries:
        delivery.acknowledge()


async def drain(transport: Transport, queue: str) -> Sequence[tuple[str, bool]]:
    """Take all that a queue holds: the ids, and whether they were delivered before."""
    await Outbox(transport).publish(message_to(queue, "the last one"))
    inbox = Inbox()
    found: list[tuple[str, bool]] = []
    async with transport.consume(queue, 1, inbox):
        while True:
            (delivery,) = await inbox.take()
            delivery.acknowledge()
            if delivery.message_id == "the last one":
                return found
            found.append((delivery.message_id, delivery.redelivered))
