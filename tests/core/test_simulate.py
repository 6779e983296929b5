"""A saga run offline, in virtual time: with real handlers, with scripted outcomes, and its history replayed."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace

from saga_core import (
    ChildSaga,
    Defer,
    Handler,
    HandlerError,
    Options,
    RetryPolicy,
    Saga,
    Skip,
    Step,
    StepError,
    StepState,
    StepSucceeded,
    UnknownStepError,
    check_handler,
    encode_payload,
)
from saga_core.testing import (
    Call,
    Later,
    Lost,
    Never,
    Simulation,
    SimulationError,
    replay,
    simulate,
    simulate_async,
)

BUSY = StepError("busy", "not now", retryable=True)
DECLINED = StepError("declined", "no money")
THREE_DAYS = RetryPolicy(max_attempts=3, initial_delay=86_400, max_delay=7 * 86_400, jitter=0)


def step(name: str, **more: Any) -> Step[Any]:
    return Step(name=name, action=f"do.{name}", compensation=f"undo.{name}", **more)


def undone(run: Simulation) -> list[str]:
    return [call.step for call in run.calls if call.operation == "compensate"]


def test_steps_without_a_script_succeed() -> None:
    run = simulate([step("a"), step("b")], name="order", context={"customer": 7}, start=5.0)
    assert run.saga.is_completed
    assert (run.saga.name, run.saga.context, run.at) == ("order", {"customer": 7}, 5.0)
    assert run.calls == [Call("a", "execute", 1, 5.0), Call("b", "execute", 1, 5.0)]
    assert run.children == {}


class Amount(Struct):
    euros: int


async def charge(saga: Saga, step: Step[Amount]) -> dict[str, object]:
    return {"charged": step.input.euros, "for": saga.context["customer"]}


async def refund(saga: Saga, step: Step) -> None:
    assert step.output == {"charged": 5, "for": "c-1"}


@pytest.mark.parametrize("prepared", [charge, check_handler(charge, "a handler")])
def test_the_users_own_handlers_are_called_with_typed_inputs(prepared: Callable[..., Any] | Handler) -> None:
    run = simulate(
        [step("a", input=Amount(5)), step("b")],
        {"do.a": prepared, "undo.a": refund},
        outcomes={"b": DECLINED},
        context={"customer": "c-1"},
    )
    assert run.saga.is_compensated
    assert run.saga.steps[0].output == {"charged": 5, "for": "c-1"}


def test_an_input_that_does_not_fit_fails_the_step() -> None:
    run = simulate([step("a", input={"euros": "many"})], {"do.a": charge})
    assert run.saga.steps[0].error is not None
    assert run.saga.steps[0].error.code == "invalid_payload"
    assert "euros" in run.saga.steps[0].error.message


def test_what_a_handler_raises_or_cannot_write_fails_the_step() -> None:
    async def raises(saga: Saga, step: Step) -> None:
        raise DECLINED

    async def unwritable(saga: Saga, step: Step) -> object:
        return object()

    for handler, code in ((raises, "declined"), (unwritable, "invalid_payload")):
        run = simulate([step("a")], {"do.a": handler})
        assert run.saga.steps[0].error is not None
        assert run.saga.steps[0].error.code == code


def test_a_handler_that_is_none_is_refused() -> None:
    with pytest.raises(HandlerError, match=r"do\.a"):
        simulate([step("a")], {"do.a": lambda saga, step: None})  # type: ignore[dict-item, return-value]


def test_one_outcome_is_for_every_attempt_and_a_list_has_one_for_each() -> None:
    patient = step("a", retry=THREE_DAYS)
    assert simulate([patient], outcomes={"a": BUSY}).saga.is_compensated
    run = simulate([patient], outcomes={"a": [BUSY, BUSY]})
    assert run.saga.is_completed
    assert run.at == 3 * 86_400


def test_a_script_of_a_compensation_is_apart() -> None:
    once = step("a", compensation_retry=RetryPolicy(max_attempts=1))
    run = simulate([once, step("b")], outcomes={"b": DECLINED}, compensations={"a": DECLINED})
    assert run.saga.is_failed
    run = simulate([once, step("b")], outcomes={"b": DECLINED}, compensations={"a": [Later(seconds=9)]})
    assert run.saga.is_compensated
    assert run.at == 9


@pytest.mark.parametrize(("outcome", "seconds"), [(Lost(), 0), (Never(), 30)])
def test_a_step_whose_outcome_is_unknown_is_undone(outcome: object, seconds: float) -> None:
    run = simulate([step("a"), step("b", timeout=30)], outcomes={"b": outcome})
    assert undone(run) == ["b", "a"]
    assert run.at == seconds


def test_a_lost_compensation_is_a_failed_one() -> None:
    once = step("a", compensation_retry=RetryPolicy(max_attempts=1))
    run = simulate([once, step("b")], outcomes={"b": DECLINED}, compensations={"a": Lost()})
    assert run.saga.is_failed


def test_callbacks_come_in_their_order_and_too_late_after_a_timeout() -> None:
    side_by_side = [step("a", depends_on=()), step("b", depends_on=()), step("c", depends_on=("a", "b"))]
    run = simulate(side_by_side, outcomes={"a": Later({"n": 1}, 20), "b": Later(DECLINED, 30)})
    assert undone(run) == ["a"]
    assert run.at == 30
    run = simulate([step("a", timeout=10)], outcomes={"a": Later({"n": 1}, 20)})
    assert run.saga.steps[0].state is StepState.COMPENSATED
    run = simulate([step("a")], outcomes={"a": Later(Never(), 20)})
    assert (run.saga.at_rest, run.at) == (False, 20)


def test_a_handler_may_skip_or_wait_for_a_person() -> None:
    async def asks(saga: Saga, step: Step) -> Defer:
        return Defer()

    run = simulate([step("a"), step("b")], {"do.b": asks}, outcomes={"a": Skip("known")})
    assert [one.state for one in run.saga.steps] == [StepState.SKIPPED, StepState.STARTED]
    assert not run.saga.at_rest


def test_child_sagas_run_with_the_same_handlers_and_scripts() -> None:
    family = [step("a"), Step(name="ship", child=ChildSaga("shipping", [step("b")])), step("c")]
    run = simulate(family, outcomes={"c": DECLINED})
    assert undone(run) == ["b", "a"]
    (child,) = run.children.values()
    assert child.is_compensated
    run = simulate(family, outcomes={"b": DECLINED})
    assert undone(run) == ["a"]


def test_a_child_past_its_pivot_leaves_its_parent_to_a_person() -> None:
    family = [Step(name="ship", child=ChildSaga("shipping", [step("b", pivot=True)])), step("c")]
    run = simulate(family, outcomes={"c": DECLINED})
    assert run.saga.is_failed
    assert run.saga.steps[0].error is not None
    assert run.saga.steps[0].error.code == "child_past_pivot"


def test_a_saga_that_never_comes_to_rest_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["saga_core.testing.simulate"], "LONGEST", 50)
    for_ever = RetryPolicy(max_attempts=None, initial_delay=1)
    with pytest.raises(SimulationError, match="did not come to rest in 50 events"):
        simulate([step("a", retry=for_ever)], outcomes={"a": BUSY})


def test_a_handler_that_needs_its_event_loop_is_run_by_the_other_one() -> None:
    async def sleeps(saga: Saga, step: Step) -> dict[str, object]:
        await asyncio.sleep(0)
        if step.name == "b":
            raise DECLINED
        return {"slept": True}

    handlers = {"do.a": sleeps, "do.b": sleeps}
    with pytest.raises(SimulationError, match=r"sleeps.*simulate_async"):
        simulate([step("a")], handlers)
    run = asyncio.run(simulate_async([step("a"), step("b")], handlers))
    assert run.saga.steps[0].output == {"slept": True}
    assert undone(run) == ["a"]


def test_a_history_replays_to_the_stored_saga() -> None:
    run = simulate([step("a", retry=THREE_DAYS), step("b")], outcomes={"a": [BUSY], "b": DECLINED})
    assert replay(run.origin, run.history, run.saga)
    assert replay(run.origin, run.history).saga == run.saga


def test_a_replay_tells_the_first_event_that_is_answered_otherwise() -> None:
    run = simulate([step("a"), step("b")])
    twice = [run.history[0], run.history[0], *run.history[1:]]
    told = replay(run.origin, twice, run.saga)
    assert not told
    assert told.different == 1
    assert told.why is not None
    assert "StepSucceeded" in told.why
    other = replace(run.saga, revision=9)
    told = replay(run.origin, run.history, other)
    assert (told.different, told.why) == (2, "the saga differs from the stored one in: revision")


def test_a_replay_of_another_sagas_history_is_a_callers_mistake() -> None:
    run = simulate([step("a")])
    strange = StepSucceeded("z", 1, encode_payload(None, "output"), 1.0)
    with pytest.raises(UnknownStepError):
        replay(run.origin, [strange])


def test_options_hold_in_a_simulation() -> None:
    run = simulate([step("a")], outcomes={"a": Never()}, options=Options(start_at=10.0, timeout=5.0))
    assert (run.saga.is_compensated, run.at) == (True, 15.0)


def test_the_fixtures_of_the_pytest_plugin_are_found(
    simulate_saga: object, simulate_saga_async: object, explore_saga: object, replay_saga: object
) -> None:
    from saga_core import testing

    assert simulate_saga is testing.simulate
    assert simulate_saga_async is testing.simulate_async
    assert explore_saga is testing.explore
    assert replay_saga is testing.replay
