"""Messages that cannot be handled: dead letters with a reason, sagas that are told, and nobody else kept waiting."""

# An engine's log has to be looked at again and again.
# ruff: noqa: ASYNC110

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec import Raw
from msgspec.structs import replace
from ulid import ULID

from saga_amqp import (
    ChildSaga,
    ConnectionLostError,
    MemoryTransport,
    Moment,
    Options,
    Point,
    PublishError,
    RetryPolicy,
    Saga,
    SagaState,
    SQLiteStore,
    Step,
    StepError,
)
from saga_amqp.contracts import Message
from saga_amqp.testing.traffic import Inbox
from saga_amqp.transports import letters
from saga_amqp.transports.memory import MemoryMessage
from saga_core import (
    Command,
    CompensateChild,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    Execute,
    Failure,
    Report,
    StartChild,
    StepFailed,
    StepSucceeded,
    child_saga,
    new_saga,
    outstanding,
    transition,
)
from saga_core.remote import Reply

from .poisoned import (
    AT,
    BURYING,
    LIMIT,
    LIMITS,
    POISONED,
    SIZE,
    added,
    code,
    errors,
    meet,
    ordered,
    publish,
    stored,
    take,
    until_buried,
)
from .test_engine import Crash
from .test_language import Flaky
from .test_recovery import AwayStore
from .world import DEADLINE, Gate, RecordingTransport, World, run_alone, steps

LATER_VERSION = added(b'"version":99')


