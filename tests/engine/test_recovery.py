"""What no message brings up again: notes in the store, sweeps, timers of dead engines, stores that are away."""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from msgspec import Raw
from msgspec.structs import replace

from saga_amqp import (
    Config,
    ConnectionLostError,
    Manager,
    ManagerError,
    MemoryTransport,
    Moment,
    Options,
    Point,
    RetryPolicy,
    Saga,
    Step,
    StepError,
    StoreError,
    StoreUnavailableError,
)
from saga_amqp.contracts import Topology
from saga_amqp.reconnecting import Reconnecting
from saga_core import ChildSaga, Event, StepSucceeded, new_saga, transition
from tests.engine.test_engine import Crash

from .world import DEADLINE, Gate, RecordingStore, RecordingTransport, World, run_alone, steps

SOON = {"republish_after": 0.1}


def dies_at(point: Point) -> Callable[[Moment], None]:
    def observe(moment: Moment) -> None:
        if moment.point is point and moment.command is None:
            raise Crash

    return observe


# Starts and manual operations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [Point.COMMITTED, Point.PUBLISHING, Point.PUBLISHED])
async def test_a_start_whose_process_died_is_published_by_a_sweep(world: World, point: Point) -> None:
    async with world.manager(observer=dies_at(point), **SOON) as manager:
        with pytest.raises(Crash):
            await manager.start("s", steps("a", "b"))
    (saga,) = await world.all_sagas()
    assert (await world.finish(saga.id)).is_completed
    assert world.calls == ["do.a", "do.b"]


async def test_a_manual_operation_whose_process_died_is_published_by_a_sweep(world: World) -> None:
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    async with world.manager(observer=dies_at(Point.COMMITTED), **SOON) as manager:
        with pytest.raises(Crash):
            await manager.compensate(saga.id)
    assert (await world.store.load(saga.id)).is_compensating
    assert (await world.finish(saga.id)).is_compensated
    assert world.calls == ["do.a", "do.b", "undo.b", "undo.a"]


async def test_what_was_confirmed_is_marked_and_never_published_again(world: World) -> None:
    log: list[str] = []
    store = RecordingStore(world.store, log)
    async with world.manager(store=store, **SOON) as manager:
        saga = await manager.start("s", steps("a"))
    assert list(await world.store.claim_unpublished(float("inf"), 0.0, 10)) == []
    assert (await world.finish(saga.id)).is_completed
    assert world.calls == ["do.a"]


