"""What an engine complains of in a storm is part of the weather, and is not logged."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Log nothing while a world runs."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
