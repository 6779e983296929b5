"""Measure the same saga in Restate, in DBOS and as a chain of Celery, beside ours, in the same run.

Three small steps, each of them durable before the next one begins; Celery's are not, but for the messages. Each run is
a process of its own (`python -m benchmarks.rivals`, `python -m benchmarks.orders`), and whatever else a peer needs is
started for it and ended after it. A peer that is not installed is left out.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

from benchmarks.children import Servers, orders, outcomes_of_rival, sample, servers
from benchmarks.report import Report, load, machine
from benchmarks.rivals import RESTATE_SERVER
from benchmarks.runner import Options, Ratio, Rival, Rounds, Samples, lines, p50, ratio, take_turns

LOOP = "asyncio"
OURS_AT_ONCE = (1, 100, 300)
POSTGRES, SQLITE = "engine, postgres", "engine, sqlite"


class Peer(NamedTuple):
    """Somebody else's way, what it needs, and with how many sagas at once it was found to be at its best."""

    name: str
    rival: str
    store: str
    needs: tuple[str, ...]
    at_once: tuple[int, ...]


RESTATE = Peer("Restate", "restate", "its own", ("restate", "hypercorn"), (1, 32, 100))
DBOS_POSTGRES = Peer("DBOS, postgres", "dbos", "postgres", ("dbos", "psycopg"), (1, 8, 32))
DBOS_SQLITE = Peer("DBOS, sqlite", "dbos", "sqlite", ("dbos",), (1, 8))
CELERY_THREADS = Peer("Celery, worker with threads", "celery", "threads", ("celery",), (1, 32, 100))
CELERY_PROCESSES = Peer("Celery, worker with processes", "celery", "processes", ("celery",), (1, 32))
PEERS = (RESTATE, DBOS_POSTGRES, DBOS_SQLITE, CELERY_THREADS, CELERY_PROCESSES)


def run(options: Options) -> Iterator[Report]:
    """Measure ours and every peer that is installed."""
    before, skipped = load(), []
    with servers() as there:
        rivals = [
            rival
            for store, name in (("postgres", POSTGRES), ("sqlite", SQLITE))
            if store in there.stores
            for rival in _rival(name, OURS_AT_ONCE, options, partial(_ours, store, there))
        ]
        for peer in PEERS:
            if missing := _missing(peer, there):
                skipped.append(f"{peer.name} needs {missing}")
            else:
                rivals += _rival(peer.name, peer.at_once, options, partial(_theirs, peer, there))
        rounds = take_turns(rivals, options, 3)
    yield Report(
        "peers: a saga of three small steps",
        "steps/s",
        lines(rounds),
        tuple(_ratios(rounds)),
        (*there.skipped, *skipped),
        {**machine(), "load before": before, **there.facts},
    )


def _rival(name: str, at_once: Sequence[int], options: Options, measure: "partial[Samples]") -> list[Rival]:
    names = {_name(name, many): many for many in at_once}
    wanted = {each: many for each, many in names.items() if options.wants(each)}
    seconds = 1.0 if options.quick else 1.5
    return [Rival(" ".join(wanted), partial(measure, wanted, seconds))] if wanted else []


def _ours(store: str, servers: Servers, wanted: dict[str, int], seconds: float) -> Samples:
    more = ["--seconds", str(seconds), "--at-once", *map(str, wanted.values())]
    return dict(zip(wanted, map(sample, orders(store, LOOP, servers, more)), strict=True))


def _theirs(peer: Peer, servers: Servers, wanted: dict[str, int], seconds: float) -> Samples:
    more = ["--seconds", str(seconds), "--at-once", *map(str, wanted.values())]
    outcomes = outcomes_of_rival(peer.rival, peer.store, servers, more)
    return dict(zip(wanted, map(sample, outcomes), strict=True))


def _missing(peer: Peer, servers: Servers) -> str:
    """Return what there is to install before a peer can be measured, or nothing."""
    if peer.store == "postgres" and "postgres" not in servers.stores:
        return "PostgreSQL"
    if not all(map(find_spec, peer.needs)):
        return f"the packages {', '.join(peer.needs)} (extra: peers)"
    if peer is RESTATE and not RESTATE_SERVER.exists():
        return "its server: `npm install` in benchmarks/node"
    return ""


def _ratios(rounds: Rounds) -> Iterator[Ratio]:
    for name, peers, at_least in (
        ("Restate", [RESTATE], 5.0),
        ("DBOS on PostgreSQL", [DBOS_POSTGRES], 20.0),
        ("the Celery chain", [CELERY_THREADS, CELERY_PROCESSES], 7.0),
    ):
        theirs = [_name(peer.name, many) for peer in peers for many in peer.at_once]
        ours = [_name(POSTGRES, many) for many in OURS_AT_ONCE]
        yield from ratio(f"{POSTGRES} / {name}, each at its best", rounds, ours, theirs, at_least=at_least)
    for name, ours_, peers, at_most in (
        ("PostgreSQL", POSTGRES, [RESTATE, DBOS_POSTGRES], 1.0),
        ("SQLite", SQLITE, [RESTATE, DBOS_POSTGRES, DBOS_SQLITE], 0.5),
    ):
        for peer in peers:
            yield from ratio(
                f"one saga alone, p50: ours with {name} / {peer.name}",
                rounds,
                [_name(ours_, 1)],
                [_name(peer.name, 1)],
                of=p50,
                at_most=at_most,
            )


def _name(who: str, at_once: int) -> str:
    return f"{who}, {at_once:,} at once"
