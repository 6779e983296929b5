"""The process that is soaked: engine and clients in one, at a steady rate, until its time is over.

    python -m tests.soak.engine SETTING

It prints what it sees of itself, a line for each `Told`.
"""

import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from benchmarks.orders.load import latency, resident
from benchmarks.orders.places import FORGOTTEN_AFTER
from saga_amqp import AmqpTransport, Config, Manager, MemoryStore, purge
from saga_amqp.contracts import Store
from saga_amqp.databases import open_store

from .sagas import KINDS, PAUSE, Kind, handlers
from .samples import Sample

KEPT = 5.0
"""Seconds for which sagas that have come to rest stay in the store."""
LAST = 60.0
"""Seconds after which sagas that have not come to rest are given up."""
OBJECTS = 10
"""How often in a run all objects are counted, which holds everything up."""
SETTLED = 10
"""Looks at the tasks of an engine that has nothing to do, of which the least counts."""
WORKER = "saga_amqp.engine.Engine._work"
"""What the task is called that runs handlers. Engines keep as many as were needed at once, up to a limit."""

Phase = Literal["before", "under load", "after"]


class Setting(Struct, frozen=True):
    """One run: for so many seconds, so many sagas a second; a look at itself every so many seconds.

    Before that, so many at once that the engine has had what it takes for a `crowd`: memory that was once needed is
    not given back, and would else count as growth when a busy machine lets sagas pile up. `store` is a URL, or empty
    for one in memory.
    """

    loop: str
    store: str
    amqp: str
    unique: str
    seconds: float
    rate: float
    every: float
    crowd: int = 1_000


class Told(Struct, frozen=True):
    """What is printed. Of a load, `started`, and by kind `ended` and `wrong`, are all until then."""

    phase: Phase
    sample: Sample
    started: int
    ended: dict[str, int]
    wrong: dict[str, int]


class Load:
    """Starts sagas when they are due, however many are under way, and waits for each of them."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._began = time.monotonic()
        self._started = 0
        self._in_flight = 0
        self._ended: Counter[str] = Counter()
        self._wrong: Counter[str] = Counter()
        self._times: list[float] = []
        self._counted = -setting.seconds

    async def warm_up(self, manager: Manager) -> None:
        """Start a crowd at once, and return when all have come to rest."""
        async with anyio.create_task_group() as clients:
            for number in range(self._setting.crowd):
                kind = KINDS[number % len(KINDS)]
                clients.start_soon(self._client, manager, kind, number, time.monotonic())

    async def run(self, manager: Manager) -> None:
        """Start sagas until the time is over, and return when all have come to rest, or were given up."""
        self._times.clear()
        self._began = time.monotonic()
        with anyio.move_on_after(self._setting.seconds + LAST):
            async with anyio.create_task_group() as clients:
                for number in range(round(self._setting.seconds * self._setting.rate)):
                    due = self._began + number / self._setting.rate
                    await anyio.sleep(max(due - time.monotonic(), 0.0))
                    self._started += 1
                    clients.start_soon(self._client, manager, KINDS[number % len(KINDS)], number, due)

    async def _client(self, manager: Manager, kind: Kind, number: int, due: float) -> None:
        self._in_flight += 1
        saga = await manager.start("soak", kind.steps(), {"number": number}, options=kind.options())
        saga = await manager.wait(saga.id)
        self._in_flight -= 1
        self._times.append(time.monotonic() - due - kind.waits)
        self._ended[kind.name] += 1
        if saga.state is not kind.ends:
            self._wrong[kind.name] += 1

    async def look(self, manager: Manager, store: Store) -> None:
        """Purge and look every so often, for ever."""
        for number in range(1, sys.maxsize):
            due = self._began + number * self._setting.every
            await anyio.sleep(max(due - time.monotonic(), 0.0))
            await purge(store, before=time.time() - KEPT)
            await self.tell(manager, "under load")

    async def tell(self, manager: Manager, phase: Phase) -> None:
        """Look once, and print it."""
        times, self._times = self._times, []
        tasks = anyio.get_running_tasks()
        for _ in range(0 if phase == "under load" else SETTLED):  # a sweep has a task for a moment
            await anyio.sleep(0.05)
            tasks = min(tasks, anyio.get_running_tasks(), key=len)
        workers = sum(task.name == WORKER for task in tasks)
        counts = {
            "tasks": len(tasks) - workers,
            "workers": workers,
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
            "in flight": self._in_flight,
            "stored": sum((await manager.count()).values()),
        }
        at = time.monotonic() - self._began
        if phase == "under load" and at >= self._counted + self._setting.seconds / OBJECTS:
            self._counted = at
            gc.collect()
            counts["objects"] = len(gc.get_objects())
            counts["blocks"] = sys.getallocatedblocks()
        memory = round(resident() / 1024)
        sample = Sample(at, memory, time.process_time(), counts, latency(times) if len(times) > 1 else None)
        told = Told(phase, sample, self._started, self._ended, self._wrong)
        print(msgspec.json.encode(told).decode(), flush=True)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_store(url) if url else MemoryStore())


async def main(setting: Setting) -> None:
    async def complete(token: str) -> None:
        await anyio.sleep(PAUSE)
        await manager.complete(token)

    async with opened(setting.store) as store, anyio.create_task_group() as tasks:
        config = Config(
            prefix=f"{setting.unique}.",
            registries=(handlers(lambda token: tasks.start_soon(complete, token)),),
            expires=FORGOTTEN_AFTER,
        )
        async with Manager(AmqpTransport(setting.amqp), store, config) as manager:
            await tasks.start(manager.run)
            await anyio.sleep(setting.every)
            load = Load(setting)
            await load.tell(manager, "before")
            async with anyio.create_task_group() as beside:
                await load.warm_up(manager)
                beside.start_soon(load.look, manager, store)
                await load.run(manager)
                beside.cancel_scope.cancel()
            await anyio.sleep(setting.every)
            # Twice, for a child goes after its parent.
            for _ in range(2):
                await purge(store, before=time.time())
            await load.tell(manager, "after")
            # The broker is asked what is left.
            await anyio.to_thread.run_sync(sys.stdin.readline)
            manager.stop()


if __name__ == "__main__":
    setting = msgspec.json.decode(sys.argv[1], type=Setting)
    if setting.loop == "trio":
        anyio.run(main, setting, backend="trio")
    else:
        anyio.run(main, setting, backend_options={"use_uvloop": setting.loop == "uvloop"})
