"""Engines as processes of their own, by the command `saga run`, and the sagas that they are to bring to rest."""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from saga_amqp import AmqpTransport, Config, Manager
from saga_amqp.databases import open_store
from tests.engine.world import steps
from tests.faults.world import DEADLINE, POLL_INTERVAL, messages_ready
from tests.running import app as application
from tests.test_servers import ROOT


class Engine:
    """A process that runs `saga run`."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.log = ""
        self._process = process
        self._reports = BufferedByteReceiveStream(process.stdout)
        self._logged = BufferedByteReceiveStream(process.stderr)

    async def until(self, key: str) -> Any:
        """Wait until a handler reports something under this key, and return it."""
        with anyio.fail_after(DEADLINE):
            while True:
                report = json.loads(await self._reports.receive_until(b"\n", 65_536))
                if key in report:
                    return report[key]

    async def until_logged(self, text: str) -> None:
        """Wait until a line of the log has this text in it."""
        with anyio.fail_after(DEADLINE):
            while text not in self.log:
                self.log += (await self._logged.receive_until(b"\n", 65_536)).decode() + "\n"

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end, and return its exit status."""
        with anyio.fail_after(DEADLINE):
            try:
                while True:
                    self.log += (await self._logged.receive()).decode()
            except anyio.EndOfStream:
                return await self._process.wait()

    @classmethod
    @asynccontextmanager
    async def start(
        cls, place: "Place", backend: str, how: str = "work", *flags: str, name: str = "app", **variables: str
    ) -> AsyncIterator[Self]:
        """Start one that has its broker and store from the environment; it does not outlive the test."""
        command = [sys.executable, "-W", "error", "-m", "saga_amqp", "run", f"tests.running.app:{name}"]
        environment = {**os.environ, **place.environment(), "TEST_HOW": how, **variables}
        async with await anyio.open_process(
            [*command, "--backend", backend, *flags], env=environment, cwd=ROOT
        ) as process:
            engine = cls(process)
            try:
                yield engine
            finally:
                if process.returncode is None:
                    process.kill()


class Place:
    """Where engines of one test meet: a broker, with queues of their own, and a store."""

    def __init__(self, amqp_url: str, store_url: str, unique: str) -> None:
        self.amqp_url = amqp_url
        self.store_url = store_url
        self.unique = unique

    def environment(self) -> dict[str, str]:
        return {"SAGA_BROKER": self.amqp_url, "SAGA_STORE": self.store_url, "TEST_UNIQUE": self.unique}

    @asynccontextmanager
    async def manager(self, runs: Callable[[], Config] | None = None) -> AsyncIterator[Manager]:
        """Give a manager that starts and watches sagas, and runs none, unless it is told with which configuration."""
        os.environ["TEST_UNIQUE"] = self.unique
        config = (runs or application.app)()
        transport = None if runs is None else AmqpTransport(self.amqp_url)
        async with open_store(self.store_url) as store, Manager(transport, store, config) as manager:
            yield manager

    async def start(self, manager: Manager, *names: str) -> str:
        return (await manager.start("s", steps(*names))).id

    async def until_ready(self, count: int) -> None:
        """Wait until so many messages are ready in the queue of steps, and none in the others."""
        with anyio.fail_after(DEADLINE):
            while self.ready() != [count, 0, 0, 0]:  # noqa: ASYNC110 - a broker has to be asked
                await anyio.sleep(POLL_INTERVAL)

    def ready(self) -> list[int]:
        """Ask the broker how many messages are ready: steps, compensations, the orchestrator's, dead letters."""
        names = ("steps", "compensate", "orchestrator", "dead-letter")
        return messages_ready(self.amqp_url, [f"{self.unique}.saga.{name}" for name in names])
