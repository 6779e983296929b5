"""Write down what the code as it is puts into queues and databases: once for each release.

    python -m tests.formats.record [DIRECTORY]

The directory, by default that of the release, must not be there yet.
"""

import argparse
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psycopg
from msgspec import Raw, Struct
from psycopg import sql
from psycopg.types.json import Jsonb

from saga_amqp import Config, SagaState, SQLiteStore, barrier, purge
from saga_amqp.contracts import AT_ONCE, Store
from saga_amqp.stores import postgres
from saga_amqp.stores.postgres import schema
from saga_amqp.transports.amqp import frames
from saga_core import (
    Carried,
    ChildSaga,
    Command,
    Compensate,
    Event,
    Execute,
    Failure,
    Options,
    Reply,
    RetryPolicy,
    Saga,
    Skip,
    StartChild,
    StateChanged,
    Step,
    answer_event,
    child_saga,
    decode_work,
    encode_command,
    encode_event,
    encode_saga,
    outstanding,
    reply_of,
    transition,
    when,
)
from saga_core.states import Operation
from tests.core.notation import BORN, ID, events_of, saga_of
from tests.core.test_codec import COMMANDS, EVENTS, SAGAS
from tests.formats.finishing import Ask, Published, finish
from tests.formats.told import told, told_of
from tests.postgres import database_server

NOW = BORN + 100
"""When engines find what is written here. Retries are due then, and what was to take an hour is under way."""


REPLIES = [
    Reply(ID, "pay", 1, "execute", "succeeded", Raw(b'{"id":7}')),
    Reply(ID, "pay", 2, "execute", "failed", error=Failure("no_funds", "refused", True, Raw(b'{"left":3}'))),
    Reply(ID, "pay", 2, "execute", "failed", error=Failure("lost", "nobody knows"), unknown=True),
    Reply(ID, "pay", 1, "execute", "skipped", reason="paid"),
    Reply(ID, "pay", 1, "compensate", "deferred"),
]
NEWS = [StateChanged(ID, "trip", state, 3, BORN + 1.5, {"order": "o-7"}) for state in SagaState]


class Scene(Struct):
    """One saga, in the notation of the core's tests, and what a person is to do about it.

    With `replied` a participant has done what is outstanding, and its answer is on its way.

    `note` is that of the last commit: nobody has published it. What is outstanding otherwise is on its way, unless it
    is `lost`. With `child`, the child saga of a step is there, and these are its events.
    """

    steps: str
    events: str = ""
    options: Options = Options()
    more: dict[str, dict[str, Any]] = {}
    ask: str = ""
    note: float | None = None
    lost: bool = False
    replied: bool = False
    child: str | None = None


def retry(attempts: int = 3) -> RetryPolicy:
    return RetryPolicy(attempts, 2, 3, 60, 0.5, ("broken",))


HOUR = {"timeout": 3600, "total_timeout": 7200, "compensation_timeout": 1800}
INNER = {"child": ChildSaga("inner", [Step(name="x", action="do_x", compensation="undo_x")], {"n": 1})}

SCENES = {
    "begun and not published": Scene("a b", note=AT_ONCE),
    "under way": Scene("a b- c", "a ok", Options(key="order-7", tags={"order": "o-7", "customer": "é"})),
    "with clocks": Scene("a b", "a ok", Options(timeout=9000, priority=9), {"a": HOUR, "b": HOUR}),
    "timed out while nobody was there": Scene("a b", "a ok", more={"b": {"timeout": 50}}, lost=True),
    "waiting for another attempt": Scene("a b", "a busy", more={"a": {"retry": retry()}}),
    "given up after attempts": Scene(
        "a b", "a ok, b busy, wait 50, b#2 busy", more={"b": {"retry": retry(2)}}
    ),
    "delayed": Scene("a", options=Options(start_at=BORN + 50)),
    "deferred": Scene("a b", "a later", ask="complete a execute"),
    "conditions": Scene(
        "a b c",
        "a ok",
        more={
            "b": {"when": ~when("customer", "in", (7, 1.5, "x"))},
            "c": {"when": when("customer", "==", 7)},
        },
    ),
    "done by a participant": Scene("a b", "a ok", replied=True),
    "undone by a participant": Scene("a b", "a ok, b fails", replied=True),
    "skipped": Scene("a b c", "skip b, a skips"),
    "a graph": Scene("a b<a c<a d<b+c", "a ok, b ok"),
    "side by side": Scene("a< b< c<a+b", "b ok", Options(compensation_order="sequential")),
    "being undone": Scene("a b c d", "a ok, b ok, c ok, d fails"),
    "undone later": Scene("a b", "a ok, b fails, undo a later", ask="complete a compensate"),
    "to be undone again": Scene("a b", "a ok, b fails, undo a busy"),
    "of unknown outcome": Scene("a b", "a ok, b lost"),
    "asked to be undone": Scene("a b", "a ok, b ok, compensate", note=AT_ONCE),
    "cancelled": Scene("a b", "a ok, cancel"),
    "not to be undone": Scene("a b", "a ok, b fails, undo a fails", ask="retry"),
    "failed past its pivot": Scene("a b! c", "a ok, b ok, c fails", ask="retry"),
    "resolved by hand": Scene("a b c", "a ok, b ok, c fails, undo b fails, resolve b compensated"),
    "suspended": Scene("a b", "suspend, a ok", ask="resume"),
    "with a snapshot": Scene("a b", ", ".join(["suspend", "resume"] * 33 + ["a ok"])),
    "many steps": Scene(" ".join(f"s{n}" for n in range(40)), ", ".join(f"s{n} ok" for n in range(35))),
    "with a child": Scene("a b", "a ok", more={"b": INNER | {"action": "", "compensation": None}}, child=""),
    "with a child to be undone": Scene("a b* c", "a ok, child b completed, c fails", child="x ok"),
    "completed": Scene("a b", "a ok, b ok"),
    "compensated": Scene("a b", "a ok, b fails, undo a ok"),
}


