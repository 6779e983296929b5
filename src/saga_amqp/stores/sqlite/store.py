"""A store in a file: see `contracts.Store` for what it promises.

One connection writes and one reads, each in a thread of its own while there is something to do. Other processes may
use the same file, on the same machine: SQLite's write-ahead log needs memory that they share.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import anyio
import anyio.to_thread

from saga_amqp.contracts import EVERYTHING, Commit, Page, Query
from saga_amqp.errors import StoreError
from saga_amqp.stores.batches import Batches, in_a_thread
from saga_amqp.stores.enlisting import Tables
from saga_amqp.stores.rows import Known, read_cursor
from saga_amqp.stores.sqlite import looking, tables
from saga_amqp.stores.sqlite.connection import Connection, Job, Synchronous
from saga_amqp.stores.waiting import Hints, Waiting
from saga_core import Event, Saga, SagaState

T = TypeVar("T")

LOOK_EVERY = 0.02
"""Seconds between two looks at whether another process has committed, while somebody waits for a saga to rest."""


class SQLiteStore:
    """Sagas in an SQLite file, which is made when it is not there. Any number of processes may share it.

    A commit is on the disk when it returns; with `synchronous="NORMAL"` it is written, but a power failure may take the
    last ones back, though never half of one. `busy_timeout`, seconds, is how long to wait while another process writes.

    All methods belong to one event loop, and can be called inside `async with` only. Enter a store once.
    """

    def __init__(
        self, path: str | PathLike[str], *, synchronous: Synchronous = "FULL", busy_timeout: float = 5.0
    ) -> None:
        if fspath(path) in ("", ":memory:"):
            raise StoreError("SQLiteStore needs the path of a file; use MemoryStore to keep sagas in memory")
        if synchronous not in ("FULL", "NORMAL"):
            raise StoreError(f"synchronous must be 'FULL' or 'NORMAL', not {synchronous!r}")
        self._path = Path(path).absolute()
        self._writer = Connection(self._path, synchronous, busy_timeout, writes=True)
        self._reader = Connection(self._path, synchronous, busy_timeout, writes=False)
        self._writes: Batches[Job[Any], Any] = Batches(in_a_thread(self._writer.work))
        self._reads: Batches[Job[Any], Any] = Batches(in_a_thread(self._reader.work))
        self._known = Known()
        self._hints = Hints()
        self._waiting = Waiting(self.load, self._changed, self._over, LOOK_EVERY)
        self._version: object = None
        self._entered = False
        self._stack = AsyncExitStack()
        self._scope: anyio.CancelScope | None = None  # made inside, where there is an event loop

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path}>"

    @property
    def tables(self) -> Tables:
        """Where the tables are, for a connection of the user's own to the same file."""
        return Tables("sqlite", "sagas", "saga_history", "saga_tags")

    async def __aenter__(self) -> Self:
        """Open the file, and make the tables in a new one. Cancelled, nothing stays open.

        Raises: SchemaError, StoreUnavailableError.
        """
        if self._entered:
            raise StoreError("A store can be entered once; make a new one")
        self._entered = True
        # The scope lies around the task group, so that leaving both can be shielded.
        self._scope = self._stack.enter_context(anyio.CancelScope())
        self._stack.push_async_callback(anyio.to_thread.run_sync, self._close_file)
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        try:
            await anyio.to_thread.run_sync(self._open_file)
            for work in (self._writes, self._reads):
                work.open()
                tasks.start_soon(work.run)
            tasks.start_soon(self._waiting.look)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what was asked for before is done first. Shielded from cancellation."""
        await self._leave()

    async def create(self, saga: Saga, *, unpublished: float | None = None) -> Saga:
        """Keep a new saga, or return the one that has its key. Cancelled, it may have happened or not.

        Raises: SagaExistsError, StoreUnavailableError.
        """
        holder = await self._write(
            tables.create(saga, unpublished=unpublished), lambda holder: self._known.keep(holder or saga)
        )
        return saga if holder is None else holder

    async def load(self, saga_id: str) -> Saga:
        """Return the saga as last committed, by whichever process.

        Raises: SagaNotFoundError, StoreUnavailableError; CodecError when a later release has written it.
        """
        return await self._read(tables.load(saga_id, self._known.get(saga_id)), self._known.keep)

    async def commit(self, saga: Saga, event: Event, *, unpublished: float | None = None) -> None:
        """Replace the saga if nobody else did. Cancelled, it may have happened or not.

        Raises: ConflictError, SagaNotFoundError, StoreUnavailableError.
        """
        await self._write(
            tables.commit(saga, event, unpublished=unpublished), lambda _: self._committed(saga)
        )

    async def delete(self, saga_id: str, *, revision: int | None = None) -> None:
        """Forget a saga and its history. Cancelled, it may have happened or not.

        Raises: ConflictError, StoreUnavailableError.
        """
        await self._write(tables.delete(saga_id, revision), lambda _: self._deleted(saga_id))

    async def find(self, query: Query = EVERYTHING, *, limit: int = 100, cursor: str | None = None) -> Page:
        """Return the first sagas that a query finds, oldest first, or those after a cursor.

        Raises: StoreError for a cursor that is none; StoreUnavailableError.
        """
        return await self._read(looking.find(query, limit, read_cursor(cursor), self._known.get))

    async def count(self) -> Mapping[SagaState, int]:
        """Return how many sagas there are in each state. Raises: StoreUnavailableError."""
        return await self._read(looking.count)

    async def history(self, saga_id: str) -> tuple[Saga, Sequence[Event]]:
        """Return the saga as created, and all its events.

        Raises: SagaNotFoundError, StoreUnavailableError; CodecError when a later release has written it.
        """
        return await self._read(tables.history(saga_id))

    async def rested(self, saga_id: str) -> Saga:
        """Wait until the saga rests. What another process does is noticed within a moment. Can be cancelled.

        Raises: SagaNotFoundError, also when it is deleted meanwhile; StoreUnavailableError.
        """
        return await self._waiting.rested(saga_id)

    async def claim_due(self, before: float, until: float, limit: int) -> Sequence[str]:
        """Return the ids of sagas that are due, and put them off. Cancelled, it may have happened or not.

        Raises: StoreUnavailableError.
        """
        return await self._write(tables.claim_due(before, until, limit))

    async def claim_unpublished(self, before: float, until: float, limit: int) -> Sequence[Commit]:
        """Return commits that nobody has published, and note them anew. Cancelled, it may have happened or not.

        Raises: StoreUnavailableError.
        """
        return await self._write(tables.claim_unpublished(before, until, limit))

    async def mark_published(self, commits: Collection[Commit]) -> None:
        """Take the notes off these commits. Cancelled, it may have happened or not.

        Raises: StoreUnavailableError.
        """
        if commits:
            await self._write(tables.mark_published(commits))

    async def hinted(self) -> None:
        """Wait for a hint of this process. Can be cancelled."""
        await self._hints.wait()

    def hint(self) -> None:
        """Wake everybody in this process who waits for a hint."""
        self._hints.give()

    async def _write(self, job: Job[T], then: Callable[[T], None] | None = None) -> T:
        return cast("T", await self._writes.do(job, then))

    async def _read(self, job: Job[T], then: Callable[[T], None] | None = None) -> T:
        await self._writes.settled()  # who cancelled a commit can load the saga to know whether it happened
        return cast("T", await self._reads.do(job, then))

    def _committed(self, saga: Saga) -> None:
        self._known.keep(saga)
        if saga.at_rest:
            self._waiting.came_to_rest(saga)

    def _deleted(self, saga_id: str) -> None:
        self._known.forget(saga_id)
        self._waiting.deleted(saga_id)

    async def _changed(self) -> bool:
        # Asked of the writing connection, for which only the commits of other processes count.
        before, self._version = self._version, await self._write(self._writer.version)
        return before != self._version

    async def _over(self, saga_ids: Collection[str]) -> Collection[str]:
        return await self._read(looking.at_rest_or_gone(saga_ids))

    def _open_file(self) -> None:
        self._writer.open(set_up=True)
        self._reader.open()

    def _close_file(self) -> None:
        try:
            self._reader.close()
        finally:
            self._writer.close()

    async def _leave(self) -> None:
        if self._scope is not None:
            self._scope.shield = True
        self._waiting.close()
        self._writes.close()
        self._reads.close()
        self._hints.give()
        await self._stack.aclose()
