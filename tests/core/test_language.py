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


