"""Sagas in memory: for tests, trials and demonstrations. Nothing outlives the process."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Self

import anyio
from msgspec import Struct

from saga_amqp.contracts import EVERYTHING, Commit, Page, Query
from saga_amqp.errors import ConflictError, SagaExistsError, SagaNotFoundError
from saga_amqp.stores.rows import cursor_after, matches, read_cursor
from saga_core import Event, Saga, SagaState, wake_at


class MemoryStore:
    """A store in a dict, for any number of tasks and managers in one event loop.

    Sagas and events are frozen, so it hands out its own objects: there is nothing in them to change. It needs no
    entering, and leaving it forgets nothing.
    """

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._timers: dict[str, float] = {}
        self._awaited: dict[str, anyio.Event] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._unpublished: dict[Commit, float] = {}
        self._hinted: anyio.Event | None = None

    async def __aenter__(self) -> Self:
        """Open: there is nothing to."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close: there is nothing to."""

    async def create(self, saga: Saga, *, unpublished: float | None = None) -> Saga:
        """Keep a new saga, or return the one that has its key. Raises: SagaExistsError."""
        key = saga.plan.options.key
        if key is not None and (holder := self._keys.get((saga.name, key))) is not None:
            return self._rows[holder].saga
        if saga.id in self._rows:
            raise SagaExistsError(
                f"Saga {saga.id} is in the store already; every start needs an id of its own"
            )
        self._rows[saga.id] = _Row(saga, saga, [])
        self._time(saga)
        if key is not None:
            self._keys[saga.name, key] = saga.id
        if unpublished is not None:
            self._unpublished[saga.id, 0] = unpublished
        return saga

    async def load(self, saga_id: str) -> Saga:
        """Return the saga as last committed. Raises: SagaNotFoundError."""
        return self._row(saga_id).saga

    async def commit(self, saga: Saga, event: Event, *, unpublished: float | None = None) -> None:
        """Replace the saga if nobody else did. Raises: ConflictError, SagaNotFoundError."""
        row = self._row(saga.id)
        if row.saga.revision != saga.revision - 1:
            raise ConflictError(
                f"Saga {saga.id} is at revision {row.saga.revision}, and this commit expects {saga.revision - 1}"
            )
        row.saga = saga
        row.events.append(event)
        self._time(saga)
        if unpublished is not None:
            self._unpublished[saga.id, saga.revision] = unpublished
        if saga.at_rest:
            self._wake(saga.id)

    async def delete(self, saga_id: str, *, revision: int | None = None) -> None:
        """Forget a saga and its history. Raises: ConflictError."""
        row = self._rows.get(saga_id)
        if row is None:
            return
        if revision is not None and row.saga.revision != revision:
            raise ConflictError(
                f"Saga {saga_id} is at revision {row.saga.revision} and not {revision}: it is not deleted"
            )
        del self._rows[saga_id]
        self._timers.pop(saga_id, None)
        if row.saga.plan.options.key is not None:
            del self._keys[row.saga.name, row.saga.plan.options.key]
        await self.mark_published([one for one in self._unpublished if one[0] == saga_id])
        self._wake(saga_id)

    async def find(self, query: Query = EVERYTHING, *, limit: int = 100, cursor: str | None = None) -> Page:
        """Return the sagas that a query finds, oldest first. Raises: StoreError for a cursor that is none."""
        after = read_cursor(cursor)
        found = [
            row.saga
            for row in self._rows.values()
            if (row.saga.created_at, row.saga.id) > after and matches(query, row.saga)
        ]
        found.sort(key=lambda saga: (saga.created_at, saga.id))
        page = tuple(found[:limit])
        return Page(page, cursor_after(page[-1]) if page and len(found) > limit else None)

    async def count(self) -> Mapping[SagaState, int]:
        """Return how many sagas there are in each state."""
        return dict.fromkeys(SagaState, 0) | Counter(row.saga.state for row in self._rows.values())

    async def history(self, saga_id: str) -> tuple[Saga, Sequence[Event]]:
        """Return the saga as created, and all its events. Raises: SagaNotFoundError."""
        row = self._row(saga_id)
        return row.origin, tuple(row.events)

    async def rested(self, saga_id: str) -> Saga:
        """Wait until the saga rests. Raises: SagaNotFoundError."""
        while not (saga := self._row(saga_id).saga).at_rest:
            awaited = self._awaited.get(saga_id)
            if awaited is None:
                awaited = self._awaited[saga_id] = anyio.Event()
            await awaited.wait()
        return saga

    async def claim_due(self, before: float, until: float, limit: int) -> Sequence[str]:
        """Return the ids of sagas that are due, and put them off."""
        due = sorted((moment, saga_id) for saga_id, moment in self._timers.items() if moment <= before)
        claimed = [saga_id for _, saga_id in due[:limit]]
        self._timers |= dict.fromkeys(claimed, until)
        return claimed

    async def claim_unpublished(self, before: float, until: float, limit: int) -> Sequence[Commit]:
        """Return commits that nobody has published yet, and note them anew."""
        left = sorted((since, commit) for commit, since in self._unpublished.items() if since <= before)
        claimed = [commit for _, commit in left[:limit]]
        self._unpublished |= dict.fromkeys(claimed, until)
        return claimed

    async def mark_published(self, commits: Collection[Commit]) -> None:
        """Take the notes off these commits."""
        for commit in commits:
            self._unpublished.pop(commit, None)

    async def hinted(self) -> None:
        """Wait for a hint."""
        if self._hinted is None:
            self._hinted = anyio.Event()
        await self._hinted.wait()

    def hint(self) -> None:
        """Wake everybody who waits for a hint."""
        if self._hinted is not None:
            self._hinted.set()
            self._hinted = None

    def _time(self, saga: Saga) -> None:
        """Note when time will next change something in a saga."""
        moment = wake_at(saga)
        if moment is not None:
            self._timers[saga.id] = moment
        elif self._timers:
            self._timers.pop(saga.id, None)

    def _wake(self, saga_id: str) -> None:
        """Wake who waits for a saga to rest."""
        if (awaited := self._awaited.pop(saga_id, None)) is not None:
            awaited.set()

    def _row(self, saga_id: str) -> "_Row":
        try:
            return self._rows[saga_id]
        except KeyError:
            raise SagaNotFoundError(f"No saga {saga_id!r} is in the store") from None


class _Row(Struct, gc=False):
    origin: Saga
    saga: Saga
    events: list[Event]
