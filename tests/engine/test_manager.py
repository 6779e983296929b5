"""The user's door: what can be asked of a manager, when, and what it says to a mistake."""

import contextvars
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec import Struct

from saga_amqp import (
    Config,
    ConnectionLostError,
    Manager,
    ManagerError,
    MemoryBroker,
    MemoryStore,
    MemoryTransport,
    Moment,
    Point,
    Registry,
    Saga,
    SagaError,
    SagaExistsError,
    SagaNotFoundError,
    SagaState,
    Step,
    StepError,
    StepState,
    TopologyError,
    TransportClosedError,
    TransportError,
)
from saga_amqp.contracts import Message
from saga_core import DefinitionError, PayloadError, UnknownStepError, encode_saga

from .world import DEADLINE, Gate, RecordingTransport, World, nothing, run_alone, steps

UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


# The quick start -------------------------------------------------------------------------------------------------


async def test_the_quick_start_runs_as_it_is_written() -> None:
    deleted: list[object] = []

    async def create_order(saga: Saga, step: Step) -> dict[str, object]:
        return {"order_id": f"order-of-{saga.context['customer_id']}", "quantity": step.input["quantity"]}

    async def delete_order(saga: Saga, step: Step) -> None:
        deleted.append(step.output["order_id"])

    async def charge_payment(saga: Saga, step: Step) -> dict[str, object]:
        if step.input["payment_method"] == "card-declined":
            raise StepError("card_declined", "no money")
        return {"transaction_id": step.idempotency_key()}

    config = Config(
        saga_exchange="sagas",
        step_queue="saga.steps",
        compensate_queue="saga.compensate",
        step_handlers={"orders.create": create_order, "payment.charge": charge_payment},
        compensation_handlers={"orders.delete": delete_order, "payment.refund": nothing},
    )
    transport, store = MemoryTransport(), MemoryStore()

    def order(card: str) -> list[Step]:
        return [
            Step(
                name="create_order",
                action="orders.create",
                compensation="orders.delete",
                input={"product_id": "prod-123", "quantity": 2},
            ),
            Step(
                name="charge_payment",
                action="payment.charge",
                compensation="payment.refund",
                input={"amount": 99.99, "payment_method": card},
            ),
        ]

    with anyio.fail_after(DEADLINE):
        async with Manager(transport, store, config) as manager, anyio.create_task_group() as tg:
            await tg.start(manager.run)
            context = {"customer_id": "cust-789", "order_total": 99.99}
            saga = await manager.start("order_processing", order("card-456"), context)
            saga = await manager.wait(saga.id)
            assert saga.is_completed
            assert saga.step("create_order").output == {"order_id": "order-of-cust-789", "quantity": 2}
            saga = await manager.start("order_processing", order("card-declined"), context)
            saga = await manager.wait(saga.id)
            assert saga.is_compensated
            manager.stop()
    assert deleted == ["order-of-cust-789"]


async def test_the_saga_that_start_returns_is_stored_and_under_way(world: World) -> None:
    async with world.manager() as manager:
        saga = await manager.start("order", steps("a", "b"), {"customer": "c-1"})
        assert (saga.name, saga.context, saga.state, saga.revision) == (
            "order",
            {"customer": "c-1"},
            SagaState.STARTED,
            0,
        )
        assert [step.state for step in saga.steps] == [StepState.STARTED, StepState.PENDING]
        assert encode_saga(await manager.get(saga.id)) == encode_saga(saga)
    assert world.depth("saga.steps") == 1


async def test_context_can_be_a_struct_or_nothing(world: World) -> None:
    class Order(Struct):
        customer: str

    async with world.manager() as manager:
        assert (await manager.start("s", steps("a"), Order("c-1"))).context == {"customer": "c-1"}
        assert (await manager.start("s", steps("a"))).context == {}


