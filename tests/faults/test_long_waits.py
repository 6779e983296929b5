"""What takes its time: stores that are away in full swing, and steps that are slow, which sweeps leave alone.

The longest waits are waited for side by side, and once.
"""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import psycopg
import pytest
from msgspec.structs import replace

from tests.histories import check_histories
from tests.postgres import PostgreSQL
from tests.stores.test_sqlite_trouble import SMALL_DISK
from tests.test_servers import ROOT

from .durable import Place, written_down
from .load import KINDS_OF_CALLS, Load, Said
from .slow import Slow
from .world import DEADLINE, RabbitWorld, Worker

MOUNT = 'mount -t tmpfs -o size=64m none "$0" && exec "$@"'
SLOWNESS = 20.0
"""Seconds: many times the interval of sweeps, and the time that a publisher has."""


# A step that is slow -----------------------------------------------------------------------------------------------


class Begun(msgspec.Struct, frozen=True):
    slow: Slow
    processes: "list[subprocess.Popen[str]]"


@pytest.fixture(scope="module", autouse=True)
def begun(amqp_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    """A slow step, which two engines can see, on each event loop one; it goes on beside what this module tests."""
    directory = tmp_path_factory.mktemp("slow")
    place = Place(str(directory / "sagas.db"))
    slow = Slow(amqp_url, directory.name, place, str(directory / "calls"), SLOWNESS)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.slow", backend, msgspec.json.encode(slow).decode()],
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            for backend in ("asyncio", "trio")
        ]
        yield Begun(slow, processes)
        for process in processes:
            process.kill()


@pytest.mark.parametrize("on", ["sqlite", "postgresql"])
async def test_a_step_whose_worker_was_killed_is_done_by_another_process(
    on: str, rabbit: RabbitWorld, anyio_backend_name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "sagas.db") if on == "sqlite" else request.getfixturevalue("postgres_url")
    place, calls = Place(url, "saga"), tmp_path / "calls"
    for_ever = Slow(rabbit.url, rabbit.prefix, place, str(calls), 1e6)
    at_once = replace(for_ever, seconds=0.0)

    def start(slow: Slow) -> AbstractAsyncContextManager[Worker]:
        return Worker.start(anyio_backend_name, msgspec.json.encode(slow).decode(), module="slow")

    async with start(for_ever) as first:
        await first.until("handling")
        async with start(at_once) as second:
            await second.until("running")
            await anyio.sleep(1.5)  # it has swept, and left the step alone
            assert written_down(calls) == ["do.a"]
            await first.kill()
            said = await second.until("state")
            assert await second.ended() == 0
    assert said[-1]["state"] == "completed"
    assert written_down(calls) == ["do.a", "do.a", "do.b"]
    async with place.open() as store:
        await check_histories(store)
    await rabbit.until_ready()


# A store that is away ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["disk", "limit"])
async def test_an_engine_goes_on_when_its_full_disk_has_room_again(
    how: str, rabbit: RabbitWorld, anyio_backend_name: str, tmp_path: Path
) -> None:
    inside: list[str] = []
    if how == "disk":
        inside = [*SMALL_DISK, MOUNT, str(tmp_path)]
        # Where nobody may mount anything, files that may not grow are a disk that is full, too.
        if (await anyio.run_process([*inside, "true"], check=False)).returncode != 0:
            inside, how = [], "limit"
    arguments = [rabbit.url, rabbit.prefix, anyio_backend_name, str(tmp_path / "sagas.db"), how]
    command = [sys.executable, "-W", "error", "-m", "tests.faults.starved", *arguments]
    with anyio.fail_after(DEADLINE):
        done = await anyio.run_process([*inside, *command], check=False)
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["refusals"]
    check_said(report["said"], "the disk is full; free some space" if how == "disk" else "SQLITE_IOERR_WRITE")


@pytest.fixture
async def database(private_postgres: PostgreSQL, unique: str) -> AsyncIterator[str]:
    """A database on a server that the test may kill."""
    private_postgres.create_database(unique)
    yield private_postgres.url(unique)
    if not private_postgres.running:
        private_postgres.restart()
    private_postgres.drop_database(unique)


async def test_an_engine_goes_on_when_its_postgres_server_is_back_after_ten_seconds(
    rabbit: RabbitWorld, private_postgres: PostgreSQL, database: str
) -> None:
    acknowledged: list[int] = []

    async def trouble() -> None:
        await anyio.to_thread.run_sync(private_postgres.kill)
        await anyio.sleep(2.0)
        acknowledged.append(load.acknowledged)
        await anyio.sleep(8.0)
        acknowledged.append(load.acknowledged)
        await anyio.to_thread.run_sync(private_postgres.restart)

    with Said() as said:
        async with Place(database, "saga").open() as store:
            load = Load(rabbit, store, said)
            await load.run(trouble)
    assert acknowledged[0] == acknowledged[1], "what cannot be committed cannot be acknowledged"
    assert load.refusals
    check_said(said.lines, "")


async def test_an_engine_goes_on_when_its_postgres_database_takes_connections_again(
    rabbit: RabbitWorld, private_postgres: PostgreSQL, database: str, unique: str
) -> None:
    def ask(statement: str) -> None:
        with psycopg.connect(private_postgres.url(), autocommit=True) as connection:
            connection.execute(statement.encode())

    async def trouble() -> None:
        ask(f"ALTER DATABASE {unique} ALLOW_CONNECTIONS false")
        ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{unique}'")
        await anyio.sleep(1.5)
        ask(f"ALTER DATABASE {unique} ALLOW_CONNECTIONS true")

    with Said() as said:
        async with Place(database, "saga").open() as store:
            load = Load(rabbit, store, said)
            await load.run(trouble)
    assert load.refusals
    check_said(said.lines, "")


def check_said(lines: list[str], why: str) -> None:
    """See that each kind of call is said to fail, and why; once, however many fail; and that all is well again."""
    failing = [line for line in lines if line.startswith("The store cannot ")]
    # A disk that is full is read all the same. A server that is gone may be missed for something else first.
    assert failing
    assert not why or any(line.startswith("The store cannot commit") for line in failing)
    assert all(why in line for line in failing), failing
    assert len(failing) == len(set(line.partition(";")[0] for line in failing)) <= KINDS_OF_CALLS
    assert lines[-1].startswith("The store works again, after ")
    assert len(lines) == len(failing) + 1


# The slow step has ended meanwhile ---------------------------------------------------------------------------------


def test_a_step_that_takes_twenty_seconds_is_done_once_although_two_engines_sweep_every_second(
    begun: Begun,
) -> None:
    said = [process.communicate(timeout=60)[0].splitlines() for process in begun.processes]
    reports = [[json.loads(line) for line in lines] for lines in said]
    assert [process.returncode for process in begun.processes] == [0, 0]
    assert sorted(one["handling"] for one in reports[0] + reports[1] if "handling" in one) == ["a"]
    assert {one[-1]["state"] for one in reports} == {"completed"}
    assert [one[-1]["ready"] for one in reports] == [[0, 0, 0, 0]] * 2
    assert reports[0][-1]["output"]["took"] >= SLOWNESS
    assert written_down(Path(begun.slow.calls)) == ["do.a", "do.b"]
