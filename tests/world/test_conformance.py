"""With its faults off, the simulated broker and store keep the promises that the real ones keep."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from saga_amqp.testing import stores, transports
from saga_amqp.testing.world.agenda import Agenda
from saga_amqp.testing.world.broker import Broker, Habits
from saga_amqp.testing.world.chance import Chance
from saga_amqp.testing.world.client import WorldTransport
from saga_amqp.testing.world.determinism import run_in_virtual_time
from saga_amqp.testing.world.faults import Faults
from saga_amqp.testing.world.network import Network
from saga_amqp.testing.world.pulse import Pulse
from saga_amqp.testing.world.trace import Trace
from saga_amqp.testing.world.vault import Vault, WorldStore

SEEDS = range(5)


def in_a_world_without_faults(seed: int, case: Callable[[Agenda, Faults, Chance], Awaitable[None]]) -> None:
    async def main() -> None:
        faults, agenda = Faults(seed, Trace()), Agenda()
        faults.over = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agenda.run)
            await case(agenda, faults, Chance(f"{seed}"))
            nursery.cancel_scope.cancel()

    run_in_virtual_time(main, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", transports.CASES, ids=lambda case: case.__name__)
def test_transport(case: transports.Case, seed: int) -> None:
    async def run(agenda: Agenda, faults: Faults, chance: Chance) -> None:
        broker = Broker(agenda, Habits(together=(0.0, 0.1)[seed % 2]), chance)
        network = Network(agenda, faults, chance)
        await transports.run_case(case, lambda: WorldTransport(broker, network, Pulse("test")))

    in_a_world_without_faults(seed, run)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", stores.CASES, ids=lambda case: case.__name__)
def test_store(case: stores.Case, seed: int) -> None:
    async def run(agenda: Agenda, faults: Faults, chance: Chance) -> None:
        await stores.run_case(case, WorldStore(Vault(agenda, faults, chance), Pulse("test")))

    in_a_world_without_faults(seed, run)
