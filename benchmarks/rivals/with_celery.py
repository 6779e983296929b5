"""The order as a chain of Celery over the same kind of queue: published with confirms, and with no durable state."""

import contextlib
import os
import queue
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ulid import ULID

from benchmarks.orders.load import BrokenOrderError, Outcome
from benchmarks.rivals.load import load_in_threads
from tests.processes import Processes

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0
POOLS = {"processes": ("prefork", 2), "threads": ("threads", 8)}


def run(store: str, url: str, database: str | None, at_once: Sequence[int], seconds: float) -> list[Outcome]:
    """Measure at each concurrency, with a worker of its own, which has a pool of the kind that stands for the store."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ears:
        ears.bind(("127.0.0.1", 0))
        ears.settimeout(DEADLINE)
        names = {"BROKER": url, "QUEUE": f"bench-{ULID()}", "PORT": str(ears.getsockname()[1])}
        os.environ.update({f"BENCH_CELERY_{name}": value for name, value in names.items()})
        clients = Clients(ears)
        with _worker(*POOLS[store]), clients.listening():
            clients.place_order()  # the worker is up when it has run
            return [load_in_threads(clients.place_order, many, seconds) for many in at_once]


class Clients:
    """Starts chains, and hears of their ends."""

    def __init__(self, ears: socket.socket) -> None:
        self._ears = ears
        self._waiting: dict[str, queue.SimpleQueue[None]] = {}

    def place_order(self) -> None:
        """Run one order. Raises: BrokenOrderError."""
        from celery import chain

        from benchmarks.rivals.celery_tasks import charge, create, reserve

        saga = str(ULID())
        done = self._waiting[saga] = queue.SimpleQueue()
        chain(create.s("prod-123"), reserve.s(2), charge.s(99.99, saga)).apply_async()
        try:
            done.get(timeout=DEADLINE)
        except queue.Empty:
            raise BrokenOrderError(f"the chain of saga {saga} does not end") from None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen in a thread."""
        thread = threading.Thread(target=self._listen)
        thread.start()
        try:
            yield
        finally:
            self._ears.sendto(b"", self._ears.getsockname())
            thread.join()

    def _listen(self) -> None:
        while saga := self._ears.recv(100).decode():
            self._waiting.pop(saga).put(None)


@contextlib.contextmanager
def _worker(pool: str, concurrency: int) -> Iterator[None]:
    processes = Processes("saga-celery-")
    try:
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.rivals.celery_tasks", "worker"]
        command += ["--pool", pool, "--concurrency", str(concurrency), "--loglevel", "ERROR"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        there = {**os.environ, "PYTHONPATH": str(ROOT), "C_FORCE_ROOT": "1"}
        processes.start(command, "celery.log", there)
        yield
    finally:
        processes.close()