async def test_the_clock_and_the_ids_are_the_callers(world: World) -> None:
    ids = iter([UNKNOWN, UNKNOWN])
    now = 100.0

    async def takes_a_second(saga: Saga, step: Step) -> None:
        nonlocal now
        now += 1

    world.replace("do.a", takes_a_second)
    world.replace("do.b", takes_a_second)
    manager = Manager(
        MemoryTransport(world.broker),
        world.store,
        world.config(),
        clock=lambda: now,
        new_id=lambda: next(ids),
    )
    with anyio.fail_after(DEADLINE):
        async with manager, anyio.create_task_group() as tasks:
            await tasks.start(manager.run)
            saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
            with pytest.raises(SagaExistsError, match=UNKNOWN):
                await manager.start("s", steps("a"))
            manager.stop()
    assert saga.id == UNKNOWN
    assert (saga.created_at, saga.updated_at, saga.completed_at) == (100.0, 102.0, 102.0)
    assert [step.executed_at for step in saga.steps] == [101.0, 102.0]


async def test_every_saga_gets_an_id_of_its_own(world: World) -> None:
    async with world.manager() as manager:
        ids = [(await manager.start("s", steps("a"))).id for _ in range(100)]
    assert len(set(ids)) == 100


async def test_a_thousand_steps_are_a_supported_case(world: World) -> None:
    registry = Registry()
    action = registry.action("count")(nothing)
    plan = [action.step(name=f"step-{number}") for number in range(1000)]
    async with world.running(registries=(registry,), observer=None) as manager:
        saga = await manager.wait((await manager.start("long", plan)).id)
    assert saga.is_completed
    assert saga.revision == 1000


# Watching --------------------------------------------------------------------------------------------------------


async def test_list_active_gives_what_has_not_come_to_rest_oldest_first(world: World) -> None:
    gate = Gate()
    world.replace("undo.a", gate)
    world.replace("do.c", gate)
    async with world.running() as manager:
        assert await manager.list_active() == []
        undone = await manager.start("undone", steps("a"))
        done = await manager.start("done", steps("b"))
        waiting = await manager.start("waiting", steps("c"))
        await manager.wait(undone.id)
        await manager.wait(done.id)
        await manager.compensate(undone.id)
        await gate.until_running(2)
        active = await manager.list_active()
        assert [(saga.id, saga.state) for saga in active] == [
            (undone.id, SagaState.COMPENSATING),
            (waiting.id, SagaState.STARTED),
        ]
        gate.released.set()
        await manager.wait(undone.id)
        await manager.wait(waiting.id)
        assert await manager.list_active() == []


async def test_wait_learns_of_every_kind_of_end(world: World) -> None:
    async def fails(saga: Saga, step: Step) -> None:
        raise StepError("no", "no")

    world.replace("do.b", fails)
    world.replace("undo.c", fails)
    ends: dict[str, SagaState] = {}

    async def follow(manager: Manager, name: str, plan: list[Step[Any]]) -> None:
        ends[name] = (await manager.wait((await manager.start(name, plan)).id)).state

    async with world.running() as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(follow, manager, "good", steps("a"))
        tasks.start_soon(follow, manager, "bad", steps("a", "b"))
        tasks.start_soon(follow, manager, "ugly", steps("c", "b"))
    assert ends == {
        "good": SagaState.COMPLETED,
        "bad": SagaState.COMPENSATED,
        "ugly": SagaState.FAILED,
    }


async def test_wait_can_be_given_up(world: World) -> None:
    async with world.manager() as manager:
        saga = await manager.start("s", steps("a"))
        with anyio.move_on_after(0.01) as scope:
            await manager.wait(saga.id)
        assert scope.cancelled_caught


async def test_another_manager_can_wait_for_a_saga(world: World) -> None:
    async with world.manager() as other, world.running() as manager:
        saga = await other.start("s", steps("a"))
        assert (await other.wait(saga.id)).is_completed
        assert (await manager.get(saga.id)).is_completed


# Undoing ---------------------------------------------------------------------------------------------------------


async def test_a_completed_saga_can_be_undone(world: World) -> None:
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b!", "c"))).id)
        asked = await manager.compensate(saga.id, reason="the customer called")
        assert asked.state is SagaState.COMPENSATING
        saga = await manager.wait(saga.id)
        assert saga.is_compensated
        _, events = await world.store.history(saga.id)
    assert world.calls == ["do.a", "do.b", "do.c", "undo.c", "undo.a"]
    assert getattr(events[3], "reason", None) == "the customer called"
    assert [step.state for step in saga.steps] == [
        StepState.COMPENSATED,
        StepState.COMPLETED,
        StepState.COMPENSATED,
    ]
    world.assert_queues_are_empty()


