"""A bank that takes part in sagas: a ledger, and handlers that write to it under the barrier, on any connection.

A handler runs to its end within `handle`, in a transaction of its own, on a connection of its own. An asynchronous
one gets an event loop of its own: so handlers can race in threads, whatever their connections are.
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import aiosqlite
import psycopg
import sqlalchemy
from sqlalchemy import orm, pool
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from ulid import ULID

from saga_amqp import barrier
from saga_core import Operation, Saga, Step, StepState, new_saga

LEDGER = "CREATE TABLE ledger (saga TEXT, step TEXT, operation TEXT)"

PATIENCE = 60.0
"""Seconds that a SQLite connection waits for another one's transaction."""


@dataclass
class Desk:
    """A connection with an open transaction; `write` and `run` return something to await if it is asynchronous."""

    connection: Any
    write: Callable[[str], Any]
    run: Callable[..., Any]


def desk(connection: Any, write: Callable[[str], Any]) -> Desk:
    return Desk(connection, write, partial(barrier.run, connection))


def async_desk(connection: Any, write: Callable[[str], Any]) -> Desk:
    return Desk(connection, write, partial(barrier.run_async, connection))


# Kinds of connections ---------------------------------------------------------------------------------------------


@contextmanager
def sqlite3_plain(path: str) -> Iterator[Desk]:
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as connection, connection:
        yield desk(connection, connection.execute)


@contextmanager
def sqlite3_immediate(path: str) -> Iterator[Desk]:
    with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            yield desk(connection, connection.execute)


@contextmanager
def psycopg_plain(url: str) -> Iterator[Desk]:
    with psycopg.connect(url) as connection:
        yield desk(connection, connection.execute)


@contextmanager
def psycopg_transaction(url: str) -> Iterator[Desk]:
    with psycopg.connect(url, autocommit=True) as connection, connection.transaction():
        yield desk(connection, connection.execute)


@contextmanager
def sqlalchemy_connection(url: str) -> Iterator[Desk]:
    engine = sqlalchemy.create_engine(sqlalchemy_url(url, "pysqlite"), **engine_options(url))
    with engine.begin() as connection:
        yield desk(connection, lambda sql: connection.execute(sqlalchemy.text(sql)))


@contextmanager
def sqlalchemy_autobegin(url: str) -> Iterator[Desk]:
    engine = sqlalchemy.create_engine(sqlalchemy_url(url, "pysqlite"), **engine_options(url))
    with engine.connect() as connection:
        yield desk(connection, lambda sql: connection.execute(sqlalchemy.text(sql)))
        connection.commit()


@contextmanager
def sqlalchemy_session(url: str) -> Iterator[Desk]:
    engine = sqlalchemy.create_engine(sqlalchemy_url(url, "pysqlite"), **engine_options(url))
    with orm.Session(engine) as session, session.begin():
        yield desk(session, lambda sql: session.execute(sqlalchemy.text(sql)))


@asynccontextmanager
async def aiosqlite_plain(path: str) -> AsyncIterator[Desk]:
    async with aiosqlite.connect(path, timeout=PATIENCE) as connection:
        yield async_desk(connection, connection.execute)
        await connection.commit()


@asynccontextmanager
async def psycopg_async(url: str) -> AsyncIterator[Desk]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield async_desk(connection, connection.execute)


@asynccontextmanager
async def sqlalchemy_async_connection(url: str) -> AsyncIterator[Desk]:
    engine = create_async_engine(sqlalchemy_url(url, "aiosqlite"), **engine_options(url))
    async with engine.begin() as connection:
        yield async_desk(connection, lambda sql: connection.execute(sqlalchemy.text(sql)))


@asynccontextmanager
async def sqlalchemy_async_session(url: str) -> AsyncIterator[Desk]:
    engine = create_async_engine(sqlalchemy_url(url, "aiosqlite"), **engine_options(url))
    async with AsyncSession(engine) as session, session.begin():
        yield async_desk(session, lambda sql: session.execute(sqlalchemy.text(sql)))


def sqlalchemy_url(url: str, sqlite_driver: str) -> str:
    if url.startswith("postgresql://"):
        return url.replace("postgresql://", "postgresql+psycopg://")
    return f"sqlite+{sqlite_driver}:///{url}"


def engine_options(url: str) -> dict[str, Any]:
    patience = {} if url.startswith("postgresql://") else {"timeout": PATIENCE}
    return {"connect_args": patience, "poolclass": pool.NullPool}


Dialect = Literal["sqlite", "postgresql"]

