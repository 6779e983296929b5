"""What the engine does with a message: in what order, how many at once, and what it never loses."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from saga_amqp import (
    ConflictError,
    ConnectionLostError,
    Manager,
    MemoryTransport,
    Moment,
    Point,
    RetryPolicy,
    Saga,
    SagaState,
    Step,
    StepError,
    StepState,
    StoreError,
)
from saga_amqp.contracts import Message
from saga_core import (
    Command,
    CompensateChild,
    CompensationRequested,
    Event,
    Execute,
    Report,
    StartChild,
    StepSucceeded,
    encode_command,
    fold,
    transition,
)

from .world import DEADLINE, Gate, RecordingStore, RecordingTransport, World, run_alone, steps

# Order ----------------------------------------------------------------------------------------------------------


async def test_commits_then_publishes_then_acknowledges(world: World) -> None:
    log: list[str] = []
    async with world.running(
        transport=RecordingTransport(MemoryTransport(world.broker), log),
        store=RecordingStore(world.store, log),
    ) as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b", "c"))).id)
    assert saga.is_completed
    assert log == [
        "create",
        "publish a.execute.1",
        "confirm a.execute.1",
        "commit 1",
        "publish b.execute.1",
        "confirm b.execute.1",
        "acknowledge a.execute.1",
        "commit 2",
        "publish c.execute.1",
        "confirm c.execute.1",
        "acknowledge b.execute.1",
        "commit 3",
        "acknowledge c.execute.1",
    ]


async def test_a_message_is_acknowledged_only_when_the_broker_has_confirmed_what_it_caused(
    world: World,
) -> None:
    log: list[str] = []
    transport = RecordingTransport(MemoryTransport(world.broker), log)

    async def hold_what_follows(saga: Saga, step: Step) -> None:
        transport.hold_confirms = True

    world.replace("do.a", hold_what_follows)
    async with world.running(transport=transport) as manager:
        await manager.wait((await manager.start("s", steps("a", "b"))).id)
        await anyio.wait_all_tasks_blocked()
        assert "publish b.execute.1" in log
        assert "acknowledge a.execute.1" not in log
        assert world.depth("saga.steps") == 1
        for confirm in transport.held:
            confirm()
    assert log[-2:] == ["confirm b.execute.1", "acknowledge a.execute.1"]
    world.assert_queues_are_empty()


async def test_an_observer_sees_every_point_in_order(world: World) -> None:
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    a, b = (Execute(saga.id, name, f"do.{name}", 1) for name in "ab")
    in_order = [point for point in Point if point is not Point.DEAD_LETTERED]
    handled, published = in_order[: in_order.index(Point.PUBLISHING)], [Point.PUBLISHING, Point.PUBLISHED]

    def seen(command: Execute | None) -> list[Point]:
        return [moment.point for moment in world.watch.moments if moment.command == command]

    assert seen(None) == [Point.COMMITTING, Point.COMMITTED, *published]
    assert seen(a) == [*handled, *published, Point.ACKNOWLEDGING, Point.ACKNOWLEDGED] == in_order
    assert seen(b) == [*handled, Point.ACKNOWLEDGING, Point.ACKNOWLEDGED]
    assert {moment.saga_id for moment in world.watch.moments} == {saga.id}


async def test_an_observer_costs_nothing_when_there_is_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*arguments: object) -> Moment:
        raise AssertionError("nobody watches, and a moment was made")

    monkeypatch.setattr("saga_amqp.config.Moment", made)
    async with world.running(observer=None) as manager:
        saga = await manager.start("s", steps("a"))
        assert (await manager.wait(saga.id)).is_completed
        await manager.compensate(saga.id)


# Concurrency ----------------------------------------------------------------------------------------------------


async def test_messages_are_handled_concurrently(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running() as manager:
        for _ in range(50):
            await manager.start("s", steps("a"))
        await gate.until_running(50)
        gate.released.set()
    world.assert_queues_are_empty()


async def test_the_concurrency_limit_holds_for_steps_and_compensations_together(world: World) -> None:
    gate = Gate()
    world.replace("do.b", gate)
    world.replace("undo.a", gate)
    async with world.running(concurrency=3) as manager:
        sagas = [await manager.start("s", steps("a", "b")) for _ in range(10)]
        await gate.until_running(3)
        await anyio.wait_all_tasks_blocked()
        assert gate.running == 3
        gate.released.set()
        sagas = [await manager.wait(saga.id) for saga in sagas]
        for saga in sagas:
            await manager.compensate(saga.id)
        for saga in sagas:
            assert (await manager.wait(saga.id)).is_compensated
    assert gate.most == 3


async def test_one_slow_saga_holds_up_no_other(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running(concurrency=2) as manager:
        slow = await manager.start("slow", steps("a"))
        for _ in range(20):
            quick = await manager.start("quick", steps("b", "c"))
            assert (await manager.wait(quick.id)).is_completed
        assert (await manager.get(slow.id)).state is SagaState.STARTED
        gate.released.set()
        assert (await manager.wait(slow.id)).is_completed


async def test_two_engines_share_the_work_and_do_every_step_once(world: World) -> None:
    async with world.running(concurrency=2) as one, world.running(concurrency=2):
        sagas = [await one.start("s", steps("a", "b", "c")) for _ in range(20)]
        for saga in sagas:
            assert (await one.wait(saga.id)).is_completed
    assert sorted(world.calls) == sorted(["do.a", "do.b", "do.c"] * 20)
    world.assert_queues_are_empty()


# Handlers that fail ---------------------------------------------------------------------------------------------


async def test_a_handler_that_raises_fails_its_step_and_the_saga_is_undone(world: World) -> None:
    async def broken(saga: Saga, step: Step) -> None:
        raise ValueError("no such product")

    world.replace("do.c", broken)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b", "c", "d"))).id)
    assert saga.is_compensated
    assert [step.state for step in saga.steps] == [
        StepState.COMPENSATED,
        StepState.COMPENSATED,
        StepState.FAILED,
        StepState.PENDING,
    ]
    error = saga.step("c").error
    assert error is not None
    assert (error.code, error.message, error.retryable) == ("ValueError", "no such product", True)
    assert world.calls == ["do.a", "do.b", "do.c", "undo.b", "undo.a"]
    world.assert_queues_are_empty()


async def test_a_compensation_that_raises_leaves_the_saga_failed_with_its_error(world: World) -> None:
    async def broken(saga: Saga, step: Step) -> None:
        raise StepError("bank_closed", "try on Monday", retryable=True, details={"day": "Sunday"})

    world.replace("do.c", broken)
    world.replace("undo.b", broken)
    a, b, c = steps("a", "b", "c")
    b = replace(b, compensation_retry=RetryPolicy(max_attempts=1))
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", [a, b, c])).id)
    assert saga.is_failed
    assert [step.state for step in saga.steps] == [StepState.COMPLETED, StepState.FAILED, StepState.FAILED]
    error = saga.step("b").error
    assert error is not None
    assert (error.code, error.message, error.retryable) == ("bank_closed", "try on Monday", True)
    assert bytes(error.details) == b'{"day":"Sunday"}'
    assert saga.step("b").output == {"from": "b"}
    world.assert_queues_are_empty()


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"socket": object()}, "object"),
        ({"items": {1, 2, object()}}, "object"),
        ([1, 2], "must be a JSON object (a dict, Struct or dataclass), not list"),
        ("text", "not str"),
        ({"rate": float("nan")}, "NaN"),
        ({"name": "\ud800"}, "surrogate"),
    ],
    ids=["object", "set", "list", "str", "nan", "surrogate"],
)
async def test_an_output_that_cannot_be_encoded_fails_the_step(
    world: World, output: object, says: str
) -> None:
    async def returns(saga: Saga, step: Step) -> object:
        return output

    world.replace("do.b", returns)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_compensated
    error = saga.step("b").error
    assert error is not None
    assert error.code == "invalid_payload"
    assert not error.retryable
    assert says in error.message
    assert "'do.b'" in error.message
    assert saga.id in error.message
    assert world.calls == ["do.a", "do.b", "undo.a"]


async def test_what_a_compensation_returns_is_nobodys_business(world: World) -> None:
    async def returns(saga: Saga, step: Step) -> object:
        return object()

    world.replace("undo.a", returns)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a"))).id)
        await manager.compensate(saga.id)
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    assert saga.step("a").output == {"from": "a"}


async def test_several_errors_of_one_handler_are_all_told(world: World) -> None:
    async def broken(saga: Saga, step: Step) -> None:
        raise ExceptionGroup("both", [ValueError("one"), ExceptionGroup("", [KeyError("two")])])

    world.replace("do.a", broken)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a"))).id)
    error = saga.step("a").error
    assert error is not None
    assert (error.code, error.message) == ("ExceptionGroup", "ValueError: one; KeyError: 'two'")


async def test_a_step_error_from_a_handlers_own_task_group_keeps_what_it_says(world: World) -> None:
    async def declined() -> None:
        raise StepError("card_declined", "no money")

    async def broken(saga: Saga, step: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(declined)

    world.replace("do.a", broken)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a"))).id)
    error = saga.step("a").error
    assert error is not None
    assert (error.code, error.message, error.retryable) == ("card_declined", "no money", False)


async def test_errors_beside_a_cancellation_fail_the_step(world: World) -> None:
    async def broken(saga: Saga, step: Step) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.lowlevel.checkpoint()
            except BaseException as cancelled:
                kept = cancelled
                raise
        raise BaseExceptionGroup("both", [kept, ValueError("no")])

    world.replace("do.b", broken)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_compensated
    error = saga.step("b").error
    assert error is not None
    assert (error.code, error.message) == ("ValueError", "no")


async def test_an_error_that_cannot_be_printed_does_no_harm(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class HostileError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    async def broken(saga: Saga, step: Step) -> None:
        raise HostileError

    world.replace("do.a", broken)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a"))).id)
    error = saga.step("a").error
    assert error is not None
    assert (error.code, error.message) == ("HostileError", "<HostileError that cannot be printed>")


async def test_an_unexpected_error_is_logged_with_its_traceback_and_a_step_error_without(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def unexpected(saga: Saga, step: Step) -> None:
        raise ValueError("a bug")

    async def expected(saga: Saga, step: Step) -> None:
        raise StepError("declined", "no money")

    world.replace("do.a", unexpected)
    world.replace("do.b", expected)
    with caplog.at_level(logging.INFO, logger="saga_amqp"):
        async with world.running() as manager:
            for name in "ab":
                await manager.wait((await manager.start("s", steps(name))).id)
    bug, declined = caplog.records
    assert bug.levelno == logging.WARNING
    assert bug.exc_info is not None
    assert "ValueError: a bug" in bug.getMessage()
    assert declined.levelno == logging.INFO
    assert not declined.exc_info
    assert "declined: no money" in declined.getMessage()


# Handlers that are cancelled, or end the program ------------------------------------------------------------------


# Only asyncio can cancel one task: on trio a cancellation always comes through a scope.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("from_inside", [True, False])
@pytest.mark.parametrize("operation", ["do", "undo"])
async def test_a_handler_that_is_cancelled_alone_gets_its_message_again(
    world: World, from_inside: bool, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[Any] = []

    async def cancelled_once(saga: Saga, step: Step) -> object:
        tasks.append(asyncio.current_task())
        if len(tasks) == 1:
            if from_inside:
                tasks[0].cancel()
            await anyio.sleep_forever()
        return {"time": len(tasks)}

    world.replace(f"{operation}.a", cancelled_once)
    async with world.running() as manager:
        started = await manager.start("s", steps("a", "b"))
        if operation == "undo":
            await manager.wait(started.id)
            await manager.compensate(started.id)
        if not from_inside:
            await anyio.wait_all_tasks_blocked()
            tasks[0].cancel()
        saga = await manager.wait(started.id)
    assert saga.state is (SagaState.COMPLETED if operation == "do" else SagaState.COMPENSATED)
    assert len(tasks) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "A handler was cancelled from outside; its message goes back to the queue: "
        + str(
            next(m.command for m in world.watch.moments if m.command and m.command.action == f"{operation}.a")
        )
    ]
    world.assert_queues_are_empty()


async def test_cancelling_run_cancels_its_handlers_and_gives_their_messages_back(world: World) -> None:
    gate = Gate()
    world.replace("do.b", gate)
    with anyio.fail_after(DEADLINE):
        async with world.manager() as manager, anyio.create_task_group() as tasks:
            await tasks.start(manager.run)
            sagas = [await manager.start("s", steps("a", "b")) for _ in range(3)]
            await gate.until_running(3)
            tasks.cancel_scope.cancel()
    assert gate.cancelled == 3
    assert world.depth("saga.steps") == 3
    gate.released.set()
    for saga in sagas:
        assert (await world.finish(saga.id)).is_completed
    assert world.calls.count("do.a") == 3
    assert world.calls.count("do.b") == 6


async def test_cancelling_run_starts_no_further_handler(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    with anyio.fail_after(DEADLINE):
        async with world.manager(concurrency=1, prefetch=10) as manager, anyio.create_task_group() as tasks:
            await tasks.start(manager.run)
            for _ in range(10):
                await manager.start("s", steps("a"))
            await gate.until_running(1)
            tasks.cancel_scope.cancel()
    assert world.calls == ["do.a"]
    assert world.depth("saga.steps") == 10


async def test_messages_come_back_in_their_old_order(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running(concurrency=1, prefetch=10) as manager:
        sagas = [await manager.start("s", steps("a")) for _ in range(10)]
        await gate.until_running(1)
        manager.stop()
        await anyio.wait_all_tasks_blocked()
        waiting = [held.message.id[:26] for held in world.broker.queues["saga.steps"].ready]
        gate.released.set()
    assert waiting == [saga.id for saga in sagas[1:]]


class Overload(BaseException):
    """Neither an Exception nor known to anybody."""


@pytest.mark.parametrize(
    "ending",
    [
        KeyboardInterrupt(),
        SystemExit(3),
        Overload(),
        BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError("also")]),
    ],
    ids=["KeyboardInterrupt", "SystemExit", "another", "BaseExceptionGroup"],
)
@pytest.mark.parametrize("operation", ["do", "undo"])
async def test_what_is_no_exception_ends_run_as_it_is_and_no_message_is_lost(
    world: World, ending: BaseException, operation: str
) -> None:
    gate = Gate()
    world.replace("do.c", gate)

    async def ends(saga: Saga, step: Step) -> None:
        await gate.entered.wait()
        raise ending

    world.replace(f"{operation}.b", ends)
    with anyio.fail_after(DEADLINE):
        async with world.manager() as manager:

            async def during() -> None:
                started.append(await manager.start("other", steps("c")))
                await gate.until_running(1)
                started.append(await manager.start("s", steps("a", "b")))
                if operation == "undo":
                    await manager.wait(started[1].id)
                    await manager.compensate(started[1].id)

            started: list[Saga] = []
            with pytest.raises(type(ending)) as raised:
                await run_alone(manager, during)
            assert raised.value is ending
            assert gate.cancelled == 1
            assert world.depth("saga.steps") == (2 if operation == "do" else 1)
            assert world.depth("saga.compensate") == (0 if operation == "do" else 1)
    world.services.replaced.clear()
    finished = await world.finish(started[1].id)
    assert finished.state is (SagaState.COMPLETED if operation == "do" else SagaState.COMPENSATED)
    assert (await world.finish(started[0].id)).is_completed


async def test_an_interrupt_is_not_lost_when_run_is_being_cancelled(world: World) -> None:
    async def ends(saga: Saga, step: Step) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    world.replace("do.a", ends)
    with anyio.fail_after(DEADLINE):
        async with world.manager() as manager:
            scope = anyio.CancelScope()

            async def during() -> None:
                await manager.start("s", steps("a"))
                await world.watch.until(Point.HANDLER_BEGAN)
                scope.cancel()

            with scope, pytest.raises(KeyboardInterrupt):
                await run_alone(manager, during)
    assert world.depth("saga.steps") == 1


async def test_an_interrupt_outranks_an_earlier_error(world: World) -> None:
    async def ends(saga: Saga, step: Step) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    def observe(moment: Moment) -> None:
        world.watch(moment)
        if moment.command is not None and moment.command.step == "b":
            raise Crash

    world.replace("do.a", ends)
    with anyio.fail_after(DEADLINE):
        async with world.manager(observer=observe) as manager:

            async def during() -> None:
                await manager.start("s", steps("a"))
                await world.watch.until(Point.HANDLER_BEGAN)
                await manager.start("s", steps("b"))
                await anyio.sleep_forever()

            with pytest.raises(KeyboardInterrupt):
                await run_alone(manager, during)


# Stopping -------------------------------------------------------------------------------------------------------


async def test_stop_lets_running_handlers_finish(world: World) -> None:
    gate = Gate(output={"done": True})
    world.replace("do.a", gate)
    async with world.running() as manager:
        saga = await manager.start("s", steps("a", "b"))
        await gate.until_running(1)
        manager.stop()
        await anyio.wait_all_tasks_blocked()
        assert gate.cancelled == 0
        gate.released.set()
    stopped = await world.store.load(saga.id)
    assert stopped.step("a").output == {"done": True}
    assert world.calls == ["do.a"]
    assert world.depth("saga.steps") == 1
    assert (await world.finish(saga.id)).is_completed


async def test_after_the_grace_period_handlers_are_cancelled_and_their_messages_come_again(
    world: World,
) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running(grace_period=0.05) as manager:
        saga = await manager.start("s", steps("a"))
        await gate.until_running(1)
    assert gate.cancelled == 1
    assert (await world.store.load(saga.id)).revision == 0
    assert world.broker.queues["saga.steps"].ready[0].deliveries == 1
    gate.released.set()
    assert (await world.finish(saga.id)).is_completed
    assert world.calls == ["do.a", "do.a"]


async def test_stop_starts_nothing_new_and_others_can_have_what_waits(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running(concurrency=1, prefetch=20) as manager:
        first = await manager.start("s", steps("a"))
        await gate.until_running(1)
        waiting = [await manager.start("s", steps("b")) for _ in range(5)]
        manager.stop()
        # The first engine still has a handler running; a second one takes over the rest meanwhile.
        async with world.running() as other:
            for saga in waiting:
                assert (await other.wait(saga.id)).is_completed
        assert gate.running == 1
        gate.released.set()
    assert (await world.store.load(first.id)).is_completed
    world.assert_queues_are_empty()


async def test_a_handler_that_fails_because_the_engine_ends_has_not_failed(world: World) -> None:
    async def cannot_be_interrupted(saga: Saga, step: Step) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            raise ValueError("half done") from None

    world.replace("do.a", cannot_be_interrupted)
    async with world.running(grace_period=0) as manager:
        saga = await manager.start("s", steps("a"))
        await world.watch.until(Point.HANDLER_BEGAN)
    assert (await world.store.load(saga.id)).revision == 0
    world.services.replaced.clear()
    assert (await world.finish(saga.id)).is_completed


async def test_a_handler_that_fails_within_the_grace_period_has_failed(world: World) -> None:
    gate = Gate()

    async def fails(saga: Saga, step: Step) -> None:
        await gate(saga, step)
        raise ValueError("no")

    world.replace("do.a", fails)
    async with world.running() as manager:
        saga = await manager.start("s", steps("a"))
        await gate.until_running(1)
        manager.stop()
        gate.released.set()
    assert (await world.store.load(saga.id)).is_compensated
    world.assert_queues_are_empty()


async def test_a_handler_that_finishes_in_spite_of_its_cancellation_is_not_run_again(world: World) -> None:
    async def stubborn(saga: Saga, step: Step) -> object:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return {"done": "all the same"}

    world.replace("do.a", stubborn)
    async with world.running(grace_period=0) as manager:
        saga = await manager.start("s", steps("a"))
        await world.watch.until(Point.HANDLER_BEGAN)
    finished = await world.finish(saga.id)
    assert finished.is_completed
    assert world.calls == ["do.a"] or finished.step("a").output == {"from": "a"}


async def test_an_engine_with_nothing_to_do_stops_at_once(world: World) -> None:
    async with world.running(grace_period=60):
        pass


# Commits that meet others -----------------------------------------------------------------------------------------


async def test_a_conflict_is_decided_anew_without_running_the_handler_again(world: World) -> None:
    store = RecordingStore(world.store, [])

    async def somebody_else_was_first(saga: Saga, event: Event) -> None:
        if isinstance(event, StepSucceeded):
            store.before_commit = None
            before = await world.store.load(saga.id)
            asked = CompensationRequested("test", 1.0)
            await world.store.commit(transition(before, asked).saga, asked)

    store.before_commit = somebody_else_was_first
    async with world.running(store=store) as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_compensated
    assert world.calls == ["do.a", "undo.a"]
    assert saga.step("a").output == {"from": "a"}
    world.assert_queues_are_empty()


async def test_conflicts_are_met_with_patience(world: World) -> None:
    store = RecordingStore(world.store, [])
    left = 20

    async def conflict(saga: Saga, event: Event) -> None:
        nonlocal left
        if left:
            left -= 1
            raise ConflictError("somebody else was first")

    store.before_commit = conflict
    async with world.running(store=store) as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_completed
    assert world.calls == ["do.a", "do.b"]


async def test_a_result_that_somebody_else_committed_first_is_published_all_the_same(world: World) -> None:
    """The other one may have died before it published; a duplicate does no harm."""
    store = RecordingStore(world.store, [])

    async def same_result(saga: Saga, event: Event) -> None:
        store.before_commit = None
        await world.store.commit(saga, event)

    store.before_commit = same_result
    async with world.running(store=store) as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_completed
    assert saga.revision == 2
    world.assert_queues_are_empty()


async def test_a_store_that_fails_ends_run_as_it_is_and_the_message_comes_again(world: World) -> None:
    store = RecordingStore(world.store, [])
    failure = StoreError("the disk is full")

    async def full(saga: Saga, event: Event) -> None:
        raise failure

    store.before_commit = full
    with anyio.fail_after(DEADLINE):
        async with world.manager(store=store) as manager:
            with pytest.raises(StoreError) as raised:
                await run_alone(manager, lambda: manager.start("s", steps("a")))
            assert raised.value is failure
    (saga,) = await world.all_sagas()
    assert (await world.finish(saga.id)).is_completed


async def test_a_saga_deleted_while_its_handler_runs_leaves_a_dead_letter_and_no_harm(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running() as manager:
        saga = await manager.start("s", steps("a", "b"))
        await gate.until_running(1)
        await world.store.delete(saga.id)
        gate.released.set()
        other = await manager.start("s", steps("b"))
        assert (await manager.wait(other.id)).is_completed
    world.assert_queues_are_empty(dead_letters=1)


# Transports that fail ----------------------------------------------------------------------------------------------


async def test_handlers_go_on_while_the_connection_is_lost_and_their_messages_find_them(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    log: list[str] = []
    transport = RecordingTransport(MemoryTransport(world.broker), log)
    async with world.running(transport=transport) as manager:
        sagas = [await manager.start("s", steps("a", "b")) for _ in range(3)]
        await gate.until_running(3)
        transport.break_down(ConnectionLostError("the broker went away"))
        await transport.changes.until(lambda: transport.next is not None and transport.next.deliveries == 3)
        gate.released.set()
        for saga in sagas:
            assert (await manager.wait(saga.id)).is_completed
    assert world.calls == ["do.a"] * 3 + ["do.b"] * 3
    assert gate.cancelled == 0
    assert gate.most == 3
    world.assert_queues_are_empty()


async def test_what_cannot_be_published_is_published_when_its_message_comes_again(world: World) -> None:
    log: list[str] = []
    transport = RecordingTransport(MemoryTransport(world.broker), log)

    async def break_the_way_back(saga: Saga, step: Step) -> None:
        transport.break_down(ConnectionLostError("the broker went away"))

    world.replace("do.b", break_the_way_back)
    async with world.running(transport=transport) as manager:
        saga = await manager.start("s", steps("a", "b", "c"))
        assert (await manager.wait(saga.id)).is_completed
    assert world.calls == ["do.a", "do.b", "do.c"], "its result was committed; it must not run again"
    assert log.count("publish c.execute.1") == 1
    world.assert_queues_are_empty()


async def test_a_confirm_that_is_lost_with_its_connection_acknowledges_nothing(world: World) -> None:
    transport = RecordingTransport(MemoryTransport(world.broker), log := [])
    transport.hold_confirms = True
    async with world.manager() as starter:
        saga = await starter.start("s", steps("a", "b"))
    async with world.running(transport=transport) as manager:
        await transport.changes.until(lambda: bool(transport.held))
        transport.hold_confirms = False
        transport.fail_held(ConnectionLostError("the broker went away"))
        transport.break_down(ConnectionLostError("the broker went away"))
        assert (await manager.wait(saga.id)).is_completed
        await transport.changes.until(lambda: world.depth("saga.steps") == 0)
    assert log.index("requeue a.execute.1") < log.index("acknowledge a.execute.1")
    assert sorted(world.calls) == ["do.a", "do.b"]
    world.assert_queues_are_empty()


async def test_a_queue_that_has_lost_its_bindings_is_declared_again(world: World) -> None:
    world.replace("do.b", StepFailing())
    async with world.running() as manager:
        world.broker.queues["saga.compensate"].declared = replace(
            world.broker.queues["saga.compensate"].declared, bindings=()
        )
        saga = await manager.wait((await manager.start("s", steps("a", "b", "c"))).id)
    assert saga.is_compensated
    assert world.calls == ["do.a", "do.b", "undo.a"]
    world.assert_queues_are_empty()


async def test_exchanges_that_were_deleted_are_declared_again(world: World) -> None:
    async def delete_them(saga: Saga, step: Step) -> None:
        world.broker.exchanges.clear()

    world.replace("do.a", delete_them)
    async with world.running() as manager:
        assert set(world.broker.exchanges) == {"sagas", "sagas.direct"}
        world.broker.exchanges.clear()
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_completed
    assert world.calls == ["do.a", "do.b"]
    world.assert_queues_are_empty()


class StepFailing:
    async def __call__(self, saga: Saga, step: Step) -> None:
        raise StepError("no", "no")


# Crashes ----------------------------------------------------------------------------------------------------------


class Crash(Exception):
    """The process ends here, as far as this engine is concerned."""


def _raise() -> None:
    raise Crash


async def _live_through_crashes(
    world: World, at: int, crash: Callable[[Manager, anyio.CancelScope], object]
) -> bool:
    """Run a saga whose third step fails; crash at the given moment; let a second engine finish. Did it crash?"""
    crashed = False

    async def never_twice(saga: Saga, step: Step) -> object:
        """Fail the test when a handler runs after its result was committed (invariant I3)."""
        now = (await world.store.load(saga.id)).step(step.name)
        assert now.state in (StepState.STARTED, StepState.COMPENSATING)
        if step.name == "c":
            raise StepError("no", "no")
        return {"step": step.name}

    for letter in "abc":
        world.replace(f"do.{letter}", never_twice)
        world.replace(f"undo.{letter}", never_twice)
    with anyio.fail_after(DEADLINE):

        def observe(moment: Moment) -> None:
            nonlocal crashed
            if moment.command is None:
                return
            world.watch(moment)
            if len(world.watch.moments) == at + 1:
                crashed = True
                crash(manager, scope)

        async with world.manager(observer=observe) as manager:
            with anyio.CancelScope() as scope:

                async def during() -> None:
                    await manager.wait((await manager.start("s", steps("a", "b", "c"))).id)
                    await anyio.wait_all_tasks_blocked()
                    manager.stop()

                try:
                    await run_alone(manager, during)
                except Crash:
                    assert crashed
    (saga,) = await world.all_sagas()
    saga = await world.finish(saga.id)
    assert saga.is_compensated
    origin, events = await world.store.history(saga.id)
    assert fold(origin, events) == saga
    assert len(events) == saga.revision == 5
    assert [step.compensation_attempt for step in saga.steps] == [1, 1, 0]
    if not crashed:
        assert world.calls == ["do.a", "do.b", "do.c", "undo.b", "undo.a"]
    return crashed


@pytest.mark.parametrize("how", ["the observer raises", "run is cancelled"])
async def test_a_crash_at_any_point_is_made_good_by_the_next_engine(how: str) -> None:
    for at in range(100):
        world = World()
        if how == "run is cancelled":
            crashed = await _live_through_crashes(world, at, lambda manager, scope: scope.cancel())
        else:
            crashed = await _live_through_crashes(world, at, lambda manager, scope: _raise())
        if not crashed:
            assert at == 43, "5 messages pass 9 points each, but the last one has nothing to publish"
            break
    else:
        raise AssertionError("never came to an end")


@pytest.mark.parametrize("point", [point for point in Point if point is not Point.DEAD_LETTERED])
async def test_an_observer_that_raises_ends_run_with_its_error(world: World, point: Point) -> None:
    failure = Crash()

    def observe(moment: Moment) -> None:
        if moment.command is not None and moment.point is point:
            raise failure

    with anyio.fail_after(DEADLINE):
        async with world.manager(observer=observe) as manager:
            with pytest.raises(Crash) as raised:
                await run_alone(manager, lambda: manager.start("s", steps("a", "b")))
            assert raised.value is failure
    (saga,) = await world.all_sagas()
    assert (await world.finish(saga.id)).is_completed


async def test_a_redelivered_message_whose_result_is_committed_runs_no_handler(world: World) -> None:
    """Died between commit and publish: the message is the only trace of what is outstanding."""
    log: list[str] = []

    def die(moment: Moment) -> None:
        if moment.command is not None and moment.point is Point.COMMITTED:
            raise Crash

    with anyio.fail_after(DEADLINE):
        async with world.manager(observer=die) as manager:
            with pytest.raises(Crash):
                await run_alone(manager, lambda: manager.start("s", steps("a", "b")))
    (saga,) = await world.all_sagas(SagaState.STARTED)
    assert saga.revision == 1
    transport = RecordingTransport(MemoryTransport(world.broker), log)
    assert (await world.finish(saga.id, transport=transport)).is_completed
    assert world.calls == ["do.a", "do.b"]
    assert log == [
        "publish b.execute.1",
        "confirm b.execute.1",
        "acknowledge a.execute.1",
        "acknowledge b.execute.1",
    ]


async def test_a_duplicate_of_a_message_long_done_changes_nothing(world: World) -> None:
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
        transport = MemoryTransport(world.broker)
        for name in "ab":
            command = Execute(saga.id, name, f"do.{name}", 1)
            async with transport:
                await transport.publish(world.config().message(command), lambda error: None)
        await world.watch.until(Point.ACKNOWLEDGED, 4)
        assert await manager.get(saga.id) == saga
    assert world.calls == ["do.a", "do.b"]
    world.assert_queues_are_empty()


async def test_a_result_of_another_attempt_is_not_asked_for(world: World) -> None:
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a"))).id)
        async with MemoryTransport(world.broker) as transport:
            for attempt in (0, 2):
                command = Execute(saga.id, "a", "do.a", attempt)
                await transport.publish(world.config().message(command), lambda error: None)
        await world.watch.until(Point.ACKNOWLEDGED, 3)
    assert world.calls == ["do.a"]
    world.assert_queues_are_empty()


# Messages that cannot be used ---------------------------------------------------------------------------------------


def _message(body: bytes) -> Message:
    return Message("sagas", "execute.do.a", body, "from-elsewhere", "saga.step.execute")


UNKNOWN_SAGA = encode_command(Execute("01ARZ3NDEKTSV4RRFFQ69G5FAV", "a", "do.a", 1))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no message of this library"),
        (b"\xff\xfe", "no message of this library"),
        (b"[]", "no message of this library"),
        (b'{"operation":"dance"}', "dance"),
        (b"[" * 100_000, "no message of this library"),
        (UNKNOWN_SAGA, "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        (UNKNOWN_SAGA[:-1] + b',"version":99}', "version"),
    ],
    ids=["empty", "bytes", "list", "unknown operation", "deep", "unknown saga", "later version"],
)
async def test_a_message_that_cannot_be_used_is_a_dead_letter_and_blocks_nobody(
    world: World, body: bytes, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.running(concurrency=1, prefetch=1) as manager:
        async with MemoryTransport(world.broker) as transport:
            await transport.publish(_message(body), lambda error: None)
        saga = await manager.start("s", steps("a"))
        assert (await manager.wait(saga.id)).is_completed
    world.assert_queues_are_empty(dead_letters=1)
    assert world.broker.queues["saga.dead-letter"].ready[0].message.body == body
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert says in record.getMessage()
    assert "from-elsewhere" in record.getMessage()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (lambda saga: Execute(saga.id, "z", "do.a", 1), "has no step 'z'"),
        (lambda saga: StartChild(saga.id, "a", 1, saga.id), "has no step 'a' with a child saga"),
        (lambda saga: CompensateChild(saga.id, "a", 1, saga.id), "has no step 'a' with a child saga"),
        (lambda saga: Report(saga.id, "a", 1, saga.id, saga.state), "has no step 'a' with a child saga"),
    ],
    ids=["execute", "start child", "compensate child", "report"],
)
async def test_a_message_for_a_step_that_its_saga_does_not_have_is_a_dead_letter(
    world: World, command: Callable[[Saga], Command], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.replace("do.a", gate := Gate())
    async with world.running() as manager:
        saga = await manager.start("s", steps("a"))
        async with MemoryTransport(world.broker) as transport:
            await transport.publish(_message(encode_command(command(saga))), lambda error: None)
            await anyio.wait_all_tasks_blocked()
        gate.released.set()
        assert (await manager.wait(saga.id)).is_completed, "whoever runs it was left alone"
    world.assert_queues_are_empty(dead_letters=1)
    (record,) = caplog.records
    assert says in record.getMessage()


async def test_a_worker_without_the_handler_fails_the_step_and_the_saga_is_undone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.manager() as manager:
        saga = await manager.start("s", steps("a", "b"))
    handlers = {name: one for name, one in world.services.handlers("do").items() if name != "do.b"}
    saga = await world.finish(saga.id, step_handlers=handlers, dead_letters=1)
    assert saga.is_compensated
    error = saga.step("b").error
    assert error is not None
    assert error.code == "no_handler"
    assert "'do.b'" in error.message
    assert world.calls == ["do.a", "undo.a"]
    (record,) = caplog.records
    assert saga.id in record.getMessage()


async def test_a_worker_without_the_compensation_fails_the_saga_and_says_so(world: World) -> None:
    world.replace("do.b", StepFailing())
    async with world.manager() as manager:
        saga = await manager.start("s", steps("a", "b"))
    saga = await world.finish(saga.id, compensation_handlers={}, dead_letters=1)
    assert saga.is_failed
    error = saga.step("a").error
    assert error is not None
    assert error.code == "no_handler"
    assert saga.step("a").state is StepState.FAILED


# Bounds -------------------------------------------------------------------------------------------------------------


async def test_no_more_than_prefetch_messages_of_a_queue_are_taken(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running(concurrency=2, prefetch=3) as manager:
        for _ in range(10):
            await manager.start("s", steps("a"))
        await gate.until_running(2)
        assert len(world.broker.queues["saga.steps"].ready) == 7
        gate.released.set()
        for saga in await manager.list_active():
            await manager.wait(saga.id)
    world.assert_queues_are_empty()


async def test_an_engine_keeps_nothing_of_what_is_done(world: World) -> None:
    import gc
    import weakref

    from saga_amqp.engine import InHand

    async with world.running(observer=None) as manager:
        for _ in range(20):
            await manager.wait((await manager.start("s", steps("a", "b"))).id)
        await anyio.wait_all_tasks_blocked()
        engine = weakref.ref(manager._life._engine)  # type: ignore[arg-type]
        gc.collect()
        left = [one for one in gc.get_objects() if isinstance(one, InHand) and one._engine is engine()]
        assert left == []
    del manager
    gc.collect()
    assert engine() is None


# Only asyncio has tasks that anybody can cancel.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_run_can_be_cancelled_as_an_asyncio_task(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    with anyio.fail_after(DEADLINE):
        async with world.manager(concurrency=2) as manager:
            running = asyncio.create_task(manager.run())
            for _ in range(5):
                await manager.start("s", steps("a"))
            await gate.until_running(2)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
    assert gate.cancelled == 2
    assert world.calls == ["do.a", "do.a"]
    assert world.depth("saga.steps") == 5
