"""Databases by their URLs, and the commands `saga db …`: what is done by hand, or when a release is rolled out."""

import argparse
import sys
from typing import TYPE_CHECKING
from urllib.parse import unquote

from saga_amqp.contracts import Store
from saga_amqp.errors import SchemaError, StoreError
from saga_amqp.stores import sqlite
from saga_core import SagaError

if TYPE_CHECKING:
    from argparse import _SubParsersAction  # pyright: ignore[reportPrivateUsage]

POSTGRES = ("postgresql://", "postgres://")
SQLITE = "sqlite:///"


def add_database_commands(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to those of `saga`."""
    databases = commands.add_parser("db", help="make the tables of a database, and keep them up to date")
    actions = databases.add_subparsers(required=True, metavar="ACTION")
    upgrade = actions.add_parser("upgrade", help="create the tables, or bring them up to this release")
    upgrade.add_argument(
        "url", metavar="URL", help="postgresql://user:password@host:port/database, or sqlite:///path"
    )
    upgrade.add_argument(
        "--schema", metavar="NAME", help="the schema that the tables are in, in PostgreSQL (saga)"
    )
    upgrade.set_defaults(run=_run_upgrade)


def open_store(url: str, schema: str | None = None) -> Store:
    """Return the store that a URL names, to be entered. Raises: StoreError, ImportError."""
    if url.startswith(POSTGRES):
        from saga_amqp.stores import postgres  # only those have psycopg who asked for it

        return postgres.PostgresStore(url) if schema is None else postgres.PostgresStore(url, schema=schema)
    return sqlite.SQLiteStore(_file(url, schema))


def _run_upgrade(options: argparse.Namespace) -> int:
    try:
        was_needed = _upgrade(options.url, options.schema)
    except (SagaError, ImportError) as error:
        print(f"saga: {error}", file=sys.stderr)
        return 1
    print("The tables are now those of this release." if was_needed else "The tables are up to date already.")
    return 0


def _upgrade(url: str, schema: str | None) -> bool:
    """Return whether there was anything to do. Raises: StoreError, ImportError."""
    if url.startswith(POSTGRES):
        from saga_amqp.stores import postgres  # only those have psycopg who asked for it

        return postgres.upgrade(url) if schema is None else postgres.upgrade(url, schema=schema)
    return sqlite.upgrade(_file(url, schema))


def _file(url: str, schema: str | None) -> str:
    if not url.startswith(SQLITE):
        # Not shown: it may have a password in it.
        raise StoreError("The URL has to begin with postgresql:// or sqlite:///")
    if schema is not None:
        raise SchemaError("--schema is for PostgreSQL; a file of SQLite has one")
    return unquote(url.removeprefix(SQLITE))
