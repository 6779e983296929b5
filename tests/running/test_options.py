"""What `saga run` is told, on the command line, in the environment and by the application; and what it answers."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import anyio
import pytest

from saga_amqp import cli, running
from saga_amqp.health import HealthFile
from saga_amqp.participant import Participant
from saga_amqp.service import Service, Signals, Status, Underway
from saga_core import Compensate, Execute, Report, SagaState
from tests.test_servers import ROOT

from . import app as application

URLS = ("--broker", "amqp://guest:5ecret@broker.invalid/", "--store", "sqlite:///sagas.db")
ID = "01HZY3V9Q8W7X6T5S4R3P2N1M0"


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory of the test's own, as the current one, and an environment that sets nothing."""
    for name in [name for name in os.environ if name.startswith("SAGA_") and "TEST" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TEST_UNIQUE", "t")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    return tmp_path


def service(*arguments: str) -> Service:
    """Make what the arguments ask for, and do not run it."""
    made: list[Service] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "run", lambda self, backend: made.append(self))
        cli.main(["run", *arguments])
    return made[0]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Return what a command that cannot be run says, its last line apart."""
    assert cli.main(["run", *arguments]) == Status.MISUSED
    out, error = capsys.readouterr()
    assert out == ""
    assert "5ecret" not in error
    before, _, last = error.rstrip("\n").rpartition("\n")
    return before, last


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("shop", *URLS), "Give a module and a name in it, like shop.sagas:app, not 'shop'"),
        ((":app", *URLS), "Give a module and a name in it"),
        (("shop:", *URLS), "Give a module and a name in it"),
        (("no_such.shop:app", *URLS), "There is no module 'no_such.shop', also not in "),
        (("tests.running.shop:app", *URLS), "There is no module 'tests.running.shop'"),
        (
            ("tests.running.app:shop", *URLS),
            "Module 'tests.running.app' has no 'shop'; it has registry, made, empty",
        ),
        (("tests.running.app:made.shop", *URLS), "Module 'tests.running.app' has no 'made.shop'"),
        (("json:app", *URLS), "Module 'json' has no 'app'"),
        (
            ("tests.running.app:number", *URLS),
            "tests.running.app:number is of type int, and has to be a Config or a Registry",
        ),
        (("tests.running.app:Registry", *URLS), ":Registry is of type type, and has to be"),
        (("json:dumps", *URLS), "json:dumps, called without arguments, raised the above"),
        (("os:getcwd", *URLS), "os:getcwd() is of type str, and has to be"),
        (("tests.running.app:waiting", *URLS), "tests.running.app:waiting is async"),
        (("tests.running.app:empty", *URLS), "tests.running.app:empty has no handlers"),
        (("tests.running.app:made", *URLS[2:]), "Say which broker to use: --broker URL, or SAGA_BROKER"),
        (("tests.running.app:made", *URLS[:2]), "Say which store to use: --store URL, or SAGA_STORE"),
        (("tests.running.app:made", "--broker", "http://u:5ecret@h/", *URLS[2:]), "amqp:// or amqps://"),
        (
            ("tests.running.app:made", *URLS[:2], "--store", "mysql://u:5ecret@h/"),
            "postgresql:// or sqlite:///",
        ),
        (
            ("tests.running.app:made", *URLS[:2], "--store", "sqlite:///"),
            "SQLiteStore needs the path of a file",
        ),
        (("tests.running.app:made", *URLS, "--schema", "s"), "--schema is for PostgreSQL"),
        (
            ("tests.running.app:made", *URLS, "--concurrency", "many"),
            "--concurrency takes a whole number, not 'many'",
        ),
        (("tests.running.app:made", *URLS, "--concurrency", "0"), "concurrency must be at least 1"),
        (
            ("tests.running.app:made", *URLS, "--grace-period", "nan"),
            "--grace-period takes a number of seconds",
        ),
        (("tests.running.app:made", *URLS, "--grace-period", "-1"), "grace_period must not be negative"),
        (
            ("tests.running.app:made", *URLS, "--backend", "curio"),
            "--backend takes asyncio, uvloop, trio, not 'curio'",
        ),
        (
            ("tests.running.app:made", *URLS, "--log-level", "loud"),
            "--log-level takes debug, info, warning, error",
        ),
        (("tests.running.app:made", *URLS, "--health-file", "no/such"), "no is no directory to write to"),
        (
            ("tests.running.app:made", *URLS, "--health-interval", "0"),
            "has to be a positive number of seconds",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: Sequence[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, last = answer(capsys, *arguments)
    assert last.startswith("saga: ")
    assert says in last


def test_a_wrong_variable_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGA_PREFETCH", "1.5")
    assert answer(capsys, "tests.running.app:made", *URLS)[1] == (
        "saga: SAGA_PREFETCH takes a whole number, not '1.5'"
    )


@pytest.mark.parametrize(
    ("source", "name", "shown", "says"),
    [
        (
            "import no_such_thing",
            "",
            "ModuleNotFoundError: No module named 'no_such_thing'",
            "cannot be imported",
        ),
        ("1 / 0", "", "ZeroDivisionError", "cannot be imported"),
        (
            "def app(): raise KeyError('DATABASE')",
            "",
            "KeyError: 'DATABASE'",
            "called without arguments, raised",
        ),
    ],
)
def test_an_error_of_the_users_own_is_shown_with_where_it_comes_from(
    source: str, name: str, shown: str, says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"shop{abs(hash(source))}"
    (place / f"{module}.py").write_text(source)
    before, last = answer(capsys, f"{module}:app", *URLS)
    assert says in last
    assert before.startswith("Traceback")
    assert before.rstrip().endswith(shown) or shown in before
    assert f"{module}.py" in before


def test_a_registry_a_config_and_a_function_are_run() -> None:
    for name in ("registry", "made", "app"):
        config = running.load_app(f"tests.running.app:{name}")
        assert set(config.actions) == {"do.a", "do.b"}
    assert config.exchange == "t.sagas"
    assert running.load_app("tests.running.app:orchestrator").remote == ("do.*", "undo.*")


def test_the_command_line_counts_more_than_the_environment_and_that_more_than_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert application.app().sweep_interval == 0.1
    monkeypatch.setenv("SAGA_BROKER", URLS[1])
    monkeypatch.setenv("SAGA_STORE", URLS[3])
    monkeypatch.setenv("SAGA_CONCURRENCY", "7")
    monkeypatch.setenv("SAGA_PREFETCH", "9")
    monkeypatch.setenv("SAGA_GRACE_PERIOD", "")
    config = service("tests.running.app:app", "--concurrency", "8", "--republish-after", "2.5")._config
    assert (config.concurrency, config.prefetch, config.republish_after) == (8, 9, 2.5)
    assert (config.sweep_interval, config.grace_period) == (0.1, 10.0)


def test_several_brokers_have_commas_between_them_and_within_their_passwords_too() -> None:
    urls = "amqp://u:a,b@h1/,amqps://u:p@h2/v,amqp://h3"
    assert running.read_settings({}, {"SAGA_BROKER": urls}) == {
        "broker": ["amqp://u:a,b@h1/", "amqps://u:p@h2/v", "amqp://h3"]
    }
    made = service("tests.running.app:app", "--broker", urls, "--store", "none", "--prefix", "x.")
    assert repr(made._transport) == "<AmqpTransport amqp://h1:5672/, amqps://h2:5671/v, amqp://h3:5672/>"
    assert isinstance(made._made(), Participant)
    assert made._config.exchange == "x.sagas"


@pytest.mark.parametrize("option", running.OPTIONS, ids=lambda option: option.name)
def test_every_option_has_its_variable(option: running.Option) -> None:
    text = option.choices[-1] if option.choices else "5"
    text = URLS[1] if option.name == "broker" else text
    by_flag = running.read_settings({option.name: text}, {})
    assert (
        by_flag
        == running.read_settings({}, {f"SAGA_{option.name.upper()}": text})
        == {option.name: option.read(text)}
    )


def test_every_option_and_every_exit_status_is_documented() -> None:
    page = (ROOT / "docs" / "running.md").read_text()
    for option in running.OPTIONS:
        assert f"| `{option.flag}` | `{option.variable}` |" in page
    for status in Status:
        assert f"\n| {status.value} | " in page


@pytest.mark.parametrize("backend", ["trio", "uvloop"])
def test_an_event_loop_that_is_not_installed_is_named(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    _, last = answer(capsys, "tests.running.app:made", *URLS, "--backend", backend)
    assert last == f"saga: {backend} is not installed; try: pip install 'saga-amqp[{backend}]'"


# What the servers say --------------------------------------------------------------------------------------------


def failure(caplog: pytest.LogCaptureFixture, *arguments: str) -> str:
    assert cli.main(["run", "tests.running.app:app", *arguments]) == Status.FAILED
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    return record.getMessage()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_broker_that_refuses_is_one_line_of_the_log(
    backend: str, amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts = urlsplit(amqp_url)
    wrong = urlunsplit(parts._replace(netloc=f"guest:5ecret@{parts.hostname}:{parts.port}"))
    said = failure(caplog, "--broker", wrong, *URLS[2:], "--backend", backend)
    assert "refused the user name or the password" in said
    assert "5ecret" not in said


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_database_without_tables_is_one_line_of_the_log(
    backend: str, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = failure(caplog, *URLS[:2], "--store", postgres_url, "--backend", backend)
    assert "saga db upgrade" in said


# Parts -------------------------------------------------------------------------------------------------------------


async def test_a_signal_that_came_before_the_event_loop_ends_it() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals(lambda: None) as signals, anyio.CancelScope() as scope:
        os.kill(os.getpid(), signal.SIGTERM)
        while not signals.count:
            await anyio.lowlevel.checkpoint()
        signals.tell(lambda name: pytest.fail("too late for that"), scope.cancel)
        await anyio.sleep_forever()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_when_the_event_loop_has_ended_does_no_harm() -> None:
    with Signals(lambda: None) as signals:

        async def main() -> None:
            signals.tell(lambda name: None, lambda: None)

        for backend in ("asyncio", "trio"):
            anyio.run(main, backend=backend)
            signals._soon(signals._second)


def test_a_handler_is_underway_until_its_result_is_stored() -> None:
    from saga_amqp import Moment, Point

    seen: list[Moment] = []
    underway = Underway(seen.append)
    run, undo, told = (
        Execute(ID, "a", "do", 1),
        Compensate(ID, "b", "undo", 1),
        Report(ID, "c", 1, ID, SagaState.FAILED),
    )
    moments = [Moment(point, ID, command) for command in (run, undo, told, None) for point in Point]
    for moment in moments:
        underway(moment)
    assert seen == moments
    assert underway.handlers == 0
    assert underway.unfinished() == []
    underway(Moment(Point.HANDLER_BEGAN, ID, run))
    assert underway.handlers == 1
    assert underway.unfinished() == [run]
    underway(Moment(Point.HANDLER_ENDED, ID, run))
    assert underway.handlers == 0
    assert underway.unfinished() == [run], "its result is in no store yet"
    underway(Moment(Point.COMMITTED, ID, run))
    assert underway.unfinished() == []


def test_a_health_file_that_cannot_be_written_is_complained_of_once(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = HealthFile(place / "gone" / "health")
    file.begin()
    for _ in range(3):
        file.write(stopping=False, waits_for=(), handlers=0)
    file.remove()
    assert [record.getMessage()[:35] for record in caplog.records] == ["The health file cannot be written: "]
    (place / "gone").mkdir()
    file.write(stopping=False, waits_for=(), handlers=0)
    assert os.listdir(place / "gone") == ["health"]
    file.remove()
    assert os.listdir(place / "gone") == []
