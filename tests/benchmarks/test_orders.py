"""Orders on the real broker: what is counted has happened, and what went wrong is no figure."""

import math

import anyio
import pytest

from benchmarks.orders.load import BrokenOrderError, Outcome, chain, check, drive, weigh
from benchmarks.orders.parts import parts
from benchmarks.orders.places import config
from benchmarks.orders.shop import Shop
from benchmarks.runner import Latency
from saga_amqp import AmqpTransport, Config, Manager, MemoryBroker, MemoryStore, MemoryTransport, Saga, Step


@pytest.mark.parametrize("declined", [False, True])
async def test_orders_are_counted_and_timed(unique: str, amqp_url: str, declined: bool) -> None:
    shop = Shop()
    async with (
        Manager(AmqpTransport(amqp_url), MemoryStore(), config(shop, unique, grace_period=0.0)) as manager,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(manager.run)
        outcome = await drive(manager, shop, 5, declined=declined, warm_up=0.05, seconds=0.5)
        counted = await manager.count()
        manager.stop()
    check([outcome], declined=declined)
    assert sum(counted.values()) == outcome.ended > 0
    assert outcome.ran == outcome.ended * (5 if declined else 3)
    assert 0 < outcome.rate * 0.5 <= outcome.ran
    assert outcome.latency.p50 <= outcome.latency.p95 <= outcome.latency.p99


async def test_long_orders_run_from_start_to_end(unique: str, amqp_url: str) -> None:
    shop = Shop()
    async with (
        Manager(AmqpTransport(amqp_url), MemoryStore(), config(shop, unique, grace_period=0.0)) as manager,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(manager.run)
        outcome = await chain(manager, shop, at_once=2, steps=10, total=40)
        manager.stop()
    assert (outcome.ran, outcome.ended) == (40, 4)


async def test_orders_in_flight_are_weighed_while_their_handlers_wait(unique: str) -> None:
    shop = Shop(wait=math.inf)
    async with (
        Manager(
            MemoryTransport(MemoryBroker()), MemoryStore(), config(shop, unique, grace_period=0.0)
        ) as manager,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(manager.run)
        weight = await weigh(manager, shop, 50)
        manager.stop()
    assert shop.ran == 50
    assert weight.idle > 1e6


async def test_the_parts_of_an_order_are_measured_alone(amqp_url: str) -> None:
    found = await parts(amqp_url, MemoryStore(), times=10)
    whole = found.together()
    assert whole.p50 == pytest.approx(found.hops.p50 + found.commits.p50 + found.handlers.p50)
    assert found.hops.p50 > found.handlers.p50


async def test_an_order_that_ends_otherwise_is_no_figure(unique: str) -> None:
    shop = Shop()

    async def refuse(saga: Saga, step: Step) -> None:
        raise RuntimeError("no")

    broken = Config(
        step_handlers={name: refuse for name in shop.registry.actions},
        compensation_handlers={name: refuse for name in shop.registry.compensations},
        prefix=unique,
    )

    async def run() -> None:
        async with (
            Manager(MemoryTransport(MemoryBroker()), MemoryStore(), broken) as manager,
            anyio.create_task_group() as tasks,
        ):
            await tasks.start(manager.run)
            await drive(manager, shop, 1, declined=False, warm_up=0.0, seconds=0.1)

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert caught.group_contains(BrokenOrderError, match="compensated")


def test_a_handler_that_ran_twice_makes_the_figure_worthless() -> None:
    outcome = Outcome(1, 1.0, 1.0, Latency(1.0, 1.0, 1.0), ran=7, ended=2)
    with pytest.raises(BrokenOrderError, match="2 orders took 7 runs"):
        check([outcome])
