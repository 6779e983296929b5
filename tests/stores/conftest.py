"""Every shipped store, for tests that run on each."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from saga_amqp import MemoryStore, SQLiteStore
from saga_amqp.contracts import Store
from saga_amqp.stores.postgres import PostgresStore

# Each makes an empty store from what a test gets: a directory of its own, and what asks for a database of its own.
STORES: dict[str, Callable[[Path, Callable[[], str]], AbstractAsyncContextManager[Store]]] = {
    "memory": lambda directory, database: MemoryStore(),
    "sqlite": lambda directory, database: SQLiteStore(directory / "sagas.db"),
    "postgres": lambda directory, database: PostgresStore(database(), upgrade=True),
}


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store of each kind, open."""

    def database() -> str:
        url: str = request.getfixturevalue("postgres_url")
        return url

    async with STORES[request.param](tmp_path, database) as opened:
        yield opened
