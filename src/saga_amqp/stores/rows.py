"""What stores with tables write and read: which rows, and how a saga is made of them again.

A saga is one row of `sagas`, its head: what is looked for. Its history is one row per commit: the event, and nothing
of the rest of the saga, so that a step costs the same however many there are. Row 0 holds the saga as created. What
a saga is now is its history folded. So that nobody has to fold from the beginning, every so many commits
(`snapshot_due`) the row of that commit holds the whole saga too, and the head says which row that is, its `base`.
"""

from collections import OrderedDict
from collections.abc import Iterable

from saga_amqp.contracts import Query
from saga_amqp.errors import StoreError
from saga_core import Saga, decode_event, decode_saga, fold

SHORTEST_STRIDE = 64
"""How many events are folded rather than kept as a snapshot. A fold of so many takes a fraction of a millisecond."""

REMEMBERED = 10_000


def snapshot_due(saga: Saga) -> bool:
    """Whether the row of this commit holds the whole saga: so seldom that it costs each commit a constant."""
    return saga.revision % max(SHORTEST_STRIDE, len(saga.plan.steps)) == 0


def assemble(snapshot: bytes, events: Iterable[bytes]) -> Saga:
    """Make a saga of a snapshot and the events since.

    Raises: CodecError.
    """
    return follow(decode_saga(snapshot), events)


def follow(saga: Saga, events: Iterable[bytes]) -> Saga:
    """Bring a saga up to date with the events since.

    Raises: CodecError.
    """
    return fold(saga, map(decode_event, events))


class Known:
    """The sagas that a process has seen last, so that it reads only what has happened to them since."""

    def __init__(self) -> None:
        self._sagas: OrderedDict[str, Saga] = OrderedDict()

    def get(self, saga_id: str) -> Saga | None:
        """Return a saga as it was when it was last seen."""
        return self._sagas.get(saga_id)

    def keep(self, saga: Saga) -> None:
        """Remember a saga, unless a later moment of it is known."""
        known = self._sagas.get(saga.id)
        newer = known is None or known.created_at != saga.created_at or known.revision <= saga.revision
        if newer:  # of one that was deleted, and created again with its id, no moment counts any more
            self._sagas[saga.id] = saga
            self._sagas.move_to_end(saga.id)
            if len(self._sagas) > REMEMBERED:
                self._sagas.popitem(last=False)

    def forget(self, saga_id: str) -> None:
        """Forget a saga: it was deleted, or somebody else has brought it to rest."""
        self._sagas.pop(saga_id, None)

    def clear(self) -> None:
        """Forget all sagas."""
        self._sagas.clear()


def matches(query: Query, saga: Saga) -> bool:
    """Whether a query finds a saga."""
    tags = saga.plan.options.tags
    return (
        saga.state in query.states
        and query.name in (None, saga.name)
        and all(tags.get(tag) == value for tag, value in query.tags.items())
        and (query.created_before is None or saga.created_at < query.created_before)
        and (query.updated_before is None or saga.updated_at < query.updated_before)
    )


def cursor_after(saga: Saga) -> str:
    """Return the cursor that leads to what comes after a saga."""
    return f"{saga.created_at!r}/{saga.id}"


def read_cursor(cursor: str | None) -> tuple[float, str]:
    """Return the creation time and the id of the saga that a cursor stands behind.

    Raises: StoreError when it is no cursor.
    """
    if cursor is None:
        return float("-inf"), ""
    created_at, slash, saga_id = cursor.partition("/")
    try:
        if slash and saga_id:
            return float(created_at), saga_id
    except ValueError:
        pass
    raise StoreError(f"{cursor!r} is no cursor; give one that a page came with")