class Kept(Struct):
    """A saga as it is to be stored."""

    label: str
    origin: Saga
    events: Sequence[Event]
    saga: Saga
    scene: Scene

    @property
    def in_flight(self) -> Sequence[Carried]:
        commands = () if self.scene.lost or self.scene.note is not None else outstanding(self.saga)
        return [_replied(command) for command in commands] if self.scene.replied else commands


def _replied(command: Command) -> Reply:
    assert isinstance(command, Execute | Compensate)
    return reply_of(command, answer_event(command, {"done": command.step}, NOW))


def kept() -> list[Kept]:
    found: list[Kept] = []
    for number, (label, scene) in enumerate(SCENES.items(), 10):
        origin = saga_of(scene.steps, id=f"{ID[:-2]}{number}", options=scene.options, **scene.more)
        one = play(label, origin, scene.events, scene)
        found.append(one)
        if scene.child is not None:
            (begun,) = [
                command
                for event in [None, *one.events]
                for command in outstanding(saga_at(origin, one.events, event))
                if isinstance(command, StartChild)
            ][:1]
            child = child_saga(origin, begun, BORN + 2)
            found.append(play(f"{label}: the child", child, scene.child, Scene("x")))
    return found


def play(label: str, origin: Saga, text: str, scene: Scene) -> Kept:
    events, saga = events_of(text, origin.created_at), origin
    for event in events:
        answer = transition(saga, event)
        assert answer.ignored is None, f"{label}: {answer.ignored}"
        saga = answer.saga
    return Kept(label, origin, events, saga, scene)


def saga_at(origin: Saga, events: Sequence[Event], last: Event | None) -> Saga:
    saga = origin
    for event in events[: 0 if last is None else events.index(last) + 1]:
        saga = transition(saga, event).saga
    return saga


async def fill(store: Store, sagas: Sequence[Kept]) -> None:
    for one in sagas:
        await store.create(one.origin, unpublished=None if one.events else one.scene.note)
        saga = one.origin
        for event in one.events:
            saga = transition(saga, event).saga
            await store.commit(saga, event, unpublished=one.scene.note if event is one.events[-1] else None)


def asks(sagas: Sequence[Kept]) -> list[Ask]:
    """What people do, now that it is known which sagas there are."""
    found: list[Ask] = []
    for one in sagas:
        match one.scene.ask.split():
            case ["complete", step, ("execute" | "compensate") as operation]:
                which: Operation = "execute" if operation == "execute" else "compensate"
                found.append(Ask("complete", one.saga.token(step, which)))
            case [call]:
                found.append(Ask(call, one.saga.id))
            case _:
                pass
    return found


def published(command: Carried, saga: Saga | None = None) -> Published:
    """Return the message of a command; with its saga, that for a participant, for no handler is here."""
    message = Config().message(command, saga)
    wire = frames.publish_prefix(1, message.exchange, message.routing_key, mandatory=True)
    wire += frames.content(1, message.body, message.id, message.type, message.headers)
    return Published(
        message.exchange,
        message.routing_key,
        message.id,
        message.type,
        "application/json",
        2,
        message.body.decode(),
        wire.hex(),
    )


# What the barrier keeps -------------------------------------------------------------------------------------------


class Guarded(Struct):
    """A step under the barrier, and what the barrier answers when its handler runs again."""

    saga: str
    step: str
    answer: Any


def guard(connection: Any, sagas: Mapping[str, Saga]) -> list[Guarded]:
    """Run some steps under the barrier: done, skipped, and undone before they were done."""
    done, skipped, undone = (sagas[label] for label in ("under way", "a graph", "of unknown outcome"))
    barrier.run(connection, done, done.step("b"), lambda: {"from": "b", "é": [1, None]})
    barrier.run(connection, skipped, skipped.step("c"), lambda: Skip("nothing to do"))
    barrier.run(connection, undone, undone.step("b"), lambda: {"never": "called"})
    return [
        Guarded(done.id, "b", {"from": "b", "é": [1, None]}),
        Guarded(skipped.id, "c", {"is": "Skip", "reason": "nothing to do"}),
        Guarded(undone.id, "b", {}),
    ]


# Files ------------------------------------------------------------------------------------------------------------


