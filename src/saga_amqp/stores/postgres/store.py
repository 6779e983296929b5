"""The store in PostgreSQL: see `contracts.Store` for what it promises, and `statements` for what it does."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Self, cast

import anyio
import anyio.to_thread

from saga_amqp.contracts import EVERYTHING, Commit, Page, Query
from saga_amqp.errors import StoreError
from saga_amqp.stores.batches import Batches
from saga_amqp.stores.enlisting import Tables
from saga_amqp.stores.postgres.address import parse
from saga_amqp.stores.postgres.channels import DEFAULT_SCHEMA, hint_channel
from saga_amqp.stores.postgres.jobs import (
    Append,
    ClaimDue,
    ClaimUnpublished,
    Count,
    Create,
    Deed,
    Delete,
    Done,
    Ended,
    Find,
    Hint,
    Load,
    Mark,
    Question,
    Recall,
    Told,
)
from saga_amqp.stores.postgres.link import Answers, Link
from saga_amqp.stores.postgres.listening import Listener
from saga_amqp.stores.postgres.reading import Reader, not_found
from saga_amqp.stores.postgres.schema import check, upgrade_at
from saga_amqp.stores.postgres.writing import Writer
from saga_amqp.stores.rows import Known, read_cursor, snapshot_due
from saga_amqp.stores.waiting import Hints, Waiting
from saga_core import Event, Saga, SagaState, encode_event, encode_saga

LOOK_EVERY = 1.0
"""Seconds between two looks at what nobody has told of, while somebody waits for a saga to rest."""

TURNS = 3
"""Turns of the event loop that a batch waits for more: it costs as much as twenty commits in it, empty or not."""

GUARD_EVERY = 1.0
"""Seconds between two looks at whether the server still answers."""


class PostgresStore:
    """Sagas in a PostgreSQL database. Any number of processes may share it.

    `url` is what libpq takes: `postgresql://user:password@host:port/database?setting=…`. The tables are in `schema`.
    `saga db upgrade` makes them; with `upgrade=True` entering does. `timeout`, seconds, is how long a statement may
    take.

    Three connections are held: one writes, one reads, one listens. They have to lead to the server itself, or through
    a pooler that gives each a session of its own. One that is lost is made anew by the next call.

    All methods belong to one event loop, and can be called inside `async with` only. Enter a store once.

    Raises: StoreError, when the URL cannot be read.
    """

    def __init__(
        self, url: str, *, schema: str = DEFAULT_SCHEMA, upgrade: bool = False, timeout: float = 30.0
    ) -> None:
        self._address = parse(url, schema)
        self._upgrade = upgrade
        self._writing, self._reading, self._listening = (Link(self._address, timeout) for _ in range(3))
        self._reader = Reader(self._reading, schema)
        self._writer = Writer(self._writing, schema, self._reader)
        self._reads: Batches[Question, Told] = Batches(self._reader.answer)
        self._writes: Batches[Deed, Done] = Batches(self._write, TURNS)
        self._known = Known()
        self._hints = Hints()
        self._hint_is_due = False
        self._waiting = Waiting(self.load, self._changed, self._over, LOOK_EVERY, self._told)
        self._listener = Listener(
            self._listening,
            self._address,
            self._waiting,
            self._hints,
            self._known,
            lambda: self._writing.process,
        )
        self._entered = False
        self._stack = AsyncExitStack()
        self._scope: anyio.CancelScope | None = None  # made inside, where there is an event loop

    def __repr__(self) -> str:
        return f"<PostgresStore {self._address!r}>"

    @property
    def tables(self) -> Tables:
        """Where the tables are, for a connection of the user's own to the same database."""
        schema = self._address.schema
        quoted = schema.replace('"', '""')
        sagas, history = f'"{quoted}".sagas', f'"{quoted}".history'
        return Tables("postgresql", sagas, history, hint_channel=hint_channel(schema))

    async def __aenter__(self) -> Self:
        """Connect, and see that the tables are those of this release. Cancelled, nothing stays open.

        Raises: SchemaError, StoreUnavailableError.
        """
        if self._entered:
            raise StoreError("A store can be entered once; make a new one")
        self._entered = True
        # The scope lies around the task group, so that leaving both can be shielded.
        self._scope = self._stack.enter_context(anyio.CancelScope())
        self._stack.callback(self._disconnect)
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        try:
            await self._prepare()
            self._writes.open()
            self._reads.open()
            tasks.start_soon(self._work)
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
        """Keep a new saga, or return the one that has its key. Cancelled, it may be kept or not.

        Raises: SagaExistsError, StoreUnavailableError; StoreError for text that PostgreSQL cannot keep.
        """
        options = saga.plan.options
        for text in (saga.name, options.key or "", *options.tags, *options.tags.values()):
            if not _can_be_kept(text):
                raise StoreError(f"Saga {saga.id} has text that PostgreSQL cannot keep: {text[:40]!r}")
        job = Create(saga, encode_saga(saga), unpublished)
        return cast("Saga", await self._writes.do(job, lambda kept: self._known.keep(cast("Saga", kept))))

    async def load(self, saga_id: str) -> Saga:
        """Return the saga as last committed, by whichever process. Raises: SagaNotFoundError, StoreUnavailableError."""
        job = Load(_checked(saga_id), self._known.get(saga_id))
        return cast("Saga", await self._ask(job, lambda saga: self._known.keep(cast("Saga", saga))))

    async def commit(self, saga: Saga, event: Event, *, unpublished: float | None = None) -> None:
        """Replace the saga, and add the event to its history. Cancelled, or unavailable, it may have happened or not.

        Raises: ConflictError, SagaNotFoundError, StoreUnavailableError.
        """
        snapshot = encode_saga(saga) if snapshot_due(saga) else b""
        _checked(saga.id)
        await self._writes.do(
            Append(saga, encode_event(event), snapshot, unpublished), lambda _: self._committed(saga)
        )

    async def delete(self, saga_id: str, *, revision: int | None = None) -> None:
        """Forget a saga and its history. Raises: ConflictError, StoreUnavailableError."""
        if not _can_be_kept(saga_id):
            return
        await self._writes.do(Delete(saga_id, revision), lambda _: self._deleted(saga_id))

    async def find(self, query: Query = EVERYTHING, *, limit: int = 100, cursor: str | None = None) -> Page:
        """Return the sagas that a query finds, oldest first.

        Raises: StoreError for a cursor that is none; StoreUnavailableError.
        """
        read_cursor(cursor)
        for text in (query.name or "", cursor or "", *query.tags, *query.tags.values()):
            if not _can_be_kept(text):
                return Page(())
        return cast("Page", await self._ask(Find(query, limit, cursor)))

    async def count(self) -> Mapping[SagaState, int]:
        """Return how many sagas there are in each state. Raises: StoreUnavailableError."""
        return cast("Mapping[SagaState, int]", await self._ask(Count()))

    async def history(self, saga_id: str) -> tuple[Saga, Sequence[Event]]:
        """Return the saga as created, and all its events. Raises: SagaNotFoundError, StoreUnavailableError."""
        return cast("tuple[Saga, Sequence[Event]]", await self._ask(Recall(_checked(saga_id))))

    async def rested(self, saga_id: str) -> Saga:
        """Wait until the saga rests, and return it.

        A process that ends it tells all others. Should that be lost, it is noticed a second later.

        Raises: SagaNotFoundError, StoreUnavailableError.
        """
        return await self._waiting.rested(saga_id)

    async def claim_due(self, before: float, until: float, limit: int) -> Sequence[str]:
        """Return the ids of sagas that are due, and put them off. Raises: StoreUnavailableError."""
        return cast("Sequence[str]", await self._writes.do(ClaimDue(before, until, limit)))

    async def claim_unpublished(self, before: float, until: float, limit: int) -> Sequence[Commit]:
        """Return commits that nobody has published yet, and note them anew. Raises: StoreUnavailableError."""
        return cast("Sequence[Commit]", await self._writes.do(ClaimUnpublished(before, until, limit)))

    async def mark_published(self, commits: Collection[Commit]) -> None:
        """Take the notes off these commits. Raises: StoreUnavailableError."""
        known = [commit for commit in commits if _can_be_kept(commit[0])]
        if known:
            await self._writes.do(Mark(known))

    async def hinted(self) -> None:
        """Wait for a hint: of this process, of another, or of a transaction of yours, see `hint_channel`."""
        await self._hints.wait()

    def hint(self) -> None:
        """Wake everybody who waits for a hint, here and in other processes."""
        self._hints.give()
        if not self._hint_is_due:
            self._hint_is_due = True
            self._writes.post(Hint())

    async def _ask(self, question: Question, then: Callable[[Told], None] | None = None) -> Told:
        await self._writes.settled()  # who cancelled a commit can load the saga to know whether it happened
        return await self._reads.do(question, then)

    def _committed(self, saga: Saga) -> None:
        self._known.keep(saga)
        if saga.at_rest:
            self._waiting.came_to_rest(saga)

    def _deleted(self, saga_id: str) -> None:
        self._known.forget(saga_id)
        self._waiting.deleted(saga_id)

    async def _changed(self) -> bool:
        return True  # the database can be asked this only by asking it all

    def _told(self, saga_id: str) -> bool:
        saga = self._known.get(saga_id)
        return self._listener.hears and saga is not None and not saga.at_rest

    async def _over(self, saga_ids: Collection[str]) -> Collection[str]:
        return cast("Collection[str]", await self._ask(Ended(list(saga_ids))))

    async def _prepare(self) -> None:
        if self._upgrade:
            await anyio.to_thread.run_sync(upgrade_at, self._address)
        await self._writing.run(partial(check, address=self._address))

    # In the background

    async def _write(self, deeds: Sequence[Deed]) -> Answers[Done]:
        self._hint_is_due = False  # before it is sent: who hints from now on wants another
        return await self._writer.do(deeds)

    async def _work(self) -> None:
        """Do what is asked for until the store is left, and beside it what has to go on for as long."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as beside:
                beside.start_soon(self._waiting.look)
                beside.start_soon(self._listener.run)
                beside.start_soon(self._guard)
                async with anyio.create_task_group() as batches:
                    batches.start_soon(self._writes.run)
                    batches.start_soon(self._reads.run)
                beside.cancel_scope.cancel()

    async def _guard(self) -> None:
        """End connections to a server that does not answer any more, so that no thread waits for ever."""
        while True:
            await anyio.sleep(GUARD_EVERY)
            for link in (self._writing, self._reading, self._listening):
                link.cut_if_overdue()

    async def _leave(self) -> None:
        if self._scope is not None:
            self._scope.shield = True
        self._waiting.close()
        self._writes.close()
        self._reads.close()
        self._hints.give()
        await self._stack.aclose()

    def _disconnect(self) -> None:
        for link in (self._writing, self._reading, self._listening):
            link.close()


def _checked(saga_id: str) -> str:
    """Return an id that PostgreSQL can look for; no other can be in the store."""
    if not _can_be_kept(saga_id):
        raise not_found(saga_id)
    return saga_id


def _can_be_kept(text: str) -> bool:
    """Whether PostgreSQL takes a text: no NUL, and nothing that has no UTF-8."""
    return "\0" not in text and (text.isascii() or text.encode(errors="ignore").decode() == text)
