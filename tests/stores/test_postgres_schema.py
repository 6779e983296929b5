"""The tables of PostgresStore: made and upgraded by a command, by any number of processes, and checked on entering."""

import os
import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest
from ulid import ULID

from saga_amqp import SchemaError, StoreError, StoreUnavailableError
from saga_amqp.cli import main
from saga_amqp.stores.postgres import PostgresStore, schema, upgrade
from saga_amqp.testing.orders import order, same
from tests.ports import HOST, free_ports

COMMAND = [sys.executable, "-m", "saga_amqp", "db", "upgrade"]
DEADLINE = 60.0


def run(url: str, *statements: str) -> list[object]:
    """Run statements, and return the first column of what the last one finds."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            answer = connection.execute(statement.encode())
        return [row[0] for row in answer.fetchall()] if answer.description else []


def versions(url: str) -> list[object]:
    return run(url, "SELECT version FROM saga.migrations ORDER BY version")


@pytest.fixture
def poor_url(postgres_url: str) -> Iterator[str]:
    """The same database, for a user who may do nothing but connect."""
    name = f"poor_{ULID()}".lower()
    run(postgres_url, f"CREATE ROLE {name} LOGIN PASSWORD 's3cret'")
    before, _, after = postgres_url.rpartition("@")
    yield f"{before.partition('://')[0]}://{name}:s3cret@{after}"
    run(postgres_url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


# What the store says of them --------------------------------------------------------------------------------------


async def test_missing_tables_are_an_error_that_names_the_command(postgres_url: str) -> None:
    with pytest.raises(SchemaError, match=r"no tables.*saga db upgrade"):
        await PostgresStore(postgres_url).__aenter__()
    upgrade(postgres_url)
    with pytest.raises(SchemaError, match=r"saga db upgrade.*--schema other"):
        await PostgresStore(postgres_url, schema="other").__aenter__()


async def test_older_tables_are_an_error_that_names_the_command(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(postgres_url)
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(SchemaError, match=f"version {schema.VERSION - 1}.*{schema.VERSION}.*saga db upgrade"):
        await PostgresStore(postgres_url).__aenter__()


async def test_newer_tables_are_an_error_and_are_left_alone(postgres_url: str) -> None:
    upgrade(postgres_url)
    run(postgres_url, "INSERT INTO saga.migrations (version) VALUES (999)")
    with pytest.raises(SchemaError, match=r"version 999.*later"):
        await PostgresStore(postgres_url).__aenter__()
    with pytest.raises(SchemaError, match=r"version 999.*later"):
        upgrade(postgres_url)
    with pytest.raises(SchemaError, match=r"version 999.*later"):
        await PostgresStore(postgres_url, upgrade=True).__aenter__()


async def test_tables_that_vanish_are_an_error_that_names_the_command(postgres_url: str) -> None:
    async with PostgresStore(postgres_url, upgrade=True) as store:
        run(postgres_url, "DROP SCHEMA saga CASCADE")
        with pytest.raises(SchemaError, match="saga db upgrade"):
            await store.create(order())


async def test_a_store_makes_its_tables_where_it_is_told_to(postgres_url: str) -> None:
    saga = order()
    for _ in range(2):
        async with PostgresStore(postgres_url, upgrade=True) as store:
            if (await store.find()).sagas == ():
                await store.create(saga)
            same(await store.load(saga.id), saga)


# Upgrading --------------------------------------------------------------------------------------------------------


def test_each_migration_is_applied_once_and_in_order(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upgrade(postgres_url)
    assert not upgrade(postgres_url)
    assert versions(postgres_url) == list(range(1, schema.VERSION + 1))
    more = (*schema.MIGRATIONS, "CREATE TABLE more (a integer)", "ALTER TABLE more ADD COLUMN b integer")
    monkeypatch.setattr(schema, "MIGRATIONS", more)
    monkeypatch.setattr(schema, "VERSION", len(more))
    assert upgrade(postgres_url)
    assert not upgrade(postgres_url)
    assert versions(postgres_url) == list(range(1, len(more) + 1))
    assert run(postgres_url, "SELECT count(b) FROM saga.more") == [0]


def test_a_migration_that_fails_leaves_nothing_behind(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (*schema.MIGRATIONS, "CREATE TABLE more (a integer); SELECT 1 / 0")
    monkeypatch.setattr(schema, "MIGRATIONS", broken)
    monkeypatch.setattr(schema, "VERSION", len(broken))
    with pytest.raises(StoreError, match="division by zero"):
        upgrade(postgres_url)
    assert versions(postgres_url) == list(range(1, len(broken)))
    assert run(postgres_url, "SELECT to_regclass('saga.more')") == [None]


def test_any_number_of_processes_may_upgrade_at_once(postgres_url: str) -> None:
    # Where this is the default, what a transaction sees would be older than the lock that it has waited for.
    database = postgres_url.rpartition("/")[2]
    run(postgres_url, f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    processes = [
        subprocess.Popen([*COMMAND, postgres_url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = [process.communicate(timeout=DEADLINE) for process in processes]
    assert [(process.returncode, errors) for process, (_, errors) in zip(processes, said, strict=True)] == [
        (0, "")
    ] * 6
    assert sorted(output for output, _ in said) == sorted(
        ["The tables are now those of this release.\n"] + ["The tables are up to date already.\n"] * 5
    )
    assert versions(postgres_url) == list(range(1, schema.VERSION + 1))


def test_a_user_without_rights_is_told_so_and_one_with_a_schema_of_his_own_needs_no_more(
    postgres_url: str, poor_url: str
) -> None:
    with pytest.raises(StoreError, match="permission denied"):
        upgrade(poor_url)
    name = poor_url.partition("://")[2].partition(":")[0]
    run(postgres_url, f"CREATE SCHEMA saga AUTHORIZATION {name}")
    assert upgrade(poor_url)


# By command -------------------------------------------------------------------------------------------------------


def test_the_command_makes_the_tables_and_says_so(
    postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in ("now those of this release", "up to date already"):
        for more in ([], ["--schema", "other"]):
            assert main(["db", "upgrade", postgres_url, *more]) == 0
            assert said in capsys.readouterr().out
    assert run(postgres_url, "SELECT count(*) FROM saga.sagas, other.sagas") == [0]


def test_the_command_says_what_is_wrong_and_shows_no_password(
    poor_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    wrong = {
        poor_url: "permission denied",
        f"postgresql://shop:s3cret@{HOST}:{port}/x": "see that it runs",
        "postgresql://shop:s3cret@host:x/x": "cannot be read",
        "postgresql://shop:/s3cret@host/x": "cannot be read",
        "mysql://shop:s3cret@host/x": "postgresql:// or sqlite:///",
    }
    for url, says in wrong.items():
        assert main(["db", "upgrade", url]) == 1
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("saga: ")
        assert says in error
        assert "s3cret" not in error


async def test_a_wrong_password_is_an_error_that_shows_none(postgres_url: str, poor_url: str) -> None:
    wrong = poor_url.replace("poor_", "nobody_")
    with pytest.raises(StoreUnavailableError, match="password") as caught:
        await PostgresStore(wrong).__aenter__()
    assert "s3cret" not in str(caught.value)


def test_the_command_upgrades_files_of_sqlite_too(
    tmp_path: os.PathLike[str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/a%20file.db"
    for said in ("now those of this release", "up to date already"):
        assert main(["db", "upgrade", url]) == 0
        assert said in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["a file.db"]
    assert main(["db", "upgrade", url, "--schema", "x"]) == 1
    assert "--schema" in capsys.readouterr().err
