"""Users' connections, all alike: what is recognised, what is refused, and that nothing of the user's is disturbed."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy import orm, pool
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

from saga_amqp import NoTransactionError, UnsupportedConnectionError, barrier
from saga_amqp.connections import adapt, adapt_async
from saga_amqp.work import Begin, Call, IsOpen, Statement, Work, execute, perform, perform_async

from .banks import Bank, Desk, a_saga, a_step

# What a connection can do -------------------------------------------------------------------------------------------


def test_a_statement_is_written_once_for_all(bank: Bank) -> None:
    sql = "SELECT ?, ?, ':no :: %s %% name', CAST(? AS INTEGER) % 4, ?"
    parameters = ("?", "ü%s :p0", 7, None)

    def ask(at: Desk) -> object:
        if not bank.is_async:
            check(adapt(at.connection).execute(sql.replace("?", "CAST(? AS TEXT)", 2), parameters))
            return None

        async def ask_async() -> None:
            check(
                await adapt_async(at.connection).execute(sql.replace("?", "CAST(? AS TEXT)", 2), parameters)
            )

        return ask_async()

    def check(rows: list[tuple[Any, ...]]) -> None:
        assert rows == [("?", "ü%s :p0", ":no :: %s %% name", 3, None)]
        assert all(type(row) is tuple for row in rows)

    bank.execute(a_saga(), within=ask)


def test_bytes_and_no_rows(bank: Bank) -> None:
    def ask(at: Desk) -> object:
        empty = "DELETE FROM ledger WHERE saga = 'nobody'"
        same = "SELECT ?" if bank.dialect == "sqlite" else "SELECT CAST(? AS BYTEA)"
        if not bank.is_async:
            one = adapt(at.connection)
            assert one.dialect == bank.dialect
            assert one.execute(empty) == []
            assert bytes(one.execute(same, (b"\0\xff",))[0][0]) == b"\0\xff"
            return None

        async def ask_async() -> None:
            other = adapt_async(at.connection)
            assert other.dialect == bank.dialect
            assert await other.execute(empty) == []
            assert bytes((await other.execute(same, (b"\0\xff",)))[0][0]) == b"\0\xff"

        return ask_async()

    bank.execute(a_saga(), within=ask)


def test_the_users_own_kinds_of_rows_and_texts_do_not_matter(tmp_path: Path) -> None:
    saga = a_saga()
    with closing(sqlite3.connect(tmp_path / "bank.sqlite")) as connection:
        barrier.create_table(connection)
        connection.row_factory = sqlite3.Row
        connection.text_factory = bytes
        for _ in range(2):
            assert barrier.run(connection, saga, a_step("execute"), lambda: {"text": "ü"}) == {"text": "ü"}
        connection.row_factory = lambda cursor, row: {"no": "tuple"}
        assert barrier.run(connection, saga, a_step("execute"), dict) == {"text": "ü"}
        barrier.run(connection, saga, a_step("compensate"), dict)


@pytest.mark.parametrize(
    "cursor", [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor, psycopg.ServerCursor]
)
def test_the_users_own_kinds_of_cursors_do_not_matter(postgres_bank: Bank, cursor: Any) -> None:
    saga = a_saga()
    with psycopg.connect(postgres_bank.url, row_factory=dict_row) as connection:
        connection.cursor_factory = cursor
        for _ in range(2):
            assert barrier.run(connection, saga, a_step("execute"), lambda: {"a": 1}) == {"a": 1}


def test_connections_of_classes_of_the_users_own_are_recognised(tmp_path: Path) -> None:
    class Mine(sqlite3.Connection):
        pass

    with closing(sqlite3.connect(tmp_path / "bank.sqlite", factory=Mine)) as connection:
        barrier.create_table(connection)
        assert barrier.run(connection, a_saga(), a_step("execute"), dict) == {}


# Transactions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "bank.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        barrier.create_table(connection)
    yield path
    with closing(sqlite3.connect(path)) as connection:
        assert not connection.execute("SELECT * FROM saga_barrier").fetchall(), "it was recorded all the same"


def refuse(connection: Any) -> None:
    with pytest.raises(NoTransactionError, match="commits every statement by itself"):
        barrier.run(connection, a_saga(), a_step("execute"), lambda: pytest.fail("it ran"))


async def refuse_async(connection: Any) -> None:
    async def body() -> None:
        pytest.fail("it ran")

    with pytest.raises(NoTransactionError, match="commits every statement by itself"):
        await barrier.run_async(connection, a_saga(), a_step("execute"), body)


def test_sqlite3_without_a_transaction_is_refused(sqlite_path: str) -> None:
    with closing(sqlite3.connect(sqlite_path, isolation_level=None)) as connection:
        refuse(connection)
        assert not connection.in_transaction


@pytest.mark.parametrize("level", ["", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"])
def test_sqlite3_with_an_isolation_level_opens_the_transaction_itself(sqlite_path: str, level: Any) -> None:
    saga = a_saga()
    with closing(sqlite3.connect(sqlite_path, isolation_level=level)) as connection:
        output = barrier.run(connection, saga, a_step("execute"), lambda: {"open": connection.in_transaction})
        assert output == {"open": True}
        assert connection.in_transaction
        connection.rollback()


if sys.version_info >= (3, 12):

    def test_sqlite3_with_autocommit_on_is_refused(sqlite_path: str) -> None:
        with closing(sqlite3.connect(sqlite_path, autocommit=True)) as connection:
            refuse(connection)

        async def aiosqlite_too() -> None:
            async with aiosqlite.connect(sqlite_path, autocommit=True) as connection:
                await refuse_async(connection)
            url = f"sqlite+aiosqlite:///{sqlite_path}"
            engine = create_async_engine(url, connect_args={"autocommit": True}, poolclass=pool.NullPool)
            async with engine.connect() as connection:
                await refuse_async(connection)

        asyncio.run(aiosqlite_too())

    def test_sqlite3_with_autocommit_on_and_a_transaction_is_used(sqlite_path: str) -> None:
        with closing(sqlite3.connect(sqlite_path, autocommit=True)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            barrier.run(connection, a_saga(), a_step("execute"), dict)
            connection.execute("ROLLBACK")

    def test_sqlite3_with_autocommit_off_is_used(sqlite_path: str) -> None:
        with closing(sqlite3.connect(sqlite_path, autocommit=False)) as connection:
            barrier.run(connection, a_saga(), a_step("execute"), dict)
            connection.rollback()


def test_psycopg_in_autocommit_is_refused(postgres_bank: Bank) -> None:
    with psycopg.connect(postgres_bank.url, autocommit=True) as connection:
        refuse(connection)

    async def refused() -> None:
        async with await psycopg.AsyncConnection.connect(postgres_bank.url, autocommit=True) as connection:
            await refuse_async(connection)

    asyncio.run(refused())


@pytest.mark.parametrize("how", [lambda engine: engine.connect(), orm.Session], ids=["Connection", "Session"])
@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_sqlalchemy_in_autocommit_is_refused(
    dialect: str, how: Callable[[Any], Any], sqlite_path: str, postgres_bank: Bank
) -> None:
    engine = sqlalchemy.create_engine(
        f"sqlite:///{sqlite_path}" if dialect == "sqlite" else postgres_bank.url.replace(":", "+psycopg:", 1),
        isolation_level="AUTOCOMMIT",
        poolclass=pool.NullPool,
    )
    with how(engine) as connection:
        refuse(connection)


@pytest.mark.parametrize("kind", [AsyncConnection, AsyncSession])
@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_sqlalchemy_asynchronous_in_autocommit_is_refused(
    dialect: str, kind: Any, sqlite_path: str, postgres_bank: Bank
) -> None:
    url = (
        f"sqlite+aiosqlite:///{sqlite_path}"
        if dialect == "sqlite"
        else postgres_bank.url.replace(":", "+psycopg:", 1)
    )

    async def refused() -> None:
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT", poolclass=pool.NullPool)
        async with kind(engine) as connection:
            await refuse_async(connection)

    asyncio.run(refused())


def test_a_transaction_that_sqlalchemy_is_told_to_begin_immediately_is_used(sqlite_path: str) -> None:
    """This is how its manual has SQLite begin transactions."""
    engine = sqlalchemy.create_engine(f"sqlite:///{sqlite_path}", poolclass=pool.NullPool)

    @sqlalchemy.event.listens_for(engine, "connect")
    def leave_it_to_us(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.connect() as connection:
        saga = a_saga()
        for _ in range(2):
            assert barrier.run(connection, saga, a_step("execute"), lambda: {"a": 1}) == {"a": 1}
        connection.rollback()
    with orm.Session(engine) as session:
        assert barrier.run(session, saga, a_step("execute"), lambda: {"a": 2}) == {"a": 2}


# What is refused ----------------------------------------------------------------------------------------------------


def test_what_is_no_connection_is_refused() -> None:
    for nothing in (None, "sqlite:///bank.sqlite", object(), closing(None)):
        with pytest.raises(UnsupportedConnectionError, match=type(nothing).__name__):
            adapt(nothing)
        with pytest.raises(UnsupportedConnectionError, match=type(nothing).__name__):
            adapt_async(nothing)


def test_a_connection_of_the_other_kind_is_refused_with_a_hint() -> None:
    async def both() -> None:
        async with aiosqlite.connect(":memory:") as connection:
            with pytest.raises(UnsupportedConnectionError, match="asynchronous"):
                adapt(connection)
        with (
            closing(sqlite3.connect(":memory:")) as blocking,
            pytest.raises(UnsupportedConnectionError, match="in a thread"),
        ):
            adapt_async(blocking)

    asyncio.run(both())


def test_a_database_that_is_not_known_is_refused() -> None:
    engine = sqlalchemy.create_mock_engine("mysql://", print)
    connection = sqlalchemy.Connection.__new__(sqlalchemy.Connection)
    connection.dialect = engine.dialect
    with pytest.raises(UnsupportedConnectionError, match="mysql"):
        adapt(connection)


@pytest.mark.parametrize("driver", ["psycopg", "sqlalchemy", "aiosqlite"])
def test_no_driver_is_needed_that_is_not_used(driver: str) -> None:
    program = f"""
