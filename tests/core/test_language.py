"""The language of sagas by example: graphs, retries, time, pivots, people. `notation` says how to read it."""

import pytest
from msgspec.structs import replace

from saga_core import (
    ChildRested,
    ChildSaga,
    Compensate,
    CompensationRequested,
    Execute,
    Options,
    Report,
    RetryPolicy,
    SagaState,
    StartChild,
    Step,
    TimePassed,
    UnknownStepError,
    awaits,
    child_saga,
    decode_saga,
    encode_saga,
    new_saga,
    outstanding,
    transition,
    wake_at,
)

from .notation import BORN, ID, event_of, play, saga_of, shown, states, step_of

SEQUENTIAL = Options(compensation_order="sequential")


def retry(attempts: int | None = 3, delay: float = 10.0, **more: object) -> RetryPolicy:
    return RetryPolicy(max_attempts=attempts, initial_delay=delay, multiplier=1, jitter=0, **more)  # type: ignore


# Outcomes that nobody knows.


@pytest.mark.parametrize("then", ["skip a", "wait 12, a#2 skips"])
def test_a_step_that_is_skipped_after_an_unknown_outcome_is_undone(then: str) -> None:
    saga = play(saga_of("a b", a={"retry": retry(), "timeout": 60}), f"wait 60, {then}").saga
    assert states(saga) == "a skipped, b started"
    assert shown(play(saga, "b fails").commands) == "undo a#1"


def test_a_step_that_fails_after_an_unknown_outcome_is_undone() -> None:
    saga = play(saga_of("a b", a={"retry": retry(2, 0), "timeout": 5}), "wait 5").saga
    assert shown(play(saga, "a#2 fails").commands) == "undo a#1"


def test_a_child_whose_time_is_over_is_not_started_anew() -> None:
    saga = play(saga_of("a! b*", b={"timeout": 5}), "a ok, wait 5").saga
    assert saga.is_failed
    assert states(saga) == "a completed, b failed"


# Compensations, one after the other.


def test_compensations_that_are_tried_again_run_one_after_the_other_where_the_saga_says_so() -> None:
    failed = play(
        saga_of("a< b< c<", options=SEQUENTIAL), "a ok, b ok, c fails, undo b fails, undo a fails"
    ).saga
    assert failed.is_failed
    for ask in ("compensate", "retry"):
        saga = play(failed, ask).saga
        assert shown(outstanding(saga)) == "undo b#2"
        saga = play(saga, "undo b#2 ok").saga
        assert shown(outstanding(saga)) == "undo a#2"
        assert play(saga, "undo a#2 ok").saga.is_compensated


# Trying again because a person asks.


def test_a_step_behind_the_pivot_is_tried_again_while_others_still_run() -> None:
    saga = play(saga_of("a! b c<a", b={}, c={}), "a ok, b fails").saga
    assert states(saga) == "a completed, b failed, c started"
    answer = play(saga, "retry")
    assert shown(answer.commands) == "b#2"
    assert play(answer.saga, "b#2 ok, c ok").saga.is_completed


def test_a_compensation_that_failed_for_good_is_tried_again_while_others_are_still_undone() -> None:
    saga = play(saga_of("a< b< c<"), "a ok, b ok, c fails, undo b fails").saga
    assert states(saga) == "a compensating, b failed, c failed"
    answer = play(saga, "retry")
    assert shown(answer.commands) == "undo b#2"
    assert play(answer.saga, "undo b#2 ok, undo a ok").saga.is_compensated


# Suspension.


def test_a_suspended_saga_wakes_when_the_time_of_a_waiting_step_is_over() -> None:
    saga = play(saga_of("a", a={"retry": retry(delay=10), "total_timeout": 30}), "a busy, suspend").saga
    assert wake_at(saga) == BORN + 30
    assert transition(saga, TimePassed(BORN + 29)).ignored
    assert transition(saga, TimePassed(BORN + 30)).saga.is_compensated


def test_time_changes_nothing_while_what_is_due_waits_for_a_suspended_saga() -> None:
    for events in ("a busy, suspend", "a ok, b fails, undo a busy, suspend"):
        saga = play(saga_of("a b", a={"retry": retry()}), events).saga
        assert transition(saga, TimePassed(BORN + 99)).saga is saga


