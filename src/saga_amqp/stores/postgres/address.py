"""Where a database is, read from its URL. Nothing here ever shows a password."""

from typing import Any

import msgspec

from saga_amqp.errors import StoreError
from saga_amqp.stores.postgres.driver import conninfo, psycopg

# Names of channels begin with that of the schema, and PostgreSQL's names have up to 63 bytes.
LONGEST_SCHEMA = 50

# Seconds, or milliseconds where it says so: a server that went away without a word is given up within half a minute.
DEFAULTS: dict[str, Any] = {
    "application_name": "saga-amqp",
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",  # milliseconds
}


class Address(msgspec.Struct, frozen=True):
    """A database, and the schema in it that the tables are in. `secret` is what libpq is told, password and all."""

    where: str
    schema: str
    secret: dict[str, Any]

    def __str__(self) -> str:
        return self.where

    def __repr__(self) -> str:
        return f"{self.where} (schema {self.schema!r})"


def parse(url: str, schema: str) -> Address:
    """Read what libpq takes: `postgresql://user:password@host:port/database?setting=…`.

    Raises: StoreError, which never shows the password.
    """
    if not schema or "\0" in schema or len(schema.encode(errors="replace")) > LONGEST_SCHEMA:
        raise StoreError(
            f"A schema's name has 1 to {LONGEST_SCHEMA} bytes, and {schema[:LONGEST_SCHEMA]!r} has not"
        )
    given = _read(url)
    if given is None or _is_torn(
        given
    ):  # raised here and not there: the text of that error may have the password in it
        raise StoreError(
            "The database's URL cannot be read; it has to be postgresql://user:password@host:port/database, and "
            "what is special in a URL has to be percent-encoded in the password"
        )
    host, port = given.get("host") or given.get("hostaddr") or "", given.get("port") or ""
    where = f"postgresql://{host}{port and f':{port}'}/{given.get('dbname') or ''}"
    return Address(where, schema, DEFAULTS | given)


def _is_torn(given: dict[str, Any]) -> bool:
    """Whether a password with / or : in it has been taken for a host, a port or a database."""
    ports = str(given.get("port") or "").split(",")
    names = f"{given.get('host')}{given.get('dbname')}"
    return "@" in names or not all(port.isdecimal() or not port for port in ports)


def _read(url: str) -> dict[str, Any] | None:
    if "\0" in url:  # where libpq would stop reading
        return None
    try:
        return conninfo.conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError):
        return None