async def test_undoing_a_running_saga_awaits_the_step_in_flight(world: World) -> None:
    gate = Gate(output={"kept": True})
    world.replace("do.b", gate)
    async with world.running() as manager:
        saga = await manager.start("s", steps("a", "b", "c"))
        await gate.until_running(1)
        asked = await manager.compensate(saga.id)
        assert asked.state is SagaState.COMPENSATING
        await anyio.wait_all_tasks_blocked()
        assert world.calls == ["do.a", "do.b"]
        gate.released.set()
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    assert world.calls == ["do.a", "do.b", "undo.b", "undo.a"]
    assert saga.step("b").output == {"kept": True}
    assert saga.step("c").state is StepState.PENDING
    world.assert_queues_are_empty()


async def test_undoing_twice_changes_nothing(world: World) -> None:
    gate = Gate()
    world.replace("undo.a", gate)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a"))).id)
        first = await manager.compensate(saga.id)
        await gate.until_running(1)
        assert await manager.compensate(saga.id) == first
        gate.released.set()
        undone = await manager.wait(saga.id)
        assert await manager.compensate(saga.id) == undone
        assert await manager.get(saga.id) == undone
    assert world.calls == ["do.a", "undo.a"]
    world.assert_queues_are_empty()


async def test_an_undoing_that_failed_can_be_asked_for_again(world: World) -> None:
    attempts: list[int] = []

    async def closed_on_sundays(saga: Saga, step: Step) -> None:
        attempts.append(step.compensation_attempt)
        if len(attempts) == 1:
            raise StepError("closed", "try on Monday")

    world.replace("undo.b", closed_on_sundays)
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
        await manager.compensate(saga.id)
        assert (await manager.wait(saga.id)).is_failed
        assert world.calls == ["do.a", "do.b", "undo.b"]
        await manager.compensate(saga.id)
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    assert attempts == [1, 2]
    assert world.calls == ["do.a", "do.b", "undo.b", "undo.b", "undo.a"]


async def test_of_many_who_ask_for_the_same_undoing_one_is_heard(world: World) -> None:
    async with world.running() as manager:
        saga = await manager.wait((await manager.start("s", steps("a", "b"))).id)
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(manager.compensate, saga.id)
        saga = await manager.wait(saga.id)
    assert saga.is_compensated
    assert world.calls == ["do.a", "do.b", "undo.b", "undo.a"]
    world.assert_queues_are_empty()


# Mistakes --------------------------------------------------------------------------------------------------------


def _plan(**changes: Any) -> list[Step[Any]]:
    step: dict[str, Any] = {"name": "a", "action": "do.a", "compensation": "undo.a", **changes}
    return [Step(name="first", action="do.b"), Step(**step)]