@pytest.mark.parametrize(
    ("step", "events", "caused", "states_"),
    [
        ({"retry": retry(2)}, "a busy, suspend", "a#2", "a started, b pending"),
        ({"retry": retry(2, 0)}, "suspend, a busy", "a#2", "a started, b pending"),
        ({"timeout": 15}, "suspend", "undo a#1", "a compensating, b pending"),
        ({"timeout": 15, "retry": retry(2, 0)}, "suspend", "a#2", "a started, b pending"),
        ({"total_timeout": 15, "retry": retry(2)}, "a busy, suspend", "", "a failed, b pending"),
        ({}, "a ok, suspend, b fails", "undo a#1", "a compensating, b failed"),
        ({}, "a ok, b fails, undo a busy, suspend", "undo a#2", "a compensating, b failed"),
        ({"compensation_timeout": 5}, "a ok, b fails, suspend", "", "a compensating, b failed"),
    ],
)
def test_a_saga_that_is_resumed_does_what_has_become_due(
    step: dict[str, object], events: str, caused: str, states_: str
) -> None:
    saga = play(saga_of("a b", a=step), events).saga
    answer = transition(saga, event_of("resume", BORN + 20))
    assert answer.ignored is None
    assert shown(answer.commands) == caused
    assert states(answer.saga) == states_


# What people know.


def test_an_attempt_to_undo_that_never_went_out_is_not_counted() -> None:
    saga = play(saga_of("a b"), "a ok, b fails, undo a busy, resolve a compensated").saga
    assert saga.step("a").compensation_attempt == 1


# Callers' bugs.


@pytest.mark.parametrize("text", ["x ok", "undo x fails", "child x completed", "resolve x failed", "skip x"])
@pytest.mark.parametrize(
    "events", ["", "a ok, b ok", "a ok, b fails", "a fails", "a ok, b fails, undo a fails"]
)
def test_an_unknown_step_is_reported_in_every_state(text: str, events: str) -> None:
    saga = play(saga_of("a b"), events).saga
    with pytest.raises(UnknownStepError, match="no step 'x'"):
        transition(saga, event_of(text))


# Time.


@pytest.mark.parametrize(
    ("step", "events", "state", "caused"),
    [
        # One attempt.
        ({"timeout": 5}, "wait 5", "compensating", "undo a#1"),
        ({"timeout": 5}, "a later, wait 4", "compensating", "undo a#1"),
        ({"timeout": 5, "retry": retry(2, 0)}, "wait 5", "started", "a#2"),
        ({"timeout": 5, "retry": retry(2, 3)}, "wait 5, wait 3", "started", "a#2"),
        ({"timeout": 5, "retry": retry(2, 3)}, "wait 5, wait 3, wait 5", "compensating", "undo a#1"),
        ({"timeout": 5, "retry": retry(2, 3, retry_on=("busy",))}, "wait 5", "compensating", "undo a#1"),
        ({"timeout": 5, "retry": retry(2, 3, retry_on=("timeout",))}, "wait 5, wait 3", "started", "a#2"),
        # All attempts.
        ({"total_timeout": 9}, "wait 9", "compensating", "undo a#1"),
        ({"total_timeout": 9, "timeout": 20}, "wait 9", "compensating", "undo a#1"),
        ({"total_timeout": 9, "timeout": 5, "retry": retry(9, 1)}, "wait 5, wait 1", "started", "a#2"),
        ({"total_timeout": 9, "timeout": 5, "retry": retry(9, 1)}, "wait 5, wait 1, wait 3", "compensating",
         "undo a#1"),
        ({"total_timeout": 9, "retry": retry(9, 8)}, "a busy", "compensated", ""),
        ({"total_timeout": 9, "retry": retry(9, 7)}, "a busy, wait 7", "started", "a#2"),
        # Attempts to undo.
        ({"compensation_timeout": 5, "compensation_retry": retry(2, 1)}, "a ok, b fails, wait 5, wait 1",
         "compensating", "undo a#2"),
        ({"compensation_timeout": 5, "compensation_retry": retry(1)}, "a ok, b fails, wait 5", "failed", ""),
        ({"compensation_timeout": 5}, "a ok, b fails, undo a later, wait 4, wait 1", "compensating", "undo a#2"),
    ],
)  # fmt: skip
def test_time_ends_attempts_and_begins_others(
    step: dict[str, object], events: str, state: str, caused: str
) -> None:
    answer = play(saga_of("a b", a=step), events)
    assert answer.saga.state == state
    assert shown(answer.commands) == caused