async def test_a_handler_that_is_cut_off_publishes_what_another_delivery_has_caused(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    first, second = steps("a", "b")
    async with world.running() as manager:
        saga = await manager.start("s", [replace(first, timeout=0.3), second])
        await gate.until_running(1)
        # The same message was delivered to an engine that commits, and dies before it publishes.
        event = StepSucceeded("a", 1, Raw(b"{}"), saga.updated_at)
        await world.store.commit(transition(saga, event).saga, event)
        saga = await manager.wait(saga.id)
    assert saga.is_completed
    assert gate.cancelled == 1


async def test_a_step_that_runs_in_a_child_is_left_alone_when_the_child_is_undone(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    parent = Step(name="child", child=ChildSaga("inner", steps("a")), timeout=0.2)
    log: list[str] = []
    async with world.running(transport=RecordingTransport(MemoryTransport(world.broker), log)) as manager:
        saga = await manager.start("s", [parent])
        await gate.until_running(1)
        await world.watch.until(Point.ACKNOWLEDGED, 2)  # the orders to start the child, and to undo it
        await anyio.sleep(0.1)
        assert log.count("publish a.execute.1") == 1
        gate.released.set()
        saga = await manager.wait(saga.id)
    assert saga.is_compensated


class Unmarkable(RecordingStore):
    """A store that takes no notes off: it was closed before the manager, for example."""

    async def mark_published(self, commits: Any) -> None:
        raise StoreError("it is closed")


async def test_a_manager_closes_though_the_last_notes_stay(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(DEADLINE):
        async with world.manager(store=Unmarkable(world.store, []), **SOON) as manager:
            saga = await manager.start("s", steps("a"))
    assert "stay noted as unpublished: it is closed" in caplog.text
    assert (await world.finish(saga.id)).is_completed


async def test_many_marks_are_taken_off_together(world: World) -> None:
    marks: list[int] = []

    class Counting(RecordingStore):
        async def mark_published(self, commits: Any) -> None:
            marks.append(len(commits))
            await self.inner.mark_published(commits)

    async with world.running(store=Counting(world.store, [])) as manager, anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(manager.start, "s", steps("a"))
    assert sum(marks) == 50
    assert len(marks) <= 5


async def test_a_slow_publisher_has_its_time_before_a_sweep_thinks_it_dead(world: World) -> None:
    transport = RecordingTransport(MemoryTransport(world.broker), log := [])
    transport.hold_confirms = True
    async with (
        world.running(republish_after=60.0) as other,
        world.manager(transport=transport) as manager,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(manager.start, "s", steps("a"))
        await transport.changes.until(lambda: bool(transport.held))
        (saga,) = await world.all_sagas()
        assert (await other.wait(saga.id)).is_completed
        transport.held[0](None)
    assert log.count("publish a.execute.1") == 1
    assert world.calls == ["do.a"]


async def test_a_step_that_is_merely_slow_is_left_alone(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running(sweep_interval=0.01, **SOON) as one, world.running(sweep_interval=0.01, **SOON):
        saga = await one.start("s", steps("a", "b"))
        await gate.until_running(1)
        await anyio.sleep(0.5)  # fifty sweeps each
        gate.released.set()
        assert (await one.wait(saga.id)).is_completed
    assert world.calls == ["do.a", "do.b"]
    assert gate.most == 1


async def test_a_key_starts_a_saga_once(world: World) -> None:
    options = Options(key="order-7")
    async with world.running() as manager:
        first = await manager.start("s", steps("a"), options=options)
        again = await manager.start("s", steps("a"), options=options)
        assert again.id == first.id
        rested = await manager.wait(first.id)
        assert await manager.start("s", steps("a"), options=options) == rested
        assert (await manager.start("other", steps("a"), options=options)).id != first.id
    assert world.calls.count("do.a") == 2


# Without a broker --------------------------------------------------------------------------------------------------


async def test_a_manager_without_a_broker_leaves_publishing_to_the_engines(world: World) -> None:
    async with (
        world.running(sweep_interval=DEADLINE) as engine,
        Manager(None, world.store, world.config()) as web,
    ):
        await anyio.wait_all_tasks_blocked()
        saga = await web.start("s", steps("a", "b"))
        assert [one.id for one in await web.list_active()] == [saga.id]
        assert (await web.wait(saga.id)).is_completed
        await web.compensate(saga.id)
        assert (await engine.wait(saga.id)).is_compensated
        with pytest.raises(ManagerError, match="has no transport"):
            await web.run()
    assert world.calls == ["do.a", "do.b", "undo.b", "undo.a"]


# Timers of engines that have died ----------------------------------------------------------------------------------


def retried(delay: float) -> list[Step[Any]]:
    retry = RetryPolicy(initial_delay=delay, jitter=0.0)
    return [Step(name="a", action="do.a", compensation="undo.a", retry=retry)]


async def fails_once(saga: Saga, step: Step[Any]) -> None:
    if step.attempt == 1:
        raise StepError("busy", "later", retryable=True)


async def test_a_retry_that_a_dead_engine_held_is_made_by_another(world: World) -> None:
    world.replace("do.a", fails_once)
    async with world.running() as manager:
        saga = await manager.start("s", retried(0.2))
        await world.watch.until(Point.ACKNOWLEDGED)
    assert not (await world.store.load(saga.id)).at_rest
    assert (await world.finish(saga.id)).is_completed
    assert world.calls == ["do.a", "do.a"]


async def test_a_retry_is_not_late_because_of_sweeps(world: World) -> None:
    world.replace("do.a", fails_once)
    async with world.running(sweep_interval=60.0) as manager:
        saga = await manager.wait((await manager.start("s", retried(0.05))).id)
    assert saga.is_completed


async def test_what_is_due_later_than_engines_remember_is_found_by_a_sweep(world: World) -> None:
    now = 1_000.0
    config = world.config(sweep_interval=0.01)
    manager = Manager(MemoryTransport(world.broker), world.store, config, clock=lambda: now)
    with anyio.fail_after(DEADLINE):
        async with manager, anyio.create_task_group() as tasks:
            await tasks.start(manager.run)
            saga = await manager.start("s", steps("a"), options=Options(start_at=now + 86_400))
            await anyio.wait_all_tasks_blocked()
            assert world.calls == []
            now += 86_401
            assert (await manager.wait(saga.id)).is_completed
            manager.stop()


@pytest.mark.parametrize("point", [Point.COMMITTED, Point.PUBLISHING])
async def test_a_timer_whose_process_died_when_it_had_fired_is_made_good(world: World, point: Point) -> None:
    world.replace("do.a", fails_once)
    started: list[Saga] = []
    crash_now = False

    def observe(moment: Moment) -> None:
        if crash_now and moment.command is None and moment.point is point:
            raise Crash
        world.watch(moment)

    with anyio.fail_after(DEADLINE):
        async with world.manager(observer=observe, **SOON) as manager:

            async def during() -> None:
                nonlocal crash_now
                started.append(await manager.start("s", retried(0.1)))
                crash_now = True
                await anyio.sleep_forever()

            with pytest.raises(Crash):
                await run_alone(manager, during)
    assert (await world.store.load(started[0].id)).progress_of("a").attempt == 2
    assert (await world.finish(started[0].id)).is_completed
    assert world.calls == ["do.a", "do.a"]


async def test_a_handler_that_timed_out_where_the_engine_died_is_tried_again(world: World) -> None:
    """The timeout is no answer to the message, so nothing but its note brings back what it has caused."""
    step: Step[Any] = Step(
        name="a",
        action="do.a",
        compensation="undo.a",
        timeout=0.1,
        retry=RetryPolicy(initial_delay=0.0, jitter=0.0),
    )

    async def hangs_once(saga: Saga, step: Step[Any]) -> None:
        if step.attempt == 1:
            await anyio.sleep_forever()

    world.replace("do.a", hangs_once)

    def observe(moment: Moment) -> None:
        if moment.point is Point.COMMITTED and moment.command is not None:
            raise Crash

    with anyio.fail_after(DEADLINE):
        async with world.manager(observer=observe, sweep_interval=60.0, **SOON) as manager:
            with pytest.raises(Crash):
                await run_alone(manager, lambda: manager.start("s", [step]))
    (saga,) = await world.all_sagas()
    assert saga.progress_of("a").attempt == 2
    assert (await world.finish(saga.id)).is_completed


async def test_a_child_that_never_was_is_undone_although_the_engine_died(world: World) -> None:
    """The parent learns so by an order that comes again and then finds nothing to do but this."""
    child = Step(name="x", child=ChildSaga("inner", steps("b")), total_timeout=0.1)
    async with world.manager() as manager:
        saga = await manager.start("s", [*steps("a"), child])

    def observe(moment: Moment) -> None:
        if moment.point is Point.COMMITTED and moment.command is not None and moment.command.step == "x":
            raise Crash

    class Forgetful(MemoryTransport):
        """Loses the order to start the child, as if it were late."""

        async def publish(self, message: Any, settled: Any) -> None:
            if message.type == "saga.step.start_child":
                settled(None)
            else:
                await super().publish(message, settled)

    with anyio.fail_after(DEADLINE):
        async with world.manager(transport=Forgetful(world.broker), observer=observe, **SOON) as manager:
            with pytest.raises(Crash):
                await run_alone(manager, anyio.sleep_forever)
    assert (await world.finish(saga.id)).is_compensated
    assert world.calls == ["do.a", "undo.a"]


# Stores that are away ------------------------------------------------------------------------------------------------


class AwayStore(RecordingStore):
    """A store that can be taken away, and brought back."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner, [])
        self.away = False
        self.after_commit = False
        self.missed = anyio.Event()

    def check(self) -> None:
        if self.away:
            self.missed.set()
            raise StoreUnavailableError("The store is at lunch")

    async def load(self, saga_id: str) -> Saga:
        self.check()
        return await super().load(saga_id)

    async def commit(self, saga: Saga, event: Event, *, unpublished: float | None = None) -> None:
        self.check()
        await super().commit(saga, event, unpublished=unpublished)
        if self.after_commit:
            self.after_commit = False
            raise StoreUnavailableError("The answer got lost")


async def test_an_engine_waits_for_its_store_with_what_handlers_returned(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    store = AwayStore(world.store)
    entered = anyio.Event()

    async def take_the_store_away(saga: Saga, step: Step[Any]) -> None:
        store.away = True
        entered.set()

    world.replace("do.a", take_the_store_away)
    async with world.running(store=store) as manager:
        saga = await manager.start("s", steps("a", "b"))
        await entered.wait()
        await anyio.sleep(0.2)  # some tries
        assert world.watch.count(Point.ACKNOWLEDGED) == 0
        with pytest.raises(StoreUnavailableError, match="at lunch"):
            await manager.compensate(saga.id)
        store.away = False
        assert (await manager.wait(saga.id)).is_completed
    assert world.calls == ["do.a", "do.b"]
    said = [record.getMessage() for record in caplog.records if record.name == "saga_amqp.store"]
    assert len(said) == 2, said
    assert "cannot commit" in said[0]
    assert "at lunch" in said[0]
    assert "works again" in said[1]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_a_store_that_now_and_then_takes_something_is_not_said_to_be_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Like a disk that is full: what is small finds room, and what has nothing to write needs none."""
    store = AwayStore(world.store)
    looked = well = 0
    enough, again = anyio.Event(), anyio.Event()

    async def take_the_store_away(saga: Saga, step: Step[Any]) -> None:
        store.away = True

    async def claim_due(before: float, until: float, limit: int) -> Any:
        nonlocal looked, well
        looked += store.away
        if looked > 20:
            enough.set()
        well += not store.away
        if well > 1:
            again.set()  # so the call before has come to its end
        if store.away and looked % 2:
            raise StoreUnavailableError("The store is at lunch")
        return await world.store.claim_due(before, until, limit)

    store.claim_due = claim_due  # type: ignore[attr-defined]
    world.replace("do.a", take_the_store_away)
    async with world.running(store=store, sweep_interval=0.01) as manager:
        saga = await manager.start("s", steps("a", "b"))
        await enough.wait()
        store.away = False
        assert (await manager.wait(saga.id)).is_completed
        await again.wait()
    said = [record.getMessage() for record in caplog.records if record.name == "saga_amqp.store"]
    assert [line.partition(";")[0].partition(",")[0] for line in said] in (
        ["The store cannot commit", "The store cannot look for timers", "The store works again"],
        ["The store cannot look for timers", "The store cannot commit", "The store works again"],
    )


async def test_a_commit_whose_answer_got_lost_is_not_made_twice(world: World) -> None:
    store = AwayStore(world.store)

    async def lose_the_answer(saga: Saga, step: Step[Any]) -> None:
        store.after_commit = True

    world.replace("do.a", lose_the_answer)
    async with world.running(store=store) as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_completed
    assert saga.revision == 2
    assert world.calls == ["do.a", "do.b"]
    world.assert_queues_are_empty()


async def test_an_engine_stops_although_its_store_is_away(world: World) -> None:
    store = AwayStore(world.store)

    async def take_the_store_away(saga: Saga, step: Step[Any]) -> None:
        store.away = True

    world.replace("do.a", take_the_store_away)
    async with world.running(store=store, grace_period=0.1) as manager:
        saga = await manager.start("s", steps("a", "b"))
        await world.watch.until(Point.COMMITTING, 2)
    assert world.depth("saga.steps") == 1
    store.away = False
    assert (await world.finish(saga.id)).is_completed
    assert world.calls == ["do.a", "do.a", "do.b"]


# Brokers that are away -----------------------------------------------------------------------------------------------


async def test_an_engine_stops_although_its_broker_is_away(world: World) -> None:
    class Gone(RecordingTransport):
        def renewed(self) -> "RecordingTransport":
            return Unreachable(self.inner, self.log)

    class Unreachable(Gone):
        async def __aenter__(self) -> "Unreachable":
            raise ConnectionLostError("nobody there")

    transport = Gone(MemoryTransport(world.broker), [])
    async with world.running(transport=transport) as manager:
        transport.break_down(ConnectionLostError("the broker went away"))
        await anyio.sleep(0.1)
        saga = await manager.start("s", steps("a"))
        assert not saga.at_rest


async def test_an_engine_that_stops_takes_nothing_more_when_its_connection_is_back(world: World) -> None:
    """Else it would have in hand until the end of the grace period what it never begins."""
    asked, back = anyio.Event(), anyio.Event()

    class Slow(RecordingTransport):
        def renewed(self) -> "RecordingTransport":
            renewed = Slow(self.inner.renewed(), self.log, self.changes)

            @asynccontextmanager
            async def consume(*arguments: Any) -> AsyncIterator[Any]:
                asked.set()
                await back.wait()
                async with RecordingTransport.consume(renewed, *arguments) as consumer:
                    yield consumer

            renewed.consume = consume  # type: ignore[method-assign,assignment]
            return renewed

    gate = Gate()
    world.replace("do.a", gate)
    transport = Slow(MemoryTransport(world.broker), [])
    async with world.running(transport=transport, grace_period=60.0) as manager:
        running = await manager.start("s", steps("a"))
        await gate.until_running(1)
        transport.break_down(ConnectionLostError("the broker went away"))
        await asked.wait()
        late = await manager.start("s", steps("b"))
        manager.stop()
        await anyio.wait_all_tasks_blocked()
        back.set()
        gate.released.set()
    assert world.calls == ["do.a"]
    assert (await world.store.load(running.id)).is_completed
    assert (await world.finish(late.id)).is_completed


async def test_the_first_connection_fails_at_once(world: World) -> None:
    class Unreachable(MemoryTransport):
        async def __aenter__(self) -> "Unreachable":
            raise ConnectionLostError("nobody there")

    with pytest.raises(ConnectionLostError, match="nobody there"):
        async with world.manager(transport=Unreachable(world.broker)):
            raise AssertionError("there is nobody there")


@pytest.mark.parametrize("name", ["sweep_interval", "republish_after"])
@pytest.mark.parametrize("wrong", [0.0, -1.0])
def test_intervals_have_to_be_positive(name: str, wrong: float) -> None:
    changes: dict[str, Any] = {name: wrong}
    with pytest.raises(ValueError, match="positive"):
        Config(**changes)


async def test_a_commit_of_a_saga_that_was_deleted_is_not_published(world: World) -> None:
    """Nor does a timer of one do harm."""
    saga = new_saga("s", steps("a"), id="01ARZ3NDEKTSV4RRFFQ69G5FAV", at=0.0, options=Options(timeout=0.1))
    deletes: Callable[[str], Awaitable[None]] = world.store.delete

    class Deleting(RecordingStore):
        async def claim_unpublished(self, before: float, until: float, limit: int) -> Any:
            claimed = await self.inner.claim_unpublished(before, until, limit)
            for saga_id, _ in claimed:
                await deletes(saga_id)
            return claimed

    async with world.manager():
        pass  # queues that were missing would have it published
    await world.store.create(saga, unpublished=0.0)
    async with world.running(store=Deleting(world.store, [])):
        await anyio.sleep(0.3)
    assert world.calls == []
    assert await world.all_sagas() == ()


async def test_what_waits_for_the_broker_waits_in_one_task(world: World) -> None:
    class Gone(RecordingTransport):
        def renewed(self) -> "RecordingTransport":
            return Unreachable(self.inner, self.log)

    class Unreachable(Gone):
        tries = 0

        async def __aenter__(self) -> "Unreachable":
            Unreachable.tries += 1
            if Unreachable.tries < 6:
                raise ConnectionLostError("nobody there")
            await super().__aenter__()
            return self

    transport = Gone(MemoryTransport(world.broker), [])
    async with world.running(transport=transport) as manager:
        transport.break_down(ConnectionLostError("the broker went away"))
        await anyio.wait_all_tasks_blocked()
        before = len(anyio.get_running_tasks())
        sagas = []
        for _ in range(5):
            sagas.append(await manager.start("s", steps("a")))
            await anyio.sleep(0.05)  # more than notes are gathered for
        assert len(anyio.get_running_tasks()) <= before + 1
        for saga in sagas:
            assert (await manager.wait(saga.id)).is_completed
    assert world.calls == ["do.a"] * 5


# Queues that are gone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", ["saga.steps", "saga.orchestrator"])
async def test_what_a_deleted_queue_held_is_published_again(world: World, queue: str) -> None:
    child = Step(name="ship", child=ChildSaga("shipping", steps("c")))
    world.replace("do.b", failing)
    async with world.manager() as starter:
        plain = await starter.start("s", steps("a"))
        undone = await starter.start("s", steps("d", "b"))
        family = await starter.start("s", [child])
    del world.broker.queues[queue]
    async with world.running() as manager:
        assert (await manager.wait(plain.id)).is_completed
        assert (await manager.wait(undone.id)).is_compensated
        assert (await manager.wait(family.id)).is_completed
    assert Counter(world.calls) == Counter(["do.a", "do.b", "do.c", "do.d", "undo.d"])
    world.assert_queues_are_empty()


async def test_a_queue_that_is_there_is_left_alone(world: World) -> None:
    async with world.manager() as starter:
        saga = await starter.start("s", steps("a"))
    async with world.manager():
        await anyio.wait_all_tasks_blocked()
        assert world.depth("saga.steps") == 1
    assert (await world.finish(saga.id)).is_completed


async def test_a_manager_that_runs_no_handlers_makes_good_what_it_finds_missing(world: World) -> None:
    async with world.manager() as starter:
        saga = await starter.start("s", steps("a"))
    del world.broker.queues["saga.steps"]
    async with world.manager():
        await anyio.wait_all_tasks_blocked()
        assert world.depth("saga.steps") == 1
    assert (await world.finish(saga.id)).is_completed


async def test_of_many_who_find_a_queue_missing_one_declares_it(world: World) -> None:
    declared = 0

    class Slow(MemoryTransport):
        async def declare(self, topology: Topology) -> None:
            nonlocal declared
            declared += 1
            await anyio.wait_all_tasks_blocked()
            await super().declare(topology)

    broker = Reconnecting(Slow(world.broker), world.config().topology())
    async with anyio.create_task_group() as tasks:
        await broker.open(tasks)
        assert declared == 1
        async with anyio.create_task_group() as many:
            for _ in range(100):
                many.start_soon(broker.declare)
        assert declared == 2
        await broker.declare()  # who asks later may have found more
        assert declared == 3
        await broker.close()


async def test_what_was_missing_is_known_although_the_connection_was_lost_as_it_was_made(
    world: World,
) -> None:
    class Breaking(MemoryTransport):
        async def declare(self, topology: Topology) -> None:
            await super().declare(topology)
            raise ConnectionLostError("as it was made")

        def renewed(self) -> Any:
            return MemoryTransport(self.broker)

    broker = Reconnecting(MemoryTransport(world.broker), world.config().topology())
    async with anyio.create_task_group() as tasks:
        await broker.open(tasks)
        assert broker.missed()
        broker._current = Breaking(world.broker)
        del world.broker.queues["saga.steps"]
        async with broker._current:
            with pytest.raises(ConnectionLostError):
                await broker.declare()
        assert broker.missed() == {"saga.steps"}
        await broker.close()


async def failing(saga: Saga, step: Step) -> None:
    raise StepError("no", "no")
