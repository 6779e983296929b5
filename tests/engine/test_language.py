"""The language of sagas through an engine: retries, timers, callbacks, children, and what people ask for."""

import time
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from msgspec import Raw
from msgspec.structs import replace

from saga_amqp import (
    ChildSaga,
    Defer,
    MemoryTransport,
    Moment,
    Options,
    Point,
    RefusedError,
    Registry,
    RetryPolicy,
    Saga,
    SagaState,
    Skip,
    Step,
    StepError,
    StepState,
    when,
)
from saga_core import (
    ChildRested,
    Command,
    CompensateChild,
    CompensationFailed,
    CompensationRequested,
    Event,
    Failure,
    StepFailed,
    StepSucceeded,
    TokenError,
    Transition,
    fold,
    transition,
)

from .world import DEADLINE, Gate, RecordingStore, World, nothing, steps

SOON = RetryPolicy(max_attempts=3, initial_delay=0.01, jitter=0)
ONCE = RetryPolicy(max_attempts=1)


class Flaky:
    """A handler that fails so many times, and then succeeds."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.attempts: list[int] = []

    async def __call__(self, saga: Saga, step: Step) -> dict[str, object]:
        self.attempts.append(step.attempt)
        self.left -= 1
        if self.left >= 0:
            raise StepError("busy", "not now", retryable=True)
        return {"done": True}


async def check_history(world: World, saga: Saga) -> None:
    origin, events = await world.store.history(saga.id)
    assert fold(origin, events) == saga


async def test_parallel_steps_run_at_the_same_time(world: World) -> None:
    left, right = Gate(), Gate()
    world.replace("do.b", left)
    world.replace("do.c", right)
    a, b, c, d = steps("a", "b", "c", "d")
    graph = [a, b, replace(c, depends_on=("a",)), replace(d, depends_on=("b", "c"))]
    async with world.running() as manager:
        saga = await manager.start("order", graph)
        await left.entered.wait()
        await right.entered.wait()
        left.released.set()
        right.released.set()
        saga = await manager.wait(saga.id)
    assert saga.is_completed
    assert world.calls[0] == "do.a"
    assert world.calls[-1] == "do.d"
    await check_history(world, saga)


async def test_a_failed_attempt_is_followed_by_the_next_one_after_its_delay(world: World) -> None:
    flaky = Flaky(2)
    world.replace("do.a", flaky)
    async with world.running() as manager:
        saga = await manager.start("order", [replace(steps("a")[0], retry=SOON)])
        saga = await manager.wait(saga.id)
    assert saga.is_completed
    assert flaky.attempts == [1, 2, 3]
    await check_history(world, saga)


async def test_a_failed_compensation_is_tried_again(world: World) -> None:
    flaky = Flaky(2)
    world.replace("undo.a", flaky)
    async with world.running() as manager:
        saga = await manager.start("order", [replace(steps("a")[0], compensation_retry=SOON)])
        await manager.wait(saga.id)
        await manager.compensate(saga.id)
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    assert saga.steps[0].compensation_attempt == 3


async def test_an_attempt_that_times_out_is_cancelled_where_it_runs_and_undone(world: World) -> None:
    stuck = Gate()
    world.replace("do.b", stuck)
    a, b = steps("a", "b")
    async with world.running() as manager:
        saga = await manager.start("order", [a, replace(b, timeout=0.05)])
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    assert stuck.cancelled == 1
    assert world.calls == ["do.a", "do.b", "undo.b", "undo.a"]
    assert saga.steps[1].error is not None
    assert saga.steps[1].error.code == "timeout"
    await check_history(world, saga)


async def test_a_timeout_holds_when_no_worker_has_the_message(world: World) -> None:
    async with world.manager() as starter:
        saga = await starter.start("order", [replace(steps("a")[0], timeout=0.05)])
    world.broker.queues["saga.steps"].ready.clear()  # the message is lost, and its worker with it
    saga = await world.finish(saga.id)
    assert saga.is_compensated
    assert world.calls == ["undo.a"]


async def test_a_saga_that_starts_later_waits_for_its_moment(world: World) -> None:
    start_at = time.time() + 0.1
    async with world.running() as manager:
        saga = await manager.start("order", steps("a"), options=Options(start_at=start_at))
        assert saga.steps[0].state is StepState.PENDING
        saga = await manager.wait(saga.id)
    assert saga.is_completed
    assert saga.updated_at >= start_at
    await check_history(world, saga)


async def test_a_handler_skips_its_step_and_a_condition_does(world: World) -> None:
    async def no_need(saga: Saga, step: Step) -> Skip:
        return Skip("nothing to approve")

    world.replace("do.a", no_need)
    a, b, c = steps("a", "b", "c")
    async with world.running() as manager:
        saga = await manager.start("order", [a, replace(b, when=when("express")), c], {"express": False})
        saga = await manager.wait(saga.id)
    assert [step.state for step in saga.steps] == [StepState.SKIPPED, StepState.SKIPPED, StepState.COMPLETED]
    assert world.calls == ["do.a", "do.c"]


class Later:
    """A handler that defers, and keeps the token for whoever calls back."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.called = anyio.Event()

    async def __call__(self, saga: Saga, step: Step) -> Defer:
        self.tokens.append(step.token)
        self.called.set()
        return Defer()


