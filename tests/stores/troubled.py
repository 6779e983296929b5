"""A process with a store in a file that meets trouble which no test could survive, or undo, in its own process.

    python -m tests.stores.troubled killed PATH BACKEND STATEMENT
    python -m tests.stores.troubled full PATH BACKEND disk|limit

With `killed` it kills itself, like a power failure would, when SQLite is about to run a certain statement in the midst
of a batch; each commit that returned before that is a line of its output. With `full` its disk fills up, or its files
may not grow any more; later there is room again. It looks itself whether all is well, and prints what it was told.
"""

import json
import os
import resource
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import anyio

from saga_amqp import SQLiteStore, StoreUnavailableError
from saga_amqp.testing.orders import AT, order, same
from saga_core import ResumeRequested, Saga, SuspendRequested, fold, transition

SAGAS = 30
MOST_COMMITS = 5000
KILLED_AT = 100
"""How many of the statements are run before."""

LIMIT = 1_000_000
BALLAST = 1_000_000
"""Bytes."""

LONG = "x" * 1000


def turned(saga: Saga) -> tuple[Saga, SuspendRequested | ResumeRequested]:
    """Make an event that can be applied, again and again."""
    event = ResumeRequested(LONG, AT) if saga.suspended else SuspendRequested(LONG, AT)
    answer = transition(saga, event)
    assert answer.ignored is None
    return answer.saga, event


async def killed(path: Path, statement: str) -> None:
    """Commit until the end."""
    left: list[int] = []

    def watch(seen: str) -> None:
        if left and seen.startswith(statement):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    connect = sqlite3.connect

    def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(watch)
        return connection

    sqlite3.connect = watched  # type: ignore[assignment]
    async with SQLiteStore(path) as store, anyio.create_task_group() as tasks:
        sagas = [await store.create(order()) for _ in range(SAGAS)]
        left.append(KILLED_AT)

        async def commit(saga: Saga) -> None:
            for _ in range(MOST_COMMITS):
                saga, event = turned(saga)
                await store.commit(saga, event)
                print(saga.id, saga.revision, flush=True)

        for saga in sagas:
            tasks.start_soon(commit, saga)


async def full(path: Path, how: str) -> dict[str, Any]:
    """Commit until there is no room left, and go on when there is again."""
    ballast, hard = path.with_name("ballast"), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if how == "disk":
        ballast.write_bytes(b"\0" * BALLAST)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    kept: dict[str, Saga] = {}
    told: list[str] = []

    async def commit_until_full(saga: Saga) -> None:
        for _ in range(MOST_COMMITS):
            after, event = turned(saga)
            try:
                await store.commit(after, event)
            except StoreUnavailableError as error:
                told.append(str(error))
                return
            kept[saga.id] = saga = after

    async def compare() -> None:
        for saga in kept.values():
            same(await store.load(saga.id), saga)
            same(fold(*await store.history(saga.id)), saga)
        assert sum((await store.count()).values()) == len(kept)

    async with SQLiteStore(path) as store:
        for _ in range(SAGAS):
            saga = await store.create(order())
            kept[saga.id] = saga
        async with anyio.create_task_group() as tasks:
            for saga in list(kept.values()):
                tasks.start_soon(commit_until_full, saga)
        assert len(told) == SAGAS, "there was always room"
        await compare()
        for _ in range(3):  # it stays full
            told.clear()
            # As long as the write-ahead log has room for something small, that something succeeds.
            async with anyio.create_task_group() as tasks:
                for saga in list(kept.values()):
                    tasks.start_soon(commit_until_full, saga)
            assert len(told) == SAGAS
        await compare()
        if how == "disk":
            ballast.unlink()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        for saga in list(kept.values()):
            after, event = turned(saga)
            await store.commit(after, event)
            kept[saga.id] = after
        await compare()
    async with SQLiteStore(path) as store:
        await compare()
    return {"told": sorted(set(told)), "commits": sum(saga.revision for saga in kept.values())}


def main() -> None:
    what, path, backend, how = sys.argv[1:]
    if what == "killed":
        anyio.run(killed, Path(path), how, backend=backend)
    else:
        print(json.dumps(anyio.run(full, Path(path), how, backend=backend)))


if __name__ == "__main__":
    main()
