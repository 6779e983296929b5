"""What earlier releases have written is read, and what they have begun is finished."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pamqp.frame
import psycopg
import pytest
from pamqp import commands as spec

from saga_amqp import SQLiteStore, barrier, read_archived
from saga_amqp.contracts import Store
from saga_amqp.stores import postgres, sqlite
from saga_amqp.stores.looking import find_all
from saga_amqp.transports.amqp import frames, properties
from saga_core import (
    Compensate,
    Execute,
    Reply,
    StateChanged,
    decode_command,
    decode_event,
    decode_saga,
    decode_work,
    encode_command,
    encode_event,
    encode_saga,
    fold,
    saga_at_work,
)
from tests.formats import record
from tests.formats.finishing import EVERYTHING, Ask, Ends, Published, finish
from tests.formats.record import Guarded
from tests.formats.told import agrees, told, told_of
from tests.histories import check_histories

HERE = Path(__file__).parent
RELEASES = sorted(path.name for path in HERE.iterdir() if path.is_dir() and path.name[0].isdigit())
NOW = "now"
"""What the code as it is writes, so that it can be written down for the next release."""


class Line(msgspec.Struct):
    bytes: str
    told: dict[str, Any]


class Expected(msgspec.Struct):
    now: float
    sagas: dict[str, dict[str, Any]]
    asks: list[Ask]
    messages: list[Published]
    ends: Ends


@pytest.fixture(scope="module")
def written_now(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("formats") / NOW
    anyio.run(partial(record.record, directory, None))
    return directory


@pytest.fixture(params=[*RELEASES, NOW])
def release(request: pytest.FixtureRequest) -> Path:
    """The directory of a release, or what is written now."""
    if request.param == NOW:
        written: Path = request.getfixturevalue("written_now")
        return written
    return HERE / request.param


def lines(file: Path, kind: type[Any] = Line) -> Iterator[Any]:
    for line in file.read_bytes().splitlines():
        yield msgspec.json.decode(line, type=kind)


def expected(release: Path) -> Expected:
    return msgspec.json.decode((release / "expected.json").read_bytes(), type=Expected)


# Bytes -------------------------------------------------------------------------------------------------------------


def test_there_are_fixtures_and_none_is_missing() -> None:
    assert RELEASES
    files = {name for line in (HERE / "README.md").read_text().splitlines() for name in _names(line)}
    for name in RELEASES:
        assert {path.name for path in (HERE / name).iterdir()} == files


def _names(line: str) -> list[str]:
    return line.split("|")[1].replace("`", "").replace(",", "").split() if line.startswith("| `") else []


def test_every_command_is_read(release: Path) -> None:
    kinds: set[str] = set()
    for line in lines(release / "commands.jsonl"):
        command = decode_command(line.bytes.encode())
        assert agrees(told(command), line.told)
        assert decode_command(encode_command(command)) == command
        kinds.add(line.told["is"])
    assert kinds >= {"Execute", "Compensate", "StartChild", "CompensateChild", "Report", "Reply"}


def test_what_participants_are_told_is_read(release: Path) -> None:
    every = list(lines(release / "work.jsonl"))
    assert len(every) > 10
    for line in every:
        work, command = decode_work(line.bytes.encode()), decode_command(line.bytes.encode())
        assert agrees(told(work), line.told)
        assert isinstance(command, Execute | Compensate)
        step = saga_at_work(command, work).step(command.step)
        assert step.id == line.told["id"]
        assert step.idempotency_key() == f"{line.told['id']}.execute"


def test_what_is_told_of_states_has_all_that_it_had(release: Path) -> None:
    for line in lines(release / "news.jsonl"):
        fields = {name: value for name, value in line.told.items() if name != "is"}
        news = msgspec.convert(fields, StateChanged)
        assert agrees(msgspec.json.decode(encode_command(news)), msgspec.json.decode(line.bytes))


def test_every_event_is_read(release: Path) -> None:
    kinds: set[str] = set()
    for line in lines(release / "events.jsonl"):
        event = decode_event(line.bytes.encode())
        assert agrees(told(event), line.told)
        assert decode_event(encode_event(event)) == event
        kinds.add(line.told["is"])
    assert len(kinds) >= 16


def test_every_saga_is_read(release: Path) -> None:
    every = list(lines(release / "sagas.jsonl"))
    assert len(every) > 30
    for line in every:
        saga = decode_saga(line.bytes.encode())
        assert agrees(told_of(saga), line.told)
        assert decode_saga(encode_saga(saga)) == saga


def test_every_line_of_an_archive_is_read(release: Path) -> None:
    found = [read_archived(line) for line in (release / "archive.jsonl").read_bytes().splitlines()]
    wanted = expected(release)
    ends = {fold(*one).id: fold(*one).state for one in found}
    for label, end in wanted.ends.items():
        assert ends[wanted.sagas[label]["id"]] == end["state"]


def test_every_message_is_read_with_its_properties(release: Path) -> None:
    for one in lines(release / "messages.jsonl", Published):
        body, data = one.body.encode(), bytes.fromhex(one.frames)
        command = decode_command(body)
        operation = "".join(
            (f"{command.of}." if isinstance(command, Reply) else "", one.type.rpartition(".")[2])
        )
        assert one.id == f"{command.saga}.{command.step}.{operation}.{command.attempt}"
        used, _, publish = pamqp.frame.unmarshal(data)
        assert (publish.exchange, publish.routing_key) == (one.exchange, one.routing_key)
        about = pamqp.frame.unmarshal(data[used:])[2].properties
        assert (about.content_type, about.delivery_mode) == (one.content_type, one.delivery_mode)
        assert (about.message_id, about.message_type) == (one.id, one.type)
        # As the broker hands it over: the same content behind another method.
        decoder = frames.Decoder()
        decoder.open_lane(1)
        deliver = spec.Basic.Deliver("tag", 1, False, one.exchange, one.routing_key)
        (delivered,) = decoder.feed(pamqp.frame.marshal(deliver, 1) + data[used:])
        assert isinstance(delivered, frames.Delivered)
        assert delivered.body == body
        assert properties.message_id(delivered.properties) == one.id
        assert properties.headers(delivered.properties) == {}


# Databases ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_file(release: Path, tmp_path: Path) -> Path:
    path = tmp_path / "sagas.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((release / "sqlite.sql").read_text())
    sqlite.upgrade(path)
    return path


@pytest.fixture(params=RELEASES)
def postgres_database(request: pytest.FixtureRequest, postgres_url: str) -> tuple[Path, str]:
    release = HERE / request.param
    with psycopg.connect(postgres_url) as connection:
        connection.execute((release / "postgres.sql").read_bytes())
    postgres.upgrade(postgres_url)
    return release, postgres_url


async def test_engines_finish_what_is_in_a_file_of_sqlite(release: Path, sqlite_file: Path) -> None:
    async with SQLiteStore(sqlite_file) as store:
        await check(store, expected(release))


async def test_engines_finish_what_is_in_a_database_of_postgres(postgres_database: tuple[Path, str]) -> None:
    release, url = postgres_database
    async with postgres.PostgresStore(url) as store:
        await check(store, expected(release))


async def check(store: Store, wanted: Expected) -> None:
    """See that a store holds what was kept in it, and that engines bring it to the end that it had then."""
    found = {saga.id: saga for saga in await find_all(store, EVERYTHING)}
    assert len(found) == len(wanted.sagas)
    for label, then in wanted.sagas.items():
        assert agrees(told_of(found[then["id"]]), then), label
    await check_histories(store)
    ends = await finish(store, wanted.messages, wanted.asks, wanted.now)
    assert {label: ends[then["id"]] for label, then in wanted.sagas.items()} == wanted.ends
    await check_histories(store)


def test_the_barrier_remembers_in_sqlite(release: Path, sqlite_file: Path) -> None:
    with closing(sqlite3.connect(sqlite_file)) as connection:
        check_barrier(connection, release)


def test_the_barrier_remembers_in_postgres(postgres_database: tuple[Path, str]) -> None:
    release, url = postgres_database
    with psycopg.connect(url) as connection:
        check_barrier(connection, release)


def check_barrier(connection: Any, release: Path) -> None:
    sagas = {line.told["id"]: decode_saga(line.bytes.encode()) for line in lines(release / "sagas.jsonl")}
    guarded = msgspec.json.decode((release / "barrier.json").read_bytes(), type=list[Guarded])
    assert guarded
    for one in guarded:
        saga = sagas[one.saga]
        answer = barrier.run(connection, saga, saga.step(one.step), partial(pytest.fail, "it ran before"))
        assert told(answer) == one.answer


# The script --------------------------------------------------------------------------------------------------------


def test_fixtures_that_are_there_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["record", str(tmp_path)])
    assert record.main() == 1
    assert "never changed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
