"""The order as a workflow of DBOS: three steps, each written down in the database before the next one begins."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from dbos import DBOS, DBOSConfig
from ulid import ULID

from benchmarks.orders.load import BrokenOrderError, Outcome
from benchmarks.rivals.load import load_in_threads


@DBOS.step()
def create(product: str) -> dict[str, str]:
    return {"order_id": product}


@DBOS.step()
def reserve(quantity: int) -> dict[str, int]:
    return {"reserved": quantity}


@DBOS.step()
def charge(amount: float) -> dict[str, float]:
    return {"charged": amount}


@DBOS.workflow()
def order(product: str, quantity: int, amount: float) -> dict[str, float]:
    create(product)
    reserve(quantity)
    return charge(amount)


def place_order() -> None:
    """Run one order. Raises: BrokenOrderError."""
    if order("prod-123", 2, 99.99) != {"charged": 99.99}:
        raise BrokenOrderError("the workflow returned something else")


def run(store: str, url: str, database: str | None, at_once: Sequence[int], seconds: float) -> list[Outcome]:
    """Measure at each concurrency, with a database of its own."""
    if store == "postgres":
        from tests.postgres import create_database, drop_database

        assert database is not None
        name = f"bench_{ULID()}".lower()
        create_database(database, name)
        try:
            return _measure(f"{database.rpartition('/')[0]}/{name}", at_once, seconds)
        finally:
            drop_database(database, name)
    with tempfile.TemporaryDirectory(prefix="saga-bench-") as directory:
        return _measure(f"sqlite:///{Path(directory) / 'dbos.db'}", at_once, seconds)


def _measure(database: str, at_once: Sequence[int], seconds: float) -> list[Outcome]:
    config: DBOSConfig = {"name": "bench", "system_database_url": database, "log_level": "ERROR"}
    DBOS(config=config)
    DBOS.launch()
    try:
        return [load_in_threads(place_order, many, seconds) for many in at_once]
    finally:
        DBOS.destroy()
