"""Stores that outlive their processes, and what is left to see in them and in files when these have died."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from msgspec import Struct

from saga_amqp import SQLiteStore
from saga_amqp.stores.postgres import PostgresStore


class Place(Struct, frozen=True):
    """Where a store is: a file, or a schema in a PostgreSQL database. It travels to other processes as JSON."""

    url: str
    schema: str = "public"

    def open(self, **changes: Any) -> SQLiteStore | PostgresStore:
        """Return the store, to be entered; the tables are made where they are missing."""
        if self.url.startswith("postgresql://"):
            return PostgresStore(self.url, schema=self.schema, upgrade=True, **changes)
        return SQLiteStore(self.url, **changes)


class WrittenDown(list[str]):
    """Calls of handlers, each a line of a file and on the disk before the handler goes on."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def append(self, call: str) -> None:
        os.write(self._file, f"{call}\n".encode())
        os.fsync(self._file)


def written_down(path: Path) -> list[str]:
    """Return the calls that processes have written down, oldest first."""
    return path.read_text().split() if path.exists() else []


def counted(path: Path) -> Counter[str]:
    """Return how often each call was written down."""
    return Counter(written_down(path))