async def deferred(world: World, times: int = 1) -> None:
    """Wait until a deferral is committed."""
    await world.watch.until(Point.ACKNOWLEDGED, times)


async def test_a_callback_completes_a_deferred_step_once(world: World) -> None:
    later = Later()
    world.replace("do.a", later)
    async with world.running() as manager:
        saga = await manager.start("order", steps("a", "b"))
        await deferred(world)
        await manager.complete(later.tokens[0], {"paid": 10})
        saga = await manager.wait(saga.id)
        assert await manager.complete(later.tokens[0], {"paid": 11}) == saga
        assert await manager.fail(later.tokens[0], StepError("late", "too late")) == saga
    assert saga.is_completed
    assert saga.steps[0].output == {"paid": 10}
    assert world.calls == ["do.a", "do.b"]
    await check_history(world, saga)


async def test_a_callback_fails_a_deferred_step(world: World) -> None:
    later = Later()
    world.replace("do.b", later)
    async with world.running() as manager:
        saga = await manager.start("order", steps("a", "b"))
        await deferred(world, 2)
        await manager.fail(later.tokens[0], StepError("declined", "no money"))
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    assert world.calls == ["do.a", "do.b", "undo.a"]


async def test_a_callback_may_come_before_the_handler_has_said_later(world: World) -> None:
    manager_of: list[Any] = []

    async def hasty(saga: Saga, step: Step) -> Defer:
        await manager_of[0].complete(step.token, {"early": True})
        return Defer()

    world.replace("do.a", hasty)
    async with world.running() as manager:
        manager_of.append(manager)
        saga = await manager.start("order", steps("a"))
        saga = await manager.wait(saga.id)
    assert saga.steps[0].output == {"early": True}


async def test_a_wrong_token_changes_nothing_and_says_so(world: World) -> None:
    later = Later()
    world.replace("do.a", later)
    async with world.running() as manager:
        saga = await manager.start("order", steps("a"))
        await deferred(world)
        before = await manager.get(saga.id)
        for token in (later.tokens[0][:-1] + "x", f"{saga.id}.0.execute.1.0", "nonsense", ""):
            with pytest.raises(TokenError):
                await manager.complete(token)
        assert await manager.get(saga.id) == before


def family(**child_changes: Any) -> list[Step[Any]]:
    a, b, c = steps("a", "b", "c")
    child = ChildSaga("shipping", [replace(b, **child_changes)])
    return [a, Step(name="ship", child=child), c]


async def test_a_step_starts_a_child_saga_and_ends_with_it(world: World) -> None:
    async with world.running() as manager:
        saga = await manager.start("order", family())
        saga = await manager.wait(saga.id)
    assert saga.is_completed
    assert world.calls == ["do.a", "do.b", "do.c"]
    await check_history(world, saga)
    world.assert_queues_are_empty()


