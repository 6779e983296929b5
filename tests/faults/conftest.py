"""A world on the real broker for every test."""

import pytest

from .world import RabbitWorld


@pytest.fixture
def rabbit(amqp_url: str, unique: str) -> RabbitWorld:
    return RabbitWorld(amqp_url, unique)
