"""The order on Restate: its server from npm, a service in Python, and clients that call it over HTTP."""

import asyncio
import contextlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from benchmarks.orders.load import BrokenOrderError, Outcome
from benchmarks.rivals import RESTATE_SERVER
from benchmarks.rivals.load import load
from tests.ports import HOST, free_ports
from tests.processes import Processes, ServerError

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0
ORDER = json.dumps({"product_id": "prod-123", "quantity": 2, "amount": 99.99}).encode()

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def run(store: str, url: str, database: str | None, at_once: Sequence[int], seconds: float) -> list[Outcome]:
    """Measure at each concurrency, on a server of its own."""
    with service() as ingress:
        return asyncio.run(_measure(ingress, at_once, seconds))


@contextlib.contextmanager
def service() -> Iterator[int]:
    """Run server and service; give the port at which orders are placed. Raises: ServerError."""
    processes = Processes("saga-restate-")
    try:
        node, admin, ingress, port = free_ports(4)
        environment = {
            **os.environ,
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_ADMIN__BIND_ADDRESS": f"{HOST}:{admin}",
            "RESTATE_INGRESS__BIND_ADDRESS": f"{HOST}:{ingress}",
        }
        more = [
            "--no-logo",
            "--listen-mode",
            "tcp",
            "--bind-address",
            f"{HOST}:{node}",
            "--node-name",
            "bench",
        ]
        command = [str(RESTATE_SERVER), *more, "--base-dir", str(processes.directory / "data")]
        processes.start(command, "restate.log", environment)
        serve = [sys.executable, "-m", "hypercorn", "--bind", f"{HOST}:{port}", "--log-level", "ERROR"]
        there = {**os.environ, "PYTHONPATH": str(ROOT)}
        processes.start([*serve, "benchmarks.rivals.restate_service:app"], "service.log", there)
        _until(f"http://{HOST}:{admin}/health", None, processes)
        _until(f"http://{HOST}:{admin}/deployments", {"uri": f"http://{HOST}:{port}"}, processes)
        _until(f"http://{HOST}:{ingress}/orders/place", {"first": True}, processes)
        yield ingress
    finally:
        processes.close()


def _until(url: str, body: object, processes: Processes) -> None:
    """Ask until it is answered well."""
    deadline = time.monotonic() + DEADLINE
    data = None if body is None else json.dumps(body).encode()
    while True:
        try:
            request = urllib.request.Request(url, data, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=DEADLINE):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                words = processes.last_words("*.log")
                raise ServerError(f"{url} does not answer: {error}\n{words}") from error
        time.sleep(0.05)


async def _measure(ingress: int, at_once: Sequence[int], seconds: float) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for many in at_once:
        async with _connections(ingress, many) as connections:

            async def place(number: int, connections: Sequence[Connection] = connections) -> None:
                await _place(*connections[number])

            outcomes.append(await load(place, many, seconds))
    return outcomes


@contextlib.asynccontextmanager
async def _connections(port: int, count: int) -> AsyncIterator[Sequence[Connection]]:
    connections = [await asyncio.open_connection(HOST, port) for _ in range(count)]
    try:
        yield connections
    finally:
        for _, writer in connections:
            writer.close()


async def _place(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Place an order over a connection that is kept, and wait for its end. Raises: BrokenOrderError."""
    writer.write(
        b"POST /orders/place HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(ORDER), ORDER)
    )
    status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in headers if line.startswith("content-length:"))
    body = await reader.readexactly(length)
    if " 200 " not in f"{status} " or json.loads(body) != {"charged": 99.99}:
        raise BrokenOrderError(f"{status}: {body.decode()}")
