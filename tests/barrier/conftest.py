"""Banks for every test, on each kind of connection."""

from collections.abc import Iterator

import pytest
from ulid import ULID

from tests.postgres import External, PostgreSQL

from .banks import ASYNC_KINDS, KINDS, Bank, open_bank


@pytest.fixture(scope="session")
def postgres_bank(postgres: PostgreSQL | External) -> Iterator[Bank]:
    """A bank in PostgreSQL that these tests share: no saga meets another."""
    name = f"saga_test_{ULID()}".lower()
    postgres.create_database(name)
    yield open_bank(postgres.url(name), "psycopg")
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def sqlite_bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """A bank in SQLite that these tests share."""
    return open_bank(str(tmp_path_factory.mktemp("bank") / "bank.sqlite"), "sqlite3")


@pytest.fixture(params=[*KINDS, *ASYNC_KINDS])
def bank(request: pytest.FixtureRequest) -> Bank:
    """A bank, and with it the test, for each kind of connection."""
    return bank_of(request, request.param)


@pytest.fixture(params=["sqlite3", "psycopg"])
def plain_bank(request: pytest.FixtureRequest) -> Bank:
    """A bank for each kind of database."""
    return bank_of(request, request.param)


def bank_of(request: pytest.FixtureRequest, kind: str) -> Bank:
    on_postgres = (KINDS | ASYNC_KINDS)[kind][0] == "postgresql"
    shared: Bank = request.getfixturevalue("postgres_bank" if on_postgres else "sqlite_bank")
    return shared.over(kind)
