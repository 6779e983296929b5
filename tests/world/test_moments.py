"""Worlds that are made for one moment each, which worlds of random load hit once in thousands."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import trio

from saga_amqp import ChildSaga, Registry, Saga, Step, StepError
from saga_amqp.testing.world import World, run_world
from saga_amqp.testing.world.process import Life

registry = Registry()


@registry.action("work")
async def work(saga: Saga, step: Step) -> None:
    await trio.sleep(1.0)


@work.compensation("undo")
async def undo(saga: Saga, step: Step) -> None:
    """Undo nothing, well."""


@registry.action("fail")
async def fail(saga: Saga, step: Step) -> None:
    await trio.sleep(1.0)
    raise StepError("broken", "for good")


class Moment:
    """Handlers for everybody, and an end that all sagas have to come to."""

    end = "compensated"

    def handlers(self, life: Life) -> Mapping[str, Any]:
        return {"registries": (registry,)}

    def check(self, world: World) -> Iterator[str]:
        states = [saga.state.value for saga in world.vault.sagas.values()]
        if set(states) != {self.end}:
            yield f"the sagas are {', '.join(states)}"


class Meeting(Moment):
    """A child fails and is undone by itself while its parent, which has given it up, orders it to be."""

    async def run(self, world: World) -> None:
        async def start(life: Life) -> None:
            child = ChildSaga("inner", [Step(name="b", action="fail")])
            given_up = Step(name="x", child=child, timeout=0.5, depends_on=("a",))
            beside = Step(name="c", action="work", compensation="undo", depends_on=("a",))
            await life.manager.start("order", [work.step(name="a"), given_up, beside])

        for _ in range(5):
            await world.ask(start)


@pytest.mark.parametrize("seed", range(25))
def test_a_child_is_undone_in_the_moment_when_its_parent_orders_it_to_be(seed: int) -> None:
    assert run_world(seed, Meeting).problem is None


class Parting(Moment):
    """A process ends while a saga that was started in it is on its way to a slow store."""

    end = "completed"

    async def run(self, world: World) -> None:
        async def start(life: Life) -> None:
            quick, world.vault.delay = world.vault.delay, lambda who, about: 30.0  # type: ignore[method-assign]
            life.pulse.at_death(lambda: setattr(world.vault, "delay", quick))
            await life.manager.start("order", [work.step(name="a")])

        async with trio.open_nursery() as nursery:
            life = await world.somebody()
            nursery.start_soon(life.perform, lambda: start(life))
            await trio.testing.wait_all_tasks_blocked()
            life.stop()


def test_a_world_ends_when_nothing_is_under_way_any_more() -> None:
    assert run_world(2, Parting).problem is None
