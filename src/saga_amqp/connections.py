"""Users' own database connections, all alike: to write something of ours within their transactions.

`adapt` and `adapt_async` take what the user has: a connection of sqlite3, aiosqlite or psycopg, or a Connection or
Session of SQLAlchemy, synchronous or asynchronous, on SQLite or PostgreSQL. SQL is written once, with `?` for each
parameter. What is done with them is written once, too: see `work`.

Nothing here commits or rolls back: the transaction is the user's. No driver is imported: who has a connection of one
has imported it already.
"""

import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from saga_amqp.errors import NoTransactionError, UnsupportedConnectionError

if TYPE_CHECKING:
    import sqlite3

    import psycopg
    import sqlalchemy
    import sqlalchemy.orm

Dialect = Literal["sqlite", "postgresql"]
Row = tuple[Any, ...]

IDLE = 0
"""Of libpq's states of a connection, the one in which no transaction is open."""

LEGACY_TRANSACTION_CONTROL = -1
"""The value of `sqlite3.Connection.autocommit`, from Python 3.12 on, with which `isolation_level` decides."""


class Connection(Protocol):
    """A connection that blocks."""

    @property
    def dialect(self) -> Dialect:
        """Which SQL the database speaks."""
        ...

    def begin(self) -> None:
        """See that what is written next is part of a transaction that is open, or that the driver now opens itself.

        Raises:
            NoTransactionError: Every statement would be committed by itself.
        """
        ...

    def in_transaction(self) -> bool:
        """Return whether a transaction is open, which after `begin` is so from the first statement on."""
        ...

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Execute a statement with a parameter for each `?`, and return its rows, none if it has none to return.

        Raises:
            Exception: Whatever the driver raises.
        """
        ...


class AsyncConnection(Protocol):
    """A connection to await. Cancelled, a statement may have been executed or not; the transaction is the user's."""

    @property
    def dialect(self) -> Dialect:
        """Which SQL the database speaks."""
        ...

    async def begin(self) -> None:
        """Do what `Connection.begin` does.

        Raises:
            NoTransactionError: Every statement would be committed by itself.
        """
        ...

    async def in_transaction(self) -> bool:
        """Return whether a transaction is open, which after `begin` is so from the first statement on."""
        ...

    async def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Execute a statement with a parameter for each `?`, and return its rows, none if it has none to return.

        Raises:
            Exception: Whatever the driver raises.
        """
        ...


def adapt(connection: object) -> Connection:
    """Return a user's connection that blocks as one of ours.

    Raises:
        UnsupportedConnectionError: It is none that can be worked on, or not on this database, or is asynchronous.
    """
    if _is(connection, "sqlite3", "Connection"):
        return _Sqlite(cast("sqlite3.Connection", connection))
    if _is(connection, "psycopg", "Connection"):
        return _Psycopg(cast("psycopg.Connection[Any]", connection))
    if _is(connection, "sqlalchemy", "Connection"):
        return _Sqlalchemy(cast("sqlalchemy.Connection", connection))
    if _is(connection, "sqlalchemy.orm", "Session"):
        return _SqlalchemySession(cast("sqlalchemy.orm.Session", connection))
    hint = "; it is asynchronous, so await the function's async twin" if _adapt_async(connection) else ""
    raise UnsupportedConnectionError(_unsupported(connection) + hint)


def adapt_async(connection: object) -> AsyncConnection:
    """Return a user's asynchronous connection as one of ours.

    Raises:
        UnsupportedConnectionError: It is none that can be worked on, or not on this database, or blocks.
    """
    if adapted := _adapt_async(connection):
        return adapted
    try:
        adapt(connection)
    except UnsupportedConnectionError:
        hint = ""
    else:
        hint = "; it blocks, so call the function's synchronous twin, in a thread"
    raise UnsupportedConnectionError(_unsupported(connection) + hint)


# One class for each kind of connection ----------------------------------------------------------------------------


class _Sqlite:
    dialect: Dialect = "sqlite"

    def __init__(self, connection: "sqlite3.Connection") -> None:
        self._connection = connection

    def begin(self) -> None:
        one = self._connection
        legacy = getattr(one, "autocommit", LEGACY_TRANSACTION_CONTROL) == LEGACY_TRANSACTION_CONTROL
        # With an isolation level the driver opens a transaction before the first statement that writes.
        if not (one.in_transaction or (legacy and one.isolation_level is not None)):
            raise NoTransactionError(_no_transaction('connection.execute("BEGIN IMMEDIATE")'))

    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        cursor = self._connection.cursor()
        cursor.row_factory = None  # not the user's: rows are to be tuples
        try:
            return cursor.execute(sql, tuple(cast("Sequence[Any]", parameters))).fetchall()
        finally:
            cursor.close()


class _Psycopg:
    dialect: Dialect = "postgresql"

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection

    def begin(self) -> None:
        _begin_psycopg(self._connection)

    def in_transaction(self) -> bool:
        return self._connection.info.transaction_status != IDLE

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        from psycopg import Cursor
        from psycopg.rows import tuple_row

        # Not the user's cursor and rows: they may be of any kind.
        with Cursor(self._connection, row_factory=tuple_row) as cursor:
            cursor.execute(_with_percent_signs(sql).encode(), parameters)
            return cursor.fetchall() if cursor.description else []


class _AsyncPsycopg:
    dialect: Dialect = "postgresql"

    def __init__(self, connection: "psycopg.AsyncConnection[Any]") -> None:
        self._connection = connection

    async def begin(self) -> None:
        _begin_psycopg(self._connection)

    async def in_transaction(self) -> bool:
        return self._connection.info.transaction_status != IDLE

    async def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        from psycopg import AsyncCursor
        from psycopg.rows import tuple_row

        async with AsyncCursor(self._connection, row_factory=tuple_row) as cursor:
            await cursor.execute(_with_percent_signs(sql).encode(), parameters)
            return await cursor.fetchall() if cursor.description else []


class _Sqlalchemy:
    def __init__(self, connection: "sqlalchemy.Connection") -> None:
        self._connection = connection
        self.dialect: Dialect = _dialect(connection.dialect.name)

    def begin(self) -> None:
        if not self._connection.in_transaction():
            self._connection.begin()  # as SQLAlchemy itself does before the first statement
        driver: Any = self._connection.connection.dbapi_connection
        if self.dialect == "postgresql":
            if driver.autocommit:
                raise NoTransactionError(_no_transaction("an isolation level other than AUTOCOMMIT"))
        elif hasattr(driver, "run_async"):
            driver.run_async(_begin_aiosqlite)
        else:
            _Sqlite(driver).begin()

    def in_transaction(self) -> bool:
        return self._connection.in_transaction()

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        from sqlalchemy import text

        names = {f"p{number}": value for number, value in enumerate(parameters)}
        result = self._connection.execute(text(_with_names(sql)), names)
        return [tuple(row) for row in result] if result.returns_rows else []


class _SqlalchemySession:
    """A session, which has a connection as long as it has a transaction."""

    def __init__(self, session: "sqlalchemy.orm.Session") -> None:
        self._session = session
        self.dialect: Dialect = _dialect(session.get_bind().dialect.name)

    def begin(self) -> None:
        _Sqlalchemy(self._session.connection()).begin()

    def in_transaction(self) -> bool:
        return self._session.in_transaction()

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        return _Sqlalchemy(self._session.connection()).execute(sql, parameters)


class _Elsewhere:
    """A connection that blocks, and may do so where its asynchronous driver has it: in a thread, or a greenlet."""

    def __init__(self, connection: Connection, run: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._connection = connection
        self._run = run
        self.dialect: Dialect = connection.dialect

    async def begin(self) -> None:
        await self._run(self._connection.begin)

    async def in_transaction(self) -> bool:
        return cast("bool", await self._run(self._connection.in_transaction))

    async def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        return cast("list[Row]", await self._run(lambda: self._connection.execute(sql, parameters)))


def _adapt_async(connection: Any) -> AsyncConnection | None:
    if _is(connection, "psycopg", "AsyncConnection"):
        return _AsyncPsycopg(connection)
    if _is(connection, "aiosqlite", "Connection"):
        # The way into its thread has no public name.
        return _Elsewhere(_Sqlite(connection._conn), connection._execute)
    if _is(connection, "sqlalchemy.ext.asyncio", "AsyncConnection"):
        inner: Connection = _Sqlalchemy(connection.sync_connection)
    elif _is(connection, "sqlalchemy.ext.asyncio", "AsyncSession"):
        inner = _SqlalchemySession(connection.sync_session)
    else:
        return None
    return _Elsewhere(inner, partial(_run_sync, connection))


def _run_sync(connection: Any, function: Callable[[], object]) -> Awaitable[object]:
    def ignore_connection(_: object) -> object:
        return function()

    return cast("Awaitable[object]", connection.run_sync(ignore_connection))


def _is(connection: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(connection, kind)


def _dialect(name: str) -> Dialect:
    if name not in {"sqlite", "postgresql"}:
        raise UnsupportedConnectionError(
            f"A connection to {name} cannot be used; to SQLite or PostgreSQL, it can"
        )
    return cast("Dialect", name)


def _begin_psycopg(connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> None:
    if connection.autocommit and connection.info.transaction_status == IDLE:
        raise NoTransactionError(_no_transaction("with connection.transaction()"))


def _begin_aiosqlite(connection: Any) -> Awaitable[None]:
    return cast("Awaitable[None]", connection._execute(_Sqlite(connection._conn).begin))


def _no_transaction(how: str) -> str:
    return (
        "The connection commits every statement by itself, and no transaction is open: what is recorded would not "
        f"be one with the work. Open one first, for example by: {how}"
    )


def _unsupported(connection: object) -> str:
    kind = type(connection)
    return f"{kind.__module__}.{kind.__qualname__} is no connection that can be used here"


@lru_cache
def _with_percent_signs(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")


@lru_cache
def _with_names(sql: str) -> str:
    parts = sql.replace(":", "\\:").split("?")
    return parts[0] + "".join(f":p{number}{part}" for number, part in enumerate(parts[1:]))
