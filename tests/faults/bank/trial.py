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

from .audit import Findings, Restless, audit, come_to_rest, remove_queues, under_way, unfinished
from .ledger import Ledger
from .report import Report
from .setting import Setting

ROOT = Path(__file__).parents[3]

LOOPS = ("asyncio", "trio", "uvloop")
"""One engine for each."""

Kill = Literal["engine", "all engines", "starter", "broker", "database", "blackout", "stop", "freeze"]
"""What is done to whom: kill -9, but for `stop`, an orderly end with SIGTERM, and `freeze`, a pause with SIGSTOP.

A `blackout` is kill -9 for all of them.
"""

START_DEADLINE = 60.0
STOP_DEADLINE = 30.0
REST_DEADLINE = 90.0
POLL_INTERVAL = 0.05
LONGEST_AIM = 0.3
LONGEST_ABSENCE = 0.8
LONGEST_FREEZE = 2.5
"""Seconds, longer than commits are left alone before others publish what they caused."""


class Load(Struct, frozen=True):
    """How much is asked of a trial.

    Kills are made in random order, with pauses of random length between them, in seconds. Before each one sagas are
    released, so many a second: so there is work under way at every kill, however slow the machine.
    """

    seed: int
    sagas: int
    per_second: float
    kills: dict[Kill, int]
    pauses: tuple[float, float]


class Died(Exception):
    """A process has ended that nobody has killed, or does not do what it is told."""


