"""Every shipped store passes the suite that users have for their own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psycopg
import pytest

from saga_amqp import MemoryStore, SQLiteStore
from saga_amqp.contracts import Store
from saga_amqp.stores.postgres import PostgresStore
from saga_amqp.testing.stores import CASES, Case, run_case
from tests.postgres import External, PostgreSQL

# Each makes an empty store from what a test gets: a directory of its own.
STORES: dict[str, Callable[[Path], AbstractAsyncContextManager[Store]]] = {
    "memory": lambda directory: MemoryStore(),
    "sqlite": lambda directory: SQLiteStore(directory / "sagas.db"),
}


@pytest.fixture
def schema(postgres: PostgreSQL | External, unique: str) -> Iterator[str]:
    """A schema that no other test uses: it is made faster than a database of its own."""
    yield unique
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {unique} CASCADE".encode())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("store", STORES)
async def test_store(store: str, case: Case, tmp_path: Path) -> None:
    async with STORES[store](tmp_path) as opened:
        await run_case(case, opened)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_postgres_store(case: Case, postgres: PostgreSQL | External, schema: str) -> None:
    async with PostgresStore(postgres.url(), schema=schema, upgrade=True) as opened:
        await run_case(case, opened)
