"""States that sagas come to, told to whoever listens: each at least once, whatever is killed in between."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest

from saga_amqp import (
    ChildSaga,
    Manager,
    MemoryTransport,
    Moment,
    Options,
    Point,
    Saga,
    SagaState,
    Step,
    StepError,
)
from saga_amqp.contracts import Delivery, Queue, Topology
from saga_core import Compensate, CompensateChild, Execute, Reply, StateChanged

from .elsewhere import TwoServices, far
from .test_engine import Crash
from .world import DEADLINE, Changes, run_alone, steps

TOLD: dict[str, Any] = {"lifecycle_events": True, "republish_after": 0.1}


class News:
    """What a listener has got."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.got: list[StateChanged] = []
        self._changes = Changes()

    def take(self, delivery: Delivery) -> None:
        self.ids.append(delivery.message_id)
        self.got.append(msgspec.json.decode(delivery.body, type=StateChanged))
        delivery.acknowledge()
        self._changes.tell()

    def states(self, saga: Saga) -> list[str]:
        """Return what was told of a saga, in order; what is told twice is told the same."""
        mine = {one.revision: one for one in self.got if one.saga == saga.id}
        assert all(one == mine[one.revision] for one in self.got if one.saga == saga.id)
        return [str(mine[revision].state) for revision in sorted(mine)]

    async def until(self, saga: Saga, *states: str) -> None:
        """Wait until these states were told of a saga, and no others."""
        await self._changes.until(lambda: len(self.states(saga)) >= len(states))
        assert self.states(saga) == list(states)


@asynccontextmanager
async def listening(two: TwoServices, pattern: str = "saga.#") -> AsyncIterator[News]:
    """Listen with a queue of a listener's own, while the other service runs."""
    news = News()
    async with two.participating(), MemoryTransport(two.broker) as transport:
        await transport.declare(Topology((), (Queue("news", (("sagas", pattern),)),)))
        async with transport.consume("news", 10, news.take):
            yield news


async def fails(saga: Saga, step: Step[Any]) -> None:
    raise StepError("no", "it cannot be")


async def never(saga: Saga, step: Step[Any]) -> None:
    await anyio.sleep_forever()


async def test_each_state_of_a_saga_is_told(two: TwoServices) -> None:
    two.replace("do.c", fails)
    options = Options(tags={"order": "o-7"})
    async with listening(two) as news, two.running(**TOLD) as manager:
        good = await manager.start("order", [*steps("a"), far("b")], options=options)
        good = await manager.wait(good.id)
        bad = await manager.start("order", [*steps("a"), far("b"), *steps("c")])
        await news.until(good, "started", "completed")
        await news.until(bad, "started", "compensating", "compensated")
    assert len(news.got) == 5
    assert news.got[0] == StateChanged(
        good.id, "order", SagaState.STARTED, 0, good.created_at, {"order": "o-7"}
    )
    assert news.got[1] == StateChanged(
        good.id, "order", SagaState.COMPLETED, good.revision, good.updated_at, {"order": "o-7"}
    )
    assert news.ids[1] == f"{good.id}.completed.2"
    two.assert_queues_are_empty("news")


async def test_a_failed_saga_is_told_of_and_what_people_make_of_it(two: TwoServices) -> None:
    two.replace("do.b", fails)
    two.replace_elsewhere("unfar.a", fails)
    async with listening(two) as news, two.running(**TOLD) as manager:
        saga = await manager.start("s", [far("a"), *steps("b")])
        await news.until(saga, "started", "compensating", "failed")
        two.elsewhere.replaced.clear()
        await manager.retry(saga.id)
        await news.until(saga, "started", "compensating", "failed", "compensating", "compensated")


async def test_a_listener_takes_what_it_is_bound_for(two: TwoServices) -> None:
    async with listening(two, "saga.*.completed") as news, two.running(**TOLD) as manager:
        saga = await manager.start("s", [far("a")])
        await news.until(saga, "completed")


async def test_child_sagas_are_told_of_as_any(two: TwoServices) -> None:
    child = Step[Any](name="x", child=ChildSaga("inner", [far("a")]))
    two.replace("do.b", fails)
    async with listening(two) as news, two.running(**TOLD) as manager:
        saga = await manager.wait((await manager.start("outer", [child, *steps("b")])).id)
        (inner,) = [one for one in await two.all_sagas() if one.id != saga.id]
        await news.until(saga, "started", "compensating", "compensated")
        await news.until(inner, "started", "completed", "compensating", "compensated")


