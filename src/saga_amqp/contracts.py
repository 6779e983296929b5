"""Every contract between the engine and the world: what a store and a transport promise.

Nothing here acts. `saga_amqp.testing` holds the suites that every implementation passes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Literal, Protocol, Self

import msgspec

from saga_amqp.errors import TransportError
from saga_core.events import Event
from saga_core.model import Saga
from saga_core.states import SagaState


class Store(Protocol):
    """Sagas at rest and in flight, each with its history.

    A store keeps; it never decides. Whatever it hands out is immutable, so nothing is shared by accident.
    """

    async def create(self, saga: Saga) -> None:
        """Keep a new saga.

        Raises: SagaExistsError.
        """
        ...

    async def load(self, saga_id: str) -> Saga:
        """Return the saga as last committed.

        Raises: SagaNotFoundError.
        """
        ...

    async def commit(self, saga: Saga, event: Event) -> None:
        """Replace the saga, and add the event to its history, if its revision is still `saga.revision - 1`.

        Either both happen or neither. Cancelled, it may have happened or not: load the saga to know.

        Raises: ConflictError, SagaNotFoundError.
        """
        ...

    async def delete(self, saga_id: str) -> None:
        """Forget a saga and its history; an unknown id is no error."""
        ...

    async def list(self, states: Collection[SagaState]) -> Sequence[Saga]:
        """Return the sagas that are in one of the states, oldest first."""
        ...

    async def history(self, saga_id: str) -> tuple[Saga, Sequence[Event]]:
        """Return the saga as created, and every event committed since, in order.

        Raises: SagaNotFoundError.
        """
        ...

    async def rested(self, saga_id: str) -> Saga:
        """Wait until the saga is completed, compensated or failed, and return it.

        Raises: SagaNotFoundError, also when it is deleted meanwhile.
        """
        ...


class Message(msgspec.Struct, frozen=True):
    """One message to publish: persistent, JSON, mandatory (an unroutable one is an error).

    `id` is the AMQP message id, at most 255 bytes of UTF-8 as are exchange, routing key and type.
    """

    exchange: str
    routing_key: str
    body: bytes
    id: str
    type: str
    headers: Mapping[str, str | int] | None = None


class Exchange(msgspec.Struct, frozen=True):
    """A durable exchange; with `auto_delete` it goes with its last binding."""

    name: str
    kind: Literal["topic", "direct", "fanout"] = "topic"
    auto_delete: bool = False


class Queue(msgspec.Struct, frozen=True):
    """A durable queue.

    `bindings` are pairs of exchange and routing pattern. Rejected messages go to the queue `dead_letter`. The
    broker deletes the queue when nobody has used it for `expires` seconds; None keeps it.
    """

    name: str
    bindings: tuple[tuple[str, str], ...] = ()
    dead_letter: str | None = None
    kind: Literal["quorum", "classic"] = "quorum"
    expires: float | None = None


class Topology(msgspec.Struct, frozen=True):
    """What has to exist on the broker before anybody publishes or consumes."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]


class Delivery(Protocol):
    """A message in this process's hands, until it is acknowledged or rejected. Call one of the two, once.

    Both only take note and never wait. Once the consumer is gone they do nothing: the broker delivers again.
    """

    @property
    def body(self) -> bytes:
        """What was published."""
        ...

    @property
    def redelivered(self) -> bool:
        """Whether the broker has, or may have, delivered it before."""
        ...

    @property
    def message_id(self) -> str:
        """The id that it was published with, or an empty string."""
        ...

    @property
    def headers(self) -> Mapping[str, object]:
        """The headers that it was published with, and those that the broker added."""
        ...

    def acknowledge(self) -> None:
        """Tell the broker that the message is done with."""
        ...

    def reject(self, *, requeue: bool) -> None:
        """Give the message back: to its queue, or else to the queue's dead-letter queue."""
        ...


class Consumer(Protocol):
    """A running subscription to one queue."""

    async def cancel(self) -> None:
        """Ask for no more deliveries; those in hand can still be acknowledged. Returns when the broker agreed."""
        ...

    async def failed(self) -> TransportError:
        """Wait until the subscription breaks, and return why. Never returns after an orderly end."""
        ...


class Transport(Protocol):
    """The way to a broker. An async context manager: open inside, closed after.

    Its background tasks live in a task group that is entered and left with the context. They never raise into
    the caller's code: a broken connection is learnt through `Consumer.failed`, through what `publish` hands to
    its callback, and through the errors of later calls.
    """

    async def __aenter__(self) -> Self:
        """Connect.

        Raises: ConnectFailedError, AuthenticationError, VirtualHostError.
        """
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, if `close` was not called before, and wait for the background tasks."""
        ...

    async def close(self) -> None:
        """Close in an orderly way; what is outstanding fails with TransportClosedError. Idempotent.

        Shielded from cancellation, and bounded in time: it never waits for a broker that has gone.
        """
        ...

    async def declare(self, topology: Topology) -> None:
        """Create what is missing; what exists must be as asked.

        Raises: TopologyError, ConnectionLostError.
        """
        ...

    def consume(
        self, queue: str, prefetch: int, receive: Callable[[Delivery], None]
    ) -> AbstractAsyncContextManager[Consumer]:
        """Hand each message of a queue to `receive`, at most `prefetch` unacknowledged ones at a time.

        `receive` runs in the event loop's own thread; it must neither wait nor raise. On leaving the
        context what was acknowledged is sent, and the broker takes back all the rest.

        Raises: ConsumerCancelledError (no such queue), ConnectionLostError.
        """
        ...

    async def publish(self, message: Message, settled: Callable[[TransportError | None], None]) -> None:
        """Send a message; `settled` is called once, with None when the broker has confirmed it.

        Waits only while the outgoing buffer is full or the broker blocks publishers. Cancelled while it waits,
        nothing was sent and `settled` is not called. Once it returned, `settled` is called in any case, in the
        event loop's own thread, be it with the error: UnroutableError, PublishError, ConnectionLostError. It
        may be called before `publish` returns. It must neither wait nor raise.

        Raises: ConnectionLostError, TransportClosedError; then `settled` is not called.
        """
        ...
