"""Flow: each queue has hands of its own, and what they cannot take stays with the broker."""

from collections import Counter
from typing import Any

import anyio

from saga_amqp import ChildSaga, MemoryTransport, Saga, Step, StepError
from saga_core import Event

from .elsewhere import TwoServices, far
from .world import DEADLINE, Gate, RecordingStore, World, steps


async def fails(saga: Saga, step: Step[Any]) -> None:
    raise StepError("no", "no")


async def test_compensations_are_handled_while_every_hand_for_steps_is_busy(world: World) -> None:
    gate = Gate()
    world.replace("do.c", gate)
    async with world.running(concurrency=2) as manager:
        saga = await manager.wait((await manager.start("s", steps("a"))).id)
        for _ in range(10):
            await manager.start("busy", steps("c"))
        await gate.until_running(2)
        await manager.compensate(saga.id)
        assert (await manager.wait(saga.id)).is_compensated
        assert world.depth("saga.steps") == 10
        gate.released.set()
        for busy in await manager.list_active():
            await manager.wait(busy.id)
    world.assert_queues_are_empty()


async def test_steps_are_handled_while_every_hand_for_compensations_is_busy(world: World) -> None:
    gate = Gate()
    world.replace("undo.c", gate)
    async with world.running(compensation_concurrency=1) as manager:
        sagas = [await manager.wait((await manager.start("s", steps("c"))).id) for _ in range(5)]
        for saga in sagas:
            await manager.compensate(saga.id)
        await gate.until_running(1)
        assert (await manager.wait((await manager.start("s", steps("a"))).id)).is_completed
        assert gate.most == 1
        gate.released.set()
        for saga in sagas:
            assert (await manager.wait(saga.id)).is_compensated
    assert gate.most == 1


async def test_replies_and_children_need_no_hand_that_a_handler_holds(two: TwoServices) -> None:
    gate = Gate()
    two.replace("do.c", gate)
    async with two.participating(), two.running(concurrency=1) as manager:
        await manager.start("busy", steps("c"))
        await gate.until_running(1)
        remote = [Step(name="x", child=ChildSaga("inner", [far("a")])), far("b")]
        assert (await manager.wait((await manager.start("s", remote)).id)).is_completed
        gate.released.set()
        for busy in await manager.list_active():
            await manager.wait(busy.id)


async def test_each_queue_has_a_prefetch_of_its_own(world: World) -> None:
    ahead: dict[str, int] = {}

    class Asked(MemoryTransport):
        def consume(self, queue: str, prefetch: int, receive: Any) -> Any:
            ahead[queue] = prefetch
            return super().consume(queue, prefetch, receive)

    limits = {"concurrency": 4, "prefetch": 9, "compensation_concurrency": 2, "compensation_prefetch": 3}
    async with world.running(transport=Asked(world.broker), **limits):
        assert ahead == {"saga.steps": 9, "saga.compensate": 3, "saga.orchestrator": 9}


async def test_what_a_slow_store_cannot_take_stays_with_the_broker(world: World) -> None:
    store, going_on, waiting = RecordingStore(world.store, []), anyio.Event(), 0

    async def slow(saga: Saga, event: Event) -> None:
        nonlocal waiting
        waiting += 1
        await going_on.wait()

    store.before_commit = slow
    async with world.running(store=store, concurrency=3, prefetch=5) as manager:
        sagas = [await manager.start("s", steps("a")) for _ in range(40)]
        with anyio.fail_after(DEADLINE):
            while waiting < 3:
                await anyio.wait_all_tasks_blocked()
        await anyio.wait_all_tasks_blocked()
        assert waiting == 3, "as many as there are hands"
        assert len(world.broker.queues["saga.steps"].ready) == 35, "no more than the prefetch was taken"
        going_on.set()
        for saga in sagas:
            assert (await manager.wait(saga.id)).is_completed
    assert Counter(world.calls) == Counter({"do.a": 40})
    world.assert_queues_are_empty()
