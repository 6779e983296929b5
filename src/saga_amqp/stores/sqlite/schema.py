"""The tables of a file of sagas, and how those of an earlier release become those of this one.

`PRAGMA application_id` says that a file is one of ours, `PRAGMA user_version` how many migrations it has seen. Both
are in the file's header, and change in the transaction that changes the tables.
"""

import sqlite3
from os import PathLike
from pathlib import Path

from saga_amqp.errors import SchemaError
from saga_amqp.stores.sqlite.failures import explained, patiently

APPLICATION = int.from_bytes(b"SAGA", "big")

# `history` has a rowid: measured, it takes a quarter more commits than without, for its rows are written one behind the
# other. Snapshots come last in a row, so that reading what stands before them does not read them.
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
    CREATE TABLE history (
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
    CREATE INDEX history_unpublished ON history (unpublished, saga_id, revision)
    WHERE unpublished IS NOT NULL
    """,
    """
    CREATE TABLE tags (
        tag TEXT NOT NULL,
        value TEXT NOT NULL,
        created_at REAL NOT NULL,
        saga_id TEXT NOT NULL,
        PRIMARY KEY (tag, value, created_at, saga_id)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX tags_saga ON tags (saga_id)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (FIRST,)
"""What each version adds to the one before it, in statements. Published ones never change; new ones go to the end."""


def upgrade(path: str | PathLike[str], *, busy_timeout: float = 5.0) -> bool:
    """Bring a file of sagas to the schema of this release; a missing or empty file is set up.

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
    version = _version(connection, file)
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
    _version(connection, file)  # nothing is changed in somebody else's file, not even its journal
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, file)  # of several that set up one file, the first has done it
        missing = MIGRATIONS[version:]
        for statement in (statement for migration in missing for statement in migration):
            connection.execute(statement)
        if missing:
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return bool(missing)


def _version(connection: sqlite3.Connection, file: Path) -> int:
    """Return how many migrations a file has seen.

    Raises: SchemaError when it is not ours, or that of a later release.
    """
    alone = not connection.in_transaction
    if alone:
        connection.execute("BEGIN")  # so that all three are of one moment
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if alone:
        connection.execute("COMMIT")
    if application != APPLICATION and (application or version or objects):
        raise SchemaError(f"{file} is a database, but none of sagas; name another file, or a new one")
    if version > len(MIGRATIONS):
        raise SchemaError(
            f"{file} has version {version} of the tables, and this release knows {len(MIGRATIONS)} at most; "
            "use the release that wrote it, or a later one"
        )
    return int(version)
