"""A service that runs handlers with nothing but the broker, and the orchestrator that applies its replies."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from msgspec import Raw, Struct
from msgspec.structs import replace

from saga_amqp import (
    ChildSaga,
    ConnectionLostError,
    ManagerError,
    MemoryTransport,
    Moment,
    Options,
    Point,
    Registry,
    RetryPolicy,
    Saga,
    SagaState,
    Skip,
    Step,
    StepError,
    StepState,
    barrier,
)
from saga_amqp.contracts import Message
from saga_core import (
    Execute,
    Failure,
    Reply,
    Report,
    StepSucceeded,
    decode_command,
    encode_command,
    new_saga,
    outstanding,
    reply_of,
    work_of,
)
from saga_core.testing import explore, simulate

from .elsewhere import TwoServices, far
from .poisoned import until_buried
from .test_engine import Crash
from .test_language import Flaky, Later
from .world import DEADLINE, Gate, RecordingTransport, run_alone, steps

SOON = RetryPolicy(max_attempts=3, initial_delay=0.01, jitter=0)


FOREIGN_TO_REPLIES = {Point.HANDLER_BEGAN, Point.HANDLER_ENDED, Point.DEAD_LETTERED}
FOREIGN_TO_PARTICIPANTS = {Point.COMMITTING, Point.COMMITTED, Point.DEAD_LETTERED}


async def fails(saga: Saga, step: Step[Any]) -> None:
    raise StepError("no", "it cannot be", details={"seen": [1, None]})


def error_of(saga: Saga, step: str) -> Failure:
    error = saga.step(step).error
    assert error is not None
    return error


# What handlers answer -----------------------------------------------------------------------------------------------


async def test_a_saga_has_steps_at_home_and_steps_elsewhere(two: TwoServices) -> None:
    async with two.participating(), two.running() as manager:
        plan = [*steps("a"), far("b"), *steps("c"), far("d")]
        saga = await manager.wait((await manager.start("s", plan)).id)
    assert saga.is_completed
    assert [step.output for step in saga.steps] == [{"from": name} for name in "abcd"]
    assert two.calls == ["do.a", "far.b", "do.c", "far.d"]
    assert saga.revision == 4
    two.assert_queues_are_empty()


async def test_a_handler_elsewhere_sees_its_saga(two: TwoServices) -> None:
    seen: list[object] = []

    class Money(Struct):
        amount: int

    async def charge(saga: Saga, step: Step[Money]) -> dict[str, object]:
        seen.append((saga.id, saga.name, saga.context, saga.tags, saga.created_at))
        seen.append((step.name, step.id, step.input, step.attempt, step.idempotency_key(), step.token))
        seen.append([(saga.step(name).state, saga.step(name).output) for name in ("a", "b")])
        return {"paid": step.input.amount}

    async def skips(saga: Saga, step: Step[Any]) -> Skip:
        return Skip()

    two.replace("do.b", skips)
    plan = [*steps("a", "b"), far("c", input={"amount": 7})]
    options = Options(tags={"order": "o-7"})
    handlers = {**two.elsewhere.handlers("far"), "far.c": charge}
    async with two.participating(step_handlers=handlers), two.running() as manager:
        started = await manager.start("order", plan, {"customer": 7}, options=options)
        saga = await manager.wait(started.id)
    step = saga.step("c")
    assert seen == [
        (saga.id, "order", {"customer": 7}, {"order": "o-7"}, saga.created_at),
        ("c", step.id, Money(7), 1, step.idempotency_key(), step.token),
        [("completed", {"from": "a"}), ("skipped", {})],
    ]
    assert step.output == {"paid": 7}


async def test_a_failure_elsewhere_undoes_the_saga_and_keeps_all_that_the_error_said(
    two: TwoServices,
) -> None:
    two.replace_elsewhere("far.c", fails)
    async with two.participating(), two.running() as manager:
        saga = await manager.wait((await manager.start("s", [*steps("a"), far("b"), far("c")])).id)
    assert saga.is_compensated
    assert error_of(saga, "c") == Failure("no", "it cannot be", False, Raw(b'{"seen":[1,null]}'))
    assert two.calls == ["do.a", "far.b", "far.c", "unfar.b", "undo.a"]
    two.assert_queues_are_empty()


async def test_a_failed_attempt_elsewhere_is_followed_by_the_next_one(two: TwoServices) -> None:
    flaky = Flaky(2)
    two.replace_elsewhere("far.a", flaky)
    async with two.participating(), two.running() as manager:
        saga = await manager.wait((await manager.start("s", [far("a", retry=SOON)])).id)
    assert saga.is_completed
    assert flaky.attempts == [1, 2, 3]
    assert saga.step("a").output == {"done": True}
    two.assert_queues_are_empty()


@pytest.mark.parametrize("output", [[1], object(), {"rate": float("nan")}], ids=["list", "object", "nan"])
async def test_an_output_that_cannot_be_kept_fails_the_step_as_at_home(
    two: TwoServices, output: object
) -> None:
    async def returns(saga: Saga, step: Step[Any]) -> object:
        return output

    two.replace("do.b", returns)
    two.replace_elsewhere("far.b", returns)
    errors: list[Failure] = []
    async with two.participating(), two.running() as manager:
        for step in (steps("b")[0], far("b")):
            saga = await manager.wait((await manager.start("s", [*steps("a"), step])).id)
            errors.append(error_of(saga, "b"))
            assert saga.is_compensated
    home, away = errors
    assert home.code == away.code == "invalid_payload"
    assert home.message.replace("do.b", "far.b").split(" of saga ")[0] in away.message
    assert two.calls == ["do.a", "do.b", "undo.a", "do.a", "far.b", "undo.a"]


async def test_a_step_is_skipped_elsewhere_and_not_undone(two: TwoServices) -> None:
    async def skips(saga: Saga, step: Step[Any]) -> Skip:
        return Skip("paid already")

    two.replace_elsewhere("far.a", skips)
    two.replace("do.b", fails)
    async with two.participating(), two.running() as manager:
        saga = await manager.wait((await manager.start("s", [far("a"), *steps("b")])).id)
    assert [step.state for step in saga.steps] == [StepState.SKIPPED, StepState.FAILED]
    assert two.calls == ["far.a", "do.b"]


async def test_a_step_that_is_deferred_elsewhere_is_completed_by_its_token(two: TwoServices) -> None:
    later = Later()
    two.replace_elsewhere("far.a", later)
    async with two.participating(), two.running() as manager:
        saga = await manager.start("s", [far("a"), *steps("b")])
        await two.watch.until(Point.ACKNOWLEDGED)
        assert (await manager.get(saga.id)).progress_of("a").deferred
        await manager.complete(later.tokens[0], {"by": "a person"})
        saga = await manager.wait(saga.id)
        assert await manager.complete(later.tokens[0], {"by": "another"}) == saga
    assert saga.is_completed
    assert saga.step("a").output == {"by": "a person"}
    two.assert_queues_are_empty()


async def test_a_compensation_that_is_deferred_elsewhere_is_completed_by_its_token(two: TwoServices) -> None:
    later = Later()
    two.replace_elsewhere("unfar.a", later)
    two.replace("do.b", fails)
    async with two.participating(), two.running() as manager:
        saga = await manager.start("s", [far("a"), *steps("b")])
        with anyio.fail_after(DEADLINE):
            await later.called.wait()
        await two.watch.until(Point.ACKNOWLEDGED, 3)
        await manager.complete(later.tokens[0])
        assert (await manager.wait(saga.id)).is_compensated


async def test_a_second_reply_brings_the_result_of_a_deferred_step(two: TwoServices) -> None:
    """So whoever deferred it needs no way to the orchestrator but the broker."""
    two.replace_elsewhere("far.a", Later())
    async with two.participating(), two.running() as manager:
        saga = await manager.start("s", [far("a")])
        await two.watch.until(Point.ACKNOWLEDGED)
        reply = Reply(saga.id, "a", 1, "execute", "succeeded", Raw(b'{"by":"a webhook"}'))
        await two.publish(two.config().message(reply))
        assert (await manager.wait(saga.id)).step("a").output == {"by": "a webhook"}


async def test_a_compensation_elsewhere_has_what_its_action_returned(two: TwoServices) -> None:
    undone: list[object] = []

    async def undo(saga: Saga, step: Step[Any]) -> object:
        undone.append((step.state, step.output, step.compensation_attempt, saga.state))
        if step.compensation_attempt == 1:
            raise StepError("busy", "later", retryable=True)
        return object()  # nobody's business

    two.replace_elsewhere("unfar.a", undo)
    two.replace("do.b", fails)
    async with two.participating(), two.running() as manager:
        saga = await manager.start("s", [far("a", compensation_retry=SOON), *steps("b")])
        assert (await manager.wait(saga.id)).is_compensated
    assert undone == [("compensating", {"from": "a"}, attempt, "compensating") for attempt in (1, 2)]
    two.assert_queues_are_empty()


async def test_a_compensation_that_fails_elsewhere_leaves_the_saga_to_a_person(two: TwoServices) -> None:
    two.replace_elsewhere("unfar.a", fails)
    two.replace("do.b", fails)
    async with two.participating(), two.running() as manager:
        saga = await manager.wait((await manager.start("s", [far("a"), *steps("b")])).id)
        assert saga.is_failed
        assert error_of(saga, "a").code == "no"
        two.elsewhere.replaced.clear()
        await manager.retry(saga.id)
        assert (await manager.wait(saga.id)).is_compensated


async def test_the_steps_of_a_child_saga_run_elsewhere(two: TwoServices) -> None:
    child = Step[Any](name="x", child=ChildSaga("inner", [far("a"), *steps("b")]))
    async with two.participating(), two.running() as manager:
        saga = await manager.start("s", [child, *steps("c")], {"customer": 7})
        assert (await manager.wait(saga.id)).is_completed
        await manager.compensate(saga.id)
        assert (await manager.wait(saga.id)).is_compensated
    assert two.calls == ["far.a", "do.b", "do.c", "undo.c", "undo.b", "unfar.a"]
    two.assert_queues_are_empty()


def test_sagas_with_steps_elsewhere_are_simulated_and_explored_as_any() -> None:
    plan = [*steps("a"), far("b", retry=SOON), *steps("c")]
    run = simulate(plan, outcomes={"b": StepError("no", "no")})
    assert run.saga.is_compensated
    explore(plan)


# Time ---------------------------------------------------------------------------------------------------------------


async def test_an_attempt_elsewhere_that_times_out_is_cut_off_and_undone(two: TwoServices) -> None:
    gate = Gate()
    two.replace_elsewhere("far.b", gate)
    async with two.participating(), two.running() as manager:
        saga = await manager.wait((await manager.start("s", [*steps("a"), far("b", timeout=0.2)])).id)
    assert saga.is_compensated
    assert error_of(saga, "b").code == "timeout"
    assert gate.cancelled == 1
    assert two.calls == ["do.a", "far.b", "unfar.b", "undo.a"]
    two.assert_queues_are_empty()


async def test_an_attempt_elsewhere_ends_with_the_time_of_its_saga(two: TwoServices) -> None:
    gate = Gate()
    two.replace_elsewhere("far.a", gate)
    async with two.participating(), two.running() as manager:
        saga = await manager.start("s", [far("a")], options=Options(timeout=0.2))
        assert (await manager.wait(saga.id)).is_compensated
    assert gate.cancelled == 1
    assert two.calls == ["far.a", "unfar.a"]


@pytest.mark.parametrize("more", [{"timeout": 0.1}, {}], ids=["of the attempt", "of the saga"])
async def test_an_attempt_whose_time_is_over_when_it_arrives_is_not_begun(
    two: TwoServices, more: dict[str, Any]
) -> None:
    """Its compensation is in the queue beside it, and nothing says which of the two would come first."""
    async with two.bound_elsewhere(), two.running() as manager:
        options = Options() if more else Options(timeout=0.1)
        saga = await manager.start("s", [far("a", **more)], options=options)
        await two.watch.until(Point.COMMITTED, 2)
        assert (await manager.get(saga.id)).is_compensating
        async with two.participating():
            assert (await manager.wait(saga.id)).is_compensated
    assert two.calls == ["unfar.a"]
    two.assert_queues_are_empty()


async def test_an_attempt_is_timed_by_the_participants_own_clock(two: TwoServices) -> None:
    async with two.participating(clock=lambda: 0.0), two.running() as manager:
        saga = await manager.start("s", [far("a", timeout=3600)])
        assert (await manager.wait(saga.id)).is_completed


# Stopping, and coming again -----------------------------------------------------------------------------------------


async def test_a_participant_that_stops_lets_its_handlers_finish(two: TwoServices) -> None:
    gate = Gate(output={"done": True})
    two.replace_elsewhere("far.a", gate)
    async with two.running() as manager:
        async with two.participating() as participant:
            saga = await manager.start("s", [far("a")])
            await gate.until_running(1)
            participant.stop()
            gate.released.set()
        assert (await manager.wait(saga.id)).step("a").output == {"done": True}
    assert two.calls == ["far.a"]


@pytest.mark.parametrize("ending", ["the grace period is over", "run is cancelled"])
async def test_a_handler_that_is_cancelled_with_its_participant_runs_again_in_the_next(
    two: TwoServices, ending: str
) -> None:
    gate = Gate()
    two.replace_elsewhere("far.a", gate)
    async with two.bound_elsewhere(), two.running() as manager:
        saga = await manager.start("s", [*steps("b"), far("a")])
        async with two.participant(grace_period=0.0) as participant, anyio.create_task_group() as tasks:
            await tasks.start(participant.run)
            await gate.until_running(1)
            if ending == "run is cancelled":
                tasks.cancel_scope.cancel()
            else:
                participant.stop()
        assert gate.cancelled == 1
        assert two.depth("far.steps") == 1
        gate.released.set()
        async with two.participating():
            assert (await manager.wait(saga.id)).is_completed
    assert two.calls == ["do.b", "far.a", "far.a"]
    two.assert_queues_are_empty()


async def test_a_participant_works_while_its_orchestrator_is_away(two: TwoServices) -> None:
    async with two.bound_elsewhere(), two.manager() as manager:
        sagas = [await manager.start("s", [far("a"), *steps("b")]) for _ in range(3)]
    async with two.participating():
        await two.watch_elsewhere.until(Point.ACKNOWLEDGED, 3)
    assert two.depth("saga.orchestrator") == 3
    assert all([(await two.store.load(saga.id)).revision == 0 for saga in sagas])
    async with two.running() as manager:
        for saga in sagas:
            assert (await manager.wait(saga.id)).is_completed
    assert two.calls == ["far.a"] * 3 + ["do.b"] * 3
    two.assert_queues_are_empty()


@pytest.mark.parametrize("when", ["at once", "later", "after the end"])
async def test_a_reply_that_comes_twice_changes_nothing(two: TwoServices, when: str) -> None:
    gate = Gate()
    gate.released.set()
    two.replace("do.b", gate)
    again = two.config().message(Reply("", "a", 1, "execute", "succeeded", Raw(b'{"from":"another"}')))

    async def repeat(saga: Saga) -> None:
        body = again.body.replace(b'"saga":""', b'"saga":"%b"' % saga.id.encode())
        await two.publish(replace(again, body=body))

    async with two.participating(), two.running() as manager:
        if when == "later":
            gate.released = anyio.Event()
        saga = await manager.start("s", [far("a"), *steps("b")])
        if when == "later":
            await gate.until_running(1)
        elif when == "after the end":
            await manager.wait(saga.id)
        await repeat(saga)
        await two.watch.until(Point.RECEIVED, 3)
        gate.released.set()
        saga = await manager.wait(saga.id)
        await anyio.wait_all_tasks_blocked()
        assert await manager.get(saga.id) == saga
    assert saga.is_completed
    assert saga.revision == 2
    if when != "at once":
        assert saga.step("a").output == {"from": "a"}
    assert two.calls == ["far.a", "do.b"]
    two.assert_queues_are_empty()


async def test_a_reply_of_an_attempt_that_was_given_up_changes_nothing(two: TwoServices) -> None:
    flaky = Flaky(0)
    two.replace_elsewhere("far.a", flaky)
    async with two.bound_elsewhere(), two.running() as manager:
        saga = await manager.start("s", [far("a", timeout=0.1, retry=SOON)])
        await two.watch.until(Point.COMMITTED, 2)
        late = Reply(saga.id, "a", 1, "execute", "succeeded", Raw(b'{"from":"another"}'))
        await two.publish(two.config().message(late))
        await two.watch.until(Point.ACKNOWLEDGED)
        async with two.participating():
            saga = await manager.wait(saga.id)
    assert saga.is_completed
    assert saga.step("a").output == {"done": True}
    assert 1 not in flaky.attempts
    two.assert_queues_are_empty()


@pytest.mark.parametrize("point", [point for point in Point if point not in FOREIGN_TO_REPLIES])
async def test_an_orchestrator_that_dies_over_a_reply_is_followed_by_one_that_applies_it(
    two: TwoServices, point: Point
) -> None:
    def die(moment: Moment) -> None:
        two.watch(moment)
        if isinstance(moment.command, Reply) and moment.point is point:
            raise Crash

    async with two.participating():
        with anyio.fail_after(DEADLINE):
            async with two.manager(observer=die) as manager:
                with pytest.raises(Crash):
                    await run_alone(manager, lambda: manager.start("s", [far("a"), *steps("b")]))
        (saga,) = await two.all_sagas()
        async with two.running() as manager:
            saga = await manager.wait(saga.id)
    assert saga.is_completed
    assert saga.revision == 2
    assert two.calls == ["far.a", "do.b"]
    two.assert_queues_are_empty()


@pytest.mark.parametrize("point", [point for point in Point if point not in FOREIGN_TO_PARTICIPANTS])
@pytest.mark.parametrize("how", ["the observer raises", "run is cancelled"])
async def test_a_participant_that_dies_at_any_point_is_followed_by_one_that_replies(
    two: TwoServices, point: Point, how: str
) -> None:
    def die(moment: Moment) -> None:
        two.watch_elsewhere(moment)
        if moment.point is point:
            if how == "run is cancelled":
                scope.cancel()
            else:
                raise Crash

    async with two.bound_elsewhere(), two.running() as manager:
        saga = await manager.start("s", [far("a"), *steps("b")])
        async with two.participant(observer=die) as participant:
            with anyio.CancelScope() as scope:
                if how == "run is cancelled":
                    await participant.run()
                else:
                    with pytest.raises(Crash):
                        await run_alone(participant, anyio.sleep_forever)
        async with two.participating():
            saga = await manager.wait(saga.id)
    assert saga.is_completed
    assert saga.revision == 2
    two.assert_queues_are_empty()


# Order, connections, observers --------------------------------------------------------------------------------------


async def test_a_step_is_acknowledged_only_when_the_broker_has_confirmed_the_reply(two: TwoServices) -> None:
    transport = RecordingTransport(MemoryTransport(two.broker), log := [])
    transport.hold_confirms = True
    async with two.participating(transport=transport), two.running() as manager:
        saga = await manager.start("s", [far("a")])
        assert (await manager.wait(saga.id)).is_completed
        await anyio.wait_all_tasks_blocked()
        assert log == ["publish a.execute.reply.1"]
        for confirm in transport.held:
            confirm(None)
    assert log[1:] == ["confirm a.execute.reply.1", "acknowledge a.execute.1"]


async def test_an_observer_sees_what_a_participant_does(two: TwoServices) -> None:
    async with two.participating(), two.running() as manager:
        saga = await manager.start("s", [far("a")])
        await manager.wait(saga.id)
    command = Execute(saga.id, "a", "far.a", 1)
    points = [point for point in Point if point not in FOREIGN_TO_PARTICIPANTS]
    assert two.watch_elsewhere.moments == [Moment(point, saga.id, command) for point in points]
    (reply,) = {moment.command for moment in two.watch.moments if isinstance(moment.command, Reply)}
    points = [moment.point for moment in two.watch.moments if moment.command == reply]
    assert points == [
        Point.RECEIVED,
        Point.COMMITTING,
        Point.COMMITTED,
        Point.ACKNOWLEDGING,
        Point.ACKNOWLEDGED,
    ]


async def test_handlers_go_on_while_the_connection_is_lost_and_reply_over_the_next(two: TwoServices) -> None:
    gate = Gate()
    two.replace_elsewhere("far.a", gate)
    transport = RecordingTransport(MemoryTransport(two.broker), [])
    async with two.participating(transport=transport), two.running() as manager:
        sagas = [await manager.start("s", [far("a")]) for _ in range(3)]
        await gate.until_running(3)
        transport.break_down(ConnectionLostError("the broker went away"))
        await transport.changes.until(lambda: transport.next is not None and transport.next.deliveries == 3)
        gate.released.set()
        for saga in sagas:
            assert (await manager.wait(saga.id)).is_completed
    assert two.calls == ["far.a"] * 3
    assert gate.cancelled == 0
    two.assert_queues_are_empty()


async def test_a_reply_that_could_not_be_published_is_made_again_by_its_handler(two: TwoServices) -> None:
    transport = RecordingTransport(MemoryTransport(two.broker), [])

    async def break_the_way_back(saga: Saga, step: Step[Any]) -> None:
        if transport.why is None:
            transport.break_down(ConnectionLostError("the broker went away"))

    two.replace_elsewhere("far.a", break_the_way_back)
    async with two.participating(transport=transport), two.running() as manager:
        saga = await manager.start("s", [far("a")])
        assert (await manager.wait(saga.id)).is_completed
    assert two.calls == ["far.a", "far.a"]
    two.assert_queues_are_empty()


async def test_two_participants_share_the_work(two: TwoServices) -> None:
    gate = Gate()
    two.replace_elsewhere("far.a", gate)
    few = {"concurrency": 1, "prefetch": 1}
    async with two.participating(**few), two.participating(**few), two.running() as manager:
        sagas = [await manager.start("s", [far("a")]) for _ in range(6)]
        await gate.until_running(2)
        gate.released.set()
        for saga in sagas:
            assert (await manager.wait(saga.id)).is_completed
    assert gate.most == 2
    assert two.calls == ["far.a"] * 6


async def test_two_tenants_share_a_broker(two: TwoServices) -> None:
    """The same names with another prefix before them are another exchange and other queues."""
    other = TwoServices()
    other.broker = two.broker
    async with (
        two.participating(),
        two.running() as manager,
        other.participating(prefix="other."),
        other.running(prefix="other.") as neighbour,
    ):
        for one in (manager, neighbour):
            saga = await one.wait((await one.start("s", [*steps("a"), far("b")])).id)
            assert saga.is_completed
    assert two.calls == other.calls == ["do.a", "far.b"]
    assert {"saga.steps", "other.saga.steps", "far.steps", "other.far.steps"} <= two.broker.queues.keys()


# What cannot be handled ----------------------------------------------------------------------------------------------


async def test_an_action_that_no_service_has_ever_had_a_queue_for_fails_its_step(two: TwoServices) -> None:
    async with two.running() as manager:
        for plan in ([far("a"), *steps("b")], [*steps("a"), far("b")]):
            saga = await manager.wait((await manager.start("s", plan)).id)
            assert saga.is_compensated
            error = error_of(saga, plan[0].name if plan[0].action == "far.a" else "b")
            assert error.code == "unroutable"
            assert "was it ever started?" in error.message
    assert two.calls == ["do.a", "undo.a"], "what was never sent is not undone"


async def test_an_action_that_a_participant_has_no_handler_for_fails_its_step(two: TwoServices) -> None:
    handlers = {name: one for name, one in two.elsewhere.handlers("far").items() if name != "far.b"}
    async with two.bound_elsewhere():
        pass  # so that the queue was bound for it by the release before
    async with two.participating(step_handlers=handlers) as participant, two.running() as manager:
        saga = await manager.wait((await manager.start("s", [*steps("a"), far("b")])).id)
        await until_buried(participant)
        assert participant.dead_lettered() == {"no_handler": 1}
    assert saga.is_compensated
    assert error_of(saga, "b").code == "no_handler"
    assert two.calls == ["do.a", "undo.a"], "what was never run is not undone"
    two.assert_queues_are_empty(dead_letters=1)


async def test_a_step_that_is_neither_at_home_nor_elsewhere_is_refused(two: TwoServices) -> None:
    async with two.running() as manager:
        with pytest.raises(Exception, match=r"no handler is registered .* elsewhere: far\.\*, unfar\.\*"):
            await manager.start("s", [Step(name="a", action="farther.a")])


class Undeliverable(Struct, frozen=True):
    """A message that a participant cannot handle, and the code of the error that its step fails with, if it does."""

    body: Callable[[Execute, bytes], bytes]
    code: str | None = "undecodable"


UNDELIVERABLE = {
    "no JSON": Undeliverable(lambda command, body: b"\xff", None),
    "of a later version": Undeliverable(lambda command, body: body.replace(b'"version":1', b'"version":2')),
    "without work": Undeliverable(lambda command, body: encode_command(command)),
    "with half of the work": Undeliverable(lambda command, body: body.replace(b'"context":{},', b"")),
    "with work that is no saga": Undeliverable(
        lambda command, body: body.replace(b'"outputs":{}', b'"outputs":{"a":{}}')
    ),
    "for an orchestrator": Undeliverable(
        lambda command, body: encode_command(Report(command.saga, "a", 1, "", SagaState.FAILED)), None
    ),
    "of endless names": Undeliverable(
        lambda command, body: encode_command(replace(command, saga="x" * 300, step="é" * 300)), None
    ),
    "of a huge attempt": Undeliverable(
        lambda command, body: encode_command(replace(command, attempt=10**300))
    ),
}


@pytest.mark.parametrize("kind", UNDELIVERABLE)
async def test_a_message_that_a_participant_cannot_read_is_a_dead_letter_and_blocks_nobody(
    two: TwoServices, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    made, code = UNDELIVERABLE[kind].body, UNDELIVERABLE[kind].code
    transport = Strict(two.broker)
    async with two.bound_elsewhere(), two.running() as manager:
        saga = await manager.start("s", [far("a")])
        (command,) = outstanding(saga)
        assert isinstance(command, Execute)
        held = two.broker.queues["far.steps"].ready[0]
        body = made(command, held.message.body)
        held.message = replace(held.message, body=body)
        async with two.participating(transport=transport, concurrency=1, prefetch=1) as participant:
            other = await manager.start("s", [far("b")])
            assert (await manager.wait(other.id)).is_completed
            await two.watch_elsewhere.until(Point.ACKNOWLEDGED)
            await until_buried(participant)
            assert participant.dead_lettered() == {"undecodable": 1}
        if code is not None and kind != "of a huge attempt":
            saga = await manager.wait(saga.id)
            assert error_of(saga, "a").code == code
        else:
            await manager.resolve(saga.id, "a", "completed", reason="nobody can say whose it was")
    letters = [one.message.body for one in two.broker.queues["saga.dead-letter"].ready]
    assert body in letters


class Strict(MemoryTransport):
    """A transport that takes no names that AMQP could not carry."""

    async def publish(self, message: Message, settled: Any) -> None:
        for name in (message.exchange, message.routing_key, message.id, message.type):
            assert len(name.encode()) <= 255
        await super().publish(message, settled)


async def test_a_message_that_has_killed_participants_is_given_up_and_its_saga_is_told(
    two: TwoServices,
) -> None:
    async with two.bound_elsewhere(), two.running() as manager:
        saga = await manager.start("s", [far("a")])
        two.broker.queues["far.steps"].ready[0].deliveries = two.config().delivery_limit
        async with two.participating() as participant:
            saga = await manager.wait(saga.id)
            await until_buried(participant)
            assert participant.dead_lettered() == {"delivered_too_often": 1}
    assert error_of(saga, "a").code == "delivered_too_often"
    assert saga.step("a").state is StepState.COMPENSATED, "it may have had its effect"
    assert two.calls == ["unfar.a"]


async def test_what_the_broker_takes_from_a_participant_is_told_by_an_orchestrator(two: TwoServices) -> None:
    """For example because somebody, in another language, rejects what he cannot read."""
    async with two.bound_elsewhere(), two.running() as manager:
        saga = await manager.start("s", [*steps("b"), far("a")])

        rejected = anyio.Event()

        def reject(delivery: Any) -> None:
            delivery.reject(requeue=False)
            rejected.set()

        async with MemoryTransport(two.broker) as transport, transport.consume("far.steps", 1, reject):
            with anyio.fail_after(DEADLINE):
                await rejected.wait()
        async with two.participating():
            saga = await manager.wait(saga.id)
        await until_buried(manager)
        assert manager.dead_lettered() == {"dropped_by_broker": 1}
    assert error_of(saga, "a").code == "dropped_by_broker"
    assert "'far.steps': rejected" in error_of(saga, "a").message


@pytest.mark.parametrize("what", ["output", "details"])
async def test_a_reply_that_is_too_long_says_so_instead(two: TwoServices, what: str) -> None:
    async def talks(saga: Saga, step: Step[Any]) -> dict[str, object]:
        long: dict[str, object] = {"text": "x" * 2_000}
        if what == "details":
            raise StepError("no", "no", details=long)
        return long

    two.replace_elsewhere("far.a", talks)
    async with two.participating(max_message_size=2_000), two.running() as manager:
        saga = await manager.wait((await manager.start("s", [far("a")])).id)
    error = error_of(saga, "a")
    assert (error.code, error.retryable) == ("oversize", False)
    assert "and max_message_size is 2000" in error.message
    assert two.calls == ["far.a", "unfar.a"]


async def test_a_command_that_is_too_long_for_a_participant_fails_its_step(two: TwoServices) -> None:
    async with two.participating(max_message_size=1_000) as participant, two.running() as manager:
        saga = await manager.start("s", [far("a", input={"text": "x" * 1_000})])
        assert (await manager.wait(saga.id)).at_rest
        await until_buried(participant)
        assert participant.dead_lettered()["oversize"] >= 1
    assert error_of(await two.store.load(saga.id), "a").code == "oversize"
    assert "far.a" not in two.calls


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'"output":{"rate":NaN}}', "undecodable"),
        (b'"output":' + b'{"a":' * 3_000 + b"1" + b"}" * 3_001, "undecodable"),
        (b'"output":[1]}', "invalid_payload"),
        (b'"outcome":"exploded"}', "undecodable"),
        (b'"version":2}', "undecodable"),
    ],
    ids=["NaN", "deep", "list", "outcome", "version"],
)
async def test_a_reply_that_cannot_be_used_fails_its_step(two: TwoServices, body: bytes, code: str) -> None:
    async with two.bound_elsewhere(), two.running() as manager:
        saga = await manager.start("s", [far("a")])
        reply = two.config().message(Reply(saga.id, "a", 1, "execute", "succeeded"))
        whole = encode_command(Reply(saga.id, "a", 1, "execute", "succeeded")).partition(b',"output"')[0]
        await two.publish(replace(reply, body=whole + b"," + body))
        async with two.participating():
            saga = await manager.wait(saga.id)
    assert error_of(saga, "a").code == code
    # A handler at home whose output cannot be kept has failed. What a reply that nobody can read meant, nobody knows.
    assert saga.step("a").state is (StepState.FAILED if code == "invalid_payload" else StepState.COMPENSATED)


async def test_a_reply_to_a_saga_that_is_gone_is_a_dead_letter(two: TwoServices) -> None:
    gate = Gate()
    two.replace_elsewhere("far.a", gate)
    async with two.participating(), two.running() as manager:
        saga = await manager.start("s", [far("a")])
        await gate.until_running(1)
        await two.store.delete(saga.id)
        gate.released.set()
        await two.watch.until(Point.DEAD_LETTERED)
    two.assert_queues_are_empty(dead_letters=1)


# The user's door ----------------------------------------------------------------------------------------------------


async def test_a_participant_works_only_while_it_is_open(two: TwoServices) -> None:
    participant = two.participant()
    with pytest.raises(ManagerError, match="This participant is new; use it inside `async with Participant"):
        await participant.run()
    async with participant:
        pass
    with pytest.raises(ManagerError, match="closed"):
        await participant.run()
    with pytest.raises(ManagerError, match="closed"):
        await participant.__aenter__()


async def test_a_participant_runs_once_at_a_time_and_again(two: TwoServices) -> None:
    with anyio.fail_after(DEADLINE):
        async with two.participant() as participant:
            for _ in range(2):
                async with anyio.create_task_group() as tasks:
                    await tasks.start(participant.run)
                    with pytest.raises(ManagerError, match="running already"):
                        await participant.run()
                    participant.stop()
            await participant.close()
            await participant.close()


async def release(gate: Gate) -> None:
    await anyio.wait_all_tasks_blocked()
    gate.released.set()


async def test_leaving_a_participant_waits_for_running_handlers(two: TwoServices) -> None:
    gate = Gate()
    two.replace_elsewhere("far.a", gate)
    async with two.running() as manager, anyio.create_task_group() as tasks:
        async with two.participant() as participant:
            await tasks.start(participant.run)
            saga = await manager.start("s", [far("a")])
            await gate.until_running(1)
            tasks.start_soon(release, gate)
        assert gate.cancelled == 0
        assert (await manager.wait(saga.id)).is_completed


async def test_a_registry_is_a_participants_whole_service(two: TwoServices) -> None:
    payment = Registry()

    @payment.action("far.charge", retry=SOON)
    async def charge(saga: Saga, step: Step) -> dict[str, object]:
        return {"charged": step.input["amount"]}

    @charge.compensation("unfar.charge")
    async def refund(saga: Saga, step: Step) -> None:
        refunded.append(step.output["charged"])

    refunded: list[object] = []
    two.replace("do.b", fails)
    handlers: dict[str, Any] = {"step_handlers": {}, "compensation_handlers": {}, "registries": (payment,)}
    async with two.participating(**handlers), two.running() as manager:
        plan = [charge.step({"amount": 7}), *steps("b")]
        assert (await manager.wait((await manager.start("s", plan)).id)).is_compensated
    assert refunded == [7]


# The barrier --------------------------------------------------------------------------------------------------------


class Bank:
    """An account in a database of the other service's own."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.execute("CREATE TABLE bookings (amount INTEGER)")
        barrier.create_table(self.connection)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        with self.connection:
            yield

    def booked(self) -> list[int]:
        return [amount for (amount,) in self.connection.execute("SELECT amount FROM bookings")]

    async def charge(self, saga: Saga, step: Step[Any]) -> object:
        return self._book(saga, step, -7)

    async def refund(self, saga: Saga, step: Step[Any]) -> object:
        return self._book(saga, step, 7)

    def _book(self, saga: Saga, step: Step[Any], amount: int) -> object:
        def body() -> dict[str, object]:
            self.connection.execute("INSERT INTO bookings VALUES (?)", (amount,))
            return {"booked": amount}

        with self.transaction():
            return barrier.run(self.connection, saga, step, body)


