"""What a store in a file does when the disk, the file or another process stands in its way: it says so, and goes on."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from saga_amqp import SagaNotFoundError, SchemaError, SQLiteStore, StoreError, StoreUnavailableError
from saga_amqp.testing.orders import apply, charged, order, reserved, same, shipped
from saga_core import CodecError, Saga, fold
from tests.stores.troubled import KILLED_AT, SAGAS, turned

Backend = tuple[str, dict[str, bool]]

MOMENT = 5.0
DEADLINE = 60.0

SMALL_DISK = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = 'mount -t tmpfs -o size=3m none "$0" && exec "$@"'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sagas.db"


class Trouble:
    """Errors that SQLite is going to report: the next time that a statement begins so, or every time."""

    def __init__(self) -> None:
        self.next: dict[str, sqlite3.Error] = {}
        self.always: dict[str, sqlite3.Error] = {}
        self.opened = 0

    def meet(self, statement: str) -> None:
        for errors, take in ((self.always, self.always.__getitem__), (self.next, self.next.pop)):
            for begin in list(errors):
                if statement.startswith(begin):
                    raise take(begin)


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Trouble:
    trouble = Trouble()
    connect = sqlite3.connect

    class Troubled(sqlite3.Connection):
        def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
            trouble.meet(statement)
            return super().execute(statement, *arguments)

    def troubled(*arguments: Any, **options: Any) -> sqlite3.Connection:
        trouble.opened += 1
        return connect(*arguments, factory=Troubled, **options)

    monkeypatch.setattr(sqlite3, "connect", troubled)
    return trouble


def reported(name: str, kind: type[sqlite3.Error] = sqlite3.OperationalError) -> sqlite3.Error:
    """An error as SQLite reports it."""
    error = kind("what SQLite says")
    error.sqlite_errorname = name
    error.sqlite_errorcode = getattr(sqlite3, name)
    return error


# The disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["disk", "limit"])
async def test_a_full_disk_takes_nothing_back_and_work_goes_on_when_there_is_room(
    how: str, path: Path, anyio_backend: Backend
) -> None:
    inside: list[str] = []
    if how == "disk":
        inside = [*SMALL_DISK, MOUNT, str(path.parent)]
        # Where nobody may mount anything, files that may not grow are a disk that is full, too.
        if (await anyio.run_process([*inside, "true"], check=False)).returncode != 0:
            inside, how = [], "limit"
    command = [sys.executable, "-m", "tests.stores.troubled", "full", str(path), anyio_backend[0], how]
    with anyio.fail_after(DEADLINE):
        done = await anyio.run_process([*inside, *command], check=False)
    assert done.returncode == 0, done.stderr.decode()
    (told,) = json.loads(done.stdout)["told"]
    assert told.startswith(f"{path}: ")
    assert ("the disk is full; free some space" if how == "disk" else "SQLITE_IOERR_WRITE") in told


@pytest.mark.parametrize("statement", ["INSERT INTO saga_history", "COMMIT"])
async def test_a_writer_killed_in_the_midst_of_a_batch_leaves_whole_commits_only(
    statement: str, path: Path, anyio_backend: Backend
) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.stores.troubled",
        "killed",
        str(path),
        anyio_backend[0],
        statement,
    ]
    with anyio.fail_after(DEADLINE):
        done = await anyio.run_process(command, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    reported: defaultdict[str, int] = defaultdict(int)
    for line in done.stdout.decode().splitlines():
        saga_id, revision = line.split()
        reported[saga_id] = int(revision)
    async with SQLiteStore(path) as store:
        page = await store.find()
        assert len(page.sagas) == SAGAS
        for saga in page.sagas:
            assert saga.revision >= reported[saga.id], "a commit that had returned is gone"
            same(fold(*await store.history(saga.id)), saga)
            await store.commit(*turned(saga))
    made = sum(saga.revision for saga in page.sagas)
    assert made > 0
    if statement == "INSERT INTO saga_history":
        assert made < KILLED_AT - 1, "this was not in the midst of a batch"
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_a_damaged_file_is_an_error_that_names_it(path: Path) -> None:
    saga = order()
    async with SQLiteStore(path) as store:
        await store.create(saga)
    async with SQLiteStore(path) as store:
        size = os.stat(path).st_size
        with open(path, "r+b") as file:  # noqa: ASYNC230
            file.seek(4096)  # everything but the first page, which says what tables there are
            file.write(b"\xa5" * (size - 4096))
        for call in (store.load(saga.id), store.create(order()), store.count()):
            with pytest.raises(StoreError, match=f"{path} is damaged; restore it from a backup") as caught:
                await call
            assert not isinstance(caught.value, StoreUnavailableError)
    with pytest.raises(StoreError, match=f"{path} is damaged"):
        async with SQLiteStore(path):
            pass


@pytest.mark.parametrize("what", ["event", "snapshot"])
async def test_a_saga_that_cannot_be_read_is_named_and_stands_in_nobodys_way(what: str, path: Path) -> None:
    broken, whole = order(), order()
    async with SQLiteStore(path) as store:
        for saga in (broken, whole):
            await store.create(saga)
            await apply(store, saga, reserved())
    with sqlite3.connect(path) as connection:
        value = b'{"type":"of a later release"}'
        connection.execute(
            f"UPDATE saga_history SET {what} = ? WHERE saga_id = ? AND {what} IS NOT NULL", (value, broken.id)
        )
    connection.close()
    loaded: list[Saga] = []

    async def fail(call: Callable[[str], Any]) -> None:
        with pytest.raises(CodecError, match=broken.id):
            await call(broken.id)

    async def load() -> None:
        loaded.append(await store.load(whole.id))

    async with SQLiteStore(path) as store, anyio.create_task_group() as tasks:
        for call in (store.load, store.history, store.rested):
            tasks.start_soon(fail, call)
            tasks.start_soon(load)
    assert [saga.revision for saga in loaded] == [1, 1, 1]


async def test_a_history_with_a_gap_is_not_taken_for_a_whole_one(path: Path) -> None:
    saga = order()
    async with SQLiteStore(path) as store:
        await store.create(saga)
        await apply(store, await apply(store, saga, reserved()), charged())
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM saga_history WHERE revision = 1")
    connection.close()
    async with SQLiteStore(path) as store:
        with pytest.raises(StoreError, match=f"{saga.id}.*damaged"):
            await store.load(saga.id)


# Other processes --------------------------------------------------------------------------------------------------


async def test_a_file_that_another_process_holds_is_unavailable_until_it_lets_go(path: Path) -> None:
    saga = order()
    async with SQLiteStore(path, busy_timeout=0.05) as store:
        await store.create(saga)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        calls: list[Callable[[], Any]] = [
            lambda: apply(store, saga, reserved()),
            lambda: store.create(order()),
            lambda: store.delete(saga.id),
            lambda: store.claim_due(0.0, 1.0, 1),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailableError, match=f"{path}.*another process.*busy_timeout"):
                await call()
        same(await store.load(saga.id), saga)  # who reads waits for nobody
        other.execute("COMMIT")
        saga = await apply(store, saga, reserved())
        same(await store.load(saga.id), saga)
        other.close()


async def test_all_jobs_of_a_batch_learn_that_the_file_is_held(path: Path) -> None:
    sagas = [order() for _ in range(20)]
    told: list[StoreUnavailableError] = []

    async def commit(saga: Saga) -> None:
        with pytest.raises(StoreUnavailableError) as caught:
            await apply(store, saga, reserved())
        told.append(caught.value)

    async with SQLiteStore(path, busy_timeout=0.05) as store:
        for saga in sagas:
            await store.create(saga)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with anyio.fail_after(MOMENT):
            async with anyio.create_task_group() as tasks:
                for saga in sagas:
                    tasks.start_soon(commit, saga)
        other.close()
        assert len({id(error) for error in told}) == len(sagas), "each has an error of its own"
        assert all(isinstance(error.__cause__, sqlite3.OperationalError) for error in told)


async def test_a_new_file_that_another_process_holds_can_be_opened_when_it_lets_go(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailableError, match=f"{path}.*another process"):
        async with SQLiteStore(path, busy_timeout=0.05):
            pass
    other.execute("COMMIT")
    other.close()
    async with SQLiteStore(path) as store:
        await store.create(order())


# Whatever SQLite reports ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("SQLITE_FULL", "free some space"),
        ("SQLITE_IOERR_FSYNC", "system's log"),
        ("SQLITE_CANTOPEN", "directory"),
        ("SQLITE_READONLY", "let this process write"),
        ("SQLITE_READONLY_DBMOVED", "let this process write"),
        ("SQLITE_PERM", "permissions"),
        ("SQLITE_NOMEM", "memory"),
        ("SQLITE_BUSY_SNAPSHOT", "busy_timeout"),
    ],
)
@pytest.mark.parametrize("statement", ["BEGIN", "UPDATE sagas", "INSERT INTO saga_history", "COMMIT"])
async def test_what_may_pass_makes_the_store_unavailable_once(
    statement: str, name: str, advice: str, path: Path, trouble: Trouble
) -> None:
    saga = order()
    async with SQLiteStore(path, busy_timeout=0.0) as store:
        await store.create(saga)
        trouble.next[statement] = reported(name)
        with pytest.raises(StoreUnavailableError, match=advice) as caught:
            await apply(store, saga, reserved())
        assert str(path) in str(caught.value)
        assert name in str(caught.value)
        same(await store.load(saga.id), saga)
        saga = await apply(store, saga, reserved())
        same(fold(*await store.history(saga.id)), saga)


@pytest.mark.parametrize(
    ("name", "text"),
    [("SQLITE_CORRUPT", "restore it"), ("SQLITE_NOTADB", "no database"), ("SQLITE_ERROR", "says")],
)
async def test_what_does_not_pass_is_no_unavailability(
    name: str, text: str, path: Path, trouble: Trouble
) -> None:
    saga = order()
    async with SQLiteStore(path) as store:
        await store.create(saga)
        trouble.next["UPDATE sagas"] = reported(name, sqlite3.DatabaseError)
        with pytest.raises(StoreError, match=text) as caught:
            await apply(store, saga, reserved())
        assert not isinstance(caught.value, StoreUnavailableError)
        same(await store.load(saga.id), saga)
        await apply(store, saga, reserved())


async def test_a_broken_connection_is_made_anew(path: Path, trouble: Trouble) -> None:
    saga = order()
    async with SQLiteStore(path) as store:
        await store.create(saga)
        assert trouble.opened == 2
        trouble.next["COMMIT"] = reported("SQLITE_IOERR_WRITE")
        trouble.next["ROLLBACK"] = reported("SQLITE_IOERR")
        with pytest.raises(StoreUnavailableError):
            await apply(store, saga, reserved())
        saga = await apply(store, saga, reserved())
        assert trouble.opened == 3
        trouble.next["SELECT"] = reported("SQLITE_IOERR_SHMMAP")
        with pytest.raises(StoreUnavailableError):
            await store.load(saga.id)
        same(await store.load(saga.id), saga)
        assert trouble.opened == 4


async def test_a_file_that_is_gone_is_not_made_anew_without_its_sagas(path: Path, trouble: Trouble) -> None:
    async with SQLiteStore(path) as store:
        await store.create(order())
        away = path.with_name("away")
        os.rename(path, away)
        trouble.next["COMMIT"] = reported("SQLITE_IOERR_WRITE")
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match=str(path)):
                await store.create(order())
        assert path.name not in os.listdir(path.parent)
        os.rename(away, path)
        await store.create(order())
        assert sum((await store.count()).values()) == 2


async def test_whoever_waits_goes_on_waiting_while_the_store_is_unavailable(
    path: Path, trouble: Trouble
) -> None:
    ends, goes = order(), order()
    rested: list[Saga] = []

    async def wait() -> None:
        rested.append(await store.rested(ends.id))
        with pytest.raises(SagaNotFoundError):
            await store.rested(goes.id)

    async with SQLiteStore(path) as store, SQLiteStore(path) as other:
        for saga in (ends, goes):
            await store.create(saga)
        with anyio.fail_after(MOMENT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                trouble.always["PRAGMA data_version"] = reported("SQLITE_IOERR_READ")
                saga = ends
                for event in (reserved(), charged(), shipped()):
                    saga = await apply(other, saga, event)
                opened = trouble.opened
                while trouble.opened < opened + 3:
                    await anyio.lowlevel.checkpoint()
                assert rested == []
                trouble.next["SELECT wanted"] = reported("SQLITE_IOERR_READ")
                trouble.always.clear()
                while not rested:
                    await anyio.lowlevel.checkpoint()
                await other.delete(goes.id)
    same(rested[0], saga)


async def test_whoever_waits_learns_that_the_file_is_damaged(path: Path, trouble: Trouble) -> None:
    saga = order()

    async def wait() -> None:
        with pytest.raises(StoreError, match="damaged"):
            await store.rested(saga.id)

    async with SQLiteStore(path) as store:
        await store.create(saga)
        with anyio.fail_after(MOMENT):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                trouble.always["PRAGMA data_version"] = reported("SQLITE_CORRUPT", sqlite3.DatabaseError)
        trouble.always.clear()
        await apply(store, saga, reserved())


# Opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["no/such/directory.db", "."])
async def test_a_place_where_no_file_can_be_is_an_error_that_names_it(where: str, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=f"{tmp_path}.*cannot be opened"):
        async with SQLiteStore(tmp_path / where):
            pass


async def test_a_file_that_is_no_database_is_left_as_it_is(path: Path) -> None:
    with open(path, "w") as file:  # noqa: ASYNC230
        file.write("Dear diary,\n" * 1000)
    with pytest.raises(SchemaError, match=f"{path} is no database of sagas"):
        async with SQLiteStore(path):
            pass
    with open(path) as file:  # noqa: ASYNC230
        assert file.read() == "Dear diary,\n" * 1000


async def test_opening_can_be_cancelled(path: Path) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with SQLiteStore(path):
            raise AssertionError("it was cancelled before")
    assert scope.cancelled_caught
    async with SQLiteStore(path) as store:
        await store.create(order())


def test_a_process_that_ends_without_leaving_the_store_does_not_hang(path: Path) -> None:
    # As a program does that is ended by an exception from somewhere below the event loop.
    script = f"""
import anyio, os
from saga_amqp import SQLiteStore
from saga_amqp.testing.orders import order
async def main():
    async with SQLiteStore({str(path)!r}) as store:
        await store.create(order())
        os._exit(7)
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=DEADLINE, check=False)
    assert done.returncode == 7
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sagas").fetchone() == (1,)
    connection.close()