async def test_a_child_that_fails_undoes_its_parent(world: World) -> None:
    world.replace("do.b", Flaky(1))
    async with world.running() as manager:
        saga = await manager.start("order", family())
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    assert world.calls == ["do.a", "do.b", "undo.a"]


async def test_a_parent_that_fails_undoes_its_child(world: World) -> None:
    world.replace("do.c", Flaky(1))
    async with world.running() as manager:
        saga = await manager.start("order", family())
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    assert world.calls == ["do.a", "do.b", "do.c", "undo.b", "undo.a"]
    await check_history(world, saga)
    world.assert_queues_are_empty()


async def test_a_child_that_cannot_be_undone_leaves_its_parent_to_a_person(world: World) -> None:
    async def broken(saga: Saga, step: Step) -> None:
        raise StepError("broken", "cannot be undone")

    world.replace("do.c", Flaky(1))
    world.replace("undo.b", broken)
    async with world.running() as manager:
        saga = await manager.start("order", family(compensation_retry=ONCE))
        saga = await manager.wait(saga.id)
        assert saga.is_failed
        assert saga.steps[1].error is not None
        assert saga.steps[1].error.code == "child_failed"
        world.replace("undo.b", nothing)
        await manager.retry(saga.id, reason="repaired")
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    assert world.calls[-2:] == ["undo.b", "undo.a"]


async def test_a_child_past_its_pivot_leaves_its_parent_to_a_person(world: World) -> None:
    world.replace("do.c", Flaky(1))
    async with world.running() as manager:
        saga = await manager.start("order", family(pivot=True))
        saga = await manager.wait(saga.id)
    assert saga.is_failed
    assert saga.steps[1].error is not None
    assert saga.steps[1].error.code == "child_past_pivot"
    assert world.calls == ["do.a", "do.b", "do.c"]


async def test_a_child_that_was_never_started_needs_no_undoing(world: World) -> None:
    async with world.manager() as starter:
        _, ship, _ = family()
        saga = await starter.start("order", [replace(ship, timeout=0.05)])
    world.broker.queues["saga.orchestrator"].ready.clear()
    saga = await world.finish(saga.id)
    assert saga.is_compensated
    assert world.calls == []


async def test_a_child_that_was_undone_before_it_was_ordered_to_be_is_not_waited_for(world: World) -> None:
    """Its report comes while its parent waits for another step, and is let go just after the order was given."""
    ordered, told = anyio.Event(), anyio.Event()

    class Slow(RecordingStore):
        async def history(self, saga_id: str) -> Any:
            found = await self.inner.history(saga_id)
            told.set()
            await ordered.wait()
            return found

    def observe(moment: Moment) -> None:
        world.watch(moment)
        if moment.point is Point.ACKNOWLEDGED and isinstance(moment.command, CompensateChild):
            ordered.set()

    beside, inside = Gate(), Gate()
    world.replace("do.a", beside)
    world.replace("do.b", inside)
    a, ship, _ = family()
    parent = [replace(a, depends_on=()), replace(ship, depends_on=(), timeout=0.1)]
    async with world.running(store=Slow(world.store, []), observer=observe) as manager:
        saga = await manager.start("order", parent)
        await beside.until_running(1)
        await inside.until_running(1)
        await world.watch.until(Point.COMMITTED, 2)  # the start, and that the child's time is over
        (child,) = [one for one in await world.all_sagas() if one.id != saga.id]
        await manager.cancel(child.id)
        inside.released.set()
        with anyio.fail_after(DEADLINE):
            await told.wait()
        beside.released.set()
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    world.assert_queues_are_empty()


