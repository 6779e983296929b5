"""Measure order sagas on the whole library, beside aiormq at its best and the ceiling of a durable hop.

Each run is a process of its own with client and engine in it (`python -m benchmarks.orders`), against a RabbitMQ and a
PostgreSQL of this session. An order has three steps; undone, the third fails and the first two are compensated. A hop
of the rivals is what a step of ours is: one message, and where it is durable one commit. Ours create sagas beside.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from benchmarks.children import STORES, Servers, hops, orders, sample, servers
from benchmarks.report import Report, load, machine
from benchmarks.runner import Options, Ratio, Rival, Rounds, Sample, Samples, lines, p50, ratio, take_turns

LOOPS = ("asyncio", "uvloop", "trio")
AT_ONCE = (1, 10, 100, 300, 1_000)
MANY, MOST = 100, 300
COMPLETED, UNDONE, WAITING = "completed", "undone", "handlers wait 5 ms"
MANNERS = {COMPLETED: [], UNDONE: ["--declined"], WAITING: ["--wait", "5"]}
AIORMQ = "aiormq at its best"
AIORMQ_IN_FLIGHT = MOST
SELDOM = 3
PARTS = "parts of one order, each alone"


class Cell(NamedTuple):
    """One thing to measure: orders on the engine in some manner, or hops that set a bound."""

    store: str
    loop: str
    at_once: int
    manner: str

    @property
    def name(self) -> str:
        return f"engine, {self.store}, {self.loop}, {self.at_once:,} at once, {self.manner}"


def run(options: Options) -> Iterator[Report]:
    """Measure every store on every loop."""
    before = load()
    with servers() as there:
        rounds = take_turns(list(_rivals(there, options)), options, 3)
    yield Report(
        "engine: order sagas of three steps, client and engine in one process",
        "steps/s",
        lines(rounds),
        tuple(_ratios(rounds)),
        there.skipped,
        {**machine(), "load before": before, **there.facts},
    )


def _rivals(servers: Servers, options: Options) -> Iterator[Rival]:
    for loop in LOOPS[:2]:
        yield Rival(_aiormq(loop), partial(_hops, "aiormq-best", loop, AIORMQ_IN_FLIGHT, servers, options))
    for store in servers.stores:
        relay = f"durable-{store}"
        for loop in LOOPS:
            yield Rival(_ceiling(store, loop, MANY), partial(_hops, relay, loop, MANY, servers, options))
            for manner, at_once, every in _course(loop):
                cells = [Cell(store, loop, many, manner) for many in at_once]
                wanted = [cell for cell in cells if options.wants(cell.name)]
                if wanted:
                    name = " ".join(cell.name for cell in wanted)
                    yield Rival(name, partial(_orders, wanted, servers, options), every)
        yield Rival(
            _ceiling(store, LOOPS[0], 1), partial(_hops, relay, LOOPS[0], 1, servers, options), SELDOM
        )
        yield Rival(_parts(store), partial(_parts_alone, store, servers))


def _course(loop: str) -> Iterator[tuple[str, Sequence[int], int]]:
    """Return what is measured on a loop, at which concurrencies, and every how many rounds.

    What is compared takes part in every round; what only shows a curve does so seldom.
    """
    if loop == "uvloop":
        yield COMPLETED, (MANY, MOST), 1
        return
    first, *others = [many for many in AT_ONCE if many not in (MANY, MOST)]
    alone, more = ((first, MANY, MOST), others) if loop == LOOPS[0] else ((MANY, MOST), [first, *others])
    yield COMPLETED, alone, 1
    yield COMPLETED, more, SELDOM
    yield UNDONE, (MANY,), SELDOM
    if loop == LOOPS[0]:
        yield WAITING, (MANY, 1_000), SELDOM


def _orders(cells: Sequence[Cell], servers: Servers, options: Options) -> Samples:
    """Run orders in a fresh process, at one concurrency after the other. Raises: RuntimeError."""
    store, loop, _, manner = cells[0]
    more = [*MANNERS[manner], "--seconds", "0.5" if options.quick else "1.0"]
    more += ["--at-once", *(str(cell.at_once) for cell in cells)]
    outcomes = orders(store, loop, servers, more)
    return {cell.name: sample(outcome) for cell, outcome in zip(cells, outcomes, strict=True)}


def _parts_alone(store: str, servers: Servers) -> Sample:
    (outcome,) = orders(store, LOOPS[0], servers, ["--parts"])
    return sample(outcome)


def _hops(relay: str, loop: str, in_flight: int, servers: Servers, options: Options) -> Sample:
    """Run a relay in a fresh process. Raises: RuntimeError."""
    count = 600 if in_flight == 1 else 10_000 if relay.startswith("aiormq") else 20_000
    more = ["--hops", str(count // (2 if options.quick else 1)), "--in-flight", str(in_flight)]
    return hops(relay, loop, servers, more)


def _ratios(rounds: Rounds) -> Iterator[Ratio]:
    def many(store: str, loop: str, at_once: int = MANY) -> str:
        return Cell(store, loop, at_once, COMPLETED).name

    aiormq = [_aiormq(loop) for loop in LOOPS[:2]]
    yield from ratio(
        f"engine, memory, {MANY} or {MOST} at once / {AIORMQ}, best loops",
        rounds,
        [many("memory", loop, at_once) for loop in LOOPS for at_once in (MANY, MOST)],
        aiormq,
        at_least=2.2,
    )
    yield from ratio(
        f"engine, memory, {MANY} or {MOST} at once / {AIORMQ}, both on asyncio",
        rounds,
        [many("memory", "asyncio", at_once) for at_once in (MANY, MOST)],
        aiormq[:1],
        at_least=2.2,
    )
    for store in STORES:
        yield from ratio(
            f"engine, {store}, {MANY} at once: trio / asyncio",
            rounds,
            [many(store, "trio")],
            [many(store, "asyncio")],
            at_least=0.9,
        )
    for store in STORES:
        for loop in LOOPS:
            yield from ratio(
                f"engine / ceiling, {store}, {loop}, {MANY} at once",
                rounds,
                [many(store, loop)],
                [_ceiling(store, loop, MANY)],
                at_least=0.7 if store == "postgres" else None,
            )
    for at_once in AT_ONCE:
        yield from ratio(
            f"engine, asyncio, {at_once:,} at once: sqlite / postgres",
            rounds,
            [Cell("sqlite", "asyncio", at_once, COMPLETED).name],
            [Cell("postgres", "asyncio", at_once, COMPLETED).name],
            at_least=1.0,
        )
    for store in STORES:
        yield from ratio(
            f"{store}, asyncio, one order alone, p50 / sum of its parts",
            rounds,
            [Cell(store, "asyncio", 1, COMPLETED).name],
            [_parts(store)],
            of=p50,
            at_most=1.3,
        )


def _aiormq(loop: str) -> str:
    return f"{AIORMQ}, {loop}, {AIORMQ_IN_FLIGHT} at once"


def _ceiling(store: str, loop: str, at_once: int) -> str:
    return f"ceiling, {store}, {loop}, {at_once:,} at once"


def _parts(store: str) -> str:
    return f"{PARTS}, {store}, {LOOPS[0]}"
