"""The defects of the package whose vocabulary this library keeps, each as the behaviour that is right here.

What the Go package `saga` does is told in the first line of each test. Some of it is proven in more depth elsewhere.
"""

import anyio
import pytest

from saga_amqp import MemoryTransport, Moment, Point, Saga, SagaState, Step, StepError, StepState
from saga_core import Execute, new_saga, outstanding

from .world import DEADLINE, Gate, World, run_alone, steps


async def fails(saga: Saga, step: Step) -> None:
    raise StepError("no", "no")


async def test_messages_go_through_the_exchange_that_is_configured_to_the_configured_queues(
    world: World,
) -> None:
    """There: to the default exchange with fixed keys, so that compensations reach a queue that nobody reads."""
    world.replace("do.b", fails)
    names = {
        "saga_exchange": "shop",
        "step_queue": "shop.forward",
        "compensate_queue": "shop.back",
        "orchestrator_queue": "shop.saga",
        "dead_letter_queue": "shop.dead",
    }
    async with world.manager(**names) as manager:
        saga = await manager.start("s", steps("a", "b"))
        assert world.depth("shop.forward") == 1
        (message,) = (held.message for held in world.broker.queues["shop.forward"].ready)
        assert message.exchange == "shop.direct"
    async with world.running(**names) as manager:
        assert (await manager.wait(saga.id)).is_compensated
        sent = {moment.command for moment in world.watch.moments if moment.point is Point.RECEIVED}
    assert len(sent) == 3
    assert world.calls == ["do.a", "do.b", "undo.a"]
    assert {queue: world.depth(queue) for queue in world.broker.queues} == {
        "shop.forward": 0,
        "shop.saga": 0,
        "shop.back": 0,
        "shop.dead": 0,
    }


async def test_handlers_run_side_by_side(world: World) -> None:
    """There: one message at a time, whatever is configured."""
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running(concurrency=10) as manager:
        for _ in range(10):
            await manager.start("s", steps("a"))
        await gate.until_running(10)
        gate.released.set()


async def test_a_crash_between_saving_a_step_and_sending_the_next_loses_nothing(world: World) -> None:
    """There: the saga waits for ever, for a message that was never sent."""

    def crash(moment: Moment) -> None:
        if moment.command is not None and moment.point is Point.COMMITTED:
            raise RuntimeError("the process ends here")

    with anyio.fail_after(DEADLINE):
        async with world.manager(observer=crash) as manager:
            with pytest.raises(RuntimeError, match="ends here"):
                await run_alone(manager, lambda: manager.start("s", steps("a", "b")))
    (saga,) = await world.all_sagas(SagaState.STARTED)
    assert (await world.finish(saga.id)).is_completed
    assert world.calls == ["do.a", "do.b"]


async def test_a_crash_between_saving_a_saga_and_sending_its_first_step_can_be_seen_in_the_store(
    world: World,
) -> None:
    """There: nothing tells that the message is missing. Here the stored state alone says what has to be out."""
    saga = new_saga("s", steps("a", "b"), id="01ARZ3NDEKTSV4RRFFQ69G5FAV", at=1.0)
    await world.store.create(saga)
    (active,) = await world.all_sagas(SagaState.STARTED)
    assert outstanding(active) == (Execute(saga.id, "a", "do.a", 1),)


async def test_a_redelivered_step_is_not_run_again_and_does_not_advance_the_saga_again(world: World) -> None:
    """There: the handler runs again, and the step after it is started a second time."""
    gate = Gate()
    world.replace("do.b", gate)
    async with world.running() as manager:
        saga = await manager.start("s", steps("a", "b", "c"))
        await gate.until_running(1)
        async with MemoryTransport(world.broker) as transport:
            again = world.config().message(Execute(saga.id, "a", "do.a", 1))
            await transport.publish(again, lambda error: None)
        # What `a` caused is still outstanding, so it is sent again: harmless, since one result is applied.
        await world.watch.until(Point.ACKNOWLEDGED, 2)
        gate.released.set()
        saga = await manager.wait(saga.id)
        await anyio.wait_all_tasks_blocked()
    assert saga.is_completed
    assert saga.revision == 3
    assert world.calls.count("do.a") == 1
    assert world.calls.count("do.c") == 1
    world.assert_queues_are_empty()