@pytest.mark.parametrize("operation", ["execute", "compensate"])
@pytest.mark.parametrize("poisoned", POISONED)
async def test_a_message_that_cannot_be_handled_is_a_dead_letter_and_its_saga_is_told(
    world: World, poisoned: str, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    await meet(world, POISONED[poisoned], operation, caplog)


# Replies, reports, children ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("poisoned", ["later version", "too long", "too often"])
async def test_a_reply_that_cannot_be_used_means_that_nobody_knows(
    world: World, poisoned: str, caplog: pytest.LogCaptureFixture
) -> None:
    saga, _ = await ordered(world, "execute")
    message = world.config().message(Reply(saga.id, "a", 1, "execute", "succeeded"))
    bad = POISONED[poisoned]
    await publish(world, replace(message, body=bad.spoil(message.body)))
    if bad.taken:
        await take(world, "saga.orchestrator", bad.taken)
    async with world.running(**LIMITS) as manager:
        saga = await manager.wait(saga.id)
        await until_buried(manager)
    assert saga.is_compensated
    assert code(saga, "a") == bad.reason
    assert world.calls == ["undo.a"]
    (letter,) = await world.letters()
    assert (letter.reason, letter.queue) == (bad.reason, "saga.orchestrator")
    assert (letter.saga, letter.step, letter.attempt) == (saga.id, "a", 1)
    assert len(errors(caplog)) == 1


async def family(world: World, *events: Event) -> tuple[Saga, Saga]:
    """Return a saga whose second step starts a child, with these events, and the child, which is not stored."""
    parent = new_saga(
        "s", [*steps("a"), Step(name="x", child=ChildSaga("inner", steps("d")))], id=str(ULID()), at=AT
    )
    await world.store.create(parent)
    parent = await happen(world, parent, StepSucceeded("a", 1, Raw(b"{}"), AT))
    (order,) = outstanding(parent)
    assert isinstance(order, StartChild)
    return await happen(world, parent, *events), child_saga(parent, order, AT)


async def happen(world: World, saga: Saga, *events: Event) -> Saga:
    for event in events:
        saga = transition(saga, event).saga
        await world.store.commit(saga, event)
    return saga


async def send(world: World, command: Command | Reply, spoil: Callable[[bytes], bytes] = bytes) -> None:
    message = world.config().message(command)
    await publish(world, replace(message, body=spoil(message.body)))


async def test_an_order_to_start_a_child_that_cannot_be_read_fails_its_step(world: World) -> None:
    parent, child = await family(world)
    await send(world, StartChild(parent.id, "x", 1, child.id), LATER_VERSION)
    async with world.running(**LIMITS) as manager:
        parent = await manager.wait(parent.id)
    assert parent.is_compensated
    assert code(parent, "x") == "undecodable"
    assert world.calls == ["undo.a"]


async def test_a_child_that_was_started_by_whom_that_has_killed_is_undone(world: World) -> None:
    """Nothing of it was published, so without help it would wait for ever, and its parent with it."""
    parent, child = await family(world)
    await world.store.create(child)
    await send(world, StartChild(parent.id, "x", 1, child.id))
    await take(world, "saga.orchestrator", LIMIT)
    async with world.running(**LIMITS) as manager:
        parent = await manager.wait(parent.id)
        child = await manager.wait(child.id)
    assert parent.is_compensated
    assert code(parent, "x") == "delivered_too_often"
    assert child.is_compensated
    assert world.calls == ["do.d", "undo.d", "undo.a"]
    world.assert_queues_are_empty(dead_letters=1)


async def test_a_child_whose_undoing_kills_engines_goes_on_and_its_parent_waits_for_a_person(
    world: World,
) -> None:
    failed = StepFailed("x", 1, Failure("no", "no"), AT, unknown=True)
    parent, child = await family(world, failed)
    await world.store.create(child)
    child = await happen(
        world, child, StepSucceeded("d", 1, Raw(b"{}"), AT), CompensationRequested("so", AT, attempt=1)
    )
    (order,) = outstanding(parent)
    assert order == CompensateChild(parent.id, "x", 1, child.id)
    await send(world, order)
    await take(world, "saga.orchestrator", LIMIT)
    async with world.running(**LIMITS) as manager:
        assert (await manager.wait(parent.id)).is_failed
        assert (await manager.wait(child.id)).is_compensated
        assert world.calls == ["undo.d"]
        await manager.retry(parent.id)
        assert (await manager.wait(parent.id)).is_compensated
    assert world.calls == ["undo.d", "undo.a"]


@pytest.mark.parametrize("taken", [0, LIMIT])
async def test_a_report_that_cannot_be_used_has_the_child_undone(world: World, taken: int) -> None:
    parent, child = await family(world)
    await world.store.create(child)
    child = await happen(world, child, StepSucceeded("d", 1, Raw(b"{}"), AT))
    report = Report(parent.id, "x", 1, child.id, SagaState.COMPLETED)
    await send(world, report, bytes if taken else LATER_VERSION)
    if taken:
        await take(world, "saga.orchestrator", taken)
    async with world.running(**LIMITS) as manager:
        parent = await manager.wait(parent.id)
    assert parent.is_compensated
    assert code(parent, "x") == ("delivered_too_often" if taken else "undecodable")
    assert (await world.store.load(child.id)).is_compensated
    assert world.calls == ["undo.d", "undo.a"]


async def test_a_report_of_an_undoing_that_cannot_be_used_leaves_the_parent_to_a_person(world: World) -> None:
    failed = StepFailed("x", 1, Failure("no", "no"), AT, unknown=True)
    parent, child = await family(world, failed)
    await world.store.create(child)
    child = await happen(
        world,
        child,
        StepSucceeded("d", 1, Raw(b"{}"), AT),
        CompensationRequested("so", AT, attempt=1),
        CompensationSucceeded("d", 1, AT),
    )
    await send(world, Report(parent.id, "x", 1, child.id, child.state, asked=1), LATER_VERSION)
    async with world.running(**LIMITS) as manager:
        assert (await manager.wait(parent.id)).is_failed
        await manager.retry(parent.id)
        assert (await manager.wait(parent.id)).is_compensated
    assert world.calls == ["undo.a"]


# Crashes, and what is away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", BURYING)
async def test_who_dies_between_telling_and_burying_leaves_both_to_the_next(
    world: World, point: Point
) -> None:
    saga, command = await ordered(world, "execute")
    await send(world, command)
    await take(world, "saga.steps", LIMIT)

    def die(moment: Moment) -> None:
        if moment.point is point and moment.command == command:
            raise Crash

    with anyio.fail_after(DEADLINE):
        async with world.manager(observer=die, **LIMITS) as manager:
            with pytest.raises(Crash):
                await run_alone(manager, anyio.sleep_forever)
    async with world.running(republish_after=0.1, **LIMITS) as manager:
        saga = await manager.wait(saga.id)
        await until_buried(manager)
    assert saga.is_compensated
    assert saga.revision == 2
    assert world.calls == ["undo.a"]
    found = await world.letters()
    assert {letter.reason for letter in found} == {"delivered_too_often"}
    assert len(found) == (2 if point in BURYING[3:] else 1)
    world.assert_queues_are_empty(dead_letters=len(found))


async def test_a_dead_letter_is_not_lost_with_the_connection(world: World) -> None:
    saga, command = await ordered(world, "execute")
    await send(world, command, LATER_VERSION)
    transport = RecordingTransport(MemoryTransport(world.broker), [])
    transport.hold_confirms = True
    async with world.running(transport=transport, **LIMITS) as manager:
        await transport.changes.until(lambda: bool(transport.held))  # what comes of telling the saga
        transport.hold_confirms = False
        transport.break_down(ConnectionLostError("the broker went away"))
        transport.fail_held(ConnectionLostError("the broker went away"))
        assert (await manager.wait(saga.id)).is_compensated
        await until_buried(manager)
    (letter,) = await world.letters()
    assert letter.saga == saga.id


STRANGER = Message("sagas", "execute.do.a", b"\xff", "from-elsewhere", "t")


async def test_a_message_that_comes_again_while_it_is_being_buried_is_buried_once(world: World) -> None:
    await publish(world, STRANGER)
    transport = RecordingTransport(MemoryTransport(world.broker), [])
    transport.hold_confirms = True
    async with world.running(transport=transport, **LIMITS) as manager:
        await transport.changes.until(lambda: bool(transport.held))
        transport.hold_confirms = False
        transport.break_down(ConnectionLostError("the broker went away"))
        await transport.changes.until(lambda: transport.next is not None and transport.next.deliveries == 1)
        for confirm in transport.held:
            confirm()
        await anyio.wait_all_tasks_blocked()
        assert manager.dead_lettered() == {"undecodable": 1}
    world.assert_queues_are_empty(dead_letters=1)


async def test_two_messages_that_look_the_same_are_two_letters(world: World) -> None:
    await publish(world, STRANGER, STRANGER)
    transport = RecordingTransport(MemoryTransport(world.broker), [])
    transport.hold_confirms = True
    async with world.running(transport=transport, **LIMITS) as manager:
        await transport.changes.until(lambda: len(transport.held) == 2)
        for confirm in transport.held:
            confirm()
        assert manager.dead_lettered() == {"undecodable": 2}
    world.assert_queues_are_empty(dead_letters=2)


async def test_a_message_waits_until_the_store_is_back_to_tell_its_saga(world: World) -> None:
    saga, command = await ordered(world, "execute")
    await send(world, command, LATER_VERSION)
    store = AwayStore(world.store)
    store.away = True
    async with world.running(store=store, **LIMITS) as manager:
        await store.missed.wait()  # not for long: each time it is tried again after a longer pause
        assert world.depth("saga.steps") == 1
        assert manager.dead_lettered() == {}
        store.away = False
        assert (await manager.wait(saga.id)).is_compensated
        await until_buried(manager)
    world.assert_queues_are_empty(dead_letters=1)


async def test_a_dead_letter_queue_that_was_deleted_costs_no_letter(world: World) -> None:
    async with world.running(**LIMITS) as manager:
        del world.broker.queues["saga.dead-letter"]
        async with MemoryTransport(world.broker) as transport:
            for body in (b"\xff", LATER_VERSION(world.config().message(Execute("0", "a", "do.a", 1)).body)):
                message = Message("sagas", "execute.do.a", body, "m", "t")
                await transport.publish(message, lambda error: None)
        await until_buried(manager, 2)
        good = await manager.start("s", steps("c"))
        assert (await manager.wait(good.id)).is_completed
    world.assert_queues_are_empty(dead_letters=2)


async def test_what_the_broker_does_not_take_is_kept_in_hand_and_published_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue may be full for long: each time it came back the message would count as one that kills engines."""
    log: list[str] = []
    transport = RecordingTransport(MemoryTransport(world.broker), log)
    refused = 0
    publish = transport.publish

    async def refuse(message: Message, settled: Callable[[Any], None]) -> None:
        nonlocal refused
        if ".b.execute" in message.id and refused < 2 * LIMIT:
            refused += 1
            settled(PublishError("the queue is full"))
        else:
            await publish(message, settled)

    transport.publish = refuse  # type: ignore[method-assign]
    async with world.running(transport=transport, **LIMITS) as manager:
        saga = await manager.start("s", steps("a", "b"))
        assert (await manager.wait(saga.id)).is_completed
    assert refused == 2 * LIMIT
    assert world.calls == ["do.a", "do.b"]
    assert not any(line.startswith("requeue") for line in log)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"{Execute(saga.id, 'a', 'do.a', 1)}"
    ]
    world.assert_queues_are_empty()


async def test_what_the_broker_does_not_take_of_a_timer_is_left_to_the_sweep(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The timer's own publishing and the first of the sweep are refused, with all that is tried in each."""
    transport = RecordingTransport(MemoryTransport(world.broker), [])
    publish, refused = transport.publish, 0

    async def refuse(message: Message, settled: Callable[[Any], None]) -> None:
        nonlocal refused
        if ".a.execute.2" in message.id and sum("left to the sweep" in line for line in said()) < 2:
            refused += 1
            settled(PublishError("the queue is full"))
        else:
            await publish(message, settled)

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records]

    transport.publish = refuse  # type: ignore[method-assign]
    world.replace("do.a", Flaky(1))
    asked = Step(name="a", action="do.a", retry=RetryPolicy(max_attempts=2, initial_delay=0.01))
    async with world.running(transport=transport, republish_after=0.1) as manager:
        saga = await manager.start("s", [asked])
        assert (await manager.wait(saga.id)).is_completed
    assert refused >= 2
    assert all(saga.id in line for line in said() if "left to the sweep" in line)
    world.assert_queues_are_empty()


