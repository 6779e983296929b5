"""The bank's own database: accounts, and an entry for every movement. Nothing in it forbids a second effect.

Only the barrier stands before it. A unique constraint would hide what the barrier lets through.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg

from saga_amqp import Saga, Step, barrier
from saga_core import Operation

from .transfers import ACCOUNTS, OPENING, Movement, operation_of

PATIENCE = 60.0
"""Seconds that a SQLite connection waits for another one's transaction."""

Entry = tuple[str, Operation, int, int]
"""Step, operation, account, cents."""


class Ledger:
    """The ledger at a URL: `sqlite:///path` or `postgresql://…`. Everything here blocks."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._postgres = url.startswith("postgresql://")

    def create(self) -> None:
        """Open the accounts."""
        number = "BIGSERIAL" if self._postgres else "INTEGER"
        with self._transaction() as connection:
            connection.execute("CREATE TABLE accounts (account INTEGER PRIMARY KEY, cents BIGINT NOT NULL)")
            connection.execute(
                f"CREATE TABLE entries (number {number} PRIMARY KEY, saga TEXT, step TEXT, operation TEXT, "
                f"account INTEGER, cents BIGINT)"
            )
            barrier.create_table(connection)
            for account in range(ACCOUNTS):
                self._run(connection, "INSERT INTO accounts VALUES (?, ?)", account, OPENING)

    def move(self, saga: Saga, step: Step[Movement], last: Callable[[], None]) -> barrier.Answer:
        """Do what a step asks for, or undo it, under the barrier. `last` may still raise within the transaction."""
        with self._transaction() as connection:

            def body() -> dict[str, object]:
                account, cents = step.input.account, step.input.cents
                if operation_of(step) == "compensate":
                    moved = barrier.action_output(connection, saga, step)["moved"]
                    assert isinstance(moved, int)
                    cents = -moved
                self._run(
                    connection, "UPDATE accounts SET cents = cents + ? WHERE account = ?", cents, account
                )
                entry = (saga.id, step.name, operation_of(step), account, cents)
                self._run(
                    connection,
                    "INSERT INTO entries (saga, step, operation, account, cents) VALUES (?, ?, ?, ?, ?)",
                    *entry,
                )
                last()
                return {"moved": cents}

            return barrier.run(connection, saga, step, body)

    def balances(self) -> list[int]:
        """Return the cents on each account."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT cents FROM accounts ORDER BY account").fetchall()
        return [cents for (cents,) in rows]

    def entries(self) -> list[tuple[str, Entry]]:
        """Return every entry, in order, with its saga."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT saga, step, operation, account, cents FROM entries ORDER BY number"
            ).fetchall()
        return [(row[0], row[1:]) for row in rows]

    def _run(self, connection: Any, sql: str, *values: object) -> None:
        connection.execute(sql.replace("?", "%s") if self._postgres else sql, values)

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        if self._postgres:
            with psycopg.connect(self._url, connect_timeout=5) as connection:
                yield connection
            return
        path = self._url.removeprefix("sqlite://")
        with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL").close()
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                yield connection
