"""Work on a user's connection, written once for connections that block and for those that do not.

Work is a generator: it yields requests, as data, and receives their answers. It does no I/O of its own. `perform` runs
it on a connection that blocks, `perform_async` on one to await.
"""

from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, TypeVar, cast

from msgspec import Struct

from saga_amqp.connections import AsyncConnection, Connection, Row

T = TypeVar("T")


class Statement(Struct, frozen=True):
    """Asks for a statement to be executed; the answer is the list of its rows."""

    sql: str
    parameters: tuple[object, ...] = ()


class Begin(Struct, frozen=True):
    """Asks that what is written next be part of a transaction; see `Connection.begin`."""


class IsOpen(Struct, frozen=True):
    """Asks whether a transaction is open; see `Connection.in_transaction`."""


class Call(Struct, frozen=True):
    """Asks for a function of the user's to be called, and awaited where the connection is; the answer is its result."""

    function: Callable[[], object]


Request = Statement | Begin | IsOpen | Call
Work = Generator[Request, Any, T]


def execute(sql: str, *parameters: object) -> Work[list[Row]]:
    """Have a statement executed and return its rows, as a part of other work, with `yield from`."""
    rows: list[Row] = yield Statement(sql, parameters)
    return rows


def perform(connection: Connection, work: Work[T]) -> T:
    """Do work on a connection that blocks. What a request raises, the work gets to see first.

    Raises:
        Exception: Whatever the work lets pass.
    """
    resume: Callable[[], Request] = partial(next, work)
    try:
        while True:
            request = resume()
            try:
                answer = _answer(connection, request)
            except Exception as error:
                resume = partial(work.throw, error)
            else:
                resume = partial(work.send, answer)
    except StopIteration as end:
        return cast("T", end.value)
    finally:
        work.close()


async def perform_async(connection: AsyncConnection, work: Work[T]) -> T:
    """Do work on an asynchronous connection, as `perform` does on one that blocks.

    Cancellation passes through between requests or in one; the work gets to see nothing of it.

    Raises:
        Exception: Whatever the work lets pass.
    """
    resume: Callable[[], Request] = partial(next, work)
    try:
        while True:
            request = resume()
            try:
                answer = await cast("Awaitable[object]", _answer(connection, request))
            except Exception as error:
                resume = partial(work.throw, error)
            else:
                resume = partial(work.send, answer)
    except StopIteration as end:
        return cast("T", end.value)
    finally:
        work.close()


def _answer(connection: Connection | AsyncConnection, request: Request) -> object:
    """Do what is asked for; on an asynchronous connection, return what is to be awaited."""
    match request:
        case Statement(sql, parameters):
            return connection.execute(sql, parameters)
        case Begin():
            return connection.begin()
        case IsOpen():
            return connection.in_transaction()
        case Call(function):
            return function()
