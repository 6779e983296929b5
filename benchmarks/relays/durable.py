"""The ceiling of a durable hop: the bare wire, and a commit between a message and the next one.

A task for each message reads it, makes the next one, and has a row replaced by compare-and-set and another added,
on disk, before that is published. What waits while a commit is written is written together in the next one. No saga,
no handler, no retry, no graph, no creation: what is left is what no engine of this shape can do without.
"""

import queue
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio.lowlevel
import msgspec
from ulid import ULID

from benchmarks.relays import bare
from benchmarks.relays.course import BODY, Course

STATE = b"s" * 450  # a saga of three steps
FIRST = 10_000  # as the first revision, so that bodies keep their length

Row = tuple[str, int, bytes, bytes]
"""A saga's id, its new revision and state, and the event."""


class Message(msgspec.Struct):
    """What goes round."""

    saga: str
    step: int
    revision: int
    payload: dict[str, str]


class Commits(Protocol):
    """A place that keeps rows. It blocks."""

    def create(self, sagas: Sequence[str]) -> None:
        """Add sagas, of revision `FIRST`."""
        ...

    def commit(self, rows: Sequence[Row]) -> None:
        """Replace and add rows, on disk. Raises: AssertionError when one of them is not next in its saga."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class Sqlite:
    """A file, with `synchronous=FULL`."""

    def __init__(self, _: str | None) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="saga-bench-")
        file = Path(self._directory.name) / "hops.db"
        self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE saga (id TEXT PRIMARY KEY, revision INTEGER, state BLOB) WITHOUT ROWID",
            "CREATE TABLE history (id TEXT, revision INTEGER, event BLOB, PRIMARY KEY (id, revision)) WITHOUT ROWID",
        ):
            self._connection.execute(statement)

    def create(self, sagas: Sequence[str]) -> None:
        rows = [(saga, FIRST, STATE) for saga in sagas]
        self._connection.executemany("INSERT INTO saga VALUES (?, ?, ?)", rows)

    def commit(self, rows: Sequence[Row]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for saga, revision, state, event in rows:
            change = (revision, state, saga, revision - 1)
            changed = execute("UPDATE saga SET revision = ?, state = ? WHERE id = ? AND revision = ?", change)
            assert changed.rowcount == 1
            execute("INSERT INTO history VALUES (?, ?, ?)", (saga, revision, event))
        execute("COMMIT")

    def close(self) -> None:
        self._connection.close()
        self._directory.cleanup()


class Postgres:
    """A schema of its own in a PostgreSQL."""

    def __init__(self, database: str | None) -> None:
        import psycopg

        assert database is not None
        self._schema = f"bench_{ULID()}".lower()
        self._connection = psycopg.connect(database, autocommit=True)
        for statement in (
            f"CREATE SCHEMA {self._schema}",
            f"SET search_path TO {self._schema}",
            "CREATE TABLE saga (id text PRIMARY KEY, revision bigint, state bytea)",
            "CREATE TABLE history (id text, revision bigint, event bytea, PRIMARY KEY (id, revision))",
        ):
            self._connection.execute(statement)

    def create(self, sagas: Sequence[str]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO saga VALUES (%s, %s, %s)", [(saga, FIRST, STATE) for saga in sagas]
            )

    def commit(self, rows: Sequence[Row]) -> None:
        kept = self._connection.execute(
            """WITH new AS (
                SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bytea[], %s::bytea[])
                AS new (id, revision, state, event)
            ), won AS (
                UPDATE saga SET revision = new.revision, state = new.state FROM new
                WHERE saga.id = new.id AND saga.revision = new.revision - 1 RETURNING saga.id, saga.revision
            )
            INSERT INTO history SELECT id, revision, event FROM new JOIN won USING (id, revision) RETURNING id""",
            [list(column) for column in zip(*rows, strict=True)],
            binary=True,
        ).fetchall()
        assert len(kept) == len(rows)

    def close(self) -> None:
        self._connection.execute(f"DROP SCHEMA {self._schema} CASCADE")
        self._connection.close()


class GroupCommit:
    """Commits in a thread; what comes meanwhile is gathered for the next time."""

    def __init__(self, place: Commits) -> None:
        self._place = place
        self._rows: queue.SimpleQueue[tuple[Row, Callable[[], None]] | None] = queue.SimpleQueue()
        token = anyio.lowlevel.current_token()
        native = token.native_token
        self._soon = native.run_sync_soon if hasattr(native, "run_sync_soon") else native.call_soon_threadsafe
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def submit(self, row: Row, committed: Callable[[], None]) -> None:
        self._rows.put((row, committed))

    def close(self) -> None:
        self._rows.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (one := self._rows.get()) is not None:
            batch = [one]
            while not self._rows.empty():
                if (another := self._rows.get()) is None:
                    return
                batch.append(another)
            self._place.commit([row for row, _ in batch])
            self._soon(self._tell, [committed for _, committed in batch])

    @staticmethod
    def _tell(everybody: Sequence[Callable[[], None]]) -> None:
        for committed in everybody:
            committed()


decode = msgspec.json.Decoder(Message).decode
encode = msgspec.json.Encoder().encode


def first(saga: str) -> bytes:
    """Return the first message of a saga, of the length that those of every relay have."""
    empty = len(encode(Message(saga, FIRST, FIRST, {"pad": ""})))
    return encode(Message(saga, FIRST, FIRST, {"pad": "x" * (len(BODY) - empty)}))


async def handle(message: Message) -> dict[str, int]:
    """Do what a handler does that does nothing."""
    return {"ok": message.step}


async def relay(
    url: str, queue: str, course: Course, prefetch: int, *, kind: str, database: str | None = None
) -> None:
    """Run the course with a commit in each hop; `kind` memory: with none."""
    sagas = [f"01J{number:023d}" for number in range(course.in_flight)]
    place: Commits | None = (
        None if kind == "memory" else {"sqlite": Sqlite, "postgres": Postgres}[kind](database)
    )
    commits = None
    if place is not None:
        place.create(sagas)
        commits = GroupCommit(place)

    async def hop(body: bytes, publish: Callable[[bytes], None]) -> None:
        message = decode(body)
        output = await handle(message)
        following = encode(Message(message.saga, message.step + 1, message.revision + 1, message.payload))
        if commits is None:
            publish(following)
        else:
            row = message.saga, message.revision + 1, STATE, encode(output)
            commits.submit(row, partial(publish, following))

    try:
        await bare.relay(url, queue, course, prefetch, task=hop, seeds=[first(saga) for saga in sagas])
    finally:
        if place is not None and commits is not None:
            commits.close()
            place.close()
