"""The command `saga`, as a shell runs it."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import anyio
import msgspec
import pytest

from saga_amqp import ConnectionLostError, MemoryTransport, TransportError, cli
from saga_amqp.contracts import Message
from saga_core import Saga, SagaState, Step, StepState

SCRIPT = [str(Path(sys.executable).with_name("saga"))]
MODULE = [sys.executable, "-m", "saga_amqp"]
DEADLINE = 60.0
PASSWORD = "not-to-be-seen"


class Error(msgspec.Struct, forbid_unknown_fields=True):
    code: str
    message: str
    retryable: bool = False
    details: dict[str, object] = {}


class StepLine(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    state: StepState
    error: Error | None


class SagaLine(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    name: str
    state: SagaState
    steps: list[StepLine]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command; a warning is an error there too."""
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE, env=environment, check=False
    )


def check_json(lines: list[str]) -> None:
    completed, compensated = (msgspec.json.decode(line, type=SagaLine) for line in lines)
    assert completed.id != compensated.id
    names = ["create_order", "reserve_inventory", "charge_payment"]
    for saga, state in ((completed, SagaState.COMPLETED), (compensated, SagaState.COMPENSATED)):
        assert (saga.name, saga.state) == ("order_processing", state)
        assert [step.name for step in saga.steps] == names
    assert {(step.state, step.error) for step in completed.steps} == {(StepState.COMPLETED, None)}
    assert [(step.state, step.error) for step in compensated.steps] == [
        (StepState.COMPENSATED, None),
        (StepState.COMPENSATED, None),
        (StepState.FAILED, Error("card_declined", "the bank declined 99.99")),
    ]