async def test_a_report_is_not_taken_for_an_old_one_by_an_engine_that_has_fallen_behind(world: World) -> None:
    """It remembers a parent that waits for the end of its child. Others have since ordered the child to be undone."""
    inside = Gate()
    world.replace("do.b", inside)

    async def elsewhere(saga_id: str, *events: Event) -> Sequence[Command]:
        answer = Transition(await world.store.load(saga_id))
        for event in events:
            answer = transition(answer.saga, event)
            await world.store.commit(answer.saga, event)
        return answer.commands

    async with world.running() as manager, MemoryTransport(world.broker) as broker:
        saga = await manager.start("order", family(compensation_retry=ONCE))
        await inside.until_running(1)
        (child,) = [one for one in await world.all_sagas() if one.id != saga.id]
        at, broken = child.updated_at, Failure("broken", "for good")
        await elsewhere(
            saga.id,
            ChildRested("ship", 1, child.id, SagaState.COMPLETED, at),
            StepFailed("c", 1, broken, at),
        )
        (report,) = await elsewhere(
            child.id,
            StepSucceeded("b", 1, Raw(b"{}"), at),
            CompensationRequested("ordered", at, attempt=1),
            CompensationFailed("b", 1, broken, at),
        )
        await broker.publish(world.config().message(report), lambda error: None)
        saga = await manager.wait(saga.id)
        inside.released.set()
    assert saga.is_failed
    assert saga.steps[1].error is not None
    assert saga.steps[1].error.code == "child_failed"


async def test_what_people_ask_for_is_done_or_refused(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running() as manager:
        saga = await manager.start("order", steps("a", "b", "c"))
        await gate.entered.wait()
        await manager.suspend(saga.id, by="the night shift")
        with pytest.raises(RefusedError, match="suspended already"):
            await manager.suspend(saga.id)
        gate.released.set()
        await deferred(world)
        assert world.calls == ["do.a"]
        await manager.skip(saga.id, "b", reason="no need", by="the day shift")
        with pytest.raises(RefusedError):
            await manager.skip(saga.id, "a", reason="too late")
        await manager.resume(saga.id)
        saga = await manager.wait(saga.id)
        with pytest.raises(RefusedError):
            await manager.cancel(saga.id)
        with pytest.raises(RefusedError):
            await manager.resolve(saga.id, "a", "completed", reason="it is")
    assert [step.state for step in saga.steps] == [
        StepState.COMPLETED,
        StepState.SKIPPED,
        StepState.COMPLETED,
    ]
    await check_history(world, saga)


async def test_a_saga_stuck_behind_its_pivot_goes_on_when_a_person_resolves_the_step(world: World) -> None:
    async def broken(saga: Saga, step: Step) -> None:
        raise StepError("broken", "never works")

    world.replace("do.b", broken)
    a, b, c = steps("a", "b", "c")
    async with world.running() as manager:
        saga = await manager.start("order", [replace(a, pivot=True), b, c])
        saga = await manager.wait(saga.id)
        assert saga.state is SagaState.FAILED
        with pytest.raises(RefusedError, match="pivot"):
            await manager.compensate(saga.id)
        await manager.resolve(saga.id, "b", "completed", reason="sent by hand", output={"by": "hand"})
        saga = await manager.wait(saga.id)
    assert saga.is_completed
    assert saga.steps[1].output == {"by": "hand"}
    assert world.calls == ["do.a", "do.b", "do.c"]


async def test_an_action_says_its_policies_once(world: World) -> None:
    shop = Registry()
    flaky = Flaky(1)

    @shop.action("payment.charge", retry=SOON, timeout=30)
    async def charge(saga: Saga, step: Step) -> dict[str, object]:
        return await flaky(saga, step)

    @charge.compensation("payment.refund", retry=ONCE, timeout=5)
    async def refund(saga: Saga, step: Step) -> None: ...

    step = charge.step({"amount": 5}, name="pay")
    assert (step.retry, step.timeout, step.compensation_retry, step.compensation_timeout) == (
        SOON,
        30,
        ONCE,
        5,
    )
    async with world.running(step_handlers={}, compensation_handlers={}, registries=(shop,)) as manager:
        saga = await manager.start("order", [step])
        saga = await manager.wait(saga.id)
    assert saga.is_completed
    assert flaky.attempts == [1, 2]
