"""A bank of its own for every test, on each kind of connection."""

from pathlib import Path

import pytest

from .banks import ASYNC_KINDS, KINDS, Bank, open_bank


@pytest.fixture(params=[*KINDS, *ASYNC_KINDS])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Bank:
    """A bank, and with it the test, for each kind of connection."""
    return bank_of(request, tmp_path, request.param)


@pytest.fixture(params=["sqlite3", "psycopg"])
def plain_bank(request: pytest.FixtureRequest, tmp_path: Path) -> Bank:
    """A bank for each kind of database."""
    return bank_of(request, tmp_path, request.param)


def bank_of(request: pytest.FixtureRequest, directory: Path, kind: str) -> Bank:
    on_sqlite = (KINDS | ASYNC_KINDS)[kind][0] == "sqlite"
    return open_bank(
        str(directory / "bank.sqlite") if on_sqlite else request.getfixturevalue("postgres_url"), kind
    )
