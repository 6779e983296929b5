"""A world of its own for every test, with nothing left running in it, and every saga of it accounted for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import pytest

from tests.histories import check_histories

from .elsewhere import TwoServices
from .world import World

WorldT = TypeVar("WorldT", bound=World)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with accounted_for(World()) as world:
        yield world


@pytest.fixture
async def two() -> AsyncIterator[TwoServices]:
    async with accounted_for(TwoServices()) as world:
        yield world


@asynccontextmanager
async def accounted_for(world: WorldT) -> AsyncIterator[WorldT]:
    before = anyio.get_running_tasks()
    yield world
    await check_histories(world.store)
    after = anyio.get_running_tasks()
    # By number: one of them is this fixture's own, and not the same task before and after.
    assert len(after) == len(before), after
