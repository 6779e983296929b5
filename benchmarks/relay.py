"""Measure the hops of the transport per second, and how far that is from aiormq and from what is possible.

Each run is a process of its own (`python -m benchmarks.relays`). The course, and what is checked at its end,
is in `relays/course.py`.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.children import Servers, hops, hops_in_node, node_program, servers
from benchmarks.report import Report, load, machine
from benchmarks.runner import Options, Ratio, Rival, Rounds, Sample, lines, ratio, take_turns, thrift

IN_FLIGHT = 300
LOOPS = ("asyncio", "uvloop", "trio")
RELAYS = {
    "aiormq-usual": ("aiormq as usual", LOOPS[:2]),
    "aiormq-best": ("aiormq at its best", LOOPS[:2]),
    "saga-tasks": ("this transport, a task per message", LOOPS),
    "saga-calls": ("this transport, one task", LOOPS),
    "bare-tasks": ("bare wire, a task per message", LOOPS),
    "bare-calls": ("bare wire, callbacks only", LOOPS),
}
AMQPLIB = "Node's amqplib"


def run(options: Options) -> Iterator[Report]:
    """Measure every relay on every loop that it can run on."""
    before, skipped = load(), []
    with servers() as there:
        rivals = [
            Rival(_name(relay, loop), partial(_measure, relay, loop, there, quick=options.quick))
            for relay, (_, loops) in RELAYS.items()
            for loop in loops
        ]
        if node_program():
            more = [str(15_000 if options.quick else 45_000), str(IN_FLIGHT)]
            rivals.append(Rival(AMQPLIB, partial(hops_in_node, there, more)))
        else:
            skipped.append(f"{AMQPLIB} needs Node and `npm install` in benchmarks/node")
        rounds = take_turns(rivals, options, 3)
    yield Report(
        f"relay: a hop through a quorum queue ({IN_FLIGHT} in flight, 400-byte persistent JSON)",
        "hops/s",
        lines(rounds),
        tuple(_ratios(rounds)),
        tuple(skipped),
        {**machine(), "load before": before, **there.facts},
    )


def _measure(relay: str, loop: str, servers: Servers, *, quick: bool) -> Sample:
    count = (10_000 if relay.startswith("aiormq") else 30_000) // (3 if quick else 1)
    return hops(relay, loop, servers, ["--hops", str(count), "--in-flight", str(IN_FLIGHT)])


def _ratios(rounds: Rounds) -> Iterator[Ratio]:
    best = RELAYS["aiormq-best"][0]
    for relay in ("saga-tasks", "saga-calls"):
        what = RELAYS[relay][0]
        for loop in LOOPS[:2]:
            name = f"{what} / {best}, both on {loop}"
            yield from ratio(name, rounds, [_name(relay, loop)], [_name("aiormq-best", loop)])
        yield from ratio(f"{what} / {best}, best loops", rounds, _all(relay), _all("aiormq-best"))
        yield from ratio(f"{what} / aiormq as usual, best loops", rounds, _all(relay), _all("aiormq-usual"))
        bare = relay.replace("saga", "bare")
        yield from ratio(f"{what} / {RELAYS[bare][0]}, best loops", rounds, _all(relay), _all(bare))
        yield from ratio(f"{what} / {AMQPLIB}, best loops", rounds, _all(relay), [AMQPLIB])
    for relay, (what, loops) in RELAYS.items():
        if "trio" in loops:
            name = f"{what}: trio / asyncio"
            yield from ratio(name, rounds, [_name(relay, "trio")], [_name(relay, "asyncio")])
    for relay in ("saga-tasks", "saga-calls"):
        name = f"processor time of {best} / {RELAYS[relay][0]}, best loops"
        yield from thrift(name, rounds, _all(relay), _all("aiormq-best"))


def _name(relay: str, loop: str) -> str:
    return f"{RELAYS[relay][0]}, {loop}"


def _all(relay: str) -> Sequence[str]:
    return [_name(relay, loop) for loop in RELAYS[relay][1]]
