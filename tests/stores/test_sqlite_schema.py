"""Which files a store takes for its own, and how the tables of an earlier release become those of this one."""

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from saga_amqp import Options, Query, SchemaError, SQLiteStore, StoreError, StoreUnavailableError
from saga_amqp.stores.sqlite import schema, upgrade
from saga_amqp.testing.orders import order, same

SECOND = ("ALTER TABLE sagas ADD COLUMN colour TEXT", "CREATE INDEX sagas_colour ON sagas (colour)")

VERSION = "SELECT max(version) FROM saga_migrations"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sagas.db"


@pytest.fixture
def next_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a release with one more migration."""
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, SECOND))


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["missing", "empty"])
async def test_a_new_file_is_set_up_by_itself(kind: str, path: Path) -> None:
    if kind == "empty":
        os.close(os.open(path, os.O_CREAT))
    async with SQLiteStore(path) as store:
        await store.create(order())
    assert query(path, VERSION) == [(len(schema.MIGRATIONS),)]


def test_of_many_that_set_up_one_file_one_does(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        did = list(threads.map(lambda _: upgrade(path, busy_timeout=30.0), range(16)))
    assert sorted(did) == [False] * 15 + [True]


def test_upgrading_once_more_changes_nothing(path: Path) -> None:
    assert upgrade(path) is True
    before = path.read_bytes()
    assert upgrade(str(path)) is False
    assert path.read_bytes() == before


@pytest.mark.usefixtures("next_release")
async def test_an_earlier_file_is_refused_until_it_is_upgraded(path: Path) -> None:
    saga = order()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:-1])
        async with SQLiteStore(path) as store:
            await store.create(saga)
    with pytest.raises(SchemaError, match=f"{path} has version 1.*needs 2.*saga db upgrade sqlite:///{path}"):
        async with SQLiteStore(path):
            pass
    assert upgrade(path) is True
    assert upgrade(path) is False
    assert query(path, "SELECT id, colour FROM sagas") == [(saga.id, None)]
    async with SQLiteStore(path) as store:
        same(await store.load(saga.id), saga)


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade(path)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, SECOND, ("CREATE NONSENSE",)))
    with pytest.raises(StoreError, match=f"{path}.*NONSENSE"):
        upgrade(path)
    assert query(path, VERSION) == [(1,)]
    assert not query(path, "SELECT * FROM sqlite_master WHERE name = 'sagas_colour'")


async def test_a_file_of_a_later_release_is_refused(path: Path) -> None:
    upgrade(path)
    query(path, "INSERT INTO saga_migrations (version) VALUES (99)")
    with pytest.raises(SchemaError, match=f"{path} has version 99.*use the release that wrote it"):
        async with SQLiteStore(path):
            pass
    with pytest.raises(SchemaError, match=f"{path} has version 99"):
        upgrade(path)
    assert query(path, VERSION) == [(99,)]


@pytest.mark.parametrize("theirs", ["CREATE TABLE orders (id)", "CREATE TABLE tags (id)"])
async def test_an_applications_database_is_left_as_it_is_until_somebody_says_so(
    theirs: str, path: Path
) -> None:
    query(path, theirs)
    with open(path, "rb") as file:  # noqa: ASYNC230
        before = file.read()
    with pytest.raises(
        SchemaError, match=f"{path} is a database, but none of sagas.*saga db upgrade sqlite:///"
    ):
        async with SQLiteStore(path):
            pass
    with open(path, "rb") as file:  # noqa: ASYNC230
        assert file.read() == before
    assert os.listdir(path.parent) == [path.name]
    assert upgrade(path) is True
    assert upgrade(path) is False
    saga = order(options=Options(tags={"colour": "blue"}))
    async with SQLiteStore(path) as store:
        await store.create(saga)
        assert (await store.find(Query(tags={"colour": "blue"}))).sagas == (saga,)
    table = theirs.split()[2]
    assert query(path, f"SELECT * FROM {table}") == []


def test_a_database_that_has_a_table_of_sagas_of_its_own_is_refused(path: Path) -> None:
    query(path, "CREATE TABLE sagas (id)")
    with pytest.raises(StoreError, match=f"{path}.*sagas already exists"):
        upgrade(path)
    assert query(path, "SELECT name FROM sqlite_master") == [("sagas",)]


def test_upgrading_says_where_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=f"{tmp_path}/no/such.db"):
        upgrade(tmp_path / "no/such.db")
