"""Orders and payments as services of their own, one with the store and one with a broker only; and one of them dies."""

from collections import Counter
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest

from saga_amqp import SQLiteStore
from tests.histories import check_histories

from .services import PAYMENTS, Effects, expected
from .world import RabbitWorld, Worker, messages_ready

ORDERS = 200
DEATHS = (40, 60)
"""Effects of a life, after which it is killed."""


@pytest.mark.parametrize("victim", ["payments", "orders"])
async def test_a_service_that_is_killed_costs_no_order_and_nothing_happens_twice(
    victim: str, amqp_url: str, unique: str, anyio_backend_name: str, tmp_path: Path
) -> None:
    world = RabbitWorld(amqp_url, unique)

    def life(name: str, hangs_after: int = 0) -> AbstractAsyncContextManager[Worker]:
        arguments = (world.url, world.prefix, name, str(tmp_path), str(ORDERS), str(hangs_after))
        return Worker.start(*arguments, anyio_backend_name, module="services")

    async with AsyncExitStack() as stack:
        lives: dict[str, Worker] = {}

        async def begin(name: str, hangs_after: int = 0) -> None:
            lives[name] = await stack.enter_async_context(life(name, hangs_after))

        # Payments first, so that there are queues for what orders ask for.
        for name in ("payments", "orders"):
            await begin(name, DEATHS[0] if name == victim else 0)
            await lives[name].until("running")
        for hangs_after in (*DEATHS[1:], 0):
            await lives[victim].until("hanging")
            await lives[victim].kill()
            await begin(victim, hangs_after)
        await lives["orders"].until("rested")
        for name in ("payments", "orders"):
            assert await lives[name].end() == 0

    async with SQLiteStore(tmp_path / "sagas.db") as store:
        sagas = await check_histories(store)
    assert sorted(saga.context["number"] for saga in sagas) == list(range(ORDERS))
    assert {saga.id: saga.state for saga in sagas} == {saga.id: expected(saga)[0] for saga in sagas}
    happened = Counter[tuple[str, str, str]]()
    for name in ("payments", "orders"):
        effects = Effects(tmp_path / f"{name}.effects")
        happened += effects.counted()
        effects.close()
    assert happened == Counter({effect: 1 for saga in sagas for effect in expected(saga)[1]})
    assert world.ready() == [0, 0, 0, 0]
    assert messages_ready(world.url, [f"{world.prefix}.{queue}" for queue in PAYMENTS]) == [0, 0]
