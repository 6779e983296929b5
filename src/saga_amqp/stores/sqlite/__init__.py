"""SQLite: sagas in one file, for any number of processes on one machine."""

from saga_amqp.stores.sqlite.schema import upgrade
from saga_amqp.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore", "upgrade"]
