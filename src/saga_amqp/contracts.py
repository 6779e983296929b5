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


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which sagas to look for; all that is given has to hold.

    `tags` have to be there with these values, beside any others. Times are seconds since 1970, UTC, exclusive.
    """

    states: frozenset[SagaState] = frozenset(SagaState)
    name: str | None = None
    tags: Mapping[str, str] = {}
    created_before: float | None = None
    updated_before: float | None = None


EVERYTHING = Query()


class Page(msgspec.Struct, frozen=True):
    """Some of the sagas that a query finds; `cursor` leads to the next ones, None when these were the last."""

    sagas: tuple[Saga, ...]
    cursor: str | None = None


Commit = tuple[str, int]
"""One commit: the saga's id, and the revision that it made. Revision 0 is the saga's creation."""

AT_ONCE = 0.0
"""The note of a commit that its maker does not publish: whoever finds it first does."""


class Store(Protocol):
    """Sagas at rest and in flight, each with its history.

    A store keeps; it never decides. Whatever it hands out is immutable, so nothing is shared by accident. Any number
    of processes may share one, unless it says otherwise. Use it as an async context manager, around the managers.

    A commit that no message will bring up again, because none caused it, is noted as *unpublished* until somebody says
    that its commands are with the broker. That is the whole outbox: a note on the row that is there anyhow. The note
    is a moment, seconds since 1970, UTC: from then on anybody may claim the commit and publish what it caused.

    Every method may raise StoreUnavailableError: nothing is known to have happened, and it can be tried again.
    """

    async def __aenter__(self) -> Self:
        """Open. Raises: SchemaError, StoreUnavailableError."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what was asked for before is done first."""
        ...

    async def create(self, saga: Saga, *, unpublished: float | None = None) -> Saga:
        """Keep a new saga and return it; or, if one of its name has its key already, return that one as it stands.

        Raises: SagaExistsError.
        """
        ...

    async def load(self, saga_id: str) -> Saga:
        """Return the saga as last committed, by whichever process.

        Raises: SagaNotFoundError.
        """
        ...

    async def commit(self, saga: Saga, event: Event, *, unpublished: float | None = None) -> None:
        """Replace the saga, and add the event to its history, if its revision is still `saga.revision - 1`.

        Either both happen or neither. Cancelled, it may have happened or not: load the saga to know.

        Raises: ConflictError, SagaNotFoundError.
        """
        ...

    async def delete(self, saga_id: str, *, revision: int | None = None) -> None:
        """Forget a saga and its history; an unknown id is no error. With `revision`, only if it is still there.

        Raises: ConflictError.
        """
        ...

    async def find(self, query: Query = EVERYTHING, *, limit: int = 100, cursor: str | None = None) -> Page:
        """Return the first sagas that a query finds, oldest first, or those after a cursor.

        Every saga that fits from the first page to the last is found once, whatever is committed in between.

        Raises: StoreError for a cursor that is none.
        """
        ...

    async def count(self) -> Mapping[SagaState, int]:
        """Return how many sagas there are in each state, 0 included."""
        ...

    async def history(self, saga_id: str) -> tuple[Saga, Sequence[Event]]:
        """Return the saga as created, and every event committed since, in order. Each event has its time.

        Raises: SagaNotFoundError.
        """
        ...

    async def rested(self, saga_id: str) -> Saga:
        """Wait until the saga is completed, compensated or failed, and return it. Whichever process ends it is noticed.

        Raises: SagaNotFoundError, also when it is deleted meanwhile.
        """
        ...

    async def claim_due(self, before: float, until: float, limit: int) -> Sequence[str]:
        """Return the ids of sagas whose `wake_at` is at or before a moment, longest overdue first, and put them off.

        Who else claims gets others, until the moment `until` or until the next commit to the saga says when it is due.
        """
        ...

    async def claim_unpublished(self, before: float, until: float, limit: int) -> Sequence[Commit]:
        """Return commits whose note is at or before a moment, oldest first, and note them anew, at `until`.

        Who else claims gets others, as long as `before` lies before `until`.
        """
        ...

    async def mark_published(self, commits: Collection[Commit]) -> None:
        """Take the notes off these commits; unknown ones are no error."""
        ...

    async def hinted(self) -> None:
        """Wait until somebody hints that there may be something to claim. A hint may be lost, or for nothing."""
        ...

    def hint(self) -> None:
        """Hint at it: in this process at least, in others where the store has a way to. Never waits."""
        ...


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message to publish: persistent, JSON.

    `id` is the AMQP message id, at most 255 bytes of UTF-8 as are exchange, routing key and type. A `mandatory` one
    that no queue wants is an error; another one is then gone, which suits events that nobody may be waiting for.
    """

    exchange: str
    routing_key: str
    body: bytes
    id: str
    type: str
    headers: Mapping[str, str | int] | None = None
    mandatory: bool = True


class Exchange(msgspec.Struct, frozen=True):
    """A durable exchange; with `auto_delete` it goes with its last binding."""

    name: str
    kind: Literal["topic", "direct", "fanout"] = "topic"
    auto_delete: bool = False


class Queue(msgspec.Struct, frozen=True):
    """A durable queue.

    `bindings` are pairs of exchange and routing pattern. Rejected messages go to the queue `dead_letter`. The
    broker deletes the queue when nobody has used it for `expires` seconds; None keeps it.

    A quorum queue keeps a rejected message until it is in `dead_letter`, and also sends there what was given back more
    than `delivery_limit` times. None leaves the limit to the broker: RabbitMQ has none, from version 4 on 20; a very
    large number is no limit anywhere. Whether it counts what a lost consumer had in hand is the broker's affair, too
    (RabbitMQ does before 4.3). A classic queue knows no limit.
    """

    name: str
    bindings: tuple[tuple[str, str], ...] = ()
    dead_letter: str | None = None
    kind: Literal["quorum", "classic"] = "quorum"
    expires: float | None = None
    delivery_limit: int | None = None


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
        """The headers that it was published with, and those that the broker added.

        The latter are `x-delivery-count` from a quorum queue, how often the message was given back, absent the first
        time; and on a dead letter `x-death`, a list of what befell it, the latest first.

        Raises: FrameError, when a foreign publisher's cannot be decoded.
        """
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


Settled = Callable[[TransportError | None], None]
"""Is told what became of a published message: None when the broker has confirmed it."""


class Transport(Protocol):
    """The way to a broker. An async context manager: open inside, closed after.

    Its background tasks live in a task group that is entered and left with the context. They never raise into
    the caller's code: a broken connection is learnt through `lost` and `Consumer.failed`, through what `publish`
    hands to its callback, and through the errors of later calls.
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

    async def lost(self) -> TransportError:
        """Wait until the connection ends, and return why. Only inside the context."""
        ...

    def renewed(self) -> Self:
        """Return another transport to the same broker, which is not entered yet."""
        ...

    async def missing(self, topology: Topology) -> Collection[str]:
        """Return the names of the queues that do not exist.

        Raises: ConnectionLostError, TransportClosedError.
        """
        ...

    async def declare(self, topology: Topology) -> None:
        """Create what is missing; what exists must be as asked.

        Raises: TopologyError, ConnectionLostError.
        """
        ...

    async def depth(self, queue: str) -> int:
        """Return how many messages of a queue are ready: in nobody's hands yet.

        Raises: QueueNotFoundError, ConnectionLostError, TransportClosedError.
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

    async def publish(self, message: Message, settled: Settled) -> None:
        """Send a message; `settled` is called once, with None when the broker has confirmed it.

        Waits only while the outgoing buffer is full or the broker blocks publishers. Cancelled while it waits,
        nothing was sent and `settled` is not called. Once it returned, `settled` is called in any case, in the
        event loop's own thread, be it with the error: UnroutableError, PublishError, ConnectionLostError. It
        may be called before `publish` returns. It must neither wait nor raise.

        Raises: ConnectionLostError, TransportClosedError; then `settled` is not called.
        """
        ...
