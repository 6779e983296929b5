"""Retry policies: how long the waits are, and that every machine waits as long."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_core import DefinitionError, RetryPolicy, Step, decode_saga, encode_saga, new_saga
from saga_core.retry import NO_RETRY, PATIENT, delay_before

from .notation import BORN, ID


def delay(policy: RetryPolicy, used: int, *, step: str = "pay", attempt: int | None = None) -> float:
    return delay_before(policy, used, ID, step, used + 1 if attempt is None else attempt, "execute")


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (RetryPolicy(jitter=0), [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]),
        (RetryPolicy(initial_delay=5, multiplier=1, jitter=0), [5, 5, 5, 5]),
        (RetryPolicy(initial_delay=1, multiplier=1.5, jitter=0, max_delay=3), [1, 1.5, 2.25, 3, 3]),
        (RetryPolicy(initial_delay=0, jitter=0), [0, 0, 0]),
        (RetryPolicy(initial_delay=0, max_delay=0), [0, 0, 0]),
        (RetryPolicy(initial_delay=7, max_delay=7, jitter=0), [7, 7]),
    ],
)
def test_delays_grow_up_to_their_cap(policy: RetryPolicy, delays: list[float]) -> None:
    assert [delay(policy, used) for used in range(1, len(delays) + 1)] == delays


@pytest.mark.parametrize("multiplier", [2.0, 1e300])
def test_a_delay_too_large_for_a_float_is_the_longest(multiplier: float) -> None:
    assert delay(RetryPolicy(multiplier=multiplier, jitter=0), 5000) == 300


@settings(deadline=None)
@given(
    st.floats(0, 1e6),
    st.floats(1, 100),
    st.floats(0, 1e6),
    st.floats(0, 1),
    st.integers(1, 2000),
    st.text(max_size=5),
)
def test_jitter_shortens_a_delay_by_at_most_its_fraction(
    initial: float, multiplier: float, more: float, jitter: float, used: int, step: str
) -> None:
    policy = RetryPolicy(None, initial, multiplier, initial + more, jitter)
    whole = delay(RetryPolicy(None, initial, multiplier, initial + more, 0), used, step=step)
    assert whole * (1 - jitter) <= delay(policy, used, step=step) <= whole
    assert delay(policy, used, step=step) == delay(policy, used, step=step)


def test_jitter_spreads_evenly_over_its_range() -> None:
    policy = RetryPolicy(initial_delay=100, max_delay=100, jitter=0.5)
    delays = [delay(policy, 1, attempt=attempt) for attempt in range(2000)]
    assert 50 <= min(delays) < 51
    assert 99 < max(delays) <= 100
    assert 74 < sum(delays) / len(delays) < 76


def test_jitter_differs_between_sagas_steps_attempts_and_operations() -> None:
    policy = RetryPolicy(initial_delay=100, jitter=1)
    drawn = [
        delay_before(policy, 1, saga, step, attempt, operation)
        for saga in (ID, ID[:-1] + "1")
        for step in ("pay", "ship")
        for attempt in (2, 3)
        for operation in ("execute", "compensate")
    ]
    assert len(set(drawn)) == 16


def test_jitter_stays_the_same_for_ever() -> None:
    """A saga's history is folded by later releases: another delay would be another state."""
    policy = RetryPolicy(initial_delay=100, jitter=1)
    assert delay_before(policy, 1, ID, "pay", 2, "execute") == 6.867144373245537
    assert delay_before(policy, 1, ID, "pay", 2, "compensate") == 0.9996035834774375


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_attempts": 0}, "max_attempts must be at least 1, or None, not 0"),
        ({"max_attempts": -1}, "max_attempts"),
        ({"initial_delay": -1}, "initial_delay must be a number of seconds, not -1"),
        ({"initial_delay": float("nan")}, "initial_delay must be a number of seconds, not nan"),
        ({"initial_delay": float("inf")}, "initial_delay"),
        ({"max_delay": -0.1}, "max_delay must be a number of seconds, not -0.1"),
        ({"max_delay": float("inf")}, "max_delay"),
        ({"initial_delay": 9, "max_delay": 8}, "initial_delay, 9, must not be above max_delay, 8"),
        ({"multiplier": 0.9}, "multiplier must be at least 1, not 0.9"),
        ({"multiplier": float("inf")}, "multiplier"),
        ({"multiplier": float("nan")}, "multiplier"),
        ({"retry_on": "busy"}, "retry_on takes a tuple of codes, not the text 'busy'"),
        ({"jitter": -0.1}, "jitter must be a fraction from 0 to 1, not -0.1"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": float("nan")}, "jitter"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        RetryPolicy(**wrong)


def test_policies_at_their_limits_are_accepted() -> None:
    RetryPolicy(max_attempts=1, initial_delay=0, multiplier=1, max_delay=0, jitter=0)
    RetryPolicy(max_attempts=None, initial_delay=300, max_delay=300, jitter=1)


def test_a_policy_of_whole_numbers_is_the_one_that_is_read_back() -> None:
    policy = RetryPolicy(5, 1, 2, 30, 0, ("busy",))
    assert [
        type(value) for value in (policy.initial_delay, policy.multiplier, policy.max_delay, policy.jitter)
    ] == [float] * 4
    saga = new_saga("trip", [Step(name="s", action="do", retry=policy)], id=ID, at=BORN)
    assert repr(decode_saga(encode_saga(saga)).plan.steps[0].retry) == repr(policy)


def test_what_happens_unless_told_otherwise() -> None:
    """An action is tried once. A compensation is tried for days, every five minutes in the end."""
    assert NO_RETRY.max_attempts == 1
    assert PATIENT.max_attempts == 1000
    assert PATIENT.max_delay == 300
    waits = sum(delay(PATIENT, used) for used in range(1, 1000))
    assert 2 < waits / 86400 < 4
