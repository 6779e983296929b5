"""What every test gets: servers, both event loops, and a check that nothing is left running or left out.

Async tests need no mark: each runs on asyncio and on trio, with `@pytest.mark.uvloop` also on asyncio with uvloop.
A test for one of them parametrises `anyio_backend` itself and says why.
"""

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings
from ulid import ULID

from tests import postgres as databases
from tests.postgres import PostgreSQL, database_server
from tests.servers import External, RabbitMQ, broker

BACKENDS: dict[str, tuple[str, dict[str, bool]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "trio": ("trio", {}),
}
UVLOOP = {"asyncio+uvloop": ("asyncio", {"use_uvloop": True})}

THREAD_DEADLINE = 5.0
# A thread that trio keeps for its next user carries this name; while it works, it carries that of its work.
IDLE_TRIO_THREAD = "Trio thread "

ALLOW_SKIPS = "SAGA_ALLOW_SKIPS"

RAN_ON = pytest.StashKey[Counter[str]]()
RAN_AGAINST = pytest.StashKey[set[str]]()

# A slow machine is no failure, so there are no deadlines.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, max_examples=500, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


# The broker -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def rabbitmq(pytestconfig: pytest.Config) -> Iterator[RabbitMQ | External]:
    """The broker of this session: a private node that starts with the first test that asks, or the external one."""
    with broker() as rabbit:
        pytestconfig.stash[RAN_AGAINST].add(rabbit.describe())
        yield rabbit


@pytest.fixture(scope="session")
def private_node(rabbitmq: RabbitMQ | External) -> Iterator[RabbitMQ]:
    """The private node of this session, which is another broker than `rabbitmq` only where that is external."""
    if isinstance(rabbitmq, RabbitMQ):
        yield rabbitmq
    else:
        with RabbitMQ() as rabbit:
            yield rabbit


@pytest.fixture
def private_rabbitmq(private_node: RabbitMQ) -> Iterator[RabbitMQ]:
    """A node to kill and restart, which runs when the test begins, and again when the next one does."""
    yield private_node
    if not private_node.running:
        private_node.restart()


@pytest.fixture(scope="session")
def amqp_url(rabbitmq: RabbitMQ | External) -> str:
    """The URL to connect to. On a private node it names a virtual host of the session's own."""
    if isinstance(rabbitmq, External):
        return rabbitmq.url()
    vhost = f"test-{ULID()}".lower()
    rabbitmq.create_vhost(vhost)
    return rabbitmq.url(vhost)


@pytest.fixture
def unique() -> str:
    """A short prefix for names of queues and exchanges, which no other test and no other session uses."""
    return f"t{ULID()}".lower()


# The database server ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[PostgreSQL | databases.External]:
    """The PostgreSQL of this session: a private server, or a database of its own on the external one."""
    with database_server() as server:
        pytestconfig.stash[RAN_AGAINST].add(server.describe())
        yield server


@pytest.fixture(scope="session")
def private_postgres_server(postgres: PostgreSQL | databases.External) -> Iterator[PostgreSQL]:
    """The private server of this session, which is another than `postgres` only where that is external."""
    if isinstance(postgres, PostgreSQL):
        yield postgres
    else:
        with PostgreSQL() as server:
            yield server


@pytest.fixture
def private_postgres(private_postgres_server: PostgreSQL) -> Iterator[PostgreSQL]:
    """A server to kill and restart, which runs when the test begins, and again when the next one does."""
    yield private_postgres_server
    if not private_postgres_server.running:
        private_postgres_server.restart()


@pytest.fixture
def postgres_url(postgres: PostgreSQL | databases.External) -> Iterator[str]:
    """The URL of a fresh, empty database, which is dropped after the test."""
    name = f"saga_test_{ULID()}".lower()
    postgres.create_database(name)
    yield postgres.url(name)
    if isinstance(postgres, PostgreSQL) and not postgres.running:
        postgres.restart()  # the test has killed it
    postgres.drop_database(name)


# The event loops --------------------------------------------------------------------------------------------------


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The event loop that this test runs on."""
    backend: tuple[str, dict[str, bool]] = request.param
    return backend


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs an event loop on each of them."""
    if "anyio_backend" not in metafunc.fixturenames:
        return
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        if "anyio_backend" in (names.replace(",", " ").split() if isinstance(names, str) else names):
            return
    backends = BACKENDS | (UVLOOP if metafunc.definition.get_closest_marker("uvloop") else {})
    metafunc.parametrize("anyio_backend", backends.values(), ids=backends, indirect=True)


# Nothing is left running ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail a test that leaves a thread behind; those that are just ending are waited for."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREAD_DEADLINE
    left = {thread for thread in threading.enumerate() if thread not in before and not _is_idle(thread)}
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = {thread for thread in left if thread.is_alive() and not _is_idle(thread)}
    assert not left, f"The test left threads behind: {sorted(thread.name for thread in left)}"


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """Let what a module's tests left open in cycles be found while that is an error: it fails the last of them."""
    yield
    gc.collect()


def _is_idle(thread: threading.Thread) -> bool:
    return thread.name.startswith(IDLE_TRIO_THREAD)


# What was run, and what was not -----------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Begin with nothing run."""
    config.stash[RAN_ON] = Counter()
    config.stash[RAN_AGAINST] = set()


def pytest_runtest_call(item: pytest.Item) -> None:
    """Count the test for the event loop that it runs on."""
    callspec = getattr(item, "callspec", None)
    if callspec is None or "anyio_backend" not in callspec.params:
        return
    backend = callspec.params["anyio_backend"]
    name, options = (backend, {}) if isinstance(backend, str) else backend
    item.config.stash[RAN_ON][f"{name}+uvloop" if options.get("use_uvloop") else name] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the tests ran against, and complain of those that did not run."""
    servers = config.stash[RAN_AGAINST]
    against = ", ".join(sorted(servers)) or "no server"
    loops = ", ".join(f"{name} ({count} tests)" for name, count in sorted(config.stash[RAN_ON].items()))
    terminalreporter.write_line(f"Ran against: {against} · {loops or 'no event loop'}")
    if skipped := _skipped(config):
        terminalreporter.write_line(
            f"{skipped} skipped: a test that does not run proves nothing. "
            f"Provide what it needs, or set {ALLOW_SKIPS}=1 to let it pass.",
            red=True,
        )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let the session fail if tests were skipped."""
    if session.exitstatus == pytest.ExitCode.OK and _skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skipped(config: pytest.Config) -> int:
    if os.environ.get(ALLOW_SKIPS):
        return 0
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", [])) if reporter else 0
