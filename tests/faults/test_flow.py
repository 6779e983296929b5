"""How much is taken from each queue of RabbitMQ at once, and that none of the queues waits for another."""

# A slow store has to be asked again and again how far it is, and a broker what it has.
# ruff: noqa: ASYNC110

from typing import Any

import anyio

from saga_amqp import Point, Saga
from saga_amqp.contracts import Message
from saga_core import Event, Reply
from tests.engine.poisoned import ordered, publish
from tests.engine.world import Gate, RecordingStore, steps

from .world import RabbitWorld

HANDS, TAKEN, MANY = 2, 3, 10
BUSY = {"concurrency": HANDS, "prefetch": TAKEN}


async def test_compensations_are_handled_while_all_hands_for_steps_are_busy(rabbit: RabbitWorld) -> None:
    gate = Gate()
    rabbit.replace("do.c", gate)
    async with rabbit.running(**BUSY) as manager:
        done = [await manager.wait((await manager.start("s", steps("a", "b"))).id) for _ in range(MANY)]
        waiting = [await manager.start("s", steps("c")) for _ in range(MANY)]
        await gate.until_running(HANDS)
        for saga in done:
            await manager.compensate(saga.id)
        for saga in done:
            assert (await manager.wait(saga.id)).is_compensated
        assert rabbit.ready() == [MANY - TAKEN, 0, 0, 0]
        gate.released.set()
        for saga in waiting:
            assert (await manager.wait(saga.id)).is_completed
    assert gate.most == HANDS
    await rabbit.until_ready()


class SlowStore(RecordingStore):
    """A store whose commits wait until they are let go."""

    def __init__(self, world: RabbitWorld) -> None:
        super().__init__(world.store, [])
        self.asked = 0
        self.go_on = anyio.Event()
        self.before_commit = self._wait

    async def _wait(self, saga: Saga, event: Event) -> None:
        self.asked += 1
        await self.go_on.wait()


async def test_a_slow_store_leaves_the_messages_with_the_broker(rabbit: RabbitWorld) -> None:
    """From each queue as much is taken as its prefetch says, and no more is begun than it has hands."""
    limits: dict[str, Any] = {**BUSY, "compensation_concurrency": 1, "compensation_prefetch": 4}
    sagas, messages = list[Saga](), list[Message]()
    for operation in ("execute", "compensate", "reply"):
        for _ in range(MANY):
            saga, command = await ordered(rabbit, "execute" if operation == "reply" else operation)
            said = Reply(saga.id, "a", 1, "execute", "succeeded") if operation == "reply" else command
            messages.append(rabbit.config().message(said))
            sagas.append(saga)
    await publish(rabbit, *messages, limits={})
    store = SlowStore(rabbit)
    async with rabbit.running(store=store, **limits) as manager:
        while store.asked < 2 * HANDS + 1:
            await anyio.sleep(0.01)
        while rabbit.ready() != [MANY - TAKEN, MANY - 4, MANY - TAKEN, 0]:
            await anyio.sleep(0.01)
        await anyio.wait_all_tasks_blocked()
        assert store.asked == 2 * HANDS + 1
        assert rabbit.calls.count("do.a") == HANDS
        assert rabbit.calls.count("undo.a") == 1
        assert rabbit.watch.count(Point.ACKNOWLEDGED) == 0
        store.go_on.set()
        for saga in sagas:
            await manager.wait(saga.id)
    assert [rabbit.calls.count(call) for call in ("do.a", "undo.a", "do.b")] == [MANY, MANY, 2 * MANY]
    await rabbit.until_ready()
