"""A world of its own for every test, with nothing left running in it, and every saga of it accounted for."""

from collections.abc import AsyncIterator

import anyio
import pytest

from tests.histories import check_histories

from .world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    before = anyio.get_running_tasks()
    world = World()
    yield world
    await check_histories(world.store)
    after = anyio.get_running_tasks()
    # By number: one of them is this fixture's own, and not the same task before and after.
    assert len(after) == len(before), after
