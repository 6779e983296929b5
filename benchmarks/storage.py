"""Measure commits per second of the stores, and whether a step of a long saga writes more than one of a short one."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial
from pathlib import Path

import anyio
from msgspec import Raw
from ulid import ULID

from benchmarks.report import Report, machine
from benchmarks.runner import Options, Ratio, Rival, Rounds, Sample, lines, ratio, take_turns
from saga_amqp import MemoryStore, SQLiteStore
from saga_amqp.contracts import Store
from saga_amqp.stores.rows import snapshot_due
from saga_core import Saga, Step, StepSucceeded, encode_event, encode_saga, new_saga, transition
from tests.postgres import database_server
from tests.processes import ServerError

Open = Callable[[], AbstractAsyncContextManager[Store]]

OUTPUT = Raw(b'{"ok":"a step"}')
SHORT, LONG = 3, 1_000
LOOPS = ("asyncio", "trio")
AT_ONCE = (1, 50, 200)


def run(options: Options) -> Iterator[Report]:
    """Measure every store alone and with many sagas at once, and long sagas beside short ones."""
    seconds = 0.3 if options.quick else 0.7
    skipped: list[str] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="saga-storage-")))
        stores: dict[str, Open] = {
            "memory": MemoryStore,
            "SQLite": lambda: SQLiteStore(directory / "sagas.db"),
        }
        try:
            from saga_amqp.stores.postgres import PostgresStore

            url = stack.enter_context(database_server()).url()
            stores["PostgreSQL"] = lambda: PostgresStore(url, upgrade=True)
        except (ServerError, ImportError) as error:
            skipped.append(f"PostgreSQL: {error}")
        rivals = [
            Rival(_name(store, loop, steps, at_once), partial(_measure, open, loop, steps, at_once, seconds))
            for store, open in stores.items()
            for loop in LOOPS
            for steps, at_once in [*((SHORT, many) for many in AT_ONCE), (LONG, 1)]
        ]
        rounds = take_turns(rivals, options, 3)
    yield Report(
        "storage: commits, each a compare-and-set and a row of history",
        "commits/s",
        lines(rounds),
        tuple(_ratios(rounds, list(stores))),
        tuple(skipped),
        {**machine(), "written per commit": _written()},
    )


def _measure(open: Open, loop: str, steps: int, at_once: int, seconds: float) -> Sample:
    return anyio.run(_commits, open, steps, at_once, seconds, backend=loop)


async def _commits(open: Open, steps: int, at_once: int, seconds: float) -> Sample:
    """Lead sagas from their creation to their end, so many at once, for so long."""
    commits = 0

    async def live(until: float) -> None:
        nonlocal commits
        saga = await store.create(_saga(steps))
        for event in _events(steps):
            if time.perf_counter() > until:
                break
            saga = transition(saga, event).saga
            await store.commit(saga, event)
            commits += 1

    async def lives(until: float) -> None:
        while time.perf_counter() < until:
            await live(until)

    async with open() as store:
        for duration in (seconds / 4, seconds):  # the first is to warm up
            commits = 0
            began, cpu = time.perf_counter(), time.process_time()
            async with anyio.create_task_group() as tasks:
                for _ in range(at_once):
                    tasks.start_soon(lives, began + duration)
            taken, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Sample(commits / taken, cpu / max(commits, 1) * 1e6)


def _saga(steps: int) -> Saga:
    definition: list[Step[dict[str, object]]] = [
        Step(name=f"step{number}", action="do", compensation="undo") for number in range(steps)
    ]
    return new_saga("benchmark", definition, {"order": 1}, id=str(ULID()), at=0.0)


def _events(steps: int) -> Iterable[StepSucceeded]:
    return (StepSucceeded(f"step{number}", 1, OUTPUT, 1.0) for number in range(steps))


def _written() -> str:
    """Return the bytes of events, and of snapshots, that a commit writes on average, by length of the saga."""
    told: list[str] = []
    for steps in (3, 10, 100, 1_000, 2_000):
        saga = _saga(steps)
        events = snapshots = 0
        for event in _events(steps):
            saga = transition(saga, event).saga
            events += len(encode_event(event))
            snapshots += len(encode_saga(saga)) if snapshot_due(saga) else 0
        told.append(
            f"{steps:,} steps {events / steps:.0f} + {snapshots / steps:.0f} (whole {len(encode_saga(saga)):,})"
        )
    return "events + snapshots, bytes: " + ", ".join(told)


def _ratios(rounds: Rounds, stores: list[str]) -> Iterator[Ratio]:
    for store in stores:
        for loop in LOOPS:
            long, short = _name(store, loop, LONG, 1), _name(store, loop, SHORT, 1)
            yield from ratio(f"{store}, {loop}: {LONG:,} steps / {SHORT} steps", rounds, [long], [short])
        for at_once in AT_ONCE[1:]:
            many, one = _name(store, "asyncio", SHORT, at_once), _name(store, "asyncio", SHORT, 1)
            yield from ratio(f"{store}, asyncio: {at_once} at once / 1", rounds, [many], [one])
            trio = _name(store, "trio", SHORT, at_once)
            yield from ratio(f"{store}, {at_once} at once: trio / asyncio", rounds, [trio], [many])


def _name(store: str, loop: str, steps: int, at_once: int) -> str:
    return f"{store}, {loop}, {steps:,} steps, {at_once} at once"
