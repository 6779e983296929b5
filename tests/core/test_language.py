"""The language of sagas by example: graphs, retries, time, pivots, people. `notation` says how to read it."""

import pytest

from saga_core import Options, RetryPolicy, TimePassed, UnknownStepError, outstanding, transition, wake_at

from .notation import BORN, event_of, play, saga_of, shown, states

SEQUENTIAL = Options(compensation_order="sequential")


def retry(attempts: int | None = 3, delay: float = 10.0, **more: object) -> RetryPolicy:
    return RetryPolicy(max_attempts=attempts, initial_delay=delay, multiplier=1, jitter=0, **more)  # type: ignore


# Outcomes that nobody knows.


@pytest.mark.parametrize("then", ["skip a", "wait 12, a#2 skips"])
def test_a_step_that_is_skipped_after_an_unknown_outcome_is_undone(then: str) -> None:
    saga = play(saga_of("a b", a={"retry": retry(), "timeout": 60}), f"wait 60, {then}").saga
    assert states(saga) == "a skipped, b started"
    assert shown(play(saga, "b fails").commands) == "undo a#1"


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
