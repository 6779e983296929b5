"""What is written to the tables and read back: each function makes one job, the whole of it, for inside a transaction.

Nothing here decides about sagas. A job that raises an error of the library has written nothing.
"""

import sqlite3
from collections.abc import Collection, Iterable, Sequence

import msgspec

from saga_amqp.contracts import Commit
from saga_amqp.errors import ConflictError, SagaExistsError, SagaNotFoundError, StoreError
from saga_amqp.stores.rows import assemble, follow, snapshot_due
from saga_amqp.stores.sqlite.connection import Job
from saga_core import (
    CodecError,
    Event,
    Saga,
    decode_event,
    decode_saga,
    encode_event,
    encode_saga,
    wake_at,
)


class Head(msgspec.Struct, frozen=True):
    """What the head of a saga tells of where the rest is."""

    saga_id: str
    revision: int
    base: int
    created_at: float
    updated_at: float


HEAD = ", ".join(Head.__struct_fields__).replace("saga_id", "id")


def create(saga: Saga, *, unpublished: float | None) -> Job[Saga | None]:
    """Keep a new saga. The result is the saga that has its key already, else None."""
    options, snapshot = saga.plan.options, encode_saga(saga)
    head = (saga.id, saga.name, options.key, saga.state, saga.revision, saga.revision)
    times = (saga.created_at, saga.updated_at, wake_at(saga))
    tags = [(tag, value, saga.created_at, saga.id) for tag, value in options.tags.items()]

    def job(connection: sqlite3.Connection) -> Saga | None:
        if options.key is not None:
            holder = connection.execute(
                'SELECT id FROM sagas WHERE name = ? AND "key" = ?', (saga.name, options.key)
            ).fetchone()
            if holder is not None:
                return load(holder[0], None)(connection)
        created = connection.execute(
            'INSERT INTO sagas (id, name, "key", state, revision, base, created_at, updated_at, wake_at)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            head + times,
        )
        if created.rowcount != 1:
            raise SagaExistsError(
                f"Saga {saga.id} is in the store already; every start needs an id of its own"
            )
        _append(connection, saga, None, snapshot, unpublished=unpublished)
        if tags:
            connection.executemany(
                "INSERT INTO saga_tags (tag, value, created_at, saga_id) VALUES (?, ?, ?, ?)", tags
            )
        return None

    return job


def commit(saga: Saga, event: Event, *, unpublished: float | None) -> Job[None]:
    """Replace a saga's head, if it is that of the revision before, and add a row to its history."""
    before, written = saga.revision - 1, encode_event(event)
    snapshot = encode_saga(saga) if snapshot_due(saga) else None
    base = None if snapshot is None else saga.revision
    change = (saga.revision, base, saga.updated_at, wake_at(saga))
    which = (saga.id, before)

    def job(connection: sqlite3.Connection) -> None:
        # Most commits leave the saga's state as it is. One that says so does not write to the index of states.
        changed = connection.execute(
            "UPDATE sagas SET revision = ?, base = coalesce(?, base), updated_at = ?, wake_at = ?"
            " WHERE id = ? AND revision = ? AND state = ?",
            (*change, *which, saga.state),
        ).rowcount
        if changed == 0:
            changed = connection.execute(
                "UPDATE sagas SET revision = ?, base = coalesce(?, base), updated_at = ?, wake_at = ?, state = ?"
                " WHERE id = ? AND revision = ?",
                (*change, saga.state, *which),
            ).rowcount
        if changed == 0:
            found = _head(connection, saga.id)
            raise ConflictError(
                f"Saga {saga.id} is at revision {found.revision}, and this commit expects {before}"
            )
        _append(connection, saga, written, snapshot, unpublished=unpublished)

    return job


def load(saga_id: str, known: Saga | None) -> Job[Saga]:
    """Read a saga; of one that is known, only what has happened to it since."""

    def job(connection: sqlite3.Connection) -> Saga:
        return read(connection, _head(connection, saga_id), known)

    return job


def read(connection: sqlite3.Connection, head: Head, known: Saga | None) -> Saga:
    """Make a saga of its rows: of those since it was last seen, or of those since its last snapshot.

    Raises: CodecError, StoreError.
    """
    if known is not None and _is(known, head.revision, head.created_at, head.updated_at):
        return known
    first = head.base if known is None else max(head.base, known.revision)
    rows = connection.execute(
        "SELECT at, event, snapshot FROM saga_history WHERE saga_id = ? AND revision BETWEEN ? AND ? ORDER BY revision",
        (head.saga_id, first, head.revision),
    ).fetchall()
    try:
        if known is not None and rows and _is(known, first, head.created_at, rows[0][0]):
            saga = follow(known, _events(rows[1:]))
        elif first == head.base and rows:
            saga = assemble(rows[0][2], _events(rows[1:]))
        else:  # it was deleted, and another of the same id created
            return read(connection, head, None)
    except CodecError as error:
        raise CodecError(f"Saga {head.saga_id} cannot be read: {error}") from error
    if saga.revision != head.revision:
        raise StoreError(
            f"The history of saga {head.saga_id} leads to revision {saga.revision}, and its head says {head.revision}: "
            "the store is damaged; restore it from a backup"
        )
    return saga


