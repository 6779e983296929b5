"""The tables of a file of sagas, and how those of an earlier release become those of this one.

The table `saga_migrations` says which migrations a file has seen. The file may be that of an application, with tables
of its own beside ours: then a transaction can write to both. But only who says so has ours made in it.
"""

import sqlite3
from os import PathLike
from pathlib import Path

from saga_amqp.errors import SchemaError
from saga_amqp.stores.sqlite.failures import explained, patiently

# `saga_history` has a rowid: measured, it takes a quarter more commits than without, for then rows are written one
# behind the other. Snapshots come last in a row, so that reading what stands before them does not read them.
FIRST = (
    """
    CREATE TABLE sagas (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        "key" TEXT,
        state TEXT NOT NULL,
        revision INTEGER NOT NULL,
        base INTEGER NOT NULL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        wake_at REAL
    ) WITHOUT ROWID
    """,
    'CREATE UNIQUE INDEX sagas_key ON sagas (name, "key") WHERE "key" IS NOT NULL',
    "CREATE INDEX sagas_state ON sagas (state, created_at, id)",
    "CREATE INDEX sagas_due ON sagas (wake_at, id) WHERE wake_at IS NOT NULL",
    """
    CREATE TABLE saga_history (
        saga_id TEXT NOT NULL,
        revision INTEGER NOT NULL,
        at REAL NOT NULL,
        unpublished REAL,
        event BLOB,
        snapshot BLOB,
        PRIMARY KEY (saga_id, revision)
    )
    """,
    """
    CREATE INDEX saga_history_unpublished ON saga_history (unpublished, saga_id, revision)
    WHERE unpublished IS NOT NULL
    """,
    """
    CREATE TABLE saga_tags (
        tag TEXT NOT NULL,
        value TEXT NOT NULL,
        created_at REAL NOT NULL,
        saga_id TEXT NOT NULL,
        PRIMARY KEY (tag, value, created_at, saga_id)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX saga_tags_saga ON saga_tags (saga_id)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (FIRST,)
"""What each version adds to the one before it, in statements. Published ones never change; new ones go to the end."""


NOTES = """
CREATE TABLE IF NOT EXISTS saga_migrations (
    version INTEGER NOT NULL PRIMARY KEY,
    applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
)
"""


def upgrade(path: str | PathLike[str], *, busy_timeout: float = 5.0) -> bool:
    """Bring the tables of sagas in a file to this release. A file that has none gets them, be it missing or somebody's.

    Return whether there was anything to do. All of it happens, or nothing; it can be repeated. Blocks, for up to
    `busy_timeout` seconds while another process holds the file.

    Raises: SchemaError, StoreUnavailableError.
    """
    file = Path(path).absolute()
    with explained(file, busy_timeout):
        return patiently(lambda: _upgrade(file), busy_timeout)


def prepare(connection: sqlite3.Connection, file: Path, *, set_up: bool) -> None:
    """Make sure that a file has the tables of this release. With `set_up`, a new or empty one gets them.

    Raises: SchemaError; sqlite3.Error.
    """
    version, others = _state(connection, file)
    if version == 0 and others:
        raise SchemaError(
            f"{file} is a database, but none of sagas; name another file, or have them kept beside what is there: "
            f"run `saga db upgrade sqlite:///{file}`"
        )
    if version == 0 and set_up:
        _migrate(connection, file)
    elif version < len(MIGRATIONS):
        raise SchemaError(
            f"{file} has version {version} of the tables, and this release needs {len(MIGRATIONS)}; "
            f"run `saga db upgrade sqlite:///{file}`"
        )


def _upgrade(file: Path) -> bool:
    connection = sqlite3.connect(file, isolation_level=None, timeout=0.0)
    try:
        return _migrate(connection, file)
    finally:
        connection.close()


def _migrate(connection: sqlite3.Connection, file: Path) -> bool:
    """Run the migrations that a file has not seen, and return whether there were any."""
    _state(connection, file)  # nothing is changed in a file of a later release, not even its journal
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        version, _ = _state(connection, file)  # of several that set up one file, the first has done it
        missing = MIGRATIONS[version:]
        if missing:
            connection.execute(NOTES)
        for number, migration in enumerate(missing, version + 1):
            for statement in migration:
                connection.execute(statement)
            connection.execute("INSERT INTO saga_migrations (version) VALUES (?)", (number,))
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return bool(missing)


def _state(connection: sqlite3.Connection, file: Path) -> tuple[int, bool]:
    """Return how many migrations a file has seen, and whether there is anything else in it.

    Raises: SchemaError when it is that of a later release.
    """
    alone = not connection.in_transaction
    if alone:
        connection.execute("BEGIN")  # so that both are of one moment
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
    version = 0
    if "saga_migrations" in names:
        (version,) = connection.execute("SELECT coalesce(max(version), 0) FROM saga_migrations").fetchone()
    if alone:
        connection.execute("COMMIT")
    if version > len(MIGRATIONS):
        raise SchemaError(
            f"{file} has version {version} of the tables, and this release knows {len(MIGRATIONS)} at most; "
            "use the release that wrote it, or a later one"
        )
    return version, bool(names)
