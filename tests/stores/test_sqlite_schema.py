"""Which files a store takes for its own, and how the tables of an earlier release become those of this one."""

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from saga_amqp import SchemaError, SQLiteStore, StoreError, StoreUnavailableError
from saga_amqp.stores.sqlite import schema, upgrade
from saga_amqp.testing.orders import order, same

SECOND = ("ALTER TABLE sagas ADD COLUMN colour TEXT", "CREATE INDEX sagas_colour ON sagas (colour)")


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
    assert query(path, "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]
    assert query(path, "PRAGMA application_id") == [(int.from_bytes(b"SAGA", "big"),)]


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
    assert query(path, "PRAGMA user_version") == [(1,)]
    assert not query(path, "SELECT * FROM sqlite_master WHERE name = 'sagas_colour'")


async def test_a_file_of_a_later_release_is_refused(path: Path) -> None:
    upgrade(path)
    query(path, "PRAGMA user_version = 99")
    with pytest.raises(SchemaError, match=f"{path} has version 99.*use the release that wrote it"):
        async with SQLiteStore(path):
            pass
    with pytest.raises(SchemaError, match=f"{path} has version 99"):
        upgrade(path)
    assert query(path, "PRAGMA user_version") == [(99,)]


@pytest.mark.parametrize(
    "mark", ["CREATE TABLE sagas (id)", "PRAGMA application_id = 1", "PRAGMA user_version = 1"]
)
async def test_somebody_elses_database_is_refused_and_left_as_it_is(mark: str, path: Path) -> None:
    query(path, mark)
    with open(path, "rb") as file:  # noqa: ASYNC230
        before = file.read()
    with pytest.raises(SchemaError, match=f"{path} is a database, but none of sagas"):
        async with SQLiteStore(path):
            pass
    with pytest.raises(SchemaError, match=str(path)):
        upgrade(path)
    with open(path, "rb") as file:  # noqa: ASYNC230
        assert file.read() == before
    assert os.listdir(path.parent) == [path.name]


def test_upgrading_says_where_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=f"{tmp_path}/no/such.db"):
        upgrade(tmp_path / "no/such.db")
