"""Measure what grows: engine processes, sagas that rest in the store, steps in a saga, timers, sagas in flight.

All of it with order sagas on the whole library, as in `engine`. With `--long`, a million sagas rest in the store too;
to put them there takes minutes, and is not measured.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
from ulid import ULID

from benchmarks.children import STORES, Servers, orders, orders_side_by_side, sample, servers, weights
from benchmarks.orders.crowd import Kind, copy_in_postgres, copy_in_sqlite, template
from benchmarks.orders.load import check
from benchmarks.orders.places import drop, opened
from benchmarks.report import Report, load, machine
from benchmarks.runner import Options, Ratio, Rival, Rounds, Sample, cpu, lines, ratio, say, take_turns
from saga_amqp.stores.enlisting import InDatabase, Tables

LOOP = "asyncio"
MANY = 100
PROCESSES = (1, 2, 4)
# So many at once in each process, each of so many milliseconds: 400 steps a second at most.
HANDLERS, WAIT = 20, 50.0
FEW, RESTING, LONG_RESTING = 1_000, 100_000, 1_000_000
STEPS = (3, 1_000)
CHAINS = 10
TIMERS = 100_000
IN_FLIGHT = 3_000


def run(options: Options) -> Iterator[Report]:
    """Answer each question apart."""
    before = load()
    with servers() as there:
        facts = {**machine(), "load before": before, **there.facts}
        for question, unit, measure, ratios in (
            (
                f"scale: engine processes that share queues and store, handlers wait {WAIT:g} ms, {HANDLERS} at once",
                "steps/s",
                _processes,
                _processes_ratios,
            ),
            (
                f"scale: sagas that nothing happens to, {MANY} orders at once",
                "steps/s",
                _crowded,
                _crowd_ratios,
            ),
            (f"scale: steps in a saga, {CHAINS} sagas at once", "steps/s", _steps, _steps_ratios),
            (
                f"scale: memory of an engine, and of each of {IN_FLIGHT:,} sagas in flight",
                "KiB",
                _memory,
                _none,
            ),
        ):
            rounds = measure(there, options)
            if rounds:
                ratios_ = tuple(ratios(rounds))
                yield Report(
                    question, unit, lines(rounds), ratios_, there.skipped, {**facts, "load after": load()}
                )


# Processes --------------------------------------------------------------------------------------------------------


def _processes(servers: Servers, options: Options) -> Rounds:
    with tempfile.TemporaryDirectory(prefix="saga-bench-") as directory:
        rivals = [
            Rival(_count(store, count), partial(_share, servers, options, store, count, Path(directory)))
            for store in servers.stores
            if store != "memory"
            for count in PROCESSES
        ]
        return take_turns(rivals, options, 2)


def _share(servers: Servers, options: Options, store: str, count: int, directory: Path) -> Sample:
    """Run so many engines on one store, each with clients of its own that start more than it can do at once."""
    place = str(directory / f"{ULID()}.db") if store == "sqlite" else f"bench_{ULID()}".lower()
    anyio.run(_make, store, servers.database, place)
    more = ["--place", place, "--queues", f"bench-{ULID()}"]
    more += ["--at-once", str(HANDLERS), "--orders", str(2 * HANDLERS), "--wait", str(WAIT)]
    more += ["--seconds", "1.0" if options.quick else "2.0"]
    outcomes = orders_side_by_side(count, store, LOOP, servers, more)
    check(outcomes)
    if store == "postgres" and servers.database is not None:
        drop(servers.database, place)
    steps = sum(one.rate for one in outcomes)
    return Sample(steps, sum(one.rate * one.cpu for one in outcomes) / steps)


async def _make(store: str, database: str | None, place: str) -> None:
    async with opened(store, database, place):
        pass


def _processes_ratios(rounds: Rounds) -> Iterator[Ratio]:
    for store in ("sqlite", "postgres"):
        for count in PROCESSES[1:]:
            yield from ratio(
                f"{store}: {count} processes / 1",
                rounds,
                [_count(store, count)],
                [_count(store, 1)],
                at_least=1.8 if count == 2 else None,
            )


def _count(store: str, count: int) -> str:
    return f"processes, {store}, {count} {'process' if count == 1 else 'processes'}"


# A crowd in the store ---------------------------------------------------------------------------------------------


class Crowd(NamedTuple):
    """Sagas that nothing happens to, in a store."""

    store: str
    kind: Kind
    size: int

    @property
    def name(self) -> str:
        return f"crowd, {self.store}, {self.size:,} {'that rest' if self.kind == 'resting' else 'timers'}"


def _crowds(stores: Sequence[str], options: Options) -> Iterator[Crowd]:
    for store in stores:
        if store != "memory":  # which would have to be filled anew each time
            yield Crowd(store, "resting", LONG_RESTING if options.long else RESTING)
        if store != "memory" or not options.long:
            yield Crowd(store, "resting", FEW)
        if not options.long:
            yield Crowd(store, "waiting", TIMERS)


def _crowded(servers: Servers, options: Options) -> Rounds:
    """Measure stores that hold so many sagas, which are all there from the beginning and take turns."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="saga-bench-")))
        rivals: list[Rival] = []
        for crowd in _crowds(servers.stores, options):
            if options.wants(crowd.name):
                more = ["--at-once", str(MANY), "--seconds", "0.7" if options.quick else "1.5"]
                if crowd.store == "memory":
                    more += ["--crowd", crowd.kind, str(crowd.size)]
                else:
                    more += ["--place", _filled(servers, crowd, directory, stack)]
                rivals.append(Rival(crowd.name, partial(_orders, crowd.store, servers, more)))
        return take_turns(rivals, options, 3)


