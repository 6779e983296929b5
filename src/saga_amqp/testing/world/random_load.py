"""The load of our own worlds: random sagas, and people who start them, meddle with them and change their minds."""

from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import trio

from saga_amqp.errors import RefusedError, StoreError, TransportError
from saga_amqp.testing.world.definitions import CONTEXT, draw_mood, draw_options, draw_steps
from saga_amqp.testing.world.effects import check_effects
from saga_amqp.testing.world.services import service
from saga_core import Options, Saga, Step

if TYPE_CHECKING:
    from saga_amqp.testing.world.process import Life
    from saga_amqp.testing.world.world import World

MEDDLING = ("compensate", "cancel", "suspend", "resume", "retry", "resolve", "skip")
SWEEPS = 700
"""For so many sweeps people go on at the longest."""


class RandomLoad:
    """Sagas and people, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self._source = Random(f"{seed}/load")
        self._mood = draw_mood(self._source)
        self._returned: dict[str, str] = {}

    def handlers(self, life: "Life") -> Mapping[str, Any]:
        """Return handlers that do what their step's input says."""
        return {
            "step_handlers": {"do": service(life, "execute")},
            "compensation_handlers": {"undo": service(life, "compensate")},
        }

    async def run(self, world: "World") -> None:
        """Start sagas and meddle with them, at random moments."""
        source = self._source
        sagas = source.choice((1, 3, 6, 12, 25))
        meddling = source.choice((0, 0, 2, 8))
        duration = source.choice((0.5, 20.0, 120.0, SWEEPS * world.sweep_interval)) * source.random()
        moments = [(source.random() * duration, "start", number) for number in range(sagas)]
        moments += [
            (source.random() * duration, source.choice(MEDDLING), sagas + number)
            for number in range(meddling)
        ]
        async with trio.open_nursery() as people:
            for at, what, number in moments:
                drawn = Random(f"{world.seed}/person/{number}")
                if what == "start":
                    key = f"k{source.randrange(3)}" if source.random() < 0.3 else None
                    options = draw_options(drawn, self._mood, world.clock() + at, key)
                    keyed = self._source if key is None else Random(f"{world.seed}/{key}")
                    steps = draw_steps(keyed, self._mood)
                    if world.faults.asked("start", number):
                        people.start_soon(self._start, world, at, number, steps, options)
                elif world.faults.asked(what, number):
                    people.start_soon(self._meddle, world, at, what, drawn)
            await trio.sleep(duration)

    async def _start(
        self, world: "World", at: float, number: int, steps: list[Step[Any]], options: Options
    ) -> None:
        await trio.sleep(at)
        for _ in range(1 if options.key is None else 5):
            done: list[Saga] = []

            async def start(life: "Life", done: list[Saga] = done) -> None:
                try:
                    done.append(await life.manager.start("order", steps, CONTEXT, options=options))
                except (StoreError, TransportError) as error:
                    world.trace.note(life.pulse.who, f"start {number} failed: {type(error).__name__}")

            await world.ask(start)
            if done:
                self._remember(world, done[0], options.key)
                return
            await trio.sleep(1.0)

    def _remember(self, world: "World", saga: Saga, key: str | None) -> None:
        if saga.id not in world.vault.sagas:
            world.fail(f"I1: start has returned saga {saga.id}, which is not in the store")
        if key is not None and self._returned.setdefault(key, saga.id) != saga.id:
            world.fail(f"two sagas were started with the key {key}")

    async def _meddle(self, world: "World", at: float, what: str, source: Random) -> None:
        await trio.sleep(at)
        sagas = list(world.vault.sagas.values())
        if not sagas:
            return
        # The same one, whoever else is there.
        saga = min(sagas, key=lambda one: Random(f"{one.id}/{at}").random())
        step = source.choice(saga.plan.steps).name
        how: Literal["completed", "failed", "compensated"] = source.choice(
            ("completed", "failed", "compensated")
        )

        async def meddle(life: "Life") -> None:
            manager = life.manager
            try:
                if what == "resolve":
                    world.checker.resolved.add((saga.id, step))
                    await manager.resolve(saga.id, step, how, reason="meddling")
                elif what == "skip":
                    await manager.skip(saga.id, step, reason="meddling")
                else:
                    await getattr(manager, what)(saga.id)
            except (RefusedError, StoreError, TransportError) as error:
                world.trace.note(life.pulse.who, f"{what}: {type(error).__name__}", saga.id)

        world.checker.touched(saga.id)
        world.trace.note("people", f"{what} {world.trace.name(saga.id)}", saga.id)
        await world.ask(meddle)

    def check(self, world: "World") -> Iterator[str]:
        """Go through what is wrong in the ledger, and with keys."""
        keys = Counter(
            saga.plan.options.key for saga in world.vault.sagas.values() if saga.plan.options.key is not None
        )
        yield from (f"{count} sagas have the key {key}" for key, count in keys.items() if count > 1)
        yield from check_effects(
            world.vault.sagas.values(), world.ledger, world.checker.resolved, world.trace
        )