@pytest.mark.parametrize(
    ("events", "code", "unknown"),
    [("wait 5", "timeout", True), ("a#1 later, wait 4", "timeout", True), ("wait 9", "total_timeout", True)],
)
def test_a_step_whose_time_is_over_says_so(events: str, code: str, unknown: bool) -> None:
    saga = play(saga_of("a- b", a={"timeout": 5, "total_timeout": 9}), events).saga
    error = saga.step("a").error
    assert error is not None
    assert error.code == code
    assert saga.progress_of("a").unknown is unknown


def test_a_step_whose_time_is_over_while_it_waits_had_its_last_known_outcome() -> None:
    step = {"retry": retry(9, 7), "total_timeout": 9}
    saga = play(saga_of("a b", a=step), "a busy, suspend, wait 9").saga
    assert saga.is_compensated
    assert (saga.step("a").attempt, saga.progress_of("a").unknown) == (1, False)


def test_a_deadline_ends_what_runs_and_undoes_it() -> None:
    saga = saga_of("a b c<", options=Options(timeout=9), c={"retry": retry(9, 50)})
    saga = play(saga, "a ok, c busy").saga
    assert wake_at(saga) == BORN + 9
    answer = play(saga, "wait 7")
    assert states(answer.saga) == "a completed, b compensating, c failed"
    assert shown(answer.commands) == "undo b#1"
    error = answer.saga.step("b").error
    assert error is not None
    assert error.code == "saga_timeout"
    assert answer.saga.step("c").attempt == 1


@pytest.mark.parametrize(
    ("options", "wakes"), [(Options(start_at=BORN + 20, timeout=9), 29), (Options(timeout=9), 9)]
)
def test_a_deadline_counts_from_the_start(options: Options, wakes: int) -> None:
    saga = saga_of("a", options=options)
    if options.start_at:
        assert outstanding(saga) == ()
        assert wake_at(saga) == BORN + 20
        saga = play(saga, "wait 20").saga
    assert shown(outstanding(saga)) == "a#1"
    assert wake_at(saga) == BORN + wakes


def test_a_deadline_holds_up_to_the_pivot() -> None:
    saga = saga_of("a! b", options=Options(timeout=9))
    assert wake_at(saga) == BORN + 9
    saga = play(saga, "a ok").saga
    assert wake_at(saga) is None
    assert transition(saga, TimePassed(BORN + 99)).ignored


def test_a_deadline_holds_while_what_is_out_is_awaited_and_not_while_it_is_undone() -> None:
    saga = play(saga_of("a< b<", options=Options(timeout=9)), "a fails").saga
    assert wake_at(saga) == BORN + 9
    saga = play(saga, "wait 8").saga
    assert states(saga) == "a failed, b compensating"
    assert wake_at(saga) is None


@pytest.mark.parametrize(
    ("events", "caused"),
    [("wait 20", "a#1"), ("wait 25", "a#1"), ("suspend, wait 20", None), ("suspend, wait 20, resume", "a#1")],
)
def test_a_saga_begins_at_its_time(events: str, caused: str | None) -> None:
    saga = saga_of("a b", options=Options(start_at=BORN + 20))
    if caused is None:
        assert transition(play(saga, "suspend").saga, TimePassed(BORN + 20)).ignored
    else:
        saga = play(saga, events.replace("wait 20, resume", "resume, wait 19")).saga
        assert shown(outstanding(saga)) == caused


def test_a_saga_that_is_resumed_before_its_time_waits_for_it() -> None:
    saga = play(saga_of("a b", options=Options(start_at=BORN + 20)), "suspend, resume").saga
    assert outstanding(saga) == ()
    assert wake_at(saga) == BORN + 20
    late = transition(play(saga, "suspend").saga, event_of("resume", BORN + 21)).saga
    assert shown(outstanding(late)) == "a#1"


def test_a_saga_whose_clock_goes_back_before_its_time_forgets_no_step() -> None:
    saga = play(saga_of("a< b< c<b", options=Options(start_at=BORN + 20)), "wait 20, suspend, b ok").saga
    for text in ("resume", "a ok"):
        saga = transition(saga, event_of(text, BORN + 10)).saga
    assert states(saga) == "a completed, b completed, c pending"
    assert (saga.state, wake_at(saga)) == ("started", BORN + 20)
    assert shown(transition(saga, TimePassed(BORN + 20)).commands) == "c#1"