import sys
sys.modules[{driver!r}] = None
import sqlite3
from saga_amqp import Saga, Step, barrier
from saga_core import new_saga
saga = new_saga("one", [Step(name="pay", action="pay")], id="0" * 26, at=0)
connection = sqlite3.connect(":memory:")
barrier.create_table(connection)
assert barrier.run(connection, saga, saga.steps[0], lambda: {{"a": 1}}) == {{"a": 1}}
connection.close()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_driver_is_imported_before_it_is_used() -> None:
    drivers = {"psycopg", "sqlalchemy", "aiosqlite"}
    program = f"import sys, saga_amqp.barrier; print({drivers} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Work ---------------------------------------------------------------------------------------------------------------


class Recorded:
    """A connection that notes what is asked of it."""

    dialect = "sqlite"

    def __init__(self) -> None:
        self.asked: list[object] = []

    def begin(self) -> None:
        self.asked.append(Begin())

    def in_transaction(self) -> bool:
        self.asked.append(IsOpen())
        return True

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        self.asked.append(Statement(sql, parameters))
        if sql == "bad":
            raise ValueError(sql)
        return [(sql, *parameters)]


class RecordedAsync(Recorded):
    async def begin(self) -> None:
        super().begin()

    async def in_transaction(self) -> bool:
        return super().in_transaction()

    async def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        return super().execute(sql, parameters)


