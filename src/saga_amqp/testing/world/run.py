"""Running a world from its seed to its end: the load, the end of the faults, rest."""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf

import trio
from msgspec import Struct

from saga_amqp.errors import RefusedError, StoreError, TransportError
from saga_amqp.testing.world.checker import DEAD_LETTERS
from saga_amqp.testing.world.determinism import run_in_virtual_time
from saga_amqp.testing.world.process import Dooms, Life
from saga_amqp.testing.world.random_load import RandomLoad
from saga_amqp.testing.world.trace import Line
from saga_amqp.testing.world.world import Load, World
from saga_core import Saga, SagaState, StepState

QUIET = 700.0
"""Seconds without a commit after which nothing more will come: no timer, no pause of a default policy is as long."""

LONGEST = 8_000.0
"""Seconds within which everything comes to rest once the faults are over."""

DRAIN = 120.0
"""Seconds within which queues are empty and notes are taken off, once everything rests."""


class Outcome(Struct, frozen=True):
    """What came of one world. `problem` is the first thing that was wrong."""

    seed: int
    problem: str | None
    digest: str
    seconds: float
    faults: dict[str, int]
    struck: tuple[str, ...]
    points: dict[str, int]
    awaits: dict[str, int]
    sagas: dict[str, int]
    lines: tuple[Line, ...]


def run_world(
    seed: int,
    load: Callable[[], Load] | None = None,
    *,
    only: frozenset[str] | None = None,
    until: float = inf,
) -> Outcome:
    """Run a world from its seed, for so many seconds of virtual time at the longest.

    `only` are the names of the faults, and of what people do, that are left in it.

    Raises:
        Exception: What a bug of the simulation raises; a bug of what is simulated is told in the outcome.
    """
    return run_in_virtual_time(
        lambda: _run((load or (lambda: RandomLoad(seed)))(), seed, only, until), seed, [Dooms()]
    )


async def _run(load: Load, seed: int, only: frozenset[str] | None, until: float) -> Outcome:
    world = World(seed, load, only)
    async with trio.open_nursery() as everything:
        everything.start_soon(_watch, world, until, everything.cancel_scope)
        everything.start_soon(world.agenda.run)
        everything.start_soon(world.outside.run)
        async with trio.open_nursery() as machines:
            for process in world.processes:
                machines.start_soon(process.run)
            for fault in world.weather():
                everything.start_soon(fault)
            async with trio.open_nursery() as people:
                people.start_soon(load.run, world)
            world.clear_up()
            await _rest(world)
            for process in world.processes:
                process.end()
            everything.start_soon(_hurry, world)
        for problem in [*world.checker.at_rest(), *load.check(world)]:
            world.fail(problem)
        everything.cancel_scope.cancel()
    states = Counter(saga.state.value for saga in world.vault.sagas.values())
    return Outcome(
        seed,
        world.problem,
        world.trace.digest(),
        trio.current_time(),
        dict(world.faults.counts),
        tuple(world.faults.struck),
        world.points,
        world.awaits,
        dict(states),
        tuple(world.trace.lines),
    )


async def _hurry(world: World) -> None:
    await trio.sleep(DRAIN)
    world.fail(f"a process did not end within {DRAIN:.0f} s of being told to")


async def _watch(world: World, until: float, scope: trio.CancelScope) -> None:
    with trio.move_on_at(until):
        await world.failed.wait()
    for process in world.processes:
        if process.life is not None:  # its deaf handlers hear of nothing else
            process.life.pulse.die()
    scope.cancel()


async def _rest(world: World) -> None:
    """Wait until everything rests, and see to what waits for a person."""
    began = trio.current_time()
    tried: Counter[str] = Counter()
    while world.checker.unrest or world.outside.pending or world.vault.changes:
        await _see_to_what_waits(world, tried)
        now = trio.current_time()
        quiet = now - max(world.checker.last_commit, began)
        if world.checker.unrest and (quiet > QUIET or now - began > LONGEST):
            names = ", ".join(world.trace.name(saga_id) for saga_id in list(world.checker.unrest)[:3])
            world.fail(f"I1: {names} did not come to rest in {now - began:.0f} s without faults")
        await trio.sleep(2.0)
    empty = inf
    with trio.move_on_after(DRAIN):
        while empty:
            await trio.sleep(1.0)
            depths = sum(world.broker.held(queue) for queue in world.broker.queues if queue != DEAD_LETTERS)
            empty = depths + world.network.under_way + len(world.vault.notes)


async def _see_to_what_waits(world: World, tried: Counter[str]) -> None:
    """Resume what is suspended, and try again what has failed and keeps another saga waiting."""
    for saga_id in list(world.checker.unrest):
        saga = world.vault.sagas[saga_id]
        if saga.suspended:
            await _ask(world, saga, lambda life, id: life.manager.resume(id))
    for saga in list(world.vault.sagas.values()):
        parent = saga.plan.parent
        if saga.state is not SagaState.FAILED or parent is None or parent.saga not in world.checker.unrest:
            continue
        above = world.vault.sagas[parent.saga].progress_of(parent.step)
        if above.state is not StepState.STARTED or above.attempt != parent.attempt:
            continue
        tried[saga.id] += 1
        if tried[saga.id] <= 3:
            await _ask(world, saga, lambda life, id: life.manager.retry(id))
        else:
            for step in saga.plan.steps:
                if saga.progress_of(step.name).state is StepState.FAILED:
                    await _resolve(world, saga, step.name)


async def _resolve(world: World, saga: Saga, step: str) -> None:
    await _ask(world, saga, lambda life, id: life.manager.resolve(id, step, "compensated", reason="seen to"))
    await _ask(world, saga, lambda life, id: life.manager.resolve(id, step, "completed", reason="seen to"))


async def _ask(world: World, saga: Saga, what: Callable[[Life, str], Awaitable[object]]) -> None:
    async def do(life: Life) -> None:
        with suppress(RefusedError, StoreError, TransportError):
            await what(life, saga.id)

    await world.ask(do)
