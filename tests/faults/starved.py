"""A process with an engine whose disk fills up in full swing, and is free again later.

    python -m tests.faults.starved URL PREFIX BACKEND PATH disk|limit

On a disk of its own it fills that; else its files may not grow any more. It prints what its engine said of the store.
"""

import json
import os
import resource
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import anyio

from saga_amqp import SQLiteStore
from saga_core import (
    Compensate,
    CompensationSucceeded,
    Execute,
    StepFailed,
    StepSucceeded,
    decode_event,
)

from .load import Load, Said
from .world import RabbitWorld

MEBIBYTE = 1024 * 1024
FULL_FOR = 2.0
"""Seconds."""


def fill(path: Path) -> Callable[[], None]:
    """Leave no room on the disk; return what makes room again."""
    ballast = path.with_name("ballast")
    file = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    for size in (MEBIBYTE, 4096, 1):
        try:
            while os.write(file, b"\0" * size):
                pass
        except OSError:
            pass
    os.close(file)
    return ballast.unlink


def limit(path: Path) -> Callable[[], None]:
    """Let no file grow beyond what the write-ahead log has; return what lets them again."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{path}-wal").st_size, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


async def main(url: str, prefix: str, path: Path, how: str) -> None:
    world = RabbitWorld(url, prefix)
    with Said() as said:
        async with SQLiteStore(path) as store:
            reader = sqlite3.connect(path, isolation_level=None)

            def is_committed(command: Execute | Compensate) -> bool:
                rows = reader.execute(
                    "SELECT event FROM saga_history WHERE saga_id = ? AND revision > 0", (command.saga,)
                )
                events = [decode_event(event) for (event,) in rows]
                ends = (StepSucceeded, StepFailed) if type(command) is Execute else (CompensationSucceeded,)
                return any(isinstance(event, ends) and event.step == command.step for event in events)

            load = Load(world, store, said, is_committed)

            async def trouble() -> None:
                relieve = (fill if how == "disk" else limit)(path)
                await anyio.sleep(FULL_FOR)
                relieve()

            await load.run(trouble)
            reader.close()
    print(json.dumps({"said": said.lines, "refusals": load.refusals}))


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], Path(sys.argv[4]), sys.argv[5], backend=sys.argv[3])
