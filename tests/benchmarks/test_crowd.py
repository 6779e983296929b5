"""A crowd in a store is what the store itself would have kept."""

from pathlib import Path

import anyio.to_thread
import pytest

from benchmarks.orders.crowd import KINDS, Kind, copy_in_postgres, copy_in_sqlite, fill, template
from saga_amqp import MemoryStore, SagaState, SQLiteStore
from saga_amqp.contracts import Store
from saga_amqp.stores.postgres import PostgresStore

COUNT = 300


async def look(store: Store, kind: Kind, count: int) -> None:
    """See that the sagas are there, can be read, and are due when they should be."""
    state = SagaState.COMPLETED if kind == "resting" else SagaState.STARTED
    assert (await store.count())[state] == count
    page = await store.find(limit=count)
    assert len({saga.id for saga in page.sagas}) == count
    for saga in (page.sagas[0], page.sagas[-1]):
        origin, events = await store.history(saga.id)
        assert origin.id == saga.id
        assert len(events) == saga.revision == (3 if kind == "resting" else 0)
    due = await store.claim_due(page.sagas[0].created_at + 1e6, 2e9, 2 * count)
    assert len(due) == (0 if kind == "resting" else count)


@pytest.mark.parametrize("kind", KINDS)
async def test_in_memory(kind: Kind) -> None:
    async with MemoryStore() as store:
        await fill(store, kind, COUNT)
        await look(store, kind, COUNT)


@pytest.mark.parametrize("kind", KINDS)
async def test_in_sqlite(kind: Kind, tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "sagas.db") as store:
        saga_id = await template(store, kind)
        await anyio.to_thread.run_sync(
            copy_in_sqlite, str(tmp_path / "sagas.db"), store.tables, saga_id, COUNT
        )
        await look(store, kind, COUNT + 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_in_postgres(kind: Kind, postgres_url: str) -> None:
    async with PostgresStore(postgres_url, upgrade=True) as store:
        saga_id = await template(store, kind)
        await anyio.to_thread.run_sync(copy_in_postgres, postgres_url, store.tables, saga_id, COUNT)
        await look(store, kind, COUNT + 1)
