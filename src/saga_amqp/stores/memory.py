"""Sagas in memory: for tests, trials and demonstrations. Nothing outlives the process."""

from collections.abc import Collection, Sequence

import anyio

from saga_amqp.errors import ConflictError, SagaExistsError, SagaNotFoundError
from saga_core import Event, Saga, SagaState


class MemoryStore:
    """A store in a dict, for any number of tasks and managers in one event loop.

    Sagas and events are frozen, so it hands out its own objects: there is nothing in them to change.
    """

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    async def create(self, saga: Saga) -> None:
        """Keep a new saga. Raises: SagaExistsError."""
        if saga.id in self._rows:
            raise SagaExistsError(
                f"Saga {saga.id} is in the store already; every start needs an id of its own"
            )
        self._rows[saga.id] = _Row(saga)

    async def load(self, saga_id: str) -> Saga:
        """Return the saga as last committed. Raises: SagaNotFoundError."""
        return self._row(saga_id).saga

    async def commit(self, saga: Saga, event: Event) -> None:
        """Replace the saga if nobody else did. Raises: ConflictError, SagaNotFoundError."""
        row = self._row(saga.id)
        if row.saga.revision != saga.revision - 1:
            raise ConflictError(
                f"Saga {saga.id} is at revision {row.saga.revision}, and this commit expects {saga.revision - 1}"
            )
        row.saga = saga
        row.events.append(event)
        if row.changed is not None and saga.at_rest:
            row.changed.set()
            row.changed = None

    async def delete(self, saga_id: str) -> None:
        """Forget a saga and its history."""
        row = self._rows.pop(saga_id, None)
        if row is not None and row.changed is not None:
            row.changed.set()

    async def list(self, states: Collection[SagaState]) -> Sequence[Saga]:
        """Return the sagas in one of the states, oldest first."""
        found = [row.saga for row in self._rows.values() if row.saga.state in states]
        return sorted(found, key=lambda saga: saga.created_at)

    async def history(self, saga_id: str) -> tuple[Saga, Sequence[Event]]:
        """Return the saga as created, and all its events. Raises: SagaNotFoundError."""
        row = self._row(saga_id)
        return row.origin, tuple(row.events)

    async def rested(self, saga_id: str) -> Saga:
        """Wait until the saga rests. Raises: SagaNotFoundError."""
        while not (row := self._row(saga_id)).saga.at_rest:
            if row.changed is None:
                row.changed = anyio.Event()
            await row.changed.wait()
        return row.saga

    def _row(self, saga_id: str) -> "_Row":
        try:
            return self._rows[saga_id]
        except KeyError:
            raise SagaNotFoundError(f"No saga {saga_id!r} is in the store") from None


class _Row:
    __slots__ = ("changed", "events", "origin", "saga")

    def __init__(self, saga: Saga) -> None:
        self.origin = saga
        self.saga = saga
        self.events: list[Event] = []
        self.changed: anyio.Event | None = None