KINDS: dict[str, tuple[Dialect, Callable[[str], Any]]] = {
    "sqlite3": ("sqlite", sqlite3_plain),
    "sqlite3 BEGIN IMMEDIATE": ("sqlite", sqlite3_immediate),
    "psycopg": ("postgresql", psycopg_plain),
    "psycopg transaction()": ("postgresql", psycopg_transaction),
    "sqlalchemy Connection, SQLite": ("sqlite", sqlalchemy_connection),
    "sqlalchemy Connection, PostgreSQL": ("postgresql", sqlalchemy_connection),
    "sqlalchemy autobegin, SQLite": ("sqlite", sqlalchemy_autobegin),
    "sqlalchemy autobegin, PostgreSQL": ("postgresql", sqlalchemy_autobegin),
    "sqlalchemy Session, SQLite": ("sqlite", sqlalchemy_session),
    "sqlalchemy Session, PostgreSQL": ("postgresql", sqlalchemy_session),
}
ASYNC_KINDS: dict[str, tuple[Dialect, Callable[[str], Any]]] = {
    "aiosqlite": ("sqlite", aiosqlite_plain),
    "psycopg AsyncConnection": ("postgresql", psycopg_async),
    "sqlalchemy AsyncConnection, SQLite": ("sqlite", sqlalchemy_async_connection),
    "sqlalchemy AsyncConnection, PostgreSQL": ("postgresql", sqlalchemy_async_connection),
    "sqlalchemy AsyncSession, SQLite": ("sqlite", sqlalchemy_async_session),
    "sqlalchemy AsyncSession, PostgreSQL": ("postgresql", sqlalchemy_async_session),
}


# The bank ---------------------------------------------------------------------------------------------------------


def a_saga() -> Saga:
    return new_saga("transfer", [Step(name="pay", action="pay.do")], id=str(ULID()), at=0.0)


def a_step(operation: Operation, name: str = "pay") -> Step[Any]:
    state = StepState.STARTED if operation == "execute" else StepState.COMPENSATING
    return Step(name=name, action=f"{name}.do", compensation=f"{name}.undo", state=state)


@dataclass
class Bank:
    """The bank's database, and how its handlers connect to it."""

    url: str
    kind: str

    @property
    def is_async(self) -> bool:
        return self.kind in ASYNC_KINDS

    @property
    def dialect(self) -> Dialect:
        return (KINDS | ASYNC_KINDS)[self.kind][0]

    def over(self, kind: str) -> "Bank":
        """The same bank, with other connections."""
        return replace(self, kind=kind)

    def handle(
        self,
        saga: Saga,
        step: Step[Any],
        answer: object = None,
        *,
        within: Callable[[Desk], object] = lambda _: None,
        before_commit: Callable[[], object] = lambda: None,
    ) -> barrier.Answer:
        """Run a handler: note the operation in the ledger, under the barrier, and commit.

        It answers `answer`, or raises it. `within` is called at the end of the body, and may return something to
        await; `before_commit` when the barrier has been passed.
        """
        open_desk = (KINDS | ASYNC_KINDS)[self.kind][1]
        operation = "compensate" if step.state is StepState.COMPENSATING else "execute"
        entry = f"INSERT INTO ledger VALUES ('{saga.id}', '{step.name}', '{operation}')"

        def handle() -> barrier.Answer:
            with open_desk(self.url) as at:

                def body() -> object:
                    at.write(entry)
                    within(at)
                    return give(answer)

                answered: barrier.Answer = at.run(saga, step, body)
                before_commit()
            return answered

        async def handle_async() -> barrier.Answer:
            async with open_desk(self.url) as at:

                async def body() -> object:
                    await at.write(entry)
                    awaitable = within(at)
                    if isinstance(awaitable, Awaitable):
                        await awaitable
                    return give(answer)

                answered: barrier.Answer = await at.run(saga, step, body)
                before_commit()
            return answered

        return asyncio.run(handle_async()) if self.is_async else handle()

    def execute(self, saga: Saga, answer: object = None, **more: Any) -> barrier.Answer:
        return self.handle(saga, a_step("execute"), answer, **more)

    def compensate(self, saga: Saga, answer: object = None, **more: Any) -> barrier.Answer:
        return self.handle(saga, a_step("compensate"), answer, **more)

    def ledger(self, saga: Saga) -> Counter[str]:
        """How often each operation took effect, as anybody sees it."""
        return Counter(row[0] for row in self.ask(f"SELECT operation FROM ledger WHERE saga = '{saga.id}'"))

    def records(self, saga: Saga) -> dict[str, str]:
        """The outcome that the barrier has recorded of each operation."""
        rows = self.ask(f"SELECT operation, outcome FROM saga_barrier WHERE saga_id = '{saga.id}'")
        return {operation: outcome for operation, outcome in rows}

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            return connection.execute(sql).fetchall()

    @contextmanager
    def connect(self) -> Iterator[Any]:
        """A plain connection, which commits at the end."""
        if self.dialect == "postgresql":
            with psycopg.connect(self.url) as connection:
                yield connection
        else:
            with closing(sqlite3.connect(self.url, timeout=PATIENCE)) as connection, connection:
                yield connection


def open_bank(url: str, kind: str) -> Bank:
    """Open a bank in an empty database."""
    bank = Bank(url, kind)
    with bank.connect() as connection:
        connection.execute(LEDGER)
        barrier.create_table(connection)
    return bank


def give(answer: object) -> object:
    if isinstance(answer, BaseException):
        raise answer
    return answer
