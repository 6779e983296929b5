"""Where orders are kept and carried: a fresh store of each kind, and names on the broker that are nobody else's."""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
from ulid import ULID

from saga_amqp import MemoryStore, SQLiteStore
from saga_amqp.contracts import Store

STORES = ("memory", "sqlite", "postgres")
FORGOTTEN_AFTER = 60.0


@contextlib.asynccontextmanager
async def opened(kind: str, database: str | None) -> AsyncIterator[Store]:
    """Open an empty store, and leave nothing of it behind. `database` is the URL of a PostgreSQL.

    Raises: StoreError, ModuleNotFoundError.
    """
    if kind == "memory":
        async with MemoryStore() as store:
            yield store
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="saga-bench-") as directory:
            async with SQLiteStore(Path(directory) / "sagas.db") as store:
                yield store
    else:
        from saga_amqp.stores.postgres import PostgresStore

        assert database is not None
        schema = f"bench_{ULID()}".lower()
        try:
            async with PostgresStore(database, schema=schema, upgrade=True) as store:
                yield store
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_drop, database, schema)


def broker_names(prefix: str) -> dict[str, object]:
    """Return what a Config has to be told for names of its own, which the broker forgets when nobody uses them."""
    return {
        "saga_exchange": prefix,
        "step_queue": f"{prefix}.steps",
        "compensate_queue": f"{prefix}.undo",
        "dead_letter_queue": f"{prefix}.dead",
        "expires": FORGOTTEN_AFTER,
    }


def _drop(database: str, schema: str) -> None:
    import psycopg
    from psycopg import sql

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