async def test_nobody_has_to_listen(two: TwoServices) -> None:
    async with two.participating(), two.running(**TOLD) as manager:
        assert (await manager.wait((await manager.start("s", [far("a")])).id)).is_completed
    two.assert_queues_are_empty()


async def test_nothing_is_told_unless_it_is_asked_for(two: TwoServices) -> None:
    async with listening(two) as news, two.running() as manager:
        await manager.wait((await manager.start("s", [far("a")])).id)
    assert news.got == []


async def test_a_saga_that_starts_later_is_told_of_when_it_is_made(two: TwoServices) -> None:
    """Nothing else is published for it at that moment."""
    async with listening(two) as news, two.running(**TOLD) as manager:
        saga = await manager.start("s", [far("a")], options=Options(start_at=10.0**10))
        await news.until(saga, "started")


# Engines that die ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point", [Point.COMMITTED, Point.PUBLISHING, Point.PUBLISHED, Point.ACKNOWLEDGING], ids=str
)
@pytest.mark.parametrize("over", [Execute, Compensate, Reply], ids=lambda over: over.__name__)
async def test_a_state_is_told_although_the_engine_died_over_the_message_that_led_to_it(
    two: TwoServices, point: Point, over: type[Any]
) -> None:
    # Each of these leads the saga to another state.
    victim = {Execute: "c", Compensate: "a", Reply: "d"}[over]

    def die(moment: Moment) -> None:
        if isinstance(moment.command, over) and moment.point is point and moment.command.step == victim:
            raise Crash

    two.replace("do.c", fails)
    plan = [*steps("a"), far("d")] if over is Reply else steps("a", "c")
    async with listening(two) as news:
        async with two.manager(observer=die, **TOLD) as manager:
            with pytest.raises(Crash):
                await run_alone(manager, lambda: manager.start("s", plan))
        (saga,) = await two.all_sagas()
        told = ["completed"] if over is Reply else ["compensating", "compensated"]
        if point is Point.COMMITTED:
            assert news.states(saga) != ["started", *told]
        async with two.running(**TOLD) as manager:
            await news.until(saga, "started", *told)
            assert (await manager.wait(saga.id)).state == told[-1]


@pytest.mark.parametrize("point", [Point.COMMITTED, Point.PUBLISHING, Point.PUBLISHED], ids=str)
@pytest.mark.parametrize("what", ["start", "cancel", "timer"])
async def test_a_state_is_told_although_the_process_died_when_no_message_had_led_to_it(
    two: TwoServices, point: Point, what: str
) -> None:
    dying = what == "start"

    def die(moment: Moment) -> None:
        if dying and moment.command is None and moment.point is point:
            raise Crash

    async def act(manager: Manager) -> None:
        nonlocal dying
        timeout = 0.1 if what == "timer" else None
        saga = await manager.start("s", [far("a", timeout=timeout)])
        dying = True
        if what == "cancel":
            await manager.cancel(saga.id)
        await run_alone(manager, anyio.sleep_forever)

    if what == "timer":
        two.replace_elsewhere("far.a", never)
    async with listening(two) as news:
        with anyio.fail_after(DEADLINE):
            async with two.manager(observer=die, **TOLD) as manager:
                with pytest.raises(Crash):
                    await act(manager)
        (saga,) = await two.all_sagas()
        told = ["completed"] if what == "start" else ["compensating", "compensated"]
        async with two.running(**TOLD):
            await news.until(saga, "started", *told)


@pytest.mark.parametrize("point", [Point.COMMITTED, Point.PUBLISHING, Point.PUBLISHED, Point.ACKNOWLEDGING])
async def test_a_child_that_is_undone_is_told_of_although_the_engine_died_over_the_order(
    two: TwoServices, point: Point
) -> None:
    def die(moment: Moment) -> None:
        if isinstance(moment.command, CompensateChild) and moment.point is point:
            raise Crash

    two.replace("do.b", fails)
    child = Step(name="x", child=ChildSaga("inner", [far("a")]))
    async with listening(two) as news, two.participating():
        async with two.manager(observer=die, **TOLD) as manager:
            with pytest.raises(Crash):
                await run_alone(manager, lambda: manager.start("outer", [child, *steps("b")]))
        async with two.running(**TOLD) as manager:
            inner, outer = sorted(await two.all_sagas(), key=lambda saga: saga.name)
            await manager.wait(outer.id)
            await news.until(inner, "started", "completed", "compensating", "compensated")
