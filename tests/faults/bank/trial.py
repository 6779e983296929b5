"""One trial: transfers while engines and servers are killed; then everything comes to rest, and is audited."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import anyio
import msgspec
from msgspec import Struct
from ulid import ULID

from tests.postgres import PostgreSQL
from tests.processes import Processes
from tests.servers import RabbitMQ

from .audit import Findings, audit, come_to_rest, under_way
from .ledger import Ledger
from .setting import Setting

ROOT = Path(__file__).parents[3]

BACKENDS = ("asyncio", "trio", "asyncio")
"""One engine for each."""

Kill = Literal["engine", "all engines", "starter", "broker", "database", "stop", "freeze"]
"""What is done to whom: kill -9, but for `stop`, an orderly end with SIGTERM, and `freeze`, a pause with SIGSTOP."""

START_DEADLINE = 60.0
STOP_DEADLINE = 30.0
POLL_INTERVAL = 0.05
LONGEST_ABSENCE = 1.0
LONGEST_FREEZE = 2.5
"""Seconds, longer than commits are left alone before others publish what they caused."""


class Load(Struct, frozen=True):
    """How much is asked of a trial. Kills are made in random order, with pauses of random length, in seconds."""

    seed: int
    sagas: int
    per_second: float
    kills: dict[Kill, int]
    pauses: tuple[float, float]
    rest_deadline: float


class Report(Struct):
    """What a trial has done, and what was found."""

    where: str
    seed: int
    kills: Counter[str]
    strikes: list[str]
    runs: int
    repeats: int
    seconds: float
    findings: Findings

    def lines(self) -> Iterator[str]:
        """Say it to people."""
        found = self.findings
        outcomes = ", ".join(f"{count} {state}" for state, count in sorted(found.outcomes.items()))
        kills = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
        yield f"{self.where}: seed {self.seed}, {self.seconds:.0f} s"
        yield f"  struck    {self.kills.total()}: {kills}"
        yield f"  sagas     {found.outcomes.total()}: {outcomes}"
        yield f"  handlers  ran {self.runs} times, {self.repeats} times again in the same attempt"
        yield f"  ledger    {found.entries} entries, {found.balances / 100:,.2f} in all accounts"
        yield f"  checked   {found.checked} things, with {found.events} events folded: {len(found.wrong)} wrong"
        yield from (f"  WRONG     {what}" for what in found.wrong[:MOST_SHOWN])


MOST_SHOWN = 20


class Died(Exception):
    """A process has ended that nobody has killed, or does not do what it is told."""


class Engine(NamedTuple):
    """A process that runs handlers, on one of the event loops, and what it says."""

    process: "subprocess.Popen[bytes]"
    backend: str
    log: Path

    @property
    def runs(self) -> bool:
        """Whether it has begun to take messages."""
        return "runs\n" in self.log.read_text()


class Trial:
    """The processes of one trial, and whoever strikes at them."""

    def __init__(
        self, load: Load, setting: Setting, rabbit: RabbitMQ, postgres: PostgreSQL | None, own: Processes
    ) -> None:
        self._load = load
        self._setting = setting
        self._rabbit = rabbit
        self._postgres = postgres
        self._own = own
        self._chance = random.Random(load.seed)
        self._started = 0
        self._engines: list[Engine] = []
        self._starter: subprocess.Popen[bytes] | None = None
        self.kills: Counter[str] = Counter()
        self.strikes: list[str] = []

    def run(self) -> None:
        """Run the load, strike at random, and let everything come to rest. Raises: Died, Restless, ServerError."""
        self._engines += [self._start_engine(backend) for backend in BACKENDS]
        self._until(lambda: all(engine.runs for engine in self._engines))
        self._rabbit.write_down()
        self._setting = msgspec.structs.replace(self._setting, begin=time.time())
        self._starter = self._start_starter()
        order: list[Kill] = [kind for kind, count in self._load.kills.items() for _ in range(count)]
        self._chance.shuffle(order)
        for kind in order:
            time.sleep(self._chance.uniform(*self._load.pauses))
            self._see_that_all_live()
            self._strike(kind)
        self._until(
            lambda: self._starter is None or self._starter.poll() is not None, self._load.rest_deadline
        )
        self._see_that_all_live()
        anyio.run(come_to_rest, self._setting, self._load.rest_deadline)
        while self._engines:
            self._stop(self._engines.pop())

    def findings(self) -> Findings:
        """Audit what has come of it."""
        return anyio.run(audit, self._setting)

    def handled(self) -> Counter[str]:
        """Return how often each attempt was begun by a handler."""
        logs = (log.read_text().splitlines() for log in self._own.directory.glob("engine-*.log"))
        return Counter(line for lines in logs for line in lines if line.startswith("handles "))

    def last_words(self) -> str:
        """Return the ends of what the processes have said."""
        logs = sorted(self._own.directory.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{said(log)}" for log in logs)

    def _strike(self, kind: Kill) -> None:
        began, there = time.time(), anyio.run(under_way, self._setting)
        victim = self._chance.choice(self._engines)
        match kind:
            case "engine":
                self._kill_engines([victim])
            case "all engines":
                self._kill_engines(self._engines.copy())
            case "stop":
                self._stop(victim)
                self._replace(victim)
            case "freeze":
                self._freeze(victim)
            case "starter":
                if self._starter is None or self._starter.poll() is not None:
                    return
                self._own.end(self._starter)
                self._starter = self._start_starter()
            case "broker":
                # What it has learnt a moment ago it forgets, and its queues with it: see there.
                self._rabbit.write_down()
                self._rabbit.kill()
                self._be_away()
                self._rabbit.restart()
            case "database":
                assert self._postgres is not None
                self._postgres.kill()
                self._be_away()
                self._postgres.restart()
        self.kills[kind] += 1
        at, took = began - self._setting.begin, time.time() - began
        self.strikes.append(f"{at:6.1f} s  {kind}, with {there} sagas under way; took {took:.1f} s")

    def _kill_engines(self, victims: list[Engine]) -> None:
        for victim in victims:
            os.kill(victim.process.pid, signal.SIGKILL)
        for victim in victims:
            self._own.end(victim.process)
        self._be_away()
        for victim in victims:
            self._replace(victim)

    def _freeze(self, victim: Engine) -> None:
        os.kill(victim.process.pid, signal.SIGSTOP)
        time.sleep(self._chance.uniform(0, LONGEST_FREEZE))
        os.kill(victim.process.pid, signal.SIGCONT)

    def _replace(self, victim: Engine) -> None:
        self._engines[self._engines.index(victim)] = self._start_engine(victim.backend)

    def _be_away(self) -> None:
        time.sleep(self._chance.uniform(0, LONGEST_ABSENCE))

    def _start_engine(self, backend: str) -> Engine:
        self._started += 1
        log = f"engine-{self._started}.log"
        return Engine(self._start("engine", backend, log), backend, self._own.directory / log)

    def _start_starter(self) -> "subprocess.Popen[bytes]":
        return self._start("starter", "asyncio", "starter.log")

    def _start(self, module: str, backend: str, log: str) -> "subprocess.Popen[bytes]":
        setting = msgspec.json.encode(self._setting).decode()
        command = [sys.executable, "-W", "error", "-m", f"tests.faults.bank.{module}", setting, backend]
        return self._own.start(command, log, os.environ | {"PYTHONPATH": str(ROOT)})

    def _stop(self, engine: Engine) -> None:
        """End an engine in an orderly way, which has to succeed."""
        self._until(lambda: engine.runs)
        engine.process.send_signal(signal.SIGTERM)
        try:
            status = engine.process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            raise Died(f"An engine does not end when told to.\n{said(engine.log)}") from None
        self._own.end(engine.process)
        if status != 0:
            raise Died(f"An engine that was told to end did so with status {status}.\n{said(engine.log)}")

    def _see_that_all_live(self) -> None:
        for engine in self._engines:
            if (status := engine.process.poll()) is not None:
                raise Died(f"An engine ended by itself, with status {status}.\n{said(engine.log)}")
        if self._starter is not None and self._starter.poll():
            status, log = self._starter.returncode, self._own.directory / "starter.log"
            raise Died(f"The starter ended with status {status}.\n{said(log)}")

    def _until(self, condition: Callable[[], bool], seconds: float = START_DEADLINE) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self._see_that_all_live()
            if time.monotonic() > deadline:
                raise Died(f"The processes are not ready in time.\n{self.last_words()}")
            time.sleep(POLL_INTERVAL)


def said(log: Path) -> str:
    """Return the end of what a process has said, apart from its daily work."""
    lines = log.read_text().splitlines()
    return "\n".join([line for line in lines if not line.startswith("handles ")][-60:])


@contextmanager
def databases(own: Processes, postgres: PostgreSQL | None) -> Iterator[tuple[str, str]]:
    """Give the URLs of empty databases for the store and for the ledger."""
    if postgres is None:
        yield f"sqlite://{own.directory}/store.sqlite", f"sqlite://{own.directory}/ledger.sqlite"
        return
    names = [f"saga_test_{ULID()}_{what}".lower() for what in ("store", "ledger")]
    for name in names:
        postgres.create_database(name)
    try:
        yield postgres.url(names[0]), postgres.url(names[1])
    finally:
        if not postgres.running:
            postgres.restart()
        for name in names:
            postgres.drop_database(name)


def try_out(load: Load, rabbit: RabbitMQ, postgres: PostgreSQL | None) -> Report:
    """Make one trial, with store and ledger in SQLite files or in PostgreSQL, and report.

    Raises: Died, Restless, ServerError.
    """
    began = time.monotonic()
    vhost = f"bank-{ULID()}".lower()
    rabbit.create_vhost(vhost)
    own = Processes("saga-bank-")
    try:
        with databases(own, postgres) as (store, ledger):
            Ledger(ledger).create()
            setting = Setting(load.seed, load.sagas, load.per_second, 0.0, rabbit.url(vhost), store, ledger)
            trial = Trial(load, setting, rabbit, postgres, own)
            trial.run()
            handled = trial.handled()
            return Report(
                where="PostgreSQL" if postgres else "SQLite",
                seed=load.seed,
                kills=trial.kills,
                strikes=trial.strikes,
                runs=handled.total(),
                repeats=handled.total() - len(handled),
                seconds=time.monotonic() - began,
                findings=trial.findings(),
            )
    finally:
        own.close()
        if not rabbit.running:
            rabbit.restart()
        rabbit.delete_vhost(vhost)
