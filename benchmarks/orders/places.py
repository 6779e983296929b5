"""Where orders are kept and carried: a store of each kind, and names on the broker that are nobody else's."""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
from ulid import ULID

from benchmarks.orders.shop import Shop
from saga_amqp import Config, MemoryStore, SQLiteStore
from saga_amqp.contracts import Store

STORES = ("memory", "sqlite", "postgres")
FORGOTTEN_AFTER = 60.0


@contextlib.asynccontextmanager
async def opened(kind: str, database: str | None, place: str | None = None) -> AsyncIterator[Store]:
    """Open a store; an empty one, of which nothing is left behind, unless a `place` is given: a file, or a schema.

    `database` is the URL of a PostgreSQL. Raises: StoreError, ModuleNotFoundError.
    """
    async with contextlib.AsyncExitStack() as stack:
        if kind == "memory":
            yield await stack.enter_async_context(MemoryStore())
        elif kind == "sqlite":
            if place is None:
                place = stack.enter_context(tempfile.TemporaryDirectory(prefix="saga-bench-")) + "/sagas.db"
            yield await stack.enter_async_context(SQLiteStore(Path(place)))
        else:
            from saga_amqp.stores.postgres import PostgresStore

            assert database is not None
            if place is None:
                place = f"bench_{ULID()}".lower()
                stack.push_async_callback(anyio.to_thread.run_sync, drop, database, place)
            yield await stack.enter_async_context(PostgresStore(database, schema=place, upgrade=True))


def config(shop: Shop, prefix: str, concurrency: int = 100, grace_period: float = 10.0) -> Config:
    """Return what an engine is told, with names that the broker forgets when nobody has used them for a minute."""
    return Config(
        prefix=f"{prefix}.",
        registries=(shop.registry,),
        concurrency=concurrency,
        grace_period=grace_period,
        expires=FORGOTTEN_AFTER,
    )


def drop(database: str, schema: str) -> None:
    """Remove a schema and all that is in it."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
