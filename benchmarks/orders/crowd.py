"""Fills a store with sagas that nothing happens to: those that rest, and those that wait for a timer.

A template is kept through the store; in a database its rows are then copied, with ids and times of their own.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from msgspec import Raw
from ulid import ULID

from benchmarks.orders.shop import CUSTOMER, Shop
from saga_amqp import Options
from saga_amqp.contracts import Store
from saga_amqp.stores.enlisting import Tables
from saga_core import StepSucceeded, new_saga, transition

Kind = Literal["resting", "waiting"]
KINDS: tuple[Kind, ...] = get_args(Kind)

BATCH = 50_000
FIRST_WAKES, ALL_WAKE = 1_200.0, 3_600.0  # seconds from now
ORDER: Sequence[Any] = Shop().order()
OUTPUT = Raw(b'{"order_id":"prod-123"}')


async def template(store: Store, kind: Kind) -> str:
    """Keep one such saga and return its id."""
    saga_id = str(ULID())
    await _keep(store, kind, saga_id)
    return saga_id


async def fill(store: Store, kind: Kind, count: int) -> None:
    """Keep so many such sagas, one by one: for a store that has no tables."""
    for number in range(count):
        await _keep(store, kind, f"01A{number:023d}")


def copy_in_sqlite(file: str, tables: Tables, saga_id: str, count: int) -> None:
    """Copy the rows of a saga so many times. Blocks, for a minute where it is a million."""
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        number, new_id = "series.number", "'01A' || substr('00000000000000000000000' || series.number, -23)"
        series = (
            "WITH RECURSIVE series (number) AS"
            " (VALUES (%d) UNION ALL SELECT number + 1 FROM series WHERE number < %d)"
        )

        def swap(column: str) -> str:
            return f"CAST(replace(CAST(row.{column} AS TEXT), '{saga_id}', {new_id}) AS BLOB)"

        columns = {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for table in (tables.sagas, tables.history)
        }
        for first in range(1, count + 1, BATCH):
            among = series % (first, min(first + BATCH - 1, count))
            connection.execute("BEGIN IMMEDIATE")
            for statement in _copies(tables, columns, saga_id, number, new_id, swap):
                insert, _, select = statement.partition(" SELECT ")
                connection.execute(f"{insert} {among} SELECT {select}")
            connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("ANALYZE")
    finally:
        connection.close()


def copy_in_postgres(database: str, tables: Tables, saga_id: str, count: int) -> None:
    """Copy the rows of a saga so many times. Blocks, for a minute or two where it is a million."""
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        number, new_id = "series.number", "'01A' || lpad(series.number::text, 23, '0')"

        def swap(column: str) -> str:
            return f"convert_to(replace(convert_from(row.{column}, 'UTF8'), '{saga_id}', {new_id}), 'UTF8')"

        columns = {
            table: [
                column.name
                for column in connection.execute(f"SELECT * FROM {table} LIMIT 0").description or ()
            ]
            for table in (tables.sagas, tables.history)
        }
        for first in range(1, count + 1, BATCH):
            among = f", generate_series({first}, {min(first + BATCH - 1, count)}) AS series (number)"
            for statement in _copies(tables, columns, saga_id, number, new_id, swap, among):
                connection.execute(statement)
        for table in (tables.sagas, tables.history):
            connection.execute(f"VACUUM ANALYZE {table}")
        connection.execute("CHECKPOINT")


def _copies(
    tables: Tables,
    columns: dict[str, list[str]],
    saga_id: str,
    number: str,
    new_id: str,
    swap: Callable[[str], str],
    among: str = ", series",
) -> Sequence[str]:
    """Return what copies the head and the history of a saga once for each number of a series."""
    spread = (ALL_WAKE - FIRST_WAKES) / 1e6
    told: dict[str, Callable[[str], str]] = {
        "id": lambda _: new_id,
        "saga_id": lambda _: new_id,
        "created_at": lambda name: f"row.{name} - {number} * 0.001",
        "updated_at": lambda name: f"row.{name} - {number} * 0.001",
        "at": lambda name: f"row.{name} - {number} * 0.001",
        "wake_at": lambda name: f"row.{name} + {number} * {spread}",
        "snapshot": swap,
    }
    statements: list[str] = []
    for table, which in ((tables.sagas, "id"), (tables.history, "saga_id")):
        names = ", ".join(f'"{name}"' for name in columns[table])
        values = ", ".join(told.get(name, lambda name: f'row."{name}"')(name) for name in columns[table])
        statements.append(
            f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} AS row{among} WHERE row.{which} = '{saga_id}'"
        )
    return statements


async def _keep(store: Store, kind: Kind, saga_id: str) -> None:
    now = time.time()
    options = Options(start_at=now + FIRST_WAKES) if kind == "waiting" else Options()
    saga = new_saga("order", ORDER, CUSTOMER, id=saga_id, at=now, options=options)
    await store.create(saga)
    if kind == "resting":
        for step in saga.steps:
            event = StepSucceeded(step.name, 1, OUTPUT, now)
            saga = transition(saga, event).saga
            await store.commit(saga, event)
