"""What SQLite's errors mean for whoever uses the store, and patience with a file that others hold."""

import random
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from saga_amqp.errors import SchemaError, StoreError, StoreUnavailableError

T = TypeVar("T")

PRIMARY = 0xFF
"""The part of an error code that says what kind of error it is; the rest says more about it."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.0002, 0.005

BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})

ADVICE: dict[int, str] = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space and try again",
    sqlite3.SQLITE_IOERR: "the disk does not read or write as it should; look at the system's log",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; see that its directory is there and may be written to",
    sqlite3.SQLITE_READONLY: (
        "it can only be read; let this process write the file and its directory, where SQLite keeps more files"
    ),
    sqlite3.SQLITE_PERM: "this process may not use it; change the permissions of the file and its directory",
    sqlite3.SQLITE_NOMEM: "there is not enough memory",
}
"""What may pass, or can be put right while the program runs: what is wrong with the file, and what to do."""


def code(error: BaseException) -> int:
    """Return what kind of error SQLite reports, -1 when it is none of SQLite's own."""
    # Python raises some errors of the same classes itself; those have no code.
    found = getattr(error, "sqlite_errorcode", None)
    return found & PRIMARY if isinstance(found, int) else -1


def may_pass(error: BaseException) -> bool:
    """Whether the error is about the file and the machine, and not about what was asked."""
    return code(error) in BUSY or code(error) in ADVICE


def explain(error: sqlite3.Error, file: Path, busy_timeout: float) -> StoreError:
    """Return an error of SQLite as one of the store's, which names the file and says what to do."""
    kind, name = code(error), getattr(error, "sqlite_errorname", "SQLite")
    if kind in BUSY:
        return StoreUnavailableError(
            f"{file}: another process holds it for more than {busy_timeout:g} seconds; find the one that does, or give "
            f"the store a longer busy_timeout ({name})"
        )
    if kind in ADVICE:
        return StoreUnavailableError(f"{file}: {ADVICE[kind]} ({name}: {error})")
    if kind == sqlite3.SQLITE_NOTADB:
        return SchemaError(f"{file} is no database of sagas; name another file, or a new one ({name})")
    if kind == sqlite3.SQLITE_CORRUPT:
        return StoreError(
            f"{file} is damaged; restore it from a backup, or try `sqlite3 {file} .recover` ({name})"
        )
    return StoreError(f"{file}: {error} ({name})")


@contextmanager
def explained(file: Path, busy_timeout: float) -> Generator[None]:
    """Turn errors of SQLite into the store's."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, file, busy_timeout) from error


def patiently(do: Callable[[], T], busy_timeout: float) -> T:
    """Do what needs a file that others may hold, again and again for so many seconds. Blocks.

    SQLite's own patience sleeps for up to a tenth of a second between attempts, so that a process among several busy
    ones may never find the file free.
    """
    deadline = time.monotonic() + busy_timeout
    pause = SHORTEST_PAUSE
    while True:
        try:
            return do()
        except sqlite3.OperationalError as error:
            if code(error) not in BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)
