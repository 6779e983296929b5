"""The commands `saga dead-letter`, as a shell runs them, on RabbitMQ."""

import os
import subprocess
import sys
from collections.abc import Callable

import anyio
import msgspec
import pytest

from saga_amqp import AmqpTransport
from saga_amqp.contracts import Message
from saga_amqp.testing.traffic import drain
from tests.engine.test_dead_letters import BODY, NOW, SAGA, Place

DEADLINE = 60.0

Saga = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(amqp_url: str, unique: str) -> Place:
    return Place(lambda: AmqpTransport(amqp_url), unique)


@pytest.fixture
def saga(amqp_url: str, place: Place) -> Saga:
    """Run `saga dead-letter` for this broker and prefix; a warning is an error there too."""

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        names = {"SAGA_BROKER": amqp_url, "SAGA_PREFIX": place.config.prefix, "PYTHONWARNINGS": "error"}
        return subprocess.run(
            [sys.executable, "-m", "saga_amqp", "dead-letter", *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env={**os.environ, **names, **changes},
            check=False,
        )

    return run


def bury(place: Place, *messages: Message) -> None:
    anyio.run(place.bury, *messages)


def test_letters_are_listed_shown_requeued_and_dropped(saga: Saga, place: Place) -> None:
    strange = place.letter("m-1", b"\xff\x1b[2J", x_saga_reason="undecodable", x_saga_error="line\nbreak")
    bury(place, place.letter("m-0"), strange, place.letter("m-2"))

    listed = saga("list")
    assert (listed.returncode, listed.stderr) == (0, "")
    lines = [line.split("  ") for line in listed.stdout.splitlines()]
    ids = [line[0] for line in lines]
    assert len(set(ids)) == 3
    at = "2023-11-14T22:13:20+00:00"
    assert lines[0][1:] == [at, "no_handler", place.steps, f"{SAGA} a 3", "nobody can"]
    assert lines[1][1:] == [at, "undecodable", place.steps, "? ? ?", "line\\nbreak"]
    assert saga("list", "--limit", "1").stdout == listed.stdout.splitlines(keepends=True)[0]

    shown = saga("show", ids[1])
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.isascii()
    assert "\x1b" not in shown.stdout, "a stranger's bytes do nothing to the terminal"
    assert "body: \\xff\\x1b[2J" in shown.stdout.splitlines()
    told = msgspec.json.decode(saga("show", "--json", ids[0]).stdout)
    assert (told["id"], told["body"], told["when"]) == (ids[0], BODY.decode(), NOW)
    assert [msgspec.json.decode(line)["id"] for line in saga("list", "--json").stdout.splitlines()] == ids

    assert saga("requeue", ids[0]).returncode == 0
    assert saga("drop", ids[1], ids[2]).returncode == 0
    assert saga("list").stdout == ""

    async def requeued() -> list[str]:
        async with place.opened() as transport:
            return [name for name, _ in await drain(transport, place.steps)]

    assert anyio.run(requeued) == ["m-0"]


def test_what_cannot_be_done_is_one_line_and_a_status(saga: Saga, place: Place) -> None:
    bury(place, place.letter("m"))
    for command, complaint in (
        (saga("show", "0123"), "0123"),
        (saga("drop", "0123"), "Not among"),
        (saga("list", "--queue", "nobody"), "nobody"),
        (saga("list", SAGA_BROKER=""), "SAGA_BROKER"),
        (saga("list", "--broker", "amqp://guest:not-to-be-seen@127.0.0.1:1/"), "127.0.0.1:1"),
    ):
        assert command.returncode == 1
        assert command.stdout == ""
        assert command.stderr.startswith("saga: ")
        assert command.stderr.count("\n") == 1
        assert complaint in command.stderr
        assert "not-to-be-seen" not in command.stderr
