"""A world: processes, a broker, a database, the outside, and people, all of them in one seed."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from random import Random
from typing import Any, Protocol

import trio
from ulid import ULID

from saga_amqp.testing.world.agenda import EPOCH, Agenda
from saga_amqp.testing.world.broker import Broker, Habits
from saga_amqp.testing.world.chance import Chance
from saga_amqp.testing.world.checker import Checker
from saga_amqp.testing.world.faults import Fault, Faults
from saga_amqp.testing.world.ledger import Ledger
from saga_amqp.testing.world.network import Network
from saga_amqp.testing.world.outside import Outside
from saga_amqp.testing.world.process import Life, Process
from saga_amqp.testing.world.trace import Trace
from saga_amqp.testing.world.vault import Vault


class Load(Protocol):
    """What runs in a world: its handlers, its people, and what has to be true of what they have done."""

    def handlers(self, life: Life) -> Mapping[str, Any]:
        """Return the arguments of `Config` that name handlers, for one life of a process."""
        ...

    async def run(self, world: "World") -> None:
        """Start sagas and ask things of them. What it does not wait for goes on while the faults end."""
        ...

    def check(self, world: "World") -> Iterator[str]:
        """Go through what is wrong when everything has come to rest."""
        ...


class World:
    """Everything in it, drawn from one seed."""

    def __init__(self, seed: int, load: Load, only: frozenset[str] | None = None) -> None:
        self.seed = seed
        self.load = load
        self.trace = Trace()
        self.faults = Faults(seed, self.trace, only)
        self.agenda = Agenda()
        drawn = self.source("world")
        self.skew = drawn.choice((0.0, 0.01, 1.0))
        self.sweep_interval = drawn.choice((0.5, 2.0, 10.0))
        self.republish_after = drawn.choice((4.0, 10.0))
        self.delivery_limit = 1_000 if self.faults.calm else drawn.choice((3, 20, 1_000, 1_000))
        self.network = Network(self.agenda, self.faults, Chance(f"{seed}/network"))
        self.broker = Broker(
            self.agenda, Habits(drawn.choice((0.0, 0.0, 0.02, 0.2))), Chance(f"{seed}/broker")
        )
        self.vault = Vault(self.agenda, self.faults, Chance(f"{seed}/store"))
        self.ledger = Ledger(self.agenda, Chance(f"{seed}/ledger"))
        self.outside = Outside(self)
        self.checker = Checker(self.vault, self.broker, self.faults, self.trace, self.fail, self.clock)
        self.problem: str | None = None
        self.failed = trio.Event()
        self.steps = 0
        self.points: dict[str, int] = {}
        self.awaits: dict[str, int] = {}
        count = drawn.choice((1, 2, 2, 3, 4))
        self.processes = [Process(self, f"engine-{number}", True) for number in range(1, count + 1)]
        if drawn.random() < 0.3:
            self.processes.append(Process(self, "client", False))
        self._chance = Chance(f"{seed}/world")
        self._somebody = trio.Event()

    def source(self, name: str) -> Random:
        """Return a source of chance of its own for a purpose."""
        return Random(f"{self.seed}/{name}")

    def clock(self) -> float:
        """Tell the true time, in seconds since 1970."""
        return EPOCH + trio.current_time()

    def new_id(self, at: float) -> str:
        """Make a ULID."""
        return str(ULID.from_bytes(int(at * 1000).to_bytes(6, "big") + self._chance.bytes(f"id {at}", 10)))

    def new_secret(self) -> str:
        """Make what tokens are proven with."""
        return self._chance.bytes(f"secret {self.clock()}", 16).hex()

    def fail(self, problem: str) -> None:
        """Note the first thing that is wrong; the world ends."""
        if self.problem is None:
            self.problem = problem
            self.trace.note("checker", problem)
            self.failed.set()

    def crashed(self, point: str, awaits: Iterator[str]) -> None:
        """Count where a crash has hit."""
        self.points[point] = self.points.get(point, 0) + 1
        for place in awaits:
            self.awaits[place] = self.awaits.get(place, 0) + 1

    async def somebody(self) -> Life:
        """Wait for a process that is up, and return its life."""
        while True:
            lives = [each.life for each in self.processes if each.is_up and each.life is not None]
            if lives:
                return self._chance.source(f"whom {self.clock()}").choice(lives)
            await self._somebody.wait()

    def somebody_is_up(self) -> None:
        """Let who waits for somebody look again."""
        self._somebody.set()
        self._somebody = trio.Event()

    async def ask(self, do: Callable[[Life], Awaitable[None]]) -> None:
        """Have something done in a process that is up; the process may die over it."""
        life = await self.somebody()
        await life.perform(lambda: do(life))

    def weather(self) -> list[Callable[[], Awaitable[None]]]:
        """Return what lets those faults strike that need no opportunity, each to be run as a task."""
        broker, vault, faults = self.broker, self.vault, self.faults

        async def restart(drawn: Random) -> None:
            if broker.up:
                broker.restart(drawn)

        async def block(drawn: Random) -> None:
            broker.block(True)
            await trio.sleep(drawn.choice((0.5, 5.0, 15.0)))
            broker.block(False)

        async def consumers(drawn: Random) -> None:
            for link in list(broker.links):
                if drawn.random() < 0.5:
                    link.cancel_consumers()

        async def away(drawn: Random) -> None:
            vault.away = {each.who for each in self.processes if drawn.random() < 0.6}
            await trio.sleep(drawn.choice((0.5, 5.0, 15.0)))
            vault.away = set()

        async def stop(drawn: Random) -> None:
            process = drawn.choice(self.processes)
            if process.life is not None:
                process.life.stop()

        def recurring(kind: Fault, do: Callable[[Random], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
            async def recur() -> None:
                number, when = 0, self.source(kind)
                while (rate := faults.rates[kind]) > 0 and not faults.over:
                    number += 1
                    await trio.sleep(when.expovariate(rate))
                    if drawn := faults.named(kind, "world", f"{kind}/{number}"):
                        await do(drawn)

            return recur

        kinds = {
            Fault.RESTART: restart,
            Fault.BLOCK: block,
            Fault.CONSUMER: consumers,
            Fault.STORE_AWAY: away,
            Fault.STOP: stop,
        }
        return [recurring(kind, do) for kind, do in kinds.items()]

    def clear_up(self) -> None:
        """End all faults."""
        self.faults.over = True
        self.vault.away = set()
        if not self.broker.up:
            self.broker.come_back()
        self.broker.block(False)