@pytest.mark.parametrize(
    ("plan", "context", "error", "says"),
    [
        ([], None, DefinitionError, "Saga 'order' has no steps; give at least one"),
        (
            _plan(name="first"),
            None,
            DefinitionError,
            "Saga 'order' has two steps named 'first'; names must differ",
        ),
        (_plan(name=""), None, DefinitionError, "Saga 'order': step 2 needs a name and an action"),
        (_plan(action=""), None, DefinitionError, "Saga 'order': step 2 needs a name and an action"),
        (_plan(compensation=""), None, DefinitionError, "step 'a' cannot have the compensation ''"),
        (
            _plan(action="do.z"),
            None,
            DefinitionError,
            "Saga 'order': step 'a' names the action 'do.z', and no handler is registered for it; "
            "registered are: do.a, do.b, do.c, do.d, do.e",
        ),
        (
            _plan(compensation="undo.z"),
            None,
            DefinitionError,
            "Saga 'order': step 'a' names the compensation 'undo.z', and no handler is registered for it; "
            "registered are: undo.a, undo.b, undo.c, undo.d, undo.e",
        ),
        (
            _plan(input={"x": object()}),
            None,
            PayloadError,
            "Saga 'order': the input of step 'a' cannot be written",
        ),
        (_plan(input=[1]), None, PayloadError, "the input of step 'a' must be a JSON object"),
        (_plan(input={"x": float("inf")}), None, PayloadError, "the input of step 'a'"),
        (_plan(), {"x": object()}, PayloadError, "Saga 'order': the context cannot be written"),
        (_plan(), "text", PayloadError, "Saga 'order': the context must be a JSON object"),
        (_plan(name="n" * 129), None, DefinitionError, "the name of step"),
        (_plan(name="ä" * 65), None, DefinitionError, "is longer than 128 bytes"),
        (_plan(action="n" * 129), None, DefinitionError, "the action of step 'a' is longer than 128 bytes"),
        (_plan(compensation="n" * 129), None, DefinitionError, "the compensation of step 'a' is longer than"),
    ],
    ids=[
        "no steps",
        "name twice",
        "no name",
        "no action",
        "empty compensation",
        "no handler",
        "no compensation handler",
        "input with an object",
        "input that is a list",
        "input with infinity",
        "context with an object",
        "context that is text",
        "long name",
        "long name in bytes",
        "long action",
        "long compensation",
    ],
)
async def test_a_saga_that_cannot_run_is_refused_before_anything_is_done(
    world: World, plan: list[Step[Any]], context: object, error: type[SagaError], says: str
) -> None:
    async with world.manager() as manager:
        with pytest.raises(error) as raised:
            await manager.start("order", plan, context)
        assert says in str(raised.value)
        assert await manager.list_active() == []
    assert world.watch.moments == []
    world.assert_queues_are_empty()


async def test_the_longest_names_go_through(world: World) -> None:
    registry = Registry()
    action = registry.action("n" * 128)(nothing)
    action.compensation("c" * 128)(nothing)
    taken: list[Message] = []

    class Strict(MemoryTransport):
        async def publish(self, message: Message, settled: Callable[[TransportError | None], None]) -> None:
            for text in (message.exchange, message.routing_key, message.id, message.type):
                assert len(text.encode()) <= 255
            taken.append(message)
            await super().publish(message, settled)

    async with world.running(transport=Strict(world.broker), registries=(registry,)) as manager:
        saga = await manager.wait((await manager.start("s", [action.step(name="s" * 128)])).id)
        await manager.compensate(saga.id)
        assert (await manager.wait(saga.id)).is_compensated
    assert len(taken) == 2


async def test_an_unknown_saga_is_an_error_that_names_it(world: World) -> None:
    async with world.manager() as manager:
        for call in (manager.get, manager.wait, manager.compensate):
            with pytest.raises(SagaNotFoundError, match=UNKNOWN):
                await call(UNKNOWN)
        saga = await manager.start("s", steps("a"))
        with pytest.raises(UnknownStepError, match="has no step 'z'; it has: a"):
            saga.step("z")


async def test_run_refuses_to_run_twice_at_once(world: World) -> None:
    async with world.running() as manager:
        with pytest.raises(ManagerError, match="running already"):
            await manager.run()
        saga = await manager.start("s", steps("a"))
        assert (await manager.wait(saga.id)).is_completed, "the first run is not disturbed"


async def test_run_can_run_again_after_it_has_ended(world: World) -> None:
    with anyio.fail_after(DEADLINE):
        async with world.manager() as manager:
            for _ in range(3):
                async with anyio.create_task_group() as tasks:
                    await tasks.start(manager.run)
                    saga = await manager.start("s", steps("a"))
                    assert (await manager.wait(saga.id)).is_completed
                    manager.stop()


async def test_stop_without_run_does_nothing(world: World) -> None:
    async with world.manager() as manager:
        manager.stop()
        manager.stop()