def test_a_saga_that_is_cancelled_before_its_time_has_done_nothing() -> None:
    saga = play(saga_of("a b", options=Options(start_at=BORN + 20)), "cancel").saga
    assert saga.is_compensated
    assert states(saga) == "a pending, b pending"


def test_nothing_that_is_given_up_at_a_moment_is_fired_at_it() -> None:
    """Both are over at once, and the first one turns the saga round: the second one's result is unknown as well."""
    both = {"timeout": 5}
    saga = play(saga_of("a< b<", a=both, b=both), "wait 5").saga
    assert states(saga) == "a compensating, b compensating"
    waiting = {"retry": retry(9, 3), "total_timeout": 5}
    saga = play(saga_of("a< b<", a=both, b=waiting), "b busy, wait 4").saga
    assert states(saga) == "a compensating, b failed"


@pytest.mark.parametrize("place", [0, 31, 32, 33, 63, 64, 99])
def test_time_finds_its_step_wherever_it_is(place: int) -> None:
    words = " ".join(f"s{n}<" for n in range(100))
    saga = saga_of(words, **{f"s{place}": {"timeout": 5, "retry": retry(2, 0)}, "s50": {"timeout": 7}})
    assert wake_at(saga) == BORN + 5
    answer = play(saga, "wait 5")
    assert shown(answer.commands) == f"s{place}#2"
    assert wake_at(answer.saga) == BORN + 7


# Retries.


@pytest.mark.parametrize(
    ("step", "events", "states_", "caused"),
    [
        ({}, "a busy", "a failed, b pending", ""),
        ({"retry": retry(2)}, "a busy", "a started, b pending", ""),
        ({"retry": retry(2)}, "a busy, wait 10", "a started, b pending", "a#2"),
        ({"retry": retry(2)}, "a busy, retry", "a started, b pending", "a#2"),
        ({"retry": retry(2)}, "a busy, wait 10, a#2 ok", "a completed, b started", "b#1"),
        ({"retry": retry(2)}, "a busy, wait 10, a#2 busy", "a failed, b pending", ""),
        ({"retry": retry(2)}, "a fails", "a failed, b pending", ""),
        ({"retry": retry(2, retry_on=("other",))}, "a busy", "a failed, b pending", ""),
        ({"retry": retry(2, retry_on=("broken",))}, "a busy", "a started, b pending", ""),
        ({"retry": retry(None, 0)}, "a busy, a#2 busy, a#3 busy, a#4 busy", "a started, b pending", "a#5"),
        ({"retry": retry(2, 0)}, "a lost", "a compensating, b pending", "undo a#1"),
        ({"retry": retry(2)}, "a busy, skip a", "a skipped, b started", "b#1"),
        ({"retry": retry(2)}, "a busy, cancel", "a failed, b pending", ""),
        ({"retry": retry(2)}, "a busy, resolve a completed", "a completed, b started", "b#1"),
        ({"retry": retry(2)}, "a busy, resolve a failed", "a failed, b pending", ""),
    ],
)
def test_a_failed_step_is_tried_again_as_its_policy_says(
    step: dict[str, object], events: str, states_: str, caused: str
) -> None:
    answer = play(saga_of("a b", a=step), events)
    assert states(answer.saga) == states_
    assert shown(answer.commands) == caused


@pytest.mark.parametrize("last", ["cancel", "skip a", "resolve a completed", "resolve a failed"])
def test_an_attempt_that_never_went_out_is_not_counted(last: str) -> None:
    saga = play(saga_of("a b", a={"retry": retry(2)}), f"a busy, {last}").saga
    assert saga.step("a").attempt == 1


@pytest.mark.parametrize(
    "late", ["a ok", "a fails", "a later", "a skips", "a#2 ok", "a#2 fails", "a#2 later", "a#2 skips"]
)
def test_nothing_is_awaited_of_a_step_that_waits(late: str) -> None:
    saga = play(saga_of("a b", a={"retry": retry(2)}), "a busy").saga
    assert transition(saga, event_of(late, BORN + 2)).ignored


@pytest.mark.parametrize(
    "late", ["undo a ok", "undo a busy", "undo a#2 ok", "undo a#2 fails", "undo a#2 later"]
)
def test_nothing_is_awaited_of_a_compensation_that_waits(late: str) -> None:
    saga = play(saga_of("a b"), "a ok, b fails, undo a busy").saga
    assert transition(saga, event_of(late, BORN + 4)).ignored