@pytest.fixture
def bank(two: TwoServices) -> Iterator[Bank]:
    bank = Bank()
    two.replace_elsewhere("far.a", bank.charge)
    two.replace_elsewhere("unfar.a", bank.refund)
    yield bank
    bank.connection.close()


async def test_a_step_that_is_delivered_again_takes_effect_once(two: TwoServices, bank: Bank) -> None:
    async with two.participating(), two.running() as manager:
        saga = await manager.start("s", [far("a"), *steps("b")])
        (command,) = outstanding(saga)
        again = two.config(step_handlers={}).message(command, saga)
        saga = await manager.wait(saga.id)
        assert saga.step("a").output == {"booked": -7}
        await two.publish(again)
        await two.watch_elsewhere.until(Point.ACKNOWLEDGED, 2)
        await manager.compensate(saga.id)
        await manager.wait(saga.id)
        await two.publish(again)
        await two.watch_elsewhere.until(Point.ACKNOWLEDGED, 4)
    assert bank.booked() == [-7, 7]
    two.assert_queues_are_empty()


async def test_an_action_that_is_slower_than_its_compensation_is_refused(
    two: TwoServices, bank: Bank
) -> None:
    undone = anyio.Event()

    async def slow(saga: Saga, step: Step[Any]) -> object:
        await undone.wait()
        return await bank.charge(saga, step)

    async def refund(saga: Saga, step: Step[Any]) -> object:
        answer = await bank.refund(saga, step)
        undone.set()
        return answer

    two.replace_elsewhere("far.a", slow)
    two.replace_elsewhere("unfar.a", refund)
    # Its clock is slow too, so that nothing cuts the action off.
    async with two.participating(clock=lambda: 0.0), two.running() as manager:
        saga = await manager.start("s", [far("a", timeout=0.1)])
        assert (await manager.wait(saga.id)).is_compensated
        await two.watch.until(Point.ACKNOWLEDGED, 2)
    replies = {moment.command for moment in two.watch.moments if isinstance(moment.command, Reply)}
    assert {(one.of, one.error.code if one.error else one.outcome) for one in replies} == {
        ("compensate", "succeeded"),
        ("execute", "refused_by_barrier"),
    }
    assert bank.booked() == []
    two.assert_queues_are_empty()


