"""A pytest plugin, found by itself: `simulate_saga`, `simulate_saga_async`, `explore_saga` and `replay_saga`."""

from collections.abc import Callable
from typing import Any

import pytest

from saga_core.testing.explore import explore
from saga_core.testing.replay import replay
from saga_core.testing.simulate import simulate, simulate_async


@pytest.fixture
def simulate_saga() -> Callable[..., Any]:
    """Return `saga_core.testing.simulate`."""
    return simulate


@pytest.fixture
def simulate_saga_async() -> Callable[..., Any]:
    """Return `saga_core.testing.simulate_async`."""
    return simulate_async


@pytest.fixture
def explore_saga() -> Callable[..., Any]:
    """Return `saga_core.testing.explore`."""
    return explore


@pytest.fixture
def replay_saga() -> Callable[..., Any]:
    """Return `saga_core.testing.replay`."""
    return replay
