"""Run an engine at a steady rate, and see that nothing of it grows: `make soak MINUTES=10 RATE=50 STORE=postgres`, or

    python -m tests.soak [--minutes N] [--rate N] [--backend NAME] [--store NAME] [--out DIRECTORY]

The engine and its clients are a process of their own, on a private RabbitMQ. What was seen is written to a file of
JSON and drawn. Exit status: 0 when memory is flat and no count has grown, else 1. On Linux only: it reads /proc.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from ulid import ULID

from benchmarks.runner import Latency
from saga_amqp.stores import postgres
from tests.postgres import PostgreSQL
from tests.servers import RabbitMQ

from .engine import Setting, Told
from .plot import draw
from .samples import AT_REST, Sample, Soak

ROOT = Path(__file__).parents[2]
LOOPS = ("asyncio", "uvloop", "trio")
STORES = ("memory", "sqlite", "postgres")
EVERY = 5.0
BROKER_EVERY = 3
"""Looks of the engine at itself from one question to the broker to the next: each starts a node of Erlang."""

END = 30.0
"""Seconds that an engine takes at most to end when all is done."""

BROKER = """
    Queues = rabbit_amqqueue:info_all(<<"/">>, [messages]),
    [length(rabbit_networking:connections()), length(rabbit_channel:list()), lists:sum([N || [{_, N}] <- Queues])].
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Does anything grow?")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=50.0, help="sagas that are started each second (50)")
    parser.add_argument("--backend", choices=LOOPS, default="asyncio")
    parser.add_argument("--store", choices=STORES, default="postgres")
    parser.add_argument("--out", type=Path, default=Path(".soak"), metavar="DIRECTORY")
    given = parser.parse_args()
    with RabbitMQ() as rabbit, place(given.store) as (store, what):
        setting = Setting(
            loop=given.backend,
            store=store,
            amqp=rabbit.url(),
            unique=f"soak-{ULID()}".lower(),
            seconds=given.minutes * 60,
            rate=given.rate,
            every=min(EVERY, given.minutes * 60 / 20),
        )
        facts = {
            "loop": given.backend,
            "store": what,
            "broker": f"RabbitMQ {rabbit.version}",
            "python": f"Python {platform.python_version()}",
            "rate": f"{given.rate:g} sagas/s",
            "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        }
        soak = run(setting, facts, rabbit)
    given.out.mkdir(parents=True, exist_ok=True)
    name = given.out / f"{given.backend}-{given.store}"
    complaints = soak.complaints()
    kept = {"complaints": complaints, "memory": soak.memory, "growth": soak.growth, "soak": soak}
    name.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(kept)))
    print(*report(soak), sep="\n")
    print("written:", name.with_suffix(".json"), *draw(soak, name))
    print(*complaints or ["flat"], sep="\n")
    return 1 if complaints else 0


@contextmanager
def place(store: str) -> Iterator[tuple[str, str]]:
    """Give the URL of an empty store, and say what it is."""
    with ExitStack() as stack:
        if store == "memory":
            yield "", "memory"
        elif store == "sqlite":
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="saga-soak-"))
            yield f"sqlite:///{directory}/sagas.db", "SQLite"
        else:
            server = stack.enter_context(PostgreSQL())
            postgres.upgrade(server.url())
            yield server.url(), f"PostgreSQL {server.version}"


def run(setting: Setting, facts: dict[str, str], rabbit: RabbitMQ) -> Soak:
    """Run the engine to its end, and ask the broker meanwhile. Raises: RuntimeError when the engine fails."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.soak.engine",
        msgspec.json.encode(setting).decode(),
    ]
    samples: list[Sample] = []
    told: dict[str, Told] = {}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT) as engine:
        try:
            assert engine.stdin is not None
            assert engine.stdout is not None
            for line in engine.stdout:
                one = msgspec.json.decode(line, type=Told)
                if one.phase != "under load" or len(samples) % BROKER_EVERY == 0:
                    one.sample.counts.update(ask(rabbit))
                told[one.phase] = one
                if one.phase == "under load":
                    samples.append(one.sample)
                show(one)
                if one.phase == "after":
                    engine.stdin.close()
            engine.wait(END)
        finally:
            engine.kill()
    if engine.returncode or "after" not in told:
        raise RuntimeError(f"The engine ended with status {engine.returncode}")
    last = told["after"]
    return Soak(
        facts, setting.seconds, setting.rate,
        [one for one in samples if one.at <= setting.seconds],
        told["before"].sample, last.sample, last.started, last.ended, last.wrong,
    )  # fmt: skip


def ask(rabbit: RabbitMQ) -> dict[str, int]:
    """Ask the broker how many connections and channels it has, and how many messages in its queues."""
    counts = msgspec.json.decode(rabbit.ctl("eval", BROKER), type=list[int])
    return dict(zip(("connections", "channels", "messages"), counts, strict=True))


def show(told: Told) -> None:
    one = told.sample
    counts = ", ".join(f"{count:,} {name}" for name, count in one.counts.items())
    times = f"; p50 {one.latency.p50:.1f} ms, p99 {one.latency.p99:.1f} ms" if one.latency else ""
    print(f"{one.at:6.0f} s  {one.memory:,} KB; {counts}{times}", flush=True)


def report(soak: Soak) -> Iterator[str]:
    memory, last = soak.memory, soak.after
    yield ", ".join(soak.facts.values())
    yield f"  sagas     {', '.join(f'{count:,} {kind}' for kind, count in soak.ended.items())}"
    yield (
        f"  memory    {memory.per_minute:+.1f} ± {memory.error:.1f} KB a minute in the second half, "
        f"{memory.percent:+.3f} % of {last.memory:,} KB"
    )
    yield f"  at least  {_counts((name, f'{one.early:,} → {one.late:,}') for name, one in soak.growth.items())}"
    yield f"  at rest   {_counts((name, f'{soak.before.counts[name]} → {last.counts[name]}') for name in AT_REST)}"
    yield f"  in flight {' and '.join(f'{crowd:,}' for crowd in soak.crowds)} at most, in either half"
    yield f"  latency   {_times(soak)}"
    cpu = (last.cpu - soak.before.cpu) / max(sum(soak.ended.values()), 1) * 1e3
    yield f"  cpu       {cpu:.2f} ms of each saga, its client and all looks included"


def _counts(counts: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts)


def _times(soak: Soak) -> str:
    """Say what the looks of the second half have in common: the median of each percentile."""
    seen = [one.latency for one in soak.samples if one.latency and one.at >= soak.seconds / 2]
    medians = {
        part: statistics.median(getattr(one, part) for one in seen) for part in Latency.__struct_fields__
    }
    return (
        ", ".join(f"{part} {median:.0f} ms" for part, median in medians.items()) + " (medians of the looks)"
    )


if __name__ == "__main__":
    sys.exit(main())
