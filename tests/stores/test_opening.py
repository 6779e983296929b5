"""Opening a store, or a manager on one, and being cancelled at any moment of it: it ends, and nothing is left."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from saga_amqp import Config, Manager, MemoryStore, MemoryTransport, SQLiteStore
from saga_amqp.stores import postgres

TURNS = 12

Opened = Callable[[], AbstractAsyncContextManager[object]]

pytestmark = pytest.mark.timeout(
    60
)  # what is held up here is shielded, and no deadline of the event loop ends it


@pytest.fixture(params=["manager", "sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    if request.param == "manager":
        return lambda: Manager(MemoryTransport(), MemoryStore(), Config())
    if request.param == "sqlite":
        return lambda: SQLiteStore(tmp_path / "sagas.db")
    url: str = request.getfixturevalue("postgres_url")
    postgres.upgrade(url)
    return lambda: postgres.PostgresStore(url)


async def use(opened: Opened) -> None:
    async with opened():
        await checkpoint()


async def test_cancelled_after_any_number_of_turns_it_ends(opened: Opened) -> None:
    async def cancel_after(turns: int, scope: anyio.CancelScope) -> None:
        for _ in range(turns):
            await checkpoint()
        scope.cancel()

    for turns in range(TURNS):
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                tasks.start_soon(cancel_after, turns, scope)
                await use(opened)
    await use(opened)


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"], indirect=True
)
@pytest.mark.parametrize("opened", ["manager", "sqlite"], indirect=True)
async def test_cancelled_the_native_way_it_ends(opened: Opened) -> None:
    """Only asyncio can cancel a task from anywhere; and then it leaves a thread behind that connects to PostgreSQL."""
    for turns in range(TURNS):
        using: Awaitable[None] = use(opened)
        task = asyncio.ensure_future(using)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
    await use(opened)