def test_a_compensation_is_tried_for_a_long_time_unless_told_otherwise() -> None:
    saga = play(saga_of("a b"), "a ok, b fails").saga
    for attempt in range(1, 1000):
        saga = play(saga, f"undo a#{attempt} busy, wait 300").saga
    assert shown(outstanding(saga)) == "undo a#1000"
    saga = play(saga, "undo a#1000 busy").saga
    assert saga.is_failed
    saga = play(saga, "retry").saga
    assert shown(outstanding(saga)) == "undo a#1001"
    assert play(saga, "undo a#1001 busy").saga.is_compensating


# The pivot.


@pytest.mark.parametrize(
    ("events", "state", "states_"),
    [
        ("a ok, p fails", "compensating", "a compensating, p failed, b pending, c pending"),
        ("a ok, p ok, b busy", "started", "a completed, p completed, b started, c started"),
        ("a ok, p ok, b fails", "started", "a completed, p completed, b failed, c started"),
        ("a ok, p ok, b fails, c ok", "failed", "a completed, p completed, b failed, c completed"),
        ("a ok, p ok, b fails, c fails", "failed", "a completed, p completed, b failed, c failed"),
        ("a ok, p ok, b fails, c ok, retry", "started", "a completed, p completed, b started, c completed"),
        ("a ok, p ok, b fails, c ok, skip b", "completed", "a completed, p completed, b skipped, c completed"),
        ("a ok, p ok, b fails, skip b", "started", "a completed, p completed, b skipped, c started"),
        ("a ok, p ok, b fails, resolve b completed, c ok", "completed",
         "a completed, p completed, b completed, c completed"),
        ("a ok, p ok, b lost, c ok, resolve b completed", "completed",
         "a completed, p completed, b completed, c completed"),
        ("a ok, p ok, b ok, resolve c failed", "failed", "a completed, p completed, b completed, c failed"),
        ("a ok, cancel, p ok", "started", "a completed, p completed, b started, c started"),
        ("a ok, cancel, p skips", "started", "a completed, p skipped, b started, c started"),
        ("a ok, cancel, p fails", "compensating", "a compensating, p failed, b pending, c pending"),
        ("a ok, cancel, resolve p completed", "started", "a completed, p completed, b started, c started"),
        ("cancel, a ok", "compensating", "a compensating, p pending, b pending, c pending"),
        ("a ok, suspend, p ok", "started", "a completed, p completed, b pending, c pending"),
        ("a ok, suspend, p ok, resume", "started", "a completed, p completed, b started, c started"),
    ],
)  # fmt: skip
def test_behind_its_pivot_a_saga_goes_forward_only(events: str, state: str, states_: str) -> None:
    saga = play(saga_of("a p! b<p c<p"), events).saga
    assert saga.state == state
    assert states(saga) == states_


@pytest.mark.parametrize("wish", ["compensate", "cancel", "resolve b compensated"])
@pytest.mark.parametrize("events", ["a ok", "a ok, b fails"])
def test_behind_its_pivot_a_saga_cannot_be_undone(wish: str, events: str) -> None:
    saga = play(saga_of("a! b"), events).saga
    assert transition(saga, event_of(wish)).ignored


def test_behind_its_pivot_a_step_is_tried_without_end() -> None:
    saga = play(saga_of("a! b", b={"retry": retry(1, 1)}), "a ok").saga
    for attempt in range(1, 50):
        saga = play(saga, f"b#{attempt} busy, wait 1").saga
    assert shown(outstanding(saga)) == "b#50"
    assert play(saga, "b#50 fails").saga.is_failed


def test_behind_its_pivot_a_step_that_is_tried_again_has_all_its_time_again() -> None:
    saga = play(saga_of("a! b", b={"total_timeout": 9}), "a ok, wait 9").saga
    assert saga.is_failed
    saga = play(saga, "retry").saga
    assert wake_at(saga) == saga.updated_at + 9
    assert shown(outstanding(saga)) == "b#2"


# What people ask for.