def test_only_what_goes_elsewhere_carries_what_its_handler_needs() -> None:
    config = TwoServices().config()
    saga = new_saga("s", [*steps("a"), far("b", depends_on=())], id="01HZY3V9Q8W7X6T5S4R3P2N1M0", at=1.0)
    at_home, elsewhere = outstanding(saga)
    assert config.message(at_home, saga).body == encode_command(at_home)
    assert config.message(elsewhere, saga).body == encode_command(elsewhere, work_of(saga, elsewhere))


def test_a_reply_is_what_travels() -> None:
    """The message that a participant makes of an answer: how it is addressed, and what is in it."""
    config = TwoServices().config_elsewhere(prefix="shop.")
    command = Execute("01HZY3V9Q8W7X6T5S4R3P2N1M0", "pay", "far.pay", 2, 9.5)
    message = config.message(reply_of(command, StepSucceeded("pay", 2, Raw(b'{"id":7}'), 1.0)))
    assert (message.exchange, message.routing_key) == ("shop.sagas", "reply")
    assert (message.id, message.type) == (
        "01HZY3V9Q8W7X6T5S4R3P2N1M0.pay.execute.reply.2",
        "saga.step.reply",
    )
    assert message.mandatory
    assert decode_command(message.body) == Reply(
        command.saga, "pay", 2, "execute", "succeeded", Raw(b'{"id":7}')
    )
    undone = config.message(Reply(command.saga, "pay", 2, "compensate", "succeeded"))
    assert undone.id != message.id
