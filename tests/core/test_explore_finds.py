"""Rules that are broken on purpose: `explore` finds each, and no shorter way leads to it."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from saga_core import machine, moves
from saga_core.draft import COMPENSATING, COMPLETED, Draft, Transition, positions
from saga_core.events import (
    ChildRested,
    CompensationFailed,
    CompensationSucceeded,
    Event,
    StepDeferred,
    StepFailed,
    StepSucceeded,
)
from saga_core.machine import TABLE, Row
from saga_core.model import PENDING, Progress, Saga
from saga_core.options import NO_OPTIONS
from saga_core.plan import Step
from saga_core.states import SagaState, StepState
from saga_core.testing import Violation, explore, invariants, world
from saga_core.testing.transcript import play

from .test_explore import HALVES, KID, SEQUENTIAL, TWICE, Steps, child, step

Break = Callable[[pytest.MonkeyPatch], None]
BROKEN: dict[str, tuple[Break, str, int, Steps, dict[str, Any]]] = {}


def broken(problem: str, length: int, *steps: Step[Any], **arguments: Any) -> Callable[[Break], Break]:
    """Note how a rule is broken, what is said about it, after how many steps, and in which saga."""

    def note(breaking: Break) -> Break:
        BROKEN[breaking.__name__.replace("_", " ")] = (breaking, problem, length, list(steps), arguments)
        return breaking

    return note


@broken("'a' is undone before 'b', which stands on it (I4)", 2, step("a"), step("b", "a"), step("c", "b"))
def compensations_come_in_any_order(patch: pytest.MonkeyPatch) -> None:
    def hasty(draft: Draft) -> None:
        for position in range(len(draft.plan.steps)):
            draft.tips |= (draft.record(position).state is COMPLETED) << position
        undo(draft)

    undo = moves.undo
    patch.setattr(moves, "undo", hasty)


@broken("'a' is being undone while 'b' may run (I4)", 1, step("a"), step("b"))
def a_compensation_begins_while_a_step_runs(patch: pytest.MonkeyPatch) -> None:
    def hasty(draft: Draft) -> None:
        running, draft.running = draft.running, 0
        undo(draft)
        draft.running = running

    undo = moves.undo
    patch.setattr(moves, "undo", hasty)


@broken("'a' and 'b' are undone side by side", 2, step("a"), step("b"), options=SEQUENTIAL)
def independent_compensations_are_never_one_after_the_other(patch: pytest.MonkeyPatch) -> None:
    def all_at_once(draft: Draft) -> None:
        plan = draft.plan
        draft.plan = replace(plan, options=NO_OPTIONS)
        undo(draft)
        draft.plan = plan

    undo = moves.undo
    patch.setattr(moves, "undo", all_at_once)


@broken("'a' is not undone (I5)", 1, step("a"), step("b", "a"))
def compensations_are_passed_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moves, "undo", lambda draft: setattr(draft, "tips", 0))


@broken("'a' could be undone, and is not", 2, step("a"), step("b"))
def independent_compensations_are_always_one_after_the_other(patch: pytest.MonkeyPatch) -> None:
    def one_by_one(draft: Draft) -> None:
        plan = draft.plan
        draft.plan = replace(plan, options=SEQUENTIAL)
        undo(draft)
        draft.plan = plan

    undo = moves.undo
    patch.setattr(moves, "undo", one_by_one)


@broken("late, or came twice, changes something (I2)", 3, step("a", retry=TWICE))
def a_late_result_is_applied(patch: pytest.MonkeyPatch) -> None:
    def lenient(draft: Draft, event: StepSucceeded) -> str | None:
        record = draft.record(draft.plan.position(event.step))
        return row.rule(draft, replace(event, attempt=record.attempt))

    row = TABLE[StepSucceeded]
    patch.setitem(TABLE, StepSucceeded, Row(lenient, row.leads, row.otherwise))


@broken("late, or came twice, changes something (I2)", 3, step("a"), step("b", "a"))
def a_result_that_comes_twice_is_applied_twice(patch: pytest.MonkeyPatch) -> None:
    def lenient(draft: Draft, event: CompensationSucceeded) -> str | None:
        position = draft.plan.position(event.step)
        if draft.record(position).compensation_attempt:
            moves.undone(draft, position, draft.record(position))
            return None
        return row.rule(draft, event)

    row = TABLE[CompensationSucceeded]
    patch.setitem(TABLE, CompensationSucceeded, Row(lenient, row.leads, row.otherwise))


@broken("late, or came twice, changes something (I2)", 2, step("a"))
def a_second_deferral_is_applied(patch: pytest.MonkeyPatch) -> None:
    def lenient(draft: Draft, event: StepDeferred) -> str | None:
        position = draft.plan.position(event.step)
        moves.put(draft, position, replace(draft.record(position), deferred=True))
        return None

    row = TABLE[StepDeferred]
    patch.setitem(TABLE, StepDeferred, Row(lenient, row.leads, row.otherwise))


@broken("late, or came twice, changes something (I2)", 4, child("kid", steps=[step("x")], timeout=5))
def an_order_to_a_child_is_obeyed_twice(patch: pytest.MonkeyPatch) -> None:
    def obedient(draft: Draft, event: Event) -> str | None:
        draft.asked = 0
        return row.rule(draft, event)

    row = TABLE[machine.CompensationRequested]
    patch.setitem(TABLE, machine.CompensationRequested, Row(obedient, row.leads, row.otherwise))


@broken("nothing was emitted for “undo a #1”, which is outstanding now", 1, step("a"))
def a_command_is_not_emitted(patch: pytest.MonkeyPatch) -> None:
    def silent(draft: Draft, revision: int) -> Transition:
        draft.commands.clear()
        return close(draft, revision)

    close = machine.close
    patch.setattr(machine, "close", silent)


@broken("a command is emitted twice", 1, step("a"))
def a_command_is_emitted_twice(patch: pytest.MonkeyPatch) -> None:
    def stuttering(draft: Draft, revision: int) -> Transition:
        draft.commands *= 2
        return close(draft, revision)

    close = machine.close
    patch.setattr(machine, "close", stuttering)


@broken("“execute b #1” was emitted, and is not newly outstanding", 1, step("a"), step("b", "a"))
def a_step_that_is_out_is_not_outstanding(patch: pytest.MonkeyPatch) -> None:
    def forgetful(saga: Saga) -> Any:
        return tuple(command for command in machine.outstanding(saga) if command.step != "b")

    patch.setattr(world, "outstanding", forgetful)
    patch.setattr(invariants, "outstanding", forgetful)


@broken("what is awaited is ignored: ", 1, step("a"))
def a_result_that_is_awaited_is_ignored(patch: pytest.MonkeyPatch) -> None:
    row = TABLE[StepFailed]
    patch.setitem(TABLE, StepFailed, Row(lambda draft, event: "never mind", row.leads, row.otherwise))


@broken("'a' is tried again, though its failure was final", 1, step("a", retry=TWICE))
def what_failed_for_good_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moves, "next_attempt", lambda draft, *_, **__: draft.at + 1)


@broken("'a' began attempt 3 after attempt 2", 2, step("a", retry=TWICE))
def an_attempt_is_left_out(patch: pytest.MonkeyPatch) -> None:
    def numbering(draft: Draft, position: int, record: Progress) -> None:
        send(draft, position, replace(record, attempt=record.attempt + (record.attempt > 1)))

    send = moves.send
    patch.setattr(moves, "send", numbering)


@broken("the saga turned round past its pivot", 2, step("pay", pivot=True), step("ship", "pay"))
def a_pivot_is_undone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moves, "past_pivot", lambda draft: False)


@broken("began before what it depends on had ended well", 1, step("a"), step("b"), step("c", "a", "b"))
def a_step_does_not_wait_for_all_that_it_depends_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moves, "_meet", lambda draft, dependents, todo: todo.extend(dependents))


@broken("'c' could begin, and has not", 2, step("a"), step("b"), step("c", "a", "b"), step("d"))
def a_step_waits_for_ever(patch: pytest.MonkeyPatch) -> None:
    def blind(draft: Draft, dependents: tuple[int, ...], todo: list[int]) -> None:
        meet(draft, dependents, [])

    meet = moves._meet
    patch.setattr(moves, "_meet", blind)


@broken(
    "'b' began attempt 1 while the saga is suspended", 2, step("a"), step("b", "a"), operations=["suspend"]
)
def a_suspended_saga_starts_something(patch: pytest.MonkeyPatch) -> None:
    def eager(draft: Draft, position: int) -> bool:
        suspended, draft.suspended = draft.suspended, False
        skipped = begin(draft, position)
        draft.suspended = suspended
        return skipped

    begin = moves.begin
    patch.setattr(moves, "begin", eager)


@broken(
    "'a' began attempt 2 though the saga turned round",
    2,
    step("a", retry=TWICE, timeout=7),
    step("b", timeout=17),
)
def an_attempt_begins_as_the_saga_turns_round(patch: pytest.MonkeyPatch) -> None:
    def in_order(draft: Draft) -> bool:
        return moves.send_due(draft, moves.due(draft)) | fire(draft)

    fire = moves.fire
    patch.setattr(machine, "fire", in_order)


@broken("an outcome that nobody knows, and this is not kept", 1, step("a"))
def an_unknown_outcome_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def careless(draft: Draft, position: int, error: Any, *, unknown: bool) -> None:
        fail_attempt(draft, position, error, unknown=False)

    fail_attempt = machine.fail_attempt
    patch.setattr(machine, "fail_attempt", careless)


@broken("'a' is undone though it was skipped", 2, step("a"), step("b", "a"))
def a_skipped_step_is_undone(patch: pytest.MonkeyPatch) -> None:
    def thorough(draft: Draft) -> None:
        for position in positions(draft.tips):
            if draft.record(position).state is StepState.SKIPPED:
                draft.tips ^= 1 << position
                draft.undoing |= 1 << position
                moves.again(draft, position, draft.record(position))
        undo(draft)

    undo = moves.undo
    patch.setattr(moves, "undo", thorough)


@broken("no timer runs, and the saga is not at rest: a deadlock", 1, step("a"))
def a_saga_does_not_come_to_rest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine, "settle", lambda draft: None)


@broken("from here the saga never comes to rest (I1)", 1, step("a"))
def a_compensation_never_ends(patch: pytest.MonkeyPatch) -> None:
    def put_off(draft: Draft, event: CompensationSucceeded | CompensationFailed) -> str | None:
        position = draft.plan.position(event.step)
        record = draft.record(position)
        if record.state is not COMPENSATING:
            return "it is not being undone"
        moves.put(draft, position, replace(record, deferred=True))
        return None

    for event in (CompensationSucceeded, CompensationFailed):
        patch.setitem(TABLE, event, Row(put_off, TABLE[event].leads, TABLE[event].otherwise))


@broken("from here the saga never comes to rest (I1)", 2, KID)
def a_parent_does_not_listen_to_its_child(patch: pytest.MonkeyPatch) -> None:
    row = TABLE[ChildRested]
    patch.setitem(TABLE, ChildRested, Row(lambda draft, event: "not now", row.leads, row.otherwise))


@broken("is completed, and its child 'kid' is compensated", 3, KID)
def a_parent_takes_every_end_of_its_child_for_a_good_one(patch: pytest.MonkeyPatch) -> None:
    def trusting(draft: Draft, event: ChildRested) -> str | None:
        return row.rule(draft, replace(event, state=SagaState.COMPLETED))

    row = TABLE[ChildRested]
    patch.setitem(TABLE, ChildRested, Row(trusting, row.leads, row.otherwise))


@broken("there is no step that a person could see to", 1, step("a"))
def a_saga_fails_for_no_reason(patch: pytest.MonkeyPatch) -> None:
    def settle_badly(draft: Draft) -> None:
        settle(draft)
        if draft.state is SagaState.COMPENSATED:
            draft.state = SagaState.FAILED

    settle = machine.settle
    patch.setattr(machine, "settle", settle_badly)
    leads = {SagaState.STARTED: (SagaState.FAILED,)}
    patch.setitem(TABLE, StepFailed, Row(TABLE[StepFailed].rule, leads, ""))


@broken(
    "the saga has completed, and 'ship' has not ended well", 2, step("pay", pivot=True), step("ship", "pay")
)
def a_saga_completes_without_a_step(patch: pytest.MonkeyPatch) -> None:
    def settle_badly(draft: Draft) -> None:
        draft.stuck = 0
        settle(draft)

    settle = machine.settle
    patch.setattr(machine, "settle", settle_badly)
    leads = {SagaState.STARTED: tuple(SagaState)}
    patch.setitem(TABLE, StepFailed, Row(TABLE[StepFailed].rule, leads, ""))


@broken("the revision went from 0 to 0", 1, step("a"))
def an_event_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    close = machine.close
    patch.setattr(machine, "close", lambda draft, revision: close(draft, max(revision - 1, 0)))


@broken("the table has no way from started to compensated by StepFailed", 1, step("a"))
def a_move_is_not_in_the_table(patch: pytest.MonkeyPatch) -> None:
    row = TABLE[StepFailed]
    leads = {**row.leads, SagaState.STARTED: (SagaState.COMPENSATING,)}
    patch.setitem(TABLE, StepFailed, Row(row.rule, leads, row.otherwise))


@broken("worked out otherwise from the store: wakes (I8)", 0, step("a", timeout=5))
def what_follows_from_the_steps_is_not_kept_up(patch: pytest.MonkeyPatch) -> None:
    def careless(draft: Draft, position: int, record: Progress) -> None:
        wakes = draft.wakes
        put(draft, position, record)
        draft.wakes = wakes

    put = moves.put
    patch.setattr(moves, "put", careless)


@broken("it is not read back as it was written", 1, step("a"))
def a_saga_is_read_otherwise_than_it_was_written(patch: pytest.MonkeyPatch) -> None:
    decode = invariants.decode_saga
    patch.setattr(invariants, "decode_saga", lambda data: replace(decode(data), revision=0))


@broken("the next moment is said to be None, but something was due at ", 0, step("a", timeout=5))
def a_timer_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(invariants, "wake_at", lambda saga: None)


@broken("nothing is due at ", 1, step("a", retry=TWICE))
def a_timer_goes_off_too_early(patch: pytest.MonkeyPatch) -> None:
    def early(saga: Saga) -> float | None:
        wake = machine.wake_at(saga)
        return None if wake is None else 0.0

    patch.setattr(invariants, "wake_at", early)


@broken("it says that it changed at 1.0, not at 0.0", 1, step("a"))
def an_event_is_dated_wrongly(patch: pytest.MonkeyPatch) -> None:
    def late(draft: Draft, revision: int) -> Transition:
        draft.at += revision > 0
        return close(draft, revision)

    close = machine.close
    patch.setattr(machine, "close", late)


@broken("the saga rests in completed while 'b' runs", 1, step("a"), step("b"))
def a_saga_rests_while_a_step_runs(patch: pytest.MonkeyPatch) -> None:
    def settle_badly(draft: Draft) -> None:
        draft.state = SagaState.COMPLETED if draft.tips else draft.state

    patch.setattr(machine, "settle", settle_badly)


def dated(patch: pytest.MonkeyPatch, moment: float | None) -> None:
    """Have every answer of the machine say when it came to rest."""

    def wrongly(draft: Draft, revision: int) -> Transition:
        answer = close(draft, revision)
        return replace(answer, saga=replace(answer.saga, completed_at=moment))

    close = machine.close
    patch.setattr(machine, "close", wrongly)


@broken("a saga at rest must say when it came to rest", 1, step("a"))
def a_saga_does_not_say_when_it_came_to_rest(patch: pytest.MonkeyPatch) -> None:
    dated(patch, None)


@broken("the saga is not at rest, and says when it came to rest", 0, step("a"))
def a_saga_says_too_early_that_it_is_at_rest(patch: pytest.MonkeyPatch) -> None:
    dated(patch, 0.0)


@broken("it says that it came to rest at 5.0, not at 0.0", 1, step("a"))
def a_saga_says_wrongly_when_it_came_to_rest(patch: pytest.MonkeyPatch) -> None:
    def wrongly(draft: Draft, revision: int) -> Transition:
        answer = close(draft, revision)
        return replace(answer, saga=replace(answer.saga, completed_at=5.0)) if answer.saga.at_rest else answer

    close = machine.close
    patch.setattr(machine, "close", wrongly)


@broken("the saga was undone past its pivot", 2, step("pay", undo=False, pivot=True), step("ship", "pay"))
def a_pivot_without_a_compensation_is_undone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moves, "past_pivot", lambda draft: False)


@broken("and 'z' could still have gone forward", 4, *HALVES, operations=["suspend"])
def a_saga_fails_before_it_has_done_what_it_can(patch: pytest.MonkeyPatch) -> None:
    def settle_badly(draft: Draft) -> None:
        if draft.stuck:
            draft.ready = 0
        settle(draft)

    settle = machine.settle
    patch.setattr(machine, "settle", settle_badly)


@broken("and 'a' could still have been undone", 3, step("a"), step("b"), options=SEQUENTIAL)
def a_saga_fails_before_it_has_undone_what_it_can(patch: pytest.MonkeyPatch) -> None:
    def settle_badly(draft: Draft) -> None:
        if draft.stuck:
            draft.tips = 0
        settle(draft)

    settle = machine.settle
    patch.setattr(machine, "settle", settle_badly)


@broken("“execute a #1” is outstanding, and its result is not awaited", 0, step("a"))
def a_command_that_is_out_is_not_awaited(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(invariants, "awaits", lambda saga, command: False)


@broken("step 'a' went from started to pending", 1, step("a"))
def a_step_that_has_begun_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def forgetful(draft: Draft, event: StepDeferred) -> str | None:
        moves.put(draft, draft.plan.position(event.step), PENDING)
        return None

    row = TABLE[StepDeferred]
    patch.setitem(TABLE, StepDeferred, Row(forgetful, row.leads, row.otherwise))


@broken("step 'b' went from failed to completed", 3, step("a"), step("b", "a"))
def a_step_that_has_failed_completes(patch: pytest.MonkeyPatch) -> None:
    def rosy(draft: Draft, event: CompensationSucceeded) -> str | None:
        ignored = row.rule(draft, event)
        if draft.record(1).state is StepState.FAILED:
            moves.put(draft, 1, replace(draft.record(1), state=COMPLETED))
        return ignored

    row = TABLE[CompensationSucceeded]
    patch.setitem(TABLE, CompensationSucceeded, Row(rosy, row.leads, row.otherwise))


@broken("step 'c' began though the saga turned round", 2, step("a"), step("b"), step("c", "a"))
def a_step_begins_although_the_saga_turned_round(patch: pytest.MonkeyPatch) -> None:
    def eager(draft: Draft, position: int, record: Progress) -> None:
        state, draft.state = draft.state, SagaState.STARTED
        end_well(draft, position, record)
        draft.state = state

    end_well = machine.end_well
    patch.setattr(machine, "end_well", eager)


@broken("had an attempt with an unknown outcome, and this is forgotten", 3, step("a", retry=TWICE))
def an_unknown_outcome_is_forgotten_when_a_step_is_skipped(patch: pytest.MonkeyPatch) -> None:
    def careless(draft: Draft, position: int, record: Progress) -> None:
        skip(draft, position, replace(record, unknown=False))

    skip = machine.skip
    patch.setattr(machine, "skip", careless)


@broken("an event is said to be ignored, and changes something", 1, step("a"))
def an_event_that_is_ignored_changes_something(patch: pytest.MonkeyPatch) -> None:
    def changing(saga: Saga, event: Event) -> Transition:
        answer = machine.decide(saga, event)
        return replace(answer, ignored="never mind") if isinstance(event, StepDeferred) else answer

    patch.setattr(world, "transition", changing)


@broken("ZeroDivisionError is raised: division by zero", 1, step("a"))
def a_rule_raises(patch: pytest.MonkeyPatch) -> None:
    row = TABLE[StepFailed]
    patch.setitem(TABLE, StepFailed, Row(lambda draft, event: str(1 / 0), row.leads, row.otherwise))


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_found(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking, problem, length, steps, arguments = BROKEN[rule]
    explore(steps, **arguments)
    breaking(monkeypatch)
    with pytest.raises(Violation) as raised:
        explore(steps, **arguments)
    assert problem in raised.value.problem
    assert raised.value.length == length, raised.value.trace
    assert raised.value.trace.count("\n> ") == length + 1
    if "raises" not in rule:
        assert play(raised.value.trace) == raised.value.trace