# By itself -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["saga", "python -m saga_amqp"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_demo_prints_a_timeline_of_a_good_end_and_of_an_undone_saga(command: list[str], backend: str) -> None:
    done = run(*command, "demo", "--backend", backend)
    assert (done.returncode, done.stderr) == (0, "")
    told = [
        (match[1] or match[2]).strip()
        for match in re.finditer(r"^  +\d+\.\d ms  (?:(\w+ +[a-z]+)\b|(saga \w+))", done.stdout, re.MULTILINE)
    ]
    assert [" ".join(one.split()) for one in told] == [
        "saga started",
        "create_order completed",
        "reserve_inventory completed",
        "charge_payment completed",
        "saga completed",
        "saga started",
        "create_order completed",
        "reserve_inventory completed",
        "charge_payment failed",
        "reserve_inventory compensated",
        "create_order compensated",
        "saga compensated",
    ]
    assert "card_declined: the bank declined 99.99" in done.stdout


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_demo_prints_one_json_object_per_saga(backend: str) -> None:
    done = run(*MODULE, "demo", "--json", "--backend", backend)
    assert (done.returncode, done.stderr) == (0, "")
    check_json(done.stdout.splitlines())


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--backend", "curio"], ["demo", "--amqp"]])
def test_a_command_that_cannot_be_understood_is_answered_with_the_usage(arguments: list[str]) -> None:
    done = run(*MODULE, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("usage: saga")


# Through RabbitMQ -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_demo_goes_through_rabbitmq(amqp_url: str, backend: str) -> None:
    done = run(*MODULE, "demo", "--json", "--backend", backend, "--amqp", amqp_url)
    assert (done.returncode, done.stderr) == (0, "")
    check_json(done.stdout.splitlines())


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that is taken, and where nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def _fails_clearly(url: str, *says: str) -> None:
    for backend in ("asyncio", "trio"):
        done = run(*MODULE, "demo", "--backend", backend, "--amqp", url)
        assert done.returncode == 1
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("saga: ")
        assert PASSWORD not in done.stderr
        for text in says:
            assert text in line


def test_an_unreachable_broker_is_one_clear_line_without_the_password(deaf_port: int) -> None:
    _fails_clearly(f"amqp://guest:{PASSWORD}@127.0.0.1:{deaf_port}/", f"127.0.0.1:{deaf_port}")


def test_a_host_that_does_not_exist_is_one_clear_line() -> None:
    _fails_clearly(f"amqp://guest:{PASSWORD}@broker.invalid:5673/", "broker.invalid:5673")


def test_a_wrong_password_is_one_clear_line(amqp_url: str) -> None:
    parts = urlsplit(amqp_url)
    address = f"{parts.hostname}:{parts.port or 5672}"
    url = urlunsplit(parts._replace(netloc=f"{parts.username}:{PASSWORD}@{address}"))
    _fails_clearly(url, address, "refused the user name or the password")


def test_an_unknown_virtual_host_is_one_clear_line(amqp_url: str, unique: str) -> None:
    _fails_clearly(urlunsplit(urlsplit(amqp_url)._replace(path=f"/{unique}")), unique, "virtual host")


def test_a_url_that_is_none_is_one_clear_line() -> None:
    _fails_clearly(f"http://guest:{PASSWORD}@127.0.0.1/", "amqp://")


# When things go wrong on the way ------------------------------------------------------------------------------------


class Breaking(MemoryTransport):
    """A transport whose third publish goes wrong."""

    error: BaseException = ConnectionLostError("The connection to 127.0.0.1:5672 ended")

    def __init__(self, url: str) -> None:
        super().__init__()
        self.left = 2

    async def publish(self, message: Message, settled: Callable[[TransportError | None], None]) -> None:
        if not self.left:
            raise self.error
        self.left -= 1
        await super().publish(message, settled)


class Lost(Breaking):
    """A transport that is lost with its third publish; the next one is not."""

    broken: anyio.Event

    async def __aenter__(self) -> Self:
        self.broken = anyio.Event()
        return await super().__aenter__()

    async def publish(self, message: Message, settled: Callable[[TransportError | None], None]) -> None:
        if not self.left:
            self.broken.set()
        await super().publish(message, settled)

    async def lost(self) -> TransportError:
        await self.broken.wait()
        assert isinstance(self.error, TransportError)
        return self.error

    def renewed(self) -> MemoryTransport:  # type: ignore[override]
        return MemoryTransport(self.broker)


class Interrupted(Breaking):
    error = KeyboardInterrupt()


class Silent(Breaking):
    async def publish(self, message: Message, settled: Callable[[TransportError | None], None]) -> None:
        await anyio.sleep_forever()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_connection_that_is_lost_on_the_way_is_made_again(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "AmqpTransport", Lost)
    assert cli.main(["demo", "--amqp", "amqp://", "--backend", backend]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "saga c" in line] == [
        "completed",
        "compensated",
    ], "the end of each saga is the last line of its timeline"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_ends_the_command_without_a_traceback(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "AmqpTransport", Interrupted)
    assert cli.main(["demo", "--amqp", "amqp://", "--backend", backend]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_sagas_that_do_not_come_to_rest_are_not_waited_for_for_ever(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "AmqpTransport", Silent)
    monkeypatch.setattr(cli, "DEADLINE", 0.05)
    assert cli.main(["demo", "--amqp", "amqp://", "--backend", backend]) == 1
    assert capsys.readouterr() == ("", "saga: the sagas did not come to rest in time\n")


def test_a_saga_that_ends_otherwise_than_it_should_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    declined = cli.order_steps("card-declined")
    monkeypatch.setattr(cli, "order_steps", lambda card: declined)
    assert cli.main(["demo", "--json"]) == 1
    states = [msgspec.json.decode(line, type=SagaLine).state for line in capsys.readouterr().out.splitlines()]
    assert states == [SagaState.COMPENSATED, SagaState.COMPENSATED]


def test_without_trio_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["demo", "--backend", "trio"]) == 1
    assert capsys.readouterr() == ("", "saga: trio is not installed; install it, or use --backend asyncio\n")


def test_the_timeline_tells_a_compensation_that_failed() -> None:
    from msgspec import Raw

    from saga_core import CompensationFailed, CompensationRequested, Failure, StepSucceeded, fold, new_saga

    steps = [Step(name="a", action="a", compensation="-a")]
    origin: Saga = new_saga("s", steps, id="01ARZ3NDEKTSV4RRFFQ69G5FAV", at=10.0)
    history = [
        StepSucceeded("a", 1, Raw(b'{"x":1}'), 10.001),
        CompensationRequested("a test", 10.002),
        CompensationFailed("a", 1, Failure("closed", "try on Monday"), 10.003),
    ]
    assert cli._timeline(origin, history, fold(origin, history)).splitlines() == [
        "s 01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "      0.0 ms  saga started",
        '      1.0 ms  a                    completed {"x":1}',
        "      2.0 ms  compensation requested: a test",
        "      3.0 ms  a                    not compensated (closed: try on Monday)",
        "      3.0 ms  saga failed",
    ]
