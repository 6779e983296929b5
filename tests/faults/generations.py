"""Many short lives of processes at little cost: one process that has everything imported, and forks.

Lives come in generations: those of one run side by side, and the next one begins when all of them have ended.
"""

import os
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import msgspec

from tests.test_servers import ROOT

from .world import DEADLINE

LifeT = TypeVar("LifeT", bound=msgspec.Struct)

AT_ONCE = 12
"""Lives."""

Statuses = list[list[int]]
"""By generation and life: how it ended, 0 or less the signal that ended it."""


async def run_generations(
    module: str, backend: str, generations: Sequence[Sequence[msgspec.Struct]]
) -> Statuses:
    """Have a module of this package, which calls `main`, live these lives."""
    command = [sys.executable, "-W", "error", "-m", f"tests.faults.{module}", backend]
    with anyio.fail_after(4 * DEADLINE):
        done = await anyio.run_process(
            command, input=msgspec.json.encode(generations), stderr=subprocess.STDOUT, check=False, cwd=ROOT
        )
    said, _, last = done.stdout.decode().strip().rpartition("\n")
    assert done.returncode == 0, f"{said}\n{last}"
    statuses = msgspec.json.decode(last, type=Statuses)
    assert all(status in (0, -9) for generation in statuses for status in generation), said
    return statuses


def main(kind: type[LifeT], live: Callable[[LifeT], Awaitable[None]]) -> None:
    """Read generations from the input, let them live, and print how each life ended."""
    backend = sys.argv[1]
    __import__(backend)  # here, and not in every child
    statuses: Statuses = []
    for generation in msgspec.json.decode(sys.stdin.buffer.read(), type=list[list[kind]]):  # type: ignore[valid-type]
        ended: dict[int, int] = {}
        children: list[int] = []
        for life in generation:
            if len(children) - len(ended) == AT_ONCE:
                _wait(ended)
            children.append(_fork(life, live, backend))
        while len(ended) < len(children):
            _wait(ended)
        statuses.append([ended[child] for child in children])
    print(msgspec.json.encode(statuses).decode(), flush=True)


def _wait(ended: dict[int, int]) -> None:
    child, status = os.wait()
    ended[child] = os.waitstatus_to_exitcode(status)


def _fork(life: LifeT, live: Callable[[LifeT], Awaitable[None]], backend: str) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        anyio.run(live, life, backend=backend)
        status = 0
    except BaseException:
        print(life, file=sys.stderr)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