def delete(saga_id: str, revision: int | None) -> Job[None]:
    """Remove every row of a saga."""

    def job(connection: sqlite3.Connection) -> None:
        found = connection.execute("SELECT revision FROM sagas WHERE id = ?", (saga_id,)).fetchone()
        if found is None:
            return
        if revision is not None and found[0] != revision:
            raise ConflictError(
                f"Saga {saga_id} is at revision {found[0]} and not {revision}: it is not deleted"
            )
        connection.execute("DELETE FROM sagas WHERE id = ?", (saga_id,))
        connection.execute("DELETE FROM saga_history WHERE saga_id = ?", (saga_id,))
        connection.execute("DELETE FROM saga_tags WHERE saga_id = ?", (saga_id,))

    return job


def history(saga_id: str) -> Job[tuple[Saga, Sequence[Event]]]:
    """Read a saga as created, and all its events."""

    def job(connection: sqlite3.Connection) -> tuple[Saga, Sequence[Event]]:
        rows = connection.execute(
            "SELECT event, CASE WHEN event IS NULL THEN snapshot END FROM saga_history"
            " WHERE saga_id = ? ORDER BY revision",
            (saga_id,),
        ).fetchall()
        if not rows:
            raise _unknown(saga_id)
        try:
            return decode_saga(rows[0][1]), tuple(decode_event(event) for event, _ in rows[1:])
        except CodecError as error:
            raise CodecError(f"The history of saga {saga_id} cannot be read: {error}") from error

    return job


def claim_due(before: float, until: float, limit: int) -> Job[Sequence[str]]:
    """Find the sagas that are due, and put them off."""

    def job(connection: sqlite3.Connection) -> Sequence[str]:
        due = connection.execute(
            "SELECT id FROM sagas WHERE wake_at <= ? ORDER BY wake_at, id LIMIT ?", (before, limit)
        ).fetchall()
        connection.executemany(
            "UPDATE sagas SET wake_at = ? WHERE id = ?", [(until, saga_id) for (saga_id,) in due]
        )
        return [saga_id for (saga_id,) in due]

    return job


def claim_unpublished(before: float, until: float, limit: int) -> Job[Sequence[Commit]]:
    """Find the commits that nobody has published yet, and note them anew."""

    def job(connection: sqlite3.Connection) -> Sequence[Commit]:
        left: list[Commit] = connection.execute(
            "SELECT saga_id, revision FROM saga_history WHERE unpublished <= ?"
            " ORDER BY unpublished, saga_id, revision LIMIT ?",
            (before, limit),
        ).fetchall()
        connection.executemany(
            "UPDATE saga_history SET unpublished = ? WHERE saga_id = ? AND revision = ?",
            [(until, *commit) for commit in left],
        )
        return left

    return job


def mark_published(commits: Collection[Commit]) -> Job[None]:
    """Take the notes off these commits."""
    marked = list(commits)

    def job(connection: sqlite3.Connection) -> None:
        connection.executemany(
            "UPDATE saga_history SET unpublished = NULL"
            " WHERE saga_id = ? AND revision = ? AND unpublished IS NOT NULL",
            marked,
        )

    return job


def _append(
    connection: sqlite3.Connection,
    saga: Saga,
    event: bytes | None,
    snapshot: bytes | None,
    *,
    unpublished: float | None,
) -> None:
    connection.execute(
        "INSERT INTO saga_history (saga_id, revision, at, unpublished, event, snapshot) VALUES (?, ?, ?, ?, ?, ?)",
        (
            saga.id,
            saga.revision,
            saga.updated_at,
            unpublished,
            event,
            snapshot,
        ),
    )


def _head(connection: sqlite3.Connection, saga_id: str) -> Head:
    row = connection.execute(f"SELECT {HEAD} FROM sagas WHERE id = ?", (saga_id,)).fetchone()
    if row is None:
        raise _unknown(saga_id)
    return Head(*row)


def _is(known: Saga, revision: int, created_at: float, updated_at: float) -> bool:
    # The revision alone would not tell it from another of the same id, created after it was deleted.
    return (known.revision, known.created_at, known.updated_at) == (revision, created_at, updated_at)


def _events(rows: Iterable[tuple[float, bytes, bytes | None]]) -> Iterable[bytes]:
    return (event for _, event, _ in rows)


def _unknown(saga_id: str) -> SagaNotFoundError:
    return SagaNotFoundError(f"No saga {saga_id!r} is in the store")