REFUSED = {
    "retry: nothing failed": ("a b", "", "retry", "nothing in it has failed for good"),
    "retry: suspended": ("a b", "suspend", "retry", "it is suspended; resume it first"),
    "retry: completed": ("a", "a ok", "retry", "nothing failed for good"),
    "suspend: twice": ("a", "suspend", "suspend", "it is suspended already"),
    "suspend: at rest": ("a", "a ok", "suspend", "nothing new starts anyhow"),
    "resume: not suspended": ("a", "", "resume", "it is not suspended"),
    "resume: at rest": ("a", "a ok", "resume", "it is not suspended"),
    "cancel: completed": ("a", "a ok", "cancel", "it cannot be cancelled any more"),
    "cancel: twice": ("a b", "cancel", "cancel", "it cannot be cancelled any more"),
    "skip: it runs": ("a b", "", "skip a", "step 'a' is running; resolve it, or wait for its end"),
    "skip: it is deferred": ("a b", "a later", "skip a", "step 'a' is running"),
    "skip: it runs behind the pivot": ("a! b", "a ok", "skip b", "step 'b' is running"),
    "skip: it has completed behind the pivot": ("a! b c", "a ok, b ok", "skip b", "step 'b' is completed"),
    "skip: twice": ("a b", "skip b", "skip b", "step 'b' is pending, and cannot be skipped"),
    "skip: it has completed": ("a b", "a ok", "skip a", "step 'a' is completed, and cannot be skipped"),
    "skip: undone": ("a", "a fails", "skip a", "there is nothing to skip"),
    "skip: a compensation": ("a b", "a ok, b fails, undo a fails", "skip a",
     "step 'a' is failed, and cannot be skipped"),
    "skip: not reached": ("a b", "a ok, b fails, undo a fails", "skip b", "step 'b' is failed"),
    "skip: pending in a failed saga": ("a b c", "a ok, b fails, undo a fails", "skip c", "step 'c' is pending"),
    "resolve: completed": ("a b", "a ok", "resolve a completed",
     "step 'a' is completed, and cannot be resolved as completed"),
    "resolve: pending": ("a b", "", "resolve b failed", "step 'b' is pending, and cannot be resolved as failed"),
    "resolve: not being undone": ("a b", "", "resolve a compensated", "step 'a' is started, and cannot be resolved as"),
    "resolve: not stuck": ("a b", "a ok, b fails", "resolve b compensated", "step 'b' is failed, and cannot"),
    "resolve: failed anyhow": ("a b", "a ok, b fails, undo a fails", "resolve a failed", "step 'a' is failed"),
    "resolve: a compensation as completed": ("a b", "a ok, b fails, undo a fails", "resolve a completed",
     "step 'a' is failed"),
    "resolve: at rest": ("a", "a ok", "resolve a failed", "there is nothing to resolve"),
    "time: nothing is due": ("a", "", "wait 5", "nothing is due at 1700000001.0"),
    "time: at rest": ("a", "a ok", "wait 5", "nothing is awaited any more"),
    "later: twice": ("a", "a later", "a later", "is not awaited"),
    "undo later: twice": ("a b", "a ok, b fails, undo a later", "undo a later", "is not awaited"),
    "a report that a child was undone, of a step that has completed": ("a* b", "child a completed",
     "child a compensated", "step 'a' is completed, and a child that is compensated changes nothing"),
    "a report for a step without child": ("a", "", "child a completed", "step 'a' did not start the saga"),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "events", "event", "why"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_ignored_with_its_reason(
    steps: str, events: str, event: str, why: str
) -> None:
    saga = play(saga_of(steps), events).saga
    answer = transition(saga, event_of(event))
    assert answer.saga is saga
    assert answer.commands == ()
    assert answer.ignored is not None
    assert why in answer.ignored
    assert saga.id in answer.ignored


@pytest.mark.parametrize(
    ("steps", "events", "state", "states_"),
    [
        ("a b c", "skip b, a ok", "started", "a completed, b skipped, c started"),
        ("a b c", "skip b, skip c, a ok", "completed", "a completed, b skipped, c skipped"),
        ("a< b< c", "suspend, b ok, skip c, resume", "started", "a started, b completed, c skipped"),
        ("a b", "suspend, a ok", "started", "a completed, b pending"),
        ("a b c", "suspend, a ok, resume", "started", "a completed, b started, c pending"),
        ("a b", "suspend, a ok, resume", "started", "a completed, b started"),
        ("a b", "suspend, a fails", "compensated", "a failed, b pending"),
        ("a b c", "a ok, suspend, b fails", "compensating", "a completed, b failed, c pending"),
        ("a b c", "a ok, suspend, b fails, resume", "compensating", "a compensating, b failed, c pending"),
        ("a b- c", "a ok, b ok, suspend, c fails", "compensating", "a completed, b completed, c failed"),
        ("a b", "a ok, suspend, b ok", "completed", "a completed, b completed"),
        ("a b", "resolve a completed", "started", "a completed, b started"),
        ("a b", "resolve a failed", "compensated", "a failed, b pending"),
        ("a b", "a later, resolve a completed, resolve b completed", "completed", "a completed, b completed"),
        ("a b", "a ok, b fails, resolve a compensated", "compensated", "a compensated, b failed"),
        ("a b", "a ok, b fails, undo a fails, resolve a compensated", "compensated", "a compensated, b failed"),
        ("a b c", "a ok, b ok, c fails, undo b fails, resolve b compensated", "compensating",
         "a compensating, b compensated, c failed"),
        ("a< b< c<", "a ok, b ok, c fails, undo a fails, undo b fails, resolve a compensated", "failed",
         "a compensated, b failed, c failed"),
        ("a< b<", "cancel, resolve a failed", "compensating", "a failed, b started"),
        ("a< b<", "cancel, resolve a completed, b fails", "compensating", "a compensating, b failed"),
    ],
)  # fmt: skip
def test_people_can_decide(steps: str, events: str, state: str, states_: str) -> None:
    saga = play(saga_of(steps), events).saga
    assert saga.state == state
    assert states(saga) == states_


def test_a_step_that_a_person_resolved_says_so() -> None:
    saga = play(saga_of("a b"), "a lost, undo a ok").saga
    assert saga.step("a").error is not None  # of the action: what was undone was never known
    saga = play(saga_of("a b"), "resolve a failed").saga
    error = saga.step("a").error
    assert error is not None
    assert (error.code, error.message) == ("resolved", "a person looked")
    saga = play(saga_of("a b"), "resolve a completed").saga
    assert saga.step("a").output == {"from": "a"}


def test_a_person_knows_better_that_nothing_was_done() -> None:
    saga = play(saga_of("a b", a={"timeout": 5, "retry": retry(9, 9)}), "wait 5, resolve a failed").saga
    assert saga.is_compensated
    assert not saga.progress_of("a").unknown


def test_at_rest_a_saga_is_no_longer_suspended() -> None:
    saga = play(saga_of("a b"), "suspend").saga
    assert saga.suspended
    saga = play(saga, "a fails").saga
    assert not saga.suspended


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_order_to_undo_a_child_counts_once(attempt: int) -> None:
    parent = new_saga(
        "outer", [Step(name="p", child=ChildSaga("trip", [step_of("a"), step_of("b")]))], id=ID, at=BORN
    )
    (start,) = outstanding(parent)
    assert isinstance(start, StartChild)
    child = play(child_saga(parent, start, BORN), "a ok, b ok").saga
    assert transition(child, event_of("compensate")).ignored == (
        f"saga {child.id}: its parent counts on it; compensate saga {ID}"
    )
    order = CompensationRequested("its parent is undone", BORN + 3, attempt=attempt)
    undoing = transition(child, order).saga
    assert shown(outstanding(undoing)) == "undo b#1"
    assert (
        transition(undoing, order).ignored
        == f"saga {child.id}: its parent has asked for attempt {attempt} before"
    )
    failed = play(undoing, "undo b fails").saga
    assert transition(failed, order).ignored
    again = transition(failed, replace(order, attempt=attempt + 1))
    assert shown(again.commands) == "undo b#2"


RESTS = (SagaState.COMPLETED, SagaState.FAILED, SagaState.COMPENSATED)


@pytest.mark.parametrize(
    ("events", "awaited"),
    [
        ("", "completed 0, completed 1, compensated 0, compensated 1"),
        ("child a completed", ""),
        ("child a completed, b fails", "completed 1, failed 1, compensated 0, compensated 1"),
        ("child a completed, b fails, child a compensated", ""),
        ("child a compensated", ""),
    ],
)
def test_a_report_is_awaited_if_it_would_change_something(events: str, awaited: str) -> None:
    saga = play(saga_of("a* b"), events).saga
    reports = [Report(ID, "a", 1, ID, state, asked) for state in RESTS for asked in (0, 1)]
    found = [report for report in reports if awaits(saga, report)]
    assert ", ".join(f"{report.state} {report.asked}" for report in found) == awaited
    for report in reports:
        event = ChildRested(report.step, report.attempt, report.child, report.state, BORN + 9, report.asked)
        assert awaits(saga, report) is (transition(saga, event).ignored is None)
        assert awaits(saga, replace(report, attempt=2)) is False


@pytest.mark.parametrize("forgotten", ["undo b#2 ok", "undo b#2 busy"])
def test_a_compensation_that_waits_for_its_turn_comes_back_from_storage(forgotten: str) -> None:
    saga = play(
        saga_of("a< b< c<", options=SEQUENTIAL), "a ok, b ok, c fails, undo b fails, undo a fails, retry"
    ).saga
    back = decode_saga(encode_saga(saga))
    assert back == saga
    assert play(back, forgotten).saga == play(saga, forgotten).saga


# Where a small change would not have been noticed.


def test_a_deadline_holds_while_nothing_runs() -> None:
    saga = play(saga_of("a b", options=Options(timeout=9)), "suspend, a ok").saga
    assert wake_at(saga) == BORN + 9
    assert play(saga, "wait 7").saga.is_compensating
    late = saga_of("a", options=Options(start_at=BORN + 5, timeout=9))
    assert transition(late, TimePassed(BORN + 14)).saga.is_compensated


@pytest.mark.parametrize(
    ("events", "step", "operation", "awaited"),
    [
        ("", "a", Execute, True),
        ("a later", "a", Execute, False),
        ("a busy", "a", Execute, False),
        ("a ok, b fails", "a", Compensate, True),
        ("a ok, b fails, undo a later", "a", Compensate, False),
    ],
)
def test_a_command_that_was_answered_later_is_not_awaited(
    events: str, step: str, operation: type[Execute | Compensate], awaited: bool
) -> None:
    saga = play(saga_of("a b", a={"retry": retry()}), events).saga
    attempt = 2 if "busy" in events else 1
    assert awaits(saga, operation(ID, step, "", attempt)) is awaited


def test_a_compensation_without_delay_is_tried_again_at_once() -> None:
    answer = play(saga_of("a b", a={"compensation_retry": retry(3, 0)}), "a ok, b fails, undo a busy")
    assert shown(answer.commands) == "undo a#2"


@pytest.mark.parametrize("state", ["started", "compensating"])
def test_a_report_of_a_child_that_does_not_rest_changes_nothing(state: str) -> None:
    saga = play(saga_of("a* b"), "child a completed, b fails").saga
    rested = event_of(f"child a {state}")
    assert isinstance(rested, ChildRested)
    assert transition(saga, replace(rested, asked=1)).saga is saga


def test_a_report_on_an_order_that_has_not_gone_out_changes_nothing() -> None:
    saga = play(
        saga_of("a* b", a={"compensation_retry": retry()}), "child a completed, b fails, undo a busy"
    ).saga
    for state in ("failed", "completed", "compensated"):
        rested = event_of(f"child a {state}")
        assert isinstance(rested, ChildRested)
        assert transition(saga, replace(rested, asked=2)).saga is saga


@pytest.mark.parametrize(("events", "caused"), [("a ok", ""), ("a ok, b fails, undo a fails", "undo a#2")])
def test_a_person_can_have_a_child_undone_that_has_not_completed(events: str, caused: str) -> None:
    parent = new_saga(
        "outer", [Step(name="p", child=ChildSaga("trip", [step_of("a"), step_of("b")]))], id=ID, at=BORN
    )
    (start,) = outstanding(parent)
    assert isinstance(start, StartChild)
    answer = play(play(child_saga(parent, start, BORN), events).saga, "compensate")
    assert answer.saga.is_compensating
    assert shown(answer.commands) == caused


def test_a_pivot_that_is_a_child_goes_forward_too_although_somebody_asked_to_turn_round() -> None:
    saga = play(saga_of("a*! b"), "cancel, child a completed").saga
    assert states(saga) == "a completed, b started"


def test_what_was_held_back_is_forgotten_when_a_saga_turns_round() -> None:
    saga = play(saga_of("a b< c<a"), "suspend, a ok, cancel").saga
    assert saga.ready == 0
    assert decode_saga(encode_saga(saga)) == saga


def test_a_step_that_fails_while_the_saga_turns_round_is_not_tried_again() -> None:
    saga = play(saga_of("a< b<", b={"retry": retry(9, 0), "timeout": 50}), "a fails").saga
    assert play(saga, "b busy").saga.is_compensated
    assert states(play(saga, "wait 49").saga) == "a failed, b compensating"
