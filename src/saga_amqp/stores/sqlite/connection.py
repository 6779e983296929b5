"""One connection to the file: transactions of many jobs, and what is done when one of them, or the file, fails."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from saga_amqp.errors import StoreError
from saga_amqp.stores.sqlite.failures import code, explain, explained, may_pass, patiently
from saga_amqp.stores.sqlite.schema import prepare
from saga_core import SagaError

Synchronous = Literal["FULL", "NORMAL"]

T = TypeVar("T")

Job = Callable[[sqlite3.Connection], T]
"""Reads or writes inside a transaction and returns the result. It raises a SagaError only before it has written."""

CHECKPOINT_EVERY = 4000
"""Pages of the write-ahead log. With 100,000 sagas it makes half as many commits again as SQLite's 1,000 pages."""

MOST_WAL_LEFT = 64 * 1024 * 1024
"""Bytes of the write-ahead log that stay on disk after a burst."""

USABLE_AFTER = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL})
"""Errors that a connection survives; after any other it is made anew."""


class Connection:
    """A connection for writing or for reading, for one thread at a time. Everything here blocks.

    When it breaks it is made anew with the next job.
    """

    def __init__(self, file: Path, synchronous: Synchronous, busy_timeout: float, *, writes: bool) -> None:
        self._file = file
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._writes = writes
        self._connection: sqlite3.Connection | None = None
        self._opened = 0

    def open(self, *, set_up: bool = False) -> None:
        """Open the file; with `set_up`, one that is missing or empty is made a file of sagas.

        Raises: SchemaError, StoreUnavailableError, StoreError.
        """
        with explained(self._file, self._busy_timeout):
            self._connection = patiently(lambda: self._connect(set_up), self._busy_timeout)
        self._opened += 1

    def close(self) -> None:
        """Close the connection. May be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def work(self, jobs: Sequence[Job[Any]]) -> Sequence[object]:
        """Do jobs in one transaction and return their results; one that fails returns its error, and leaves no trace.

        Raises: StoreUnavailableError, or another StoreError, when none of them was done.
        """
        try:
            return self._together(jobs)
        except StoreError:  # it cannot be opened
            raise
        except Exception as error:
            if len(jobs) == 1 or may_pass(error):
                raise self._explain(error) from error
        # One of them is such that SQLite refuses it, and the others are not to suffer.
        return [self._alone(job) for job in jobs]

    def version(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """Return what is different when another connection has committed. A job; alone, it takes no lock."""
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        return self._opened, version

    def _together(self, jobs: Sequence[Job[Any]]) -> list[object]:
        connection = self._connected()
        try:
            self._begin(connection, jobs)
            answers = [_answer(job, connection) for job in jobs]
            if connection.in_transaction:
                connection.execute("COMMIT")
        except BaseException as error:
            self._recover(connection, error)
            raise
        return answers

    def _alone(self, job: Job[Any]) -> object:
        try:
            return self._together([job])[0]
        except Exception as error:
            return self._explain(error)

    def _begin(self, connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> None:
        if not self._writes:
            connection.execute("BEGIN")
        elif any(job != self.version for job in jobs):
            patiently(lambda: connection.execute("BEGIN IMMEDIATE"), self._busy_timeout)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self.open()
        assert self._connection is not None
        return self._connection

    def _connect(self, set_up: bool) -> sqlite3.Connection:
        # Only at first: made anew later, it would be a file without the sagas that were in it.
        connection = sqlite3.connect(
            f"{self._file.as_uri()}?mode={'rwc' if set_up else 'rw'}",
            uri=True,
            isolation_level=None,  # transactions begin where we say so
            timeout=0.0,
            check_same_thread=False,  # whichever thread of the pool does the work, it is one at a time
        )
        try:
            prepare(connection, self._file, set_up=set_up)
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StoreError(
                    f"{self._file}: no write-ahead log can be kept here; put the file on a local disk"
                )
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_EVERY}")
            connection.execute(f"PRAGMA journal_size_limit = {MOST_WAL_LEFT}")
            if not self._writes:
                connection.execute("PRAGMA query_only = ON")
                # Readers wait for nobody, but for who mends the file after a crash.
                connection.execute(f"PRAGMA busy_timeout = {int(self._busy_timeout * 1000)}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _recover(self, connection: sqlite3.Connection, error: BaseException) -> None:
        """Undo what is half done; when that fails too, let go of the connection."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and may_pass(error) and code(error) not in USABLE_AFTER:
                self.close()
        except sqlite3.Error:
            self.close()

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.Error):
            return explain(error, self._file, self._busy_timeout)
        if isinstance(error, UnicodeEncodeError | OverflowError):
            return StoreError(f"SQLite can neither keep nor look for such a value: {error}")
        return error


def _answer(job: Job[Any], connection: sqlite3.Connection) -> object:
    try:
        return job(connection)
    except SagaError as error:
        return error
