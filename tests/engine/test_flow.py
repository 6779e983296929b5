"""How much is taken and worked on at once, queue by queue, and that none of the queues waits for another."""

# A slow store has to be asked again and again how far it is.
# ruff: noqa: ASYNC110

from typing import Any

import anyio

from saga_amqp import ChildSaga, Manager, Point, Saga, Step
from saga_amqp.contracts import Message
from saga_core import Event, Reply

from .elsewhere import TwoServices, far
from .poisoned import ordered, publish
from .world import Gate, RecordingStore, World, steps

HANDS, TAKEN, MANY = 2, 3, 10
BUSY = {"concurrency": HANDS, "prefetch": TAKEN}


async def occupied(world: World, manager: Manager) -> tuple[Gate, list[Saga]]:
    """Have all hands for steps busy, and more waiting in the queue than is taken from it."""
    gate = Gate()
    world.replace("do.c", gate)
    sagas = [await manager.start("s", steps("c")) for _ in range(MANY)]
    await gate.until_running(HANDS)
    return gate, sagas


async def compensate_while_all_hands_for_steps_are_busy(world: World) -> None:
    async with world.running(**BUSY) as manager:
        done = [await manager.wait((await manager.start("s", steps("a", "b"))).id) for _ in range(MANY)]
        gate, waiting = await occupied(world, manager)
        for saga in done:
            await manager.compensate(saga.id)
        for saga in done:
            assert (await manager.wait(saga.id)).is_compensated
        assert world.ready()[0] == MANY - TAKEN
        gate.released.set()
        for saga in waiting:
            assert (await manager.wait(saga.id)).is_completed
    assert gate.most == HANDS


async def test_compensations_are_handled_while_all_hands_for_steps_are_busy(world: World) -> None:
    await compensate_while_all_hands_for_steps_are_busy(world)


async def test_steps_are_handled_while_all_hands_for_compensations_are_busy(world: World) -> None:
    gate = Gate()
    world.replace("undo.a", gate)
    async with world.running(concurrency=HANDS, compensation_concurrency=1) as manager:
        done = [await manager.wait((await manager.start("s", steps("a"))).id) for _ in range(MANY)]
        for saga in done:
            await manager.compensate(saga.id)
        await gate.until_running(1)
        for _ in range(MANY):
            assert (await manager.wait((await manager.start("s", steps("b"))).id)).is_completed
        gate.released.set()
        for saga in done:
            assert (await manager.wait(saga.id)).is_compensated
    assert gate.most == 1


async def test_children_and_replies_are_handled_while_all_other_hands_are_busy() -> None:
    two = TwoServices()
    undoing = Gate()
    two.replace("undo.a", undoing)
    async with two.participating(), two.running(**BUSY) as manager:
        done = [await manager.wait((await manager.start("s", steps("a"))).id) for _ in range(MANY)]
        gate, waiting = await occupied(two, manager)
        for saga in done:
            await manager.compensate(saga.id)
        await undoing.until_running(HANDS)
        # Ordered, begun elsewhere, replied to, reported: all by the orchestrator's queue.
        parent = await manager.start("s", [Step(name="x", child=ChildSaga("inner", [far("a")]))])
        assert (await manager.wait(parent.id)).is_completed
        gate.released.set()
        undoing.released.set()
        for saga in [*waiting, *done]:
            await manager.wait(saga.id)


class SlowStore(RecordingStore):
    """A store whose commits wait until they are let go."""

    def __init__(self, world: World) -> None:
        super().__init__(world.store, [])
        self.asked = 0
        self.go_on = anyio.Event()
        self.before_commit = self._wait

    async def _wait(self, saga: Saga, event: Event) -> None:
        self.asked += 1
        await self.go_on.wait()


async def work_with_a_slow_store(world: World) -> None:
    """From each queue as much is taken as its prefetch says, and no more is begun than it has hands."""
    limits: dict[str, Any] = {**BUSY, "compensation_concurrency": 1, "compensation_prefetch": 4}
    sagas, messages = list[Saga](), list[Message]()
    for operation in ("execute", "compensate", "reply"):
        for _ in range(MANY):
            saga, command = await ordered(world, "execute" if operation == "reply" else operation)
            said = Reply(saga.id, "a", 1, "execute", "succeeded") if operation == "reply" else command
            messages.append(world.config().message(said))
            sagas.append(saga)
    await publish(world, *messages, limits={})
    store = SlowStore(world)
    async with world.running(store=store, **limits) as manager:
        while store.asked < 2 * HANDS + 1:
            await anyio.sleep(0.01)
        while world.ready() != [MANY - TAKEN, MANY - 4, MANY - TAKEN, 0]:
            await anyio.sleep(0.01)
        await anyio.wait_all_tasks_blocked()
        assert store.asked == 2 * HANDS + 1
        assert world.calls.count("do.a") == HANDS
        assert world.calls.count("undo.a") == 1
        assert world.watch.count(Point.ACKNOWLEDGED) == 0
        store.go_on.set()
        for saga in sagas:
            await manager.wait(saga.id)
    assert [world.calls.count(call) for call in ("do.a", "undo.a", "do.b")] == [MANY, MANY, 2 * MANY]


async def test_a_slow_store_leaves_the_messages_with_the_broker(world: World) -> None:
    await work_with_a_slow_store(world)
    world.assert_queues_are_empty()
