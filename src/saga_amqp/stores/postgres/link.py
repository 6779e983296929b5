"""One connection, made when it is first needed and made anew when it was lost.

It is used in the event loop, by prepared statements, or in a worker thread, by all else; never in two places at once.
Nothing waits for ever: connecting, statements and locks have their time, and
should the server not even keep to that, `cut_if_overdue` ends the connection from outside.
"""

import os
import random
import select
import socket
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio import CapacityLimiter

from saga_amqp.errors import SchemaError, StoreUnavailableError
from saga_amqp.stores.postgres.address import Address
from saga_amqp.stores.postgres.conversation import Conversation, Prepared, Row
from saga_amqp.stores.postgres.driver import capabilities, psycopg
from saga_amqp.stores.postgres.failures import READ_ONLY, is_collision, is_lost, not_reached, translate

Connection = psycopg.Connection[Row]
Statement = tuple[bytes, Sequence[object] | None]

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
Answers = Sequence[ResultT | Exception]

# Seconds that a lock of somebody else's is waited for, and that the server has to keep to its timeouts by itself.
LOCK_TIMEOUT = 10.0
PATIENCE = 5.0

# How often in a row a transaction may collide with others; and seconds between.
TRIES = 8
PAUSE = 0.01

# Prepared statements are planned once: planning takes longer than a lone commit. That is when the tables are small, and
# the plans are kept while they grow. What is right for large tables is no worse for small ones: by the index, one row
# after the other.
SETTINGS = """SELECT set_config(name, value, false) FROM (VALUES
    ('statement_timeout', %s), ('lock_timeout', %s), ('idle_in_transaction_session_timeout', %s),
    ('default_transaction_isolation', 'read committed'), ('jit', 'off'), ('plan_cache_mode', 'force_generic_plan'),
    ('enable_seqscan', 'off'), ('enable_hashjoin', 'off'), ('enable_mergejoin', 'off')
) AS setting (name, value)"""


class Link:
    """A connection to a database, whenever there is one.

    `timeout`: seconds that a statement may take. `process` is the number of the server's process behind the latest
    connection.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._connection: Connection | None = None
        self._conversation: Conversation | None = None
        self._handle: socket.socket | None = None
        self._limiter: CapacityLimiter | None = None  # made inside, where there is an event loop
        self._busy_since: float | None = None
        self.process = 0

    async def run(self, work: Callable[[Connection], ResultT], *, repeatable: bool = False) -> ResultT:
        """Do something in a worker thread; again if it collides with others and, if `repeatable`, loses the connection.

        Raises: StoreUnavailableError, SchemaError, StoreError.
        """
        return await self._insist(partial(self._in_a_thread, partial(self._work, work)), repeatable)

    async def execute(self, statements: Sequence[Prepared]) -> list[list[Row]]:
        """Execute statements in one transaction, and return the rows of each. Again if it collides with others.

        Raises: StoreUnavailableError, SchemaError, StoreError.
        """
        return await self._insist(partial(self._talk, statements))

    async def _insist(self, attempt: Callable[[], Awaitable[ResultT]], repeatable: bool = False) -> ResultT:
        collisions = 0
        while True:
            try:
                return await attempt()
            except psycopg.Error as error:
                if repeatable and is_lost(error):
                    repeatable = False
                elif is_collision(error) and collisions < TRIES:
                    collisions += 1
                    await anyio.sleep(random.uniform(0, PAUSE * collisions))
                else:
                    raise translate(error, self._address) from error

    async def _talk(self, statements: Sequence[Prepared]) -> list[list[Row]]:
        connection = self._connection
        if connection is None or not _is_alive(connection):
            connection = await self._in_a_thread(self.open)
        conversation = self._conversation = self._conversation or Conversation(connection)
        with self._used(connection):
            return await conversation.execute(statements)

    async def _in_a_thread(self, work: Callable[[], ResultT]) -> ResultT:
        self._limiter = self._limiter or CapacityLimiter(1)
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)

    def _work(self, work: Callable[[Connection], ResultT]) -> ResultT:
        connection = self.open()
        with self._used(connection):
            return work(connection)

    @contextmanager
    def _used(self, connection: Connection) -> Generator[None, None, None]:
        try:
            self._busy_since = time.monotonic()
            yield
        except psycopg.Error as error:
            if is_lost(error) or connection.broken or error.sqlstate == READ_ONLY:
                self.close()  # to a primary that is none any more as well: there may be another
            raise
        finally:
            self._busy_since = None
            if connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
                self.close()  # whatever went wrong, the next one begins anew

    def open(self) -> Connection:
        """Return the connection; a new one where there is none, or where the server has closed it meanwhile.

        Raises: StoreUnavailableError.
        """
        connection = self._connection
        if connection is not None and _is_alive(connection):
            return connection
        self.close()
        try:
            connection = psycopg.connect("", autocommit=True, **self._address.secret)
        except psycopg.Error as error:
            raise not_reached(error, self._address) from error
        self._connection, self.process = connection, connection.pgconn.backend_pid
        self._handle = socket.socket(fileno=os.dup(connection.pgconn.socket))
        try:
            timeouts = [f"{seconds * 1000:.0f}" for seconds in (self._timeout, LOCK_TIMEOUT, self._timeout)]
            connection.execute(SETTINGS, timeouts)
        except psycopg.Error as error:
            self.close()
            raise not_reached(error, self._address) from error
        return connection

    def cut_if_overdue(self) -> None:
        """End a connection whose server does not answer any more, so that its user gets an error. From any thread."""
        since, handle = self._busy_since, self._handle
        if since is not None and handle is not None and time.monotonic() - since > self._timeout + PATIENCE:
            with suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, handle = self._connection, self._handle
        self._connection = self._conversation = self._handle = None
        if handle is not None:
            handle.close()
        if connection is not None:
            connection.close()


async def each_alone(
    do: Callable[[Sequence[JobT]], Awaitable[Answers[ResultT]]], jobs: Sequence[JobT]
) -> Answers[ResultT]:
    """Do jobs together; where one of them cannot be done for what it is, each alone, so that only that one fails.

    Raises: StoreUnavailableError, SchemaError.
    """
    try:
        return await do(jobs)
    except (StoreUnavailableError, SchemaError):
        raise
    except Exception as error:
        if len(jobs) == 1:
            return [error]
    return [(await each_alone(do, [job]))[0] for job in jobs]


def execute(connection: Connection, statements: Sequence[Statement]) -> list[list[Row]]:
    """Execute statements in one transaction and, where libpq can, in one round trip; return the rows of each.

    Raises: psycopg.Error.
    """
    if len(statements) == 1:
        return [_execute(connection, statements[0]).fetchall()]
    together = connection.pipeline() if capabilities.has_pipeline() else nullcontext()
    with together, connection.transaction():
        cursors = [_execute(connection, statement) for statement in statements]
    return [cursor.fetchall() for cursor in cursors]


def _execute(connection: Connection, statement: Statement) -> "psycopg.Cursor[Row]":
    query, parameters = statement
    # What has no parameters is composed for this one time.
    return connection.execute(query, parameters, prepare=parameters is not None, binary=True)


def _is_alive(connection: Connection) -> bool:
    """Whether the server has not closed a connection that nobody has used for a while."""
    try:
        while not connection.closed and _is_readable(connection.pgconn.socket):
            connection.pgconn.consume_input()
    except psycopg.Error:
        return False
    return not connection.closed


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
