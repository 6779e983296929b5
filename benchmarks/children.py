"""The processes in which the measuring is done, and the servers that they use."""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from benchmarks.orders.load import Outcome, Weight
from benchmarks.orders.places import STORES
from benchmarks.relays.course import Outcome as Hops
from benchmarks.runner import Sample
from tests.postgres import database_server
from tests.processes import ServerError
from tests.servers import broker

DEADLINE = 180.0
WARM_UP = 0.7
NODE = Path(__file__).parent / "node"

T = TypeVar("T")


class Servers(NamedTuple):
    """Where broker and database are, which stores that allows, and what there is to say of it."""

    url: str
    database: str | None
    stores: Sequence[str]
    facts: Mapping[str, str]
    skipped: tuple[str, ...]


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    """Give a RabbitMQ, and a PostgreSQL where one can be had."""
    with contextlib.ExitStack() as stack:
        rabbit = stack.enter_context(broker())
        facts = {"rabbitmq": rabbit.version}
        try:
            server = stack.enter_context(database_server())
        except (ServerError, ImportError) as error:
            stores = [store for store in STORES if store != "postgres"]
            yield Servers(rabbit.url(), None, stores, facts, (f"PostgreSQL: {error}",))
        else:
            yield Servers(rabbit.url(), server.url(), STORES, facts | {"postgresql": server.version}, ())


def orders(store: str, loop: str, servers: Servers, more: Sequence[str]) -> list[Outcome]:
    """Run orders in a fresh process. Raises: RuntimeError when it fails, be it only one of its checks."""
    return _ended(_begun("orders", store, loop, servers, more), list[Outcome])


def orders_side_by_side(
    processes: int, store: str, loop: str, servers: Servers, more: Sequence[str]
) -> list[Outcome]:
    """Run orders in so many processes, which begin to measure at the same moment. Raises: RuntimeError."""
    begun = [_begun("orders", store, loop, servers, [*more, "--together"]) for _ in range(processes)]
    try:
        for process in begun:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready
        for process in begun:
            assert process.stdin is not None
            process.stdin.write(f"{time.time() + WARM_UP}\n")
            process.stdin.flush()
        return [outcome for process in begun for outcome in _ended(process, list[Outcome])]
    finally:
        for process in begun:
            process.kill()
            process.communicate()


def weights(store: str, loop: str, servers: Servers, count: int) -> Weight:
    """See what memory an engine takes with so many orders under way. Raises: RuntimeError."""
    more = ["--weigh", "--at-once", str(count)]
    (weight,) = _ended(_begun("orders", store, loop, servers, more), list[Weight])
    return weight


def hops(relay: str, loop: str, servers: Servers, more: Sequence[str]) -> Sample:
    """Run a relay in a fresh process. Raises: RuntimeError."""
    outcome = _ended(_begun("relays", relay, loop, servers, more), Hops)
    return Sample(outcome.rate, outcome.cpu)


def hops_in_node(servers: Servers, more: Sequence[str]) -> Sample:
    """Run the relay of Node's amqplib. Raises: RuntimeError."""
    command = [node_program() or "node", str(NODE / "relay.js"), servers.url, *more]
    outcome = _ended(_process(command), Hops)
    return Sample(outcome.rate, outcome.cpu)


def node_program() -> str | None:
    """Return Node, where it and the packages that are run with it are installed."""
    return shutil.which("node") if (NODE / "node_modules").is_dir() else None


def outcomes_of_rival(rival: str, store: str, servers: Servers, more: Sequence[str]) -> list[Outcome]:
    """Run sagas on a rival in a fresh process. Raises: RuntimeError."""
    return _ended(_begun("rivals", rival, store, servers, more), list[Outcome])


def sample(outcome: Outcome) -> Sample:
    """Return what a comparison takes of an outcome."""
    return Sample(outcome.rate, outcome.cpu, outcome.latency)


def _begun(
    module: str, what: str, loop: str, servers: Servers, more: Sequence[str]
) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", f"benchmarks.{module}", what, loop, "--url", servers.url, *more]
    command += ["--database", servers.database] if servers.database else []
    return _process(command)


def _process(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _ended(process: "subprocess.Popen[str]", kind: type[T]) -> T:
    try:
        out, errors = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args} failed with status {process.returncode}:\n{errors}")
    return msgspec.json.decode(out, type=kind)
