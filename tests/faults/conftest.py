"""A world on the real broker for every test, with every saga of it accounted for."""

from collections.abc import AsyncIterator

import pytest

from tests.histories import check_histories

from .world import RabbitWorld


@pytest.fixture
async def rabbit(amqp_url: str, unique: str) -> AsyncIterator[RabbitWorld]:
    world = RabbitWorld(amqp_url, unique)
    yield world
    await check_histories(world.store)