async def test_compensations_run_one_after_the_other_in_reverse_order(world: World) -> None:
    """There: all of them are sent at once, and run in any order."""
    gate = Gate()
    world.replace("undo.c", gate)
    world.replace("do.d", fails)
    async with world.running() as manager:
        saga = await manager.start("s", steps("a", "b", "c", "d"))
        await gate.until_running(1)
        await anyio.wait_all_tasks_blocked()
        assert world.calls == ["do.a", "do.b", "do.c", "do.d", "undo.c"]
        gate.released.set()
        assert (await manager.wait(saga.id)).is_compensated
    assert world.calls[4:] == ["undo.c", "undo.b", "undo.a"]


async def test_a_step_that_never_ran_is_not_compensated(world: World) -> None:
    """There: every step with a compensation gets one, also the steps behind the one that failed."""
    world.replace("do.a", fails)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_compensated
    assert world.calls == ["do.a"]


async def test_a_failed_compensation_never_counts_as_compensated(world: World) -> None:
    """There: it is written down as compensated, and the output that a person would need is erased."""
    world.replace("do.b", fails)
    world.replace("undo.a", fails)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_failed
    assert saga.step("a").state is StepState.FAILED
    assert saga.step("a").error is not None
    assert saga.step("a").output == {"from": "a"}


async def test_a_missing_compensation_handler_never_counts_as_compensated(world: World) -> None:
    """There: as above."""
    world.replace("do.b", fails)
    async with world.manager() as manager:
        saga = await manager.start("s", steps("a", "b"))
    saga = await world.finish(saga.id, compensation_handlers={}, dead_letters=1)
    assert saga.is_failed
    error = saga.step("a").error
    assert error is not None
    assert error.code == "no_handler"
    assert saga.step("a").output == {"from": "a"}


async def test_what_failed_to_be_undone_can_be_undone_later(world: World) -> None:
    """There: such a saga can only be listed."""
    world.replace("do.b", fails)
    world.replace("undo.a", fails)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
        del world.services.replaced["undo.a"]
        await manager.compensate(saga.id)
        assert (await manager.wait(saga.id)).is_compensated


async def test_a_handler_that_breaks_does_not_leave_its_saga_waiting(world: World) -> None:
    """There: the message of a handler that panics is acknowledged, and nothing ever happens again."""

    async def breaks(saga: Saga, step: Step) -> object:
        return step.input["no such key"]

    world.replace("do.b", breaks)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_compensated
    error = saga.step("b").error
    assert error is not None
    assert (error.code, error.message) == ("KeyError", "'no such key'")


async def test_a_handler_that_ends_the_program_leaves_its_message_in_the_queue(world: World) -> None:
    """There: as above."""

    async def ends(saga: Saga, step: Step) -> None:
        raise SystemExit(1)

    world.replace("do.a", ends)
    with anyio.fail_after(DEADLINE):
        async with world.manager() as manager:
            with pytest.raises(SystemExit):
                await run_alone(manager, lambda: manager.start("s", steps("a")))
    assert world.depth("saga.steps") == 1


async def test_sagas_in_memory_are_not_shared_with_those_who_hold_them(world: World) -> None:
    """There: by reference, so that any handler and any caller can change what is stored."""
    async with world.manager() as manager:
        saga = await manager.start("s", steps("a"), {"customer": {"id": 1}})
        context = saga.context
        assert isinstance(context["customer"], dict)
        context["customer"]["id"] = 2
        saga.steps[0].input["new"] = True
        assert (await manager.get(saga.id)).context == {"customer": {"id": 1}}
        assert (await manager.get(saga.id)).steps[0].input == {}
        with pytest.raises(AttributeError):
            saga.state = SagaState.COMPLETED  # type: ignore[misc]


async def test_a_saga_can_be_tried_out_without_a_broker(world: World) -> None:
    """There: not at all."""
    async with world.running() as manager:
        saga = await manager.start("s", steps("a", "b", "c"))
        assert (await manager.wait(saga.id)).is_completed
