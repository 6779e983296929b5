"""Sagas through a real broker: many at once, workers that are killed, ways that are cut, handlers that misbehave."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from saga_amqp import Manager, Moment, Point, Saga, SagaState, Step, StepError, StepState
from saga_amqp.contracts import Message
from saga_amqp.transports.amqp.transport import AmqpTransport
from saga_core import Execute, fold
from tests.engine.world import Gate, nothing, run_alone, steps

from .proxy import proxy_to
from .worker import SAGA_ID, the_saga
from .world import DEADLINE, RabbitWorld, Worker

SAGAS = 1000
AT_ONCE = 100


# Many at once ----------------------------------------------------------------------------------------------------


@pytest.mark.uvloop
async def test_of_a_thousand_orders_each_ends_as_it_should_and_every_call_is_accounted_for(
    rabbit: RabbitWorld,
) -> None:
    """500 complete; 500 fail in their third step, and their two completed steps are undone in reverse order."""
    calls: dict[str, list[str]] = defaultdict(list)
    most = 0

    def service(name: str, *, fails: bool = False) -> Callable[[Saga, Step[Any]], Awaitable[object]]:
        async def call(saga: Saga, step: Step[Any]) -> dict[str, object]:
            calls[saga.id].append(name)
            if fails and saga.context["declined"]:
                raise StepError("card_declined", "no money")
            return {"from": name}

        return call

    handlers = {f"do.{name}": service(f"do.{name}", fails=name == "c") for name in "abc"}
    compensations = {f"undo.{name}": service(f"undo.{name}") for name in "abc"}
    ended: dict[str, Saga] = {}

    async def orders(manager: Manager, numbers: list[int]) -> None:
        nonlocal most
        while numbers:
            declined = numbers.pop() % 2 == 0
            saga = await manager.start("order", steps("a", "b", "c"), {"declined": declined})
            most = max(most, len(await manager.list_active()))
            saga = ended[saga.id] = await manager.wait(saga.id)
            assert saga.state is (SagaState.COMPENSATED if declined else SagaState.COMPLETED)

    async with rabbit.running(
        step_handlers=handlers, compensation_handlers=compensations, observer=None, concurrency=AT_ONCE
    ) as manager:
        numbers = list(range(SAGAS))
        async with anyio.create_task_group() as customers:
            for _ in range(AT_ONCE):
                customers.start_soon(orders, manager, numbers)
    assert most == AT_ONCE
    good, undone = ["do.a", "do.b", "do.c"], ["do.a", "do.b", "do.c", "undo.b", "undo.a"]
    assert Counter(map(tuple, calls.values())) == {tuple(good): SAGAS // 2, tuple(undone): SAGAS // 2}
    assert calls.keys() == ended.keys()
    assert all(calls[saga.id] == (undone if saga.is_compensated else good) for saga in ended.values())
    assert {tuple(step.state for step in saga.steps) for saga in ended.values() if saga.is_compensated} == {
        (StepState.COMPENSATED, StepState.COMPENSATED, StepState.FAILED)
    }
    await rabbit.until_ready()


async def test_two_managers_share_the_work_and_do_every_step_once(rabbit: RabbitWorld) -> None:
    gate = Gate()
    rabbit.replace("do.a", gate)
    limits = {"concurrency": 1, "prefetch": 1}
    async with rabbit.running(**limits) as one, rabbit.running(**limits) as two:
        sagas = [await manager.start("s", steps("a", "b", "c")) for manager in (one, two) * 5]
        await gate.until_running(2)  # one handler in each
        gate.released.set()
        for saga in sagas:
            assert (await one.wait(saga.id)).is_completed
    assert sorted(rabbit.calls) == sorted(["do.a", "do.b", "do.c"] * 10)
    await rabbit.until_ready()


# Workers that are killed -------------------------------------------------------------------------------------------


async def test_a_step_whose_worker_is_killed_is_done_by_another_process(
    rabbit: RabbitWorld, anyio_backend_name: str
) -> None:
    arguments = (rabbit.url, rabbit.prefix, anyio_backend_name)
    async with AmqpTransport(rabbit.url) as transport:
        await transport.declare(rabbit.config().topology())
        confirmed = anyio.Event()
        message = rabbit.config().message(Execute(SAGA_ID, "a", "do.a", 1))
        await transport.publish(message, lambda error: confirmed.set() if error is None else None)
        with anyio.fail_after(DEADLINE):
            await confirmed.wait()
    async with Worker.start(*arguments, "hang") as first:
        said = await first.until("handling")
        assert {"delivered": "a.execute.1", "redelivered": False} in said
        assert rabbit.ready() == [0, 0, 0, 0]
        await first.kill()
    await rabbit.until_ready(steps=1)
    async with Worker.start(*arguments, "work") as second:
        said = await second.until("state")
        assert await second.ended() == 0
    assert {"delivered": "a.execute.1", "redelivered": True} in said
    assert [one["handling"] for one in said if "handling" in one] == ["a", "b"]
    assert said[-1] == {"state": "completed", "outputs": [{"done": "a"}, {"done": "b"}]}
    await rabbit.until_ready()


async def test_a_worker_that_runs_already_takes_over_at_once(
    rabbit: RabbitWorld, anyio_backend_name: str
) -> None:
    async with rabbit.manager():
        pass  # queues that were missing would have sagas published
    await rabbit.store.create(the_saga())
    async with Worker.start(rabbit.url, rabbit.prefix, anyio_backend_name, "hang") as worker:
        await worker.until("running")
        async with rabbit.manager() as manager:
            published = anyio.Event()
            message = rabbit.config().message(Execute(SAGA_ID, "a", "do.a", 1))
            async with AmqpTransport(rabbit.url) as transport:
                await transport.publish(message, lambda error: published.set())
                with anyio.fail_after(DEADLINE):
                    await published.wait()
            assert await worker.until("handling") == [
                {"delivered": "a.execute.1", "redelivered": False},
                {"handling": "a"},
            ]
            with anyio.fail_after(DEADLINE):
                async with anyio.create_task_group() as tasks:
                    await tasks.start(manager.run)
                    await worker.kill()
                    assert (await manager.wait(SAGA_ID)).is_completed
                    manager.stop()
    assert rabbit.calls == ["do.a", "do.b"]
    await rabbit.until_ready()


# Ways that are cut --------------------------------------------------------------------------------------------------


async def test_handlers_go_on_while_the_connection_is_lost_and_their_messages_find_them(
    rabbit: RabbitWorld,
) -> None:
    gate = Gate()
    rabbit.replace("do.b", gate)
    async with proxy_to(rabbit.url) as proxy:
        with anyio.fail_after(DEADLINE):
            async with rabbit.running(transport=AmqpTransport(proxy.url)) as manager:
                sagas = [await manager.start("s", steps("a", "b", "c")) for _ in range(20)]
                await gate.until_running(20)
                proxy.cut()
                sagas += [await manager.start("s", steps("a", "b", "c")) for _ in range(5)]
                await gate.until_running(25)  # these came over the next connection
                gate.released.set()
                for saga in sagas:
                    assert (await manager.wait(saga.id)).is_completed
                await rabbit.until_all_is_acknowledged()
    assert gate.cancelled == 0
    # An acknowledgement that was on its way is lost with the connection. Then what that message had caused is sent
    # once more, and finds its handler running, or its result committed.
    assert Counter(rabbit.calls) == {"do.a": 25, "do.b": 25, "do.c": 25}
    await rabbit.until_ready()


async def test_a_connection_lost_in_full_swing_costs_no_saga_and_no_second_result(
    rabbit: RabbitWorld,
) -> None:
    async def never_after_its_result(saga: Saga, step: Step[Any]) -> dict[str, object]:
        now = (await rabbit.store.load(saga.id)).step(step.name)
        assert now.state in (StepState.STARTED, StepState.COMPENSATING)
        if step.name == "c" and saga.context["declined"]:
            raise StepError("card_declined", "no money")
        return {"done": step.name}

    for name in "abc":
        rabbit.replace(f"do.{name}", never_after_its_result)
        rabbit.replace(f"undo.{name}", never_after_its_result)
    cuts = [50, 150, 250, 500, 700]

    async with proxy_to(rabbit.url) as proxy:
        acknowledged = 0

        def cut(moment: Moment) -> None:
            nonlocal acknowledged
            rabbit.watch(moment)
            acknowledged += moment.point is Point.ACKNOWLEDGED
            if cuts and acknowledged >= cuts[0]:
                del cuts[0]
                proxy.cut()

        async with rabbit.running(transport=AmqpTransport(proxy.url), observer=cut) as manager:

            async def customer(declined: bool) -> None:
                saga = await manager.wait(
                    (await manager.start("s", steps("a", "b", "c"), {"declined": declined})).id
                )
                assert saga.state is (SagaState.COMPENSATED if declined else SagaState.COMPLETED)

            async with anyio.create_task_group() as customers:
                for number in range(300):
                    customers.start_soon(customer, number % 2 == 0)
            await rabbit.until_all_is_acknowledged()
    assert cuts == []
    sagas = (await rabbit.store.find(limit=1_000)).sagas
    assert len(sagas) == 300
    for rested in sagas:
        origin, events = await rabbit.store.history(rested.id)
        assert fold(origin, events) == rested
        assert len(events) == (5 if rested.context["declined"] else 3)
    await rabbit.until_ready()


@pytest.mark.parametrize("point", [point for point in Point if point is not Point.DEAD_LETTERED])
async def test_a_crash_at_any_point_is_made_good_by_the_next_engine(
    rabbit: RabbitWorld, point: Point
) -> None:
    class Crash(Exception):
        pass

    def crash(moment: Moment) -> None:
        if moment.command is not None and moment.point is point:
            raise Crash

    with anyio.fail_after(DEADLINE):
        async with rabbit.manager(observer=crash) as manager:
            with pytest.raises(Crash):
                await run_alone(manager, lambda: manager.start("s", steps("a", "b")))
    (saga,) = await rabbit.all_sagas()
    (finished,) = await rabbit.finish(saga.id)
    assert finished.is_completed
    assert finished.revision == 2
    await rabbit.until_ready()


# Handlers that misbehave ---------------------------------------------------------------------------------------------


async def test_a_handler_that_raises_is_a_failed_step(rabbit: RabbitWorld) -> None:
    async def broken(saga: Saga, step: Step) -> None:
        raise ValueError("no such product")

    rabbit.replace("do.b", broken)
    async with rabbit.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_compensated
    error = saga.step("b").error
    assert error is not None
    assert (error.code, error.message) == ("ValueError", "no such product")
    assert rabbit.calls == ["do.a", "do.b", "undo.a"]
    await rabbit.until_ready()


async def test_an_output_that_cannot_be_encoded_is_a_failed_step(rabbit: RabbitWorld) -> None:
    async def returns(saga: Saga, step: Step) -> object:
        return {"socket": object()}

    rabbit.replace("do.b", returns)
    async with rabbit.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_compensated
    error = saga.step("b").error
    assert error is not None
    assert error.code == "invalid_payload"
    await rabbit.until_ready()


# Only asyncio can cancel one task: on trio a cancellation always comes through a scope.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_handler_that_is_cancelled_alone_gets_its_message_again(rabbit: RabbitWorld) -> None:
    attempts = 0

    async def cancelled_once(saga: Saga, step: Step) -> None:
        nonlocal attempts
        attempts += 1
        task = asyncio.current_task()
        if attempts == 1 and task is not None:
            task.cancel()
            await anyio.sleep_forever()

    rabbit.replace("do.a", cancelled_once)
    async with rabbit.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
    assert saga.is_completed
    assert attempts == 2
    await rabbit.until_ready()


@pytest.mark.parametrize("grace_period", [0.0, None], ids=["the grace period is over", "run is cancelled"])
async def test_a_handler_that_is_cancelled_with_its_engine_runs_again_in_the_next(
    rabbit: RabbitWorld, grace_period: float | None
) -> None:
    gate = Gate()
    rabbit.replace("do.a", gate)
    with anyio.fail_after(DEADLINE):
        async with rabbit.manager(grace_period=grace_period or 0.0) as manager:

            async def during() -> None:
                await manager.start("s", steps("a", "b"))
                await gate.until_running(1)
                if grace_period is None:
                    scope.cancel()
                else:
                    manager.stop()

            with anyio.CancelScope() as scope:
                await run_alone(manager, during)
    assert gate.cancelled == 1
    await rabbit.until_ready(steps=1)
    gate.released.set()
    (saga,) = await rabbit.all_sagas(SagaState.STARTED)
    assert saga.revision == 0
    (saga,) = await rabbit.finish(saga.id)
    assert saga.is_completed
    await rabbit.until_ready()


async def test_a_base_exception_group_ends_run_and_its_message_comes_again(rabbit: RabbitWorld) -> None:
    ending = BaseExceptionGroup("several", [SystemExit(3), ValueError("also")])

    async def ends(saga: Saga, step: Step) -> None:
        raise ending

    rabbit.replace("do.b", ends)
    with anyio.fail_after(DEADLINE):
        async with rabbit.manager() as manager:
            with pytest.raises(BaseExceptionGroup) as raised:
                await run_alone(manager, lambda: manager.start("s", steps("a", "b")))
            assert raised.value is ending
    await rabbit.until_ready(steps=1)
    rabbit.replace("do.b", nothing)
    (saga,) = await rabbit.all_sagas(SagaState.STARTED)
    (saga,) = await rabbit.finish(saga.id)
    assert saga.is_completed
    await rabbit.until_ready()


async def test_a_message_that_cannot_be_used_is_a_dead_letter_and_blocks_nobody(rabbit: RabbitWorld) -> None:
    async with rabbit.running(concurrency=1, prefetch=1) as manager:
        async with AmqpTransport(rabbit.url) as transport:
            done = anyio.Event()
            message = Message(f"{rabbit.prefix}.sagas", "execute.do.a", b"\xff", "from-elsewhere", "t")
            await transport.publish(message, lambda error: done.set())
            await done.wait()
        saga = await manager.start("s", steps("a"))
        assert (await manager.wait(saga.id)).is_completed
    await rabbit.until_ready(dead_letters=1)