class Engine(NamedTuple):
    """A process that runs handlers, on one of the event loops, and what it says."""

    process: "subprocess.Popen[bytes]"
    loop: str
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
        self._chance = random.Random()
        self._started = 0
        self._began = 0.0
        self._engines: list[Engine] = []
        self._starter: subprocess.Popen[bytes] | None = None
        self.kills: Counter[str] = Counter()

    def run(self) -> None:
        """Run the load, strike at random, and let everything come to rest. Raises: Died, Restless, ServerError."""
        self._engines += [self._start_engine(loop) for loop in LOOPS]
        self._until(lambda: all(engine.runs for engine in self._engines), "engines do not begin")
        order: list[Kill] = [kind for kind, count in self._load.kills.items() for _ in range(count)]
        random.Random(self._load.seed).shuffle(order)
        self._release(0)
        self._began = time.monotonic()
        self._starter = self._start_starter()
        half = self._setting.sagas / len(order) / 2
        for number, kind in enumerate(order, 1):
            # Anew for each, so that nothing that a machine is slow at changes what comes later.
            self._chance = random.Random(f"{self._load.seed}/{number}")
            self._release(round((2 * number - 1) * half))
            time.sleep(self._chance.uniform(*self._load.pauses))
            self._release(round(2 * number * half))
            self._until(lambda: anyio.run(under_way, self._setting) > 0, "no saga is under way")
            time.sleep(self._chance.uniform(0, LONGEST_AIM))
            self._see_that_all_live()
            self._strike(kind)
        try:
            starter = self._starter
            self._until(lambda: starter.poll() is not None, "transfers are not carried out", REST_DEADLINE)
            anyio.run(come_to_rest, self._setting, REST_DEADLINE)
        except Restless as error:
            left = anyio.run(unfinished, self._setting)
            raise Restless(f"{error}\n{left}\n{self._last_words()}") from error
        self._see_that_all_live()
        self._stop(self._engines)
        self._engines = []

    def findings(self) -> Findings:
        """Audit what has come of it."""
        return anyio.run(audit, self._setting)

    def handled(self) -> Counter[str]:
        """Return how often each attempt was begun by a handler."""
        logs = (log.read_text().splitlines() for log in self._own.directory.glob("engine-*.log"))
        return Counter(line for lines in logs for line in lines if line.startswith("handles "))

    def _strike(self, kind: Kill) -> None:
        there, began = anyio.run(under_way, self._setting), time.monotonic()
        victim = self._chance.choice(self._engines)
        match kind:
            case "engine":
                self._kill_engines([victim])
            case "all engines":
                self._kill_engines(self._engines.copy())
            case "stop":
                self._stop([victim])
                self._replace(victim)
            case "freeze":
                self._freeze(victim)
            case "starter":
                self._kill_starter()
                self._starter = self._start_starter()
            case "broker":
                # Else it may forget its queues.
                self._rabbit.write_down()
                self._rabbit.kill()
                self._meanwhile(victim)
                self._rabbit.restart()
            case "database":
                assert self._postgres is not None
                self._postgres.kill()
                self._meanwhile(victim)
                self._postgres.restart()
            case "blackout":
                self._black_out()
        self.kills[kind] += 1
        at, took = began - self._began, time.monotonic() - began
        print(f"    {at:5.1f} s  {kind}, with {there} sagas under way; took {took:.1f} s", flush=True)

    def _kill_engines(self, victims: list[Engine]) -> None:
        for victim in victims:
            os.kill(victim.process.pid, signal.SIGKILL)
        for victim in victims:
            self._bury(victim)
        self._be_away()
        for victim in victims:
            self._replace(victim)

    def _kill_starter(self) -> None:
        assert self._starter is not None
        self._own.end(self._starter)
        if (status := self._starter.returncode) not in (0, -signal.SIGKILL):
            raise Died(
                f"The starter ended with status {status}.\n{said(self._own.directory / 'starter.log')}"
            )

    def _bury(self, victim: Engine) -> None:
        """Wait for the end of an engine that was killed, and see that it has not ended by itself before."""
        self._own.end(victim.process)
        if (status := victim.process.returncode) != -signal.SIGKILL:
            raise Died(f"An engine ended by itself, with status {status}.\n{said(victim.log)}")

    def _meanwhile(self, victim: Engine) -> None:
        """Let time pass while a server is away; perhaps an engine ends, and the next one comes to find it away."""
        kind: Kill | None = self._chance.choice(("engine", "stop", None))
        if kind == "stop" and victim.runs:
            self._stop([victim])
            self._replace(victim)
            self.kills["stop"] += 1
        elif kind == "engine":
            self._kill_engines([victim])
            self.kills["engine"] += 1
        else:
            self._be_away()

    def _black_out(self) -> None:
        """Kill everything there is, as if the machine lost its power; then start all of it, in any order."""
        self._rabbit.write_down()
        for engine in self._engines:
            os.kill(engine.process.pid, signal.SIGKILL)
        self._rabbit.kill()
        if self._postgres is not None:
            self._postgres.kill()
        self._kill_starter()

        def restart_engines() -> None:
            for victim in self._engines.copy():
                self._bury(victim)
                self._replace(victim)
            self._starter = self._start_starter()

        restarts = [self._rabbit.restart, restart_engines]
        if self._postgres is not None:
            restarts.append(self._postgres.restart)
        self._chance.shuffle(restarts)
        for restart in restarts:
            restart()

    def _freeze(self, victim: Engine) -> None:
        os.kill(victim.process.pid, signal.SIGSTOP)
        time.sleep(self._chance.uniform(0, LONGEST_FREEZE))
        os.kill(victim.process.pid, signal.SIGCONT)

    def _replace(self, victim: Engine) -> None:
        self._engines[self._engines.index(victim)] = self._start_engine(victim.loop)

    def _be_away(self) -> None:
        time.sleep(self._chance.uniform(0, LONGEST_ABSENCE))

    def _start_engine(self, loop: str) -> Engine:
        self._started += 1
        log = f"engine-{self._started}.log"
        return Engine(self._start("engine", loop, log), loop, self._own.directory / log)

    def _start_starter(self) -> "subprocess.Popen[bytes]":
        return self._start("starter", "asyncio", "starter.log")

    def _start(self, module: str, loop: str, log: str) -> "subprocess.Popen[bytes]":
        setting = msgspec.json.encode(self._setting).decode()
        command = [sys.executable, "-W", "error", "-m", f"tests.faults.bank.{module}", setting, loop]
        return self._own.start(command, log, os.environ | {"PYTHONPATH": str(ROOT)})

    def _stop(self, engines: list[Engine]) -> None:
        """End engines in an orderly way, which has to succeed."""
        self._until(lambda: all(engine.runs for engine in engines), "engines do not begin")
        for engine in engines:
            engine.process.send_signal(signal.SIGTERM)
        for engine in engines:
            try:
                status = engine.process.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                raise Died(f"An engine does not end when told to.\n{said(engine.log)}") from None
            self._own.end(engine.process)
            if status != 0:
                raise Died(f"An engine that was told to end did so with status {status}.\n{said(engine.log)}")

    def _release(self, sagas: int) -> None:
        new = self._own.directory / "released.new"
        new.write_text(str(sagas))
        new.replace(self._setting.released)

    def _see_that_all_live(self) -> None:
        for engine in self._engines:
            if (status := engine.process.poll()) is not None:
                raise Died(f"An engine ended by itself, with status {status}.\n{said(engine.log)}")
        if self._starter is not None and self._starter.poll():
            status, log = self._starter.returncode, self._own.directory / "starter.log"
            raise Died(f"The starter ended with status {status}.\n{said(log)}")

    def _last_words(self) -> str:
        logs = sorted(self._own.directory.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{said(log)}" for log in logs)

    def _until(self, condition: Callable[[], bool], otherwise: str, seconds: float = START_DEADLINE) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self._see_that_all_live()
            if time.monotonic() > deadline:
                raise Restless(f"For {seconds:g} s {otherwise}")
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
    own = Processes("saga-bank-")
    try:
        with databases(own, postgres) as (store, ledger):
            Ledger(ledger).create()
            setting = Setting(
                seed=load.seed,
                sagas=load.sagas,
                per_second=load.per_second,
                released=f"{own.directory}/released",
                unique=f"bank-{ULID()}".lower(),
                amqp=rabbit.url(),
                store=store,
                ledger=ledger,
            )
            trial = Trial(load, setting, rabbit, postgres, own)
            trial.run()
            handled = trial.handled()
            findings = trial.findings()
    finally:
        own.close()
    anyio.run(remove_queues, setting)
    return Report(
        where="PostgreSQL" if postgres else "SQLite",
        seed=load.seed,
        kills=trial.kills,
        runs=handled.total(),
        repeats=handled.total() - len(handled),
        seconds=time.monotonic() - began,
        findings=findings,
    )
