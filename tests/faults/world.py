"""The engine tests' world, on a real broker: and worker processes that can be killed."""

# A broker tells nobody when a queue has changed: it has to be asked again and again.
# ruff: noqa: ASYNC110

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Self

import aiormq
import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from saga_amqp import Config, Point, Saga
from saga_amqp.contracts import Transport
from saga_amqp.transports.amqp.transport import AmqpTransport
from tests.engine.world import Watch, World

DEADLINE = 30.0
POLL_INTERVAL = 0.02


class RabbitWorld(World):
    """A world whose messages go through RabbitMQ, with queues of its own, which vanish by themselves."""

    deadline = DEADLINE

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__()
        self.url = url
        self.prefix = prefix
        self.queues = [
            f"{prefix}.saga.{name}" for name in ("steps", "compensate", "orchestrator", "dead-letter")
        ]

    def config(self, **changes: Any) -> Config:
        return super().config(**{"prefix": f"{self.prefix}.", "expires": 60.0, **changes})

    def transport(self) -> Transport:
        return AmqpTransport(self.url)

    async def finish(self, *saga_ids: str) -> list[Saga]:
        """Let other engines bring sagas to rest, and every message, duplicates too, to its end."""
        sagas: list[Saga] = []
        with anyio.fail_after(self.deadline):
            while not sagas or any(self.ready()):
                watch = Watch()
                async with self.running(observer=watch) as manager:
                    sagas = [await manager.wait(saga_id) for saga_id in saga_ids]
                    while any(self.ready()) or watch.count(Point.RECEIVED) > watch.count(Point.ACKNOWLEDGED):
                        await anyio.sleep(POLL_INTERVAL)
        return sagas

    async def until_all_is_acknowledged(self) -> None:
        """Wait until nothing is ready in the queues, and nothing in the hands of the engine that is watched."""
        while any(self.ready()) or self.watch.in_hand():
            await anyio.sleep(POLL_INTERVAL)

    def ready(self) -> list[int]:
        """Ask the broker how many messages are ready in the queues, in their order."""
        return messages_ready(self.url, self.queues)

    async def until_ready(self, steps: int = 0, compensations: int = 0, dead_letters: int = 0) -> None:
        """Wait until so many messages are ready, as they are once whoever had them has gone."""
        expected, found = [steps, compensations, 0, dead_letters], list[int]()
        with anyio.move_on_after(self.deadline):
            # Asked once more, a busy broker may say 0: so it does when a queue does not answer within 250 ms.
            while (found := self.ready()) != expected:
                await anyio.sleep(POLL_INTERVAL)
        assert found == expected


def messages_ready(url: str, queues: list[str]) -> list[int]:
    """Ask the broker how many messages are ready in these queues.

    It blocks the event loop, for a moment, so that it needs no thread that outlives the test.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _ready(url, queues)).result()


async def _ready(url: str, queues: list[str]) -> list[int]:
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        declared = [await channel.queue_declare(queue, passive=True) for queue in queues]
        return [one.message_count or 0 for one in declared]
    finally:
        await connection.close()


class Worker:
    """An engine in a process of its own: see `worker`."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self._process = process
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def until(self, key: str) -> list[dict[str, Any]]:
        """Wait until the worker reports something under this key; return all that it reported until then."""
        reports: list[dict[str, Any]] = []
        with anyio.fail_after(DEADLINE):
            while not reports or key not in reports[-1]:
                reports.append(json.loads(await self._lines.receive_until(b"\n", 65_536)))
        return reports

    async def kill(self) -> None:
        """Kill it like a machine that loses its power."""
        os.kill(self._process.pid, signal.SIGKILL)
        with anyio.fail_after(DEADLINE):
            await self._process.wait()

    async def end(self) -> int:
        """Tell it to end, and return its exit status."""
        os.kill(self._process.pid, signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end and return its exit status."""
        with anyio.fail_after(DEADLINE):
            return await self._process.wait()

    @classmethod
    @asynccontextmanager
    async def start(cls, *arguments: str, module: str = "worker") -> AsyncIterator[Self]:
        """Start a worker; it does not outlive the test."""
        command = [sys.executable, "-W", "error", "-m", f"tests.faults.{module}", *arguments]
        async with await anyio.open_process(command, stderr=None) as process:
            try:
                yield cls(process)
            finally:
                if process.returncode is None:
                    process.kill()