Call = Callable[[Manager], Awaitable[object]]
CALLS: dict[str, Call] = {
    "start": lambda manager: manager.start("s", steps("a")),
    "run": lambda manager: manager.run(),
    "get": lambda manager: manager.get(UNKNOWN),
    "wait": lambda manager: manager.wait(UNKNOWN),
    "compensate": lambda manager: manager.compensate(UNKNOWN),
    "list_active": lambda manager: manager.list_active(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_manager_works_only_while_it_is_open(world: World, call: str) -> None:
    manager = world.manager()
    with pytest.raises(ManagerError, match="This manager is new; use it inside `async with"):
        await CALLS[call](manager)
    async with manager:
        pass
    with pytest.raises(ManagerError, match="This manager is closed"):
        await CALLS[call](manager)
    with pytest.raises(ManagerError, match="This manager is closed; make a new one"):
        await manager.__aenter__()


async def test_close_can_be_called_by_hand_and_twice(world: World) -> None:
    async with world.manager() as manager:
        await manager.close()
        with pytest.raises(ManagerError, match="closed"):
            await manager.list_active()
        await manager.close()


async def test_a_queue_that_exists_otherwise_is_found_out_at_once(world: World) -> None:
    async with world.manager():
        pass
    transport = MemoryTransport(world.broker)
    with pytest.raises(TopologyError, match=r"saga\.dead-letter"):
        async with world.manager(transport=transport, queue_kind="classic"):
            pass
    with pytest.raises(TransportClosedError):
        await transport.declare(world.config().topology())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"saga_exchange": ""}, "must have 1 to 255 bytes"),
        ({"step_queue": "ä" * 128}, "must have 1 to 255 bytes"),
        ({"step_queue": "same", "compensate_queue": "same"}, "need queues of their own"),
        ({"dead_letter_queue": "saga.steps"}, "need queues of their own"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"prefetch": 0}, "prefetch from 1 to 65535"),
        ({"prefetch": 65_536}, "prefetch from 1 to 65535"),
        ({"grace_period": -1}, "grace_period must not be negative"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_config_that_cannot_work_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Config(**changes)


def test_by_default_twice_as_many_messages_are_taken_as_handlers_run() -> None:
    def prefetch(**arguments: Any) -> list[int]:
        return [ahead for _, ahead in Config(**arguments).limits().values()]

    assert prefetch(concurrency=10) == [20, 20, 20]
    assert prefetch(concurrency=10, prefetch=3) == [3, 3, 3]
    assert prefetch(concurrency=60_000) == [65_535, 65_535, 65_535]
    assert prefetch(concurrency=10, compensation_concurrency=4) == [20, 8, 20]
    assert prefetch(concurrency=10, compensation_prefetch=5) == [20, 5, 20]
    assert prefetch(concurrency=10, prefetch=3, compensation_concurrency=4) == [3, 8, 3]


# Transports that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["start", "compensate"])
async def test_what_is_asked_while_the_broker_is_away_is_done_when_it_is_back(
    world: World, operation: str
) -> None:
    transport = RecordingTransport(MemoryTransport(world.broker), [])
    async with world.running(transport=transport) as manager:
        saga = await manager.wait((await manager.start("s", steps("a"))).id)
        await anyio.wait_all_tasks_blocked()
        transport.break_down(ConnectionLostError("the broker went away"))
        if operation == "start":
            saga = await manager.start("s", steps("a"))
        else:
            saga = await manager.compensate(saga.id)
        assert transport.next is None, "it was answered before the broker was back"
        assert not saga.at_rest
        rested = await manager.wait(saga.id)
    assert rested.is_completed if operation == "start" else rested.is_compensated
    assert Counter(world.calls) == Counter(["do.a", "do.a" if operation == "start" else "undo.a"])
    world.assert_queues_are_empty()


async def test_a_queue_that_was_deleted_is_declared_again_at_start(world: World) -> None:
    async with world.manager() as manager:
        del world.broker.queues["saga.steps"]
        saga = await manager.start("s", steps("a"))
        assert world.depth("saga.steps") >= 1
    assert (await world.finish(saga.id)).is_completed


async def test_start_returns_only_when_the_broker_has_confirmed(world: World) -> None:
    transport = RecordingTransport(MemoryTransport(world.broker), [])
    transport.hold_confirms = True
    started: list[Saga] = []

    async def start(manager: Manager) -> None:
        started.append(await manager.start("s", steps("a")))

    with anyio.fail_after(DEADLINE):
        async with world.manager(transport=transport) as manager, anyio.create_task_group() as tasks:
            tasks.start_soon(start, manager)
            await anyio.wait_all_tasks_blocked()
            assert started == []
            assert world.watch.count(Point.COMMITTED) == 1
            assert world.watch.count(Point.PUBLISHED) == 0
            transport.held[0]()
    assert len(started) == 1
    assert world.watch.count(Point.PUBLISHED) == 1


async def test_a_start_that_is_cancelled_leaves_nothing_by_halves(world: World) -> None:
    transport = RecordingTransport(MemoryTransport(world.broker), [])
    transport.hold_confirms = True
    with anyio.fail_after(DEADLINE):
        async with world.manager(transport=transport) as manager:
            with anyio.move_on_after(0.01) as scope:
                await manager.start("s", steps("a"))
            assert scope.cancelled_caught
            transport.held[0]()
            (saga,) = await manager.list_active()
    assert (await world.finish(saga.id)).is_completed


# Ending ----------------------------------------------------------------------------------------------------------


async def test_leaving_the_manager_waits_for_running_handlers(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks, world.manager() as manager:
            await tasks.start(manager.run)
            saga = await manager.start("s", steps("a"))
            await gate.until_running(1)
            tasks.start_soon(_release_when_all_wait, gate)
    assert gate.cancelled == 0
    assert (await world.store.load(saga.id)).is_completed
    world.assert_queues_are_empty()


async def _release_when_all_wait(gate: Gate) -> None:
    await anyio.wait_all_tasks_blocked()
    gate.released.set()


async def test_a_handler_may_use_the_manager_while_it_closes(world: World) -> None:
    managers: list[Manager] = []
    entered = anyio.Event()
    closing = anyio.Event()

    async def starts_another(saga: Saga, step: Step) -> dict[str, object]:
        entered.set()
        await closing.wait()
        return {"started": (await managers[0].start("child", steps("b"))).id}

    async def say_when_closing() -> None:
        await anyio.wait_all_tasks_blocked()
        closing.set()

    world.replace("do.a", starts_another)
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks, world.manager() as manager:
            managers.append(manager)
            await tasks.start(manager.run)
            saga = await manager.start("s", steps("a"))
            await entered.wait()
            tasks.start_soon(say_when_closing)
    saga = await world.store.load(saga.id)
    assert saga.is_completed
    assert (await world.finish(str(saga.step("a").output["started"]))).is_completed


async def test_a_manager_whose_closing_is_cancelled_closes_at_once(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    transport = MemoryTransport(world.broker)
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks, world.manager(transport=transport) as manager:
            await tasks.start(manager.run)
            saga = await manager.start("s", steps("a"))
            await gate.until_running(1)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await manager.close()
            assert scope.cancelled_caught
            with pytest.raises(TransportClosedError):
                await transport.declare(world.config().topology())
            tasks.cancel_scope.cancel()
    assert gate.cancelled == 1
    assert (await world.store.load(saga.id)).revision == 0
    assert world.depth("saga.steps") == 1


async def test_an_error_in_the_callers_code_comes_out_and_loses_nothing(world: World) -> None:
    gate = Gate()
    world.replace("do.a", gate)
    failure = RuntimeError("the caller's own")
    with anyio.fail_after(DEADLINE):
        try:
            async with world.manager() as manager, anyio.create_task_group() as tasks:
                await tasks.start(manager.run)
                await manager.start("s", steps("a"))
                await gate.until_running(1)
                raise failure
        except ExceptionGroup as group:
            assert group.exceptions == (failure,)
    assert gate.cancelled == 1
    assert world.depth("saga.steps") == 1


async def test_a_failed_run_leaves_the_manager_usable(world: World) -> None:
    class Failing(Exception):
        pass

    def fail(moment: Moment) -> None:
        if moment.command is not None:
            raise Failing

    async with world.manager(observer=fail) as manager:
        with anyio.fail_after(DEADLINE):
            with pytest.raises(Failing):
                await run_alone(manager, lambda: manager.start("s", steps("a")))
        saga = await manager.start("s", steps("a"))
        assert await manager.get(saga.id) == saga


# Nothing mutable is shared ---------------------------------------------------------------------------------------


async def test_nothing_that_a_caller_holds_is_shared_with_the_saga(world: World) -> None:
    input_: dict[str, Any] = {"items": ["book"]}
    context: dict[str, Any] = {"tags": {"a": 1}}
    kept: list[dict[str, Any]] = []

    async def keeps_its_output(saga: Saga, step: Step) -> dict[str, Any]:
        assert step.input == {"items": ["book"]}
        assert saga.context == {"tags": {"a": 1}}
        step.input["items"] = "changed by a handler"
        saga.context["tags"] = "changed by a handler"
        kept.append({"list": [1]})
        return kept[0]

    async def sees_nothing_of_it(saga: Saga, step: Step) -> None:
        assert saga.context == {"tags": {"a": 1}}
        assert saga.step("a").input == {"items": ["book"]}
        assert saga.step("a").output == {"list": [1]}
        saga.step("a").output["list"] = "changed by a handler"

    world.replace("do.a", keeps_its_output)
    world.replace("do.b", sees_nothing_of_it)
    async with world.running() as manager:
        plan = [Step(name="a", action="do.a", input=input_), *steps("b")]
        saga = await manager.start("s", plan, context)
        input_["items"].append("changed by the caller")
        context["tags"]["a"] = "changed by the caller"
        plan.clear()
        saga = await manager.wait(saga.id)
        kept[0]["list"].append("changed after the handler")
        for _ in range(2):
            assert saga.step("a").input == {"items": ["book"]}
            assert saga.step("a").output == {"list": [1]}
            assert saga.context == {"tags": {"a": 1}}
            saga.context["tags"] = saga.step("a").output["list"] = saga.step("a").input["items"] = "changed"
            saga = await manager.get(saga.id)
    assert saga.is_completed


async def test_a_saga_cannot_be_changed(world: World) -> None:
    async with world.manager() as manager:
        saga = await manager.start("s", steps("a"))
    with pytest.raises(AttributeError):
        saga.state = SagaState.COMPLETED  # type: ignore[misc]
    with pytest.raises(AttributeError):
        saga.steps[0].state = StepState.COMPLETED  # type: ignore[misc]


async def test_message_headers_are_not_shared_with_the_publisher() -> None:
    broker = MemoryBroker()
    config = Config(step_handlers={"x": nothing})
    headers: dict[str, str | int] = {"from": "me"}
    seen: list[Any] = []
    async with MemoryTransport(broker) as transport:
        await transport.declare(config.topology())
        message = Message("sagas", "execute.x", b"{}", "1", "t", headers)
        await transport.publish(message, lambda error: None)
        headers["from"] = "changed"
        async with transport.consume("saga.steps", 1, seen.append):
            assert seen[0].headers == {"from": "me"}
            seen[0].headers["from"] = "changed"
            assert seen[0].headers == {"from": "me"}
            seen[0].reject(requeue=False)
        async with transport.consume("saga.orchestrator", 1, seen.append):
            assert seen[1].headers["from"] == "me"
            seen[1].acknowledge()


current = contextvars.ContextVar("current", default="nobody")


async def test_a_handler_does_not_see_the_callers_context_variables(world: World) -> None:
    """Behind a broker there is no way for them to get there; in memory there must be none either."""
    seen: list[str] = []

    async def look(saga: Saga, step: Step) -> None:
        seen.append(current.get())
        await anyio.lowlevel.checkpoint()

    world.replace("do.a", look)
    world.replace("do.b", look)
    async with world.running() as manager:
        token = current.set("the caller")
        saga = await manager.start("s", steps("a", "b"))
        current.reset(token)
        await manager.wait(saga.id)
    assert seen == ["nobody", "nobody"]


async def test_a_handler_does_not_see_the_context_variables_of_the_one_before(world: World) -> None:
    gate = Gate()
    seen: list[str] = []

    async def sets(saga: Saga, step: Step) -> None:
        current.set("the handler before")
        await gate(saga, step)

    async def look(saga: Saga, step: Step) -> None:
        seen.append(current.get())

    world.replace("do.a", sets)
    world.replace("do.b", look)
    current.set("whoever runs the engine")
    async with world.running(concurrency=1) as manager:
        await manager.start("first", steps("a"))
        second = await manager.start("second", steps("b"))
        await gate.until_running(1)
        gate.released.set()
        await manager.wait(second.id)
    assert seen == ["whoever runs the engine"]