def _filled(servers: Servers, crowd: Crowd, directory: Path, stack: ExitStack) -> str:
    """Make a store that holds a crowd, for as long as the stack does."""
    place = str(directory / f"{ULID()}.db") if crowd.store == "sqlite" else f"bench_{ULID()}".lower()
    began = time.perf_counter()
    saga_id, tables = anyio.run(_template, servers.database, crowd, place)
    if crowd.store == "sqlite":
        copy_in_sqlite(place, tables, saga_id, crowd.size)
    else:
        assert servers.database is not None
        stack.callback(drop, servers.database, place)
        copy_in_postgres(servers.database, tables, saga_id, crowd.size)
    say(f"{crowd.name}: made in {time.perf_counter() - began:.0f} s")
    return place


async def _template(database: str | None, crowd: Crowd, place: str) -> tuple[str, Tables]:
    async with opened(crowd.store, database, place) as store:
        assert isinstance(store, InDatabase)
        return await template(store, crowd.kind), store.tables


def _orders(store: str, servers: Servers, more: Sequence[str]) -> Sample:
    (outcome,) = orders(store, LOOP, servers, more)
    return sample(outcome)


def _crowd_ratios(rounds: Rounds) -> Iterator[Ratio]:
    for store in STORES:
        few = [Crowd(store, "resting", FEW).name]
        for size in (RESTING, LONG_RESTING):
            many = [Crowd(store, "resting", size).name]
            yield from ratio(f"{store}: {size:,} that rest / {FEW:,}", rounds, many, few, at_least=0.9)
        timers = [Crowd(store, "waiting", TIMERS).name]
        yield from ratio(f"{store}: {TIMERS:,} timers / none", rounds, timers, few, at_least=0.95)


# Long sagas -------------------------------------------------------------------------------------------------------


def _steps(servers: Servers, options: Options) -> Rounds:
    rivals = [
        Rival(
            _long(store, steps),
            partial(_orders, store, servers, ["--at-once", str(CHAINS), "--chain", str(steps)]),
        )
        for store in servers.stores
        for steps in STEPS
    ]
    return take_turns(rivals, options, 2)


def _steps_ratios(rounds: Rounds) -> Iterator[Ratio]:
    short, long = STEPS[0], STEPS[-1]
    for store in STORES:
        names = [_long(store, long)], [_long(store, short)]
        name = f"{store}: {long:,} steps / {short} steps"
        yield from ratio(f"{name}, processor time per step", rounds, *names, of=cpu, at_most=2.0)
        yield from ratio(f"{name}, time per step", rounds, *names[::-1], at_most=2.0)


def _long(store: str, steps: int) -> str:
    return f"steps, {store}, {steps:,} steps"


# Memory -----------------------------------------------------------------------------------------------------------


def _memory(servers: Servers, options: Options) -> Rounds:
    rounds: dict[str, list[Sample]] = {}
    for store in servers.stores:
        for loop in ("asyncio", "trio"):
            name = f"memory, {store}, {loop}"
            if options.wants(name):
                weight = weights(store, loop, servers, IN_FLIGHT // (3 if options.quick else 1))
                rounds[f"{name}: idle engine"] = [Sample(weight.idle / 1024, 0.0)]
                rounds[f"{name}: each saga in flight"] = [Sample(weight.per_saga / 1024, 0.0)]
    return rounds


def _none(_: Rounds) -> Iterator[Ratio]:
    yield from ()