async def test_a_letter_is_buried_though_what_comes_of_telling_is_not_taken_yet(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    saga, command = await ordered(world, "execute")
    await send(world, command, LATER_VERSION)
    transport = RecordingTransport(MemoryTransport(world.broker), [])
    publish = transport.publish

    async def refuse(message: Message, settled: Callable[[Any], None]) -> None:
        if ".a.compensate.1" in message.id and not caplog.records:
            settled(PublishError("the queue is full"))
        else:
            await publish(message, settled)

    transport.publish = refuse  # type: ignore[method-assign]
    async with world.running(transport=transport, republish_after=0.1, **LIMITS) as manager:
        assert (await manager.wait(saga.id)).is_compensated
        await until_buried(manager)
    assert "left to the sweep" in caplog.records[0].getMessage()
    world.assert_queues_are_empty(dead_letters=1)


# What is told apart ------------------------------------------------------------------------------------------------


async def test_what_the_broker_gave_up_while_its_handler_runs_is_done_with_it(world: World) -> None:
    """The connection was lost again and again, and each time the message came back."""
    gate = Gate()
    world.replace("do.a", gate)
    async with world.running(**LIMITS) as manager:
        saga = await manager.start("s", steps("a", "b"))
        await gate.until_running(1)
        config = world.config(**LIMITS)
        message = config.message(Execute(saga.id, "a", "do.a", 1))
        queue = next(one for one in config.topology().queues if one.name == "saga.steps")
        headers = letters.dead({}, queue, "delivery_limit", "sagas", "execute.do.a", AT)
        world.broker.queues["saga.orchestrator"].put(MemoryMessage(message, headers))
        await anyio.wait_all_tasks_blocked()
        gate.released.set()
        assert (await manager.wait(saga.id)).is_completed
        assert manager.dead_lettered() == {}
    world.assert_queues_are_empty()


async def test_a_count_of_those_who_were_lost_with_a_message_counts(world: World) -> None:
    """From RabbitMQ 4.3 on, what a lost consumer had in hand is counted in a header of its own."""
    saga, command = await ordered(world, "execute")
    message = replace(world.config().message(command), headers={"x-acquired-count": LIMIT})
    await publish(world, message)
    await take(world, "saga.steps", 1)
    async with world.running(**LIMITS) as manager:
        assert code(await manager.wait(saga.id), "a") == "delivered_too_often"


@pytest.mark.parametrize(
    ("came_back", "expected"),
    [((2, 2, 2), "cba"), ((3, 3, 3), "abc"), ((3, 2, 2), "cba"), ((2, 3, 3), "abc"), ((3, 3, 2), "cab")],
)
async def test_those_that_came_back_often_are_handled_one_at_a_time(
    world: World, came_back: tuple[int, ...], expected: str
) -> None:
    """The least suspicious first, and of equals each time from the other end; meanwhile all others are handled."""
    limits = {"delivery_limit": 4}
    sagas: list[Saga] = []
    aside: list[MemoryMessage] = []
    gate, most = Gate(), Gate()
    world.replace("do.d", gate)
    for name in "abc":
        world.replace(f"do.{name}", most)
    most.released.set()
    async with world.manager(**limits) as manager:
        for name, times in zip("abc", came_back, strict=True):
            sagas.append(await manager.start("s", steps(name)))
            await take(world, "saga.steps", times)
            aside.append(world.broker.queues["saga.steps"].ready.pop())
    async with world.running(**limits) as manager:
        other = await manager.start("s", steps("d"))
        await gate.until_running(1)
        for message in aside:
            world.broker.queues["saga.steps"].put(message)
            for _ in range(20):  # they come together, but never at once
                await anyio.lowlevel.checkpoint()
        for saga in sagas:
            assert (await manager.wait(saga.id)).is_completed
        gate.released.set()
        await manager.wait(other.id)
    assert [call for call in world.calls if call != "do.d"] == [f"do.{name}" for name in expected]
    assert most.most == 1
    world.assert_queues_are_empty()


async def test_the_next_of_them_waits_until_the_broker_has_what_comes_of_the_one_before(world: World) -> None:
    """Else that one would come back once more when the next one kills its engine."""

    async def fail(saga: Saga, step: Step) -> None:
        raise StepError("no", "no")

    world.replace("do.b", fail)
    sagas = [await stored(world, StepSucceeded("a", 1, Raw(b"{}"), AT)) for _ in range(2)]
    for saga in sagas:
        await send(world, Execute(saga.id, "b", "do.b", 1))
    async with MemoryTransport(world.broker) as transport:
        inbox = Inbox()
        async with transport.consume("saga.steps", 2, inbox):
            await inbox.take(2)
    transport = RecordingTransport(MemoryTransport(world.broker), [])
    transport.hold_confirms = True
    async with world.running(transport=transport, **LIMITS) as manager:
        for count in (1, 2):
            await transport.changes.until(lambda: bool(transport.held))
            await anyio.wait_all_tasks_blocked()
            assert world.calls.count("do.b") == count
            (confirm,) = transport.held
            transport.held = []
            confirm()
        for saga in sagas:
            assert (await manager.wait(saga.id)).is_compensated
    world.assert_queues_are_empty()


async def test_a_letter_that_an_operator_has_moved_back_is_handled(world: World) -> None:
    """By the broker's own tools, which leave in the headers that it has died."""
    saga, _ = await ordered(world, "execute")
    config = world.config(**LIMITS)
    reply = config.message(Reply(saga.id, "a", 1, "execute", "succeeded"))
    await publish(world)
    queue = next(one for one in config.topology().queues if one.name == "saga.orchestrator")
    headers = letters.dead({}, queue, "rejected", "sagas", "reply", AT)
    world.broker.queues["saga.orchestrator"].put(MemoryMessage(reply, headers))
    async with world.running(**LIMITS) as manager:
        assert (await manager.wait(saga.id)).is_completed
    world.assert_queues_are_empty()


async def test_a_saga_that_cannot_be_read_stops_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A later release has written it, or something has broken it. Neither messages nor timers end the engine."""
    world = World()
    path = str(tmp_path / "sagas.db")
    async with SQLiteStore(path) as world.store, world.manager() as manager:
        broken = await manager.start("s", steps("a", "b"))
        later = await manager.start("s", steps("a"), options=Options(start_at=time.time() + 0.1))
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE saga_history SET snapshot = ?", (b"{",))
    database.close()
    async with SQLiteStore(path) as world.store, world.running() as manager:
        await until_buried(manager)
        while not any(later.id in line for line in errors(caplog)):
            await anyio.sleep(0.01)
        good = await manager.start("s", steps("c"))
        assert (await manager.wait(good.id)).is_completed
        assert manager.dead_lettered() == {"unreadable_saga": 1}
    (letter,) = await world.letters()
    assert letter.saga == broken.id
    assert broken.id in letter.error


# Nowhere to go -----------------------------------------------------------------------------------------------------

FAR = {"remote": ("far.*",)}


def far(name: str, **more: Any) -> Step[Any]:
    """Make a step that another service runs, which has never been started."""
    return Step(name=name, action=f"far.{name}", compensation=f"undo.{name}", **more)


UNROUTABLE: dict[str, tuple[Sequence[Step[Any]], dict[str, Any], str, list[str]]] = {
    "from start": ([far("a")], {}, "a", []),
    "several from start": ([far("a"), far("b", depends_on=())], {}, "a", []),
    "from a step's result": ([*steps("a"), far("b")], {}, "b", ["do.a", "undo.a"]),
    "several from a step's result": (
        [*steps("a"), far("b", depends_on=("a",)), far("c", depends_on=("a",))],
        {},
        "b",
        ["do.a", "undo.a"],
    ),
    "from a timer": ([far("a")], {"start_at": AT}, "a", []),
    "from a timer after a result": (
        [*steps("a"), far("b", retry=RetryPolicy(max_attempts=2, initial_delay=0.01))],
        {},
        "b",
        ["do.a", "undo.a"],
    ),
}


@pytest.mark.parametrize("how", UNROUTABLE)
async def test_a_saga_is_told_that_nobody_takes_what_it_asks_for(
    world: World, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked, options, step, calls = UNROUTABLE[how]
    async with world.running(**FAR) as manager:
        good = await manager.start("s", steps("c", "d"))
        saga = await manager.start("s", asked, options=Options(**options))
        saga = await manager.wait(saga.id)
        assert (await manager.wait(good.id)).is_completed
        assert manager.dead_lettered() == {}
    assert saga.is_compensated
    assert code(saga, step) == "unroutable"
    assert [call for call in world.calls if call not in ("do.c", "do.d")] == calls
    assert all(saga.id in line and "far." in line for line in errors(caplog))
    assert len(errors(caplog)) == len({step.name for step in asked if step.action.startswith("far")})
    world.assert_queues_are_empty()


async def test_a_compensation_that_nobody_takes_leaves_its_saga_to_a_person(world: World) -> None:
    async def fail(saga: Saga, step: Step) -> None:
        raise StepError("no", "no")

    world.replace("do.b", fail)
    asked = [Step(name="a", action="do.a", compensation="far.undo"), *steps("b")]
    async with world.running(**FAR) as manager:
        saga = await manager.wait((await manager.start("s", asked)).id)
        assert saga.is_failed
        assert code(saga, "a") == "unroutable"
    world.assert_queues_are_empty()


@pytest.mark.parametrize("point", [Point.COMMITTING, Point.COMMITTED, Point.PUBLISHING])
async def test_who_dies_between_telling_and_going_on_leaves_that_to_the_next(
    world: World, point: Point
) -> None:
    """The message in hand is another one, and brings up nothing of what comes of the telling."""

    def die(moment: Moment) -> None:
        command = moment.command
        telling = command is not None and command.step == "b"
        if moment.point is point and (telling or (point is Point.PUBLISHING and len(seen) > 1)):
            raise Crash
        if moment.point is Point.COMMITTED:
            seen.append(moment)

    seen: list[Moment] = []
    with anyio.fail_after(DEADLINE):
        async with world.manager(observer=die, republish_after=0.1, **FAR) as manager:
            with pytest.raises(Crash):
                await run_alone(manager, lambda: manager.start("s", [*steps("a"), far("b")]))
    (saga,) = await world.all_sagas()
    assert (await world.finish(saga.id, republish_after=0.1, **FAR)).is_compensated
    assert world.calls == ["do.a", "undo.a"]


# Too long to be sent -----------------------------------------------------------------------------------------------


async def test_a_message_that_would_be_too_long_is_not_sent_and_its_saga_is_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker would end the channel over it, and with it what others have under way."""
    asked = [*steps("a"), far("b", input={"text": "x" * SIZE})]
    async with world.running(**FAR, **LIMITS) as manager:
        saga = await manager.wait((await manager.start("s", asked)).id)
        assert code(saga, "b") == "oversize"
        first = await manager.wait((await manager.start("s", [far("b", input={"text": "x" * SIZE})])).id)
        assert code(first, "b") == "oversize"
    assert saga.is_compensated
    assert first.is_compensated
    assert world.calls == ["do.a", "undo.a"]
    assert [saga.id in errors(caplog)[0], first.id in errors(caplog)[1]] == [True, True]
    world.assert_queues_are_empty()