def do(work: Callable[[], Work[Any]]) -> Any:
    """Perform work on both kinds of connection, and return what both return."""
    one, other = Recorded(), RecordedAsync()
    result = perform(one, work())
    assert asyncio.run(perform_async(other, work())) == result
    assert one.asked == other.asked
    return result


def test_work_is_the_same_on_both_kinds_of_connection() -> None:
    def work() -> Work[object]:
        begun = yield Begin()
        rows = yield from execute("good", 1)
        is_open = yield IsOpen()
        return begun, rows, is_open

    assert do(work) == (None, [("good", 1)], True)


def test_work_gets_to_see_what_a_request_raises() -> None:
    def work() -> Work[object]:
        try:
            yield from execute("bad")
        except ValueError as error:
            rows = yield from execute("after", str(error))
        return rows

    assert do(work) == [("after", "bad")]


def test_what_work_lets_pass_is_raised() -> None:
    def work() -> Work[object]:
        yield from execute("bad")

    with pytest.raises(ValueError, match="bad"):
        do(work)


def test_a_body_that_raises_stop_iteration_does_not_end_the_work() -> None:
    def work() -> Work[object]:
        yield Call(lambda: next(iter(())))

    with pytest.raises(RuntimeError, match="StopIteration"):
        perform(Recorded(), work())


def test_work_ends_when_it_is_interrupted() -> None:
    ended: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    def work() -> Work[object]:
        try:
            yield Call(interrupt)
        except Exception:
            pytest.fail("it is no failure")
        finally:
            ended.append("ended")

    with pytest.raises(KeyboardInterrupt):
        perform(Recorded(), work())
    assert ended == ["ended"]