def dump_sqlite(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return "PRAGMA journal_mode = WAL;\n" + "\n".join(connection.iterdump()) + "\n"


def dump_postgres(url: str) -> str:
    """Return the statements that have made the tables, and those that make their rows."""
    name = sql.Identifier("saga")
    said = [
        sql.SQL(schema.CREATE_SCHEMA).format(schema=name),
        sql.SQL(schema.CREATE_NOTES).format(schema=name),
        sql.SQL("SET search_path = {}").format(name),
        *map(sql.SQL, schema.MIGRATIONS),
        sql.SQL("SET search_path = public"),
        sql.SQL(barrier.DDL["postgresql"]),
    ]
    with psycopg.connect(url) as connection:
        for table in ("saga.migrations", "saga.sagas", "saga.history", "saga_barrier"):
            rows = connection.execute(
                sql.SQL("SELECT * FROM {} ORDER BY 1, 2").format(sql.Identifier(*table.split(".")))
            )
            names = [column.name for column in rows.description or ()]
            said += [
                sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                    sql.Identifier(*table.split(".")),
                    sql.SQL(", ").join(map(sql.Identifier, names)),
                    sql.SQL(", ").join(
                        sql.Literal(Jsonb(value) if isinstance(value, dict) else value) for value in row
                    ),
                )
                for row in rows
            ]
        return ";\n".join(one.as_string(connection).strip().rstrip(";") for one in said) + ";\n"


def lines(rows: Iterable[object]) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def pretty(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def write_bytes(directory: Path, sagas: Sequence[Kept], messages: Sequence[Published]) -> None:
    """Write the files of which each line is one thing."""
    directory.mkdir(parents=True)
    every_command: list[Carried] = [*(command for command, _ in COMMANDS), *REPLIES]
    remote = [published(command, one.saga) for one in sagas for command in outstanding(one.saga)]
    works = [one.body.encode() for one in remote if '"work":' in one.body]
    every_saga = [saga for saga, _ in SAGAS] + [one.saga for one in sagas]
    files = {
        "commands.jsonl": (
            {"bytes": encode_command(one).decode(), "told": told(one)} for one in every_command
        ),
        "events.jsonl": ({"bytes": encode_event(one).decode(), "told": told(one)} for one, _ in EVENTS),
        "sagas.jsonl": ({"bytes": encode_saga(one).decode(), "told": told_of(one)} for one in every_saga),
        "messages.jsonl": [*map(published, every_command), *messages, *remote],
        "work.jsonl": ({"bytes": one.decode(), "told": told(decode_work(one))} for one in works),
        "news.jsonl": ({"bytes": encode_command(one).decode(), "told": told(one)} for one in NEWS),
    }
    for name, rows in files.items():
        (directory / name).write_bytes(lines(rows))


async def record(directory: Path, postgres_url: str | None) -> None:
    """Write the fixtures of this release; without a PostgreSQL all but what needs one."""
    sagas = kept()
    by_label = {one.label: one.saga for one in sagas}
    messages = [published(command) for one in sagas for command in one.in_flight]
    people = asks(sagas)
    write_bytes(directory, sagas, messages)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "sagas.db")
        async with SQLiteStore(path) as store:
            await fill(store, sagas)
        with closing(sqlite3.connect(path)) as connection:
            barrier.create_table(connection)
            guarded = guard(connection, by_label)
            connection.commit()
        (directory / "barrier.json").write_bytes(pretty(guarded))
        (directory / "sqlite.sql").write_text(dump_sqlite(path))
        async with SQLiteStore(path) as store:
            ends = await finish(store, messages, people, NOW)
            resting = frozenset({SagaState.COMPLETED, SagaState.COMPENSATED, SagaState.FAILED})
            # More than once: a child saga stays as long as its parent.
            while await purge(store, before=NOW + 1e6, states=resting, archive=directory / "archive.jsonl"):
                pass
    if postgres_url is not None:
        await anyio.to_thread.run_sync(postgres.upgrade, postgres_url)
        async with postgres.PostgresStore(postgres_url) as store:
            await fill(store, sagas)
        with psycopg.connect(postgres_url) as connection:
            barrier.create_table(connection)
            guard(connection, by_label)
        (directory / "postgres.sql").write_text(dump_postgres(postgres_url))
    expected = {
        "now": NOW,
        "sagas": {one.label: told_of(one.saga) for one in sagas},
        "asks": people,
        "messages": messages,
        "ends": {one.label: ends[one.saga.id] for one in sagas},
    }
    (directory / "expected.json").write_bytes(pretty(expected))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.formats.record")
    default = Path(__file__).with_name(version("saga-amqp"))
    parser.add_argument("directory", nargs="?", type=Path, default=default)
    directory: Path = parser.parse_args().directory
    if directory.exists():
        print(f"{directory} is there already, and fixtures of a release are never changed", file=sys.stderr)
        return 1
    with database_server() as server:
        server.create_database("saga_formats")
        try:
            anyio.run(record, directory, server.url("saga_formats"))
        finally:
            server.drop_database("saga_formats")
    return 0


if __name__ == "__main__":
    sys.exit(main())
