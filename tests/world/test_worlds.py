"""Worlds of random load in all weathers: some that never change, and one that nobody has seen before."""

import secrets

import pytest

from saga_amqp.testing.world import Fault, run_world
from saga_amqp.testing.world.summary import Summary

FIXED = range(40)


def test_nothing_goes_wrong_in_a_fixed_set_of_worlds() -> None:
    summary = Summary()
    for seed in FIXED:
        summary.add(run_world(seed))
    assert not summary.failures
    assert set(summary.faults) >= set(Fault), "every kind of fault strikes in them"
    assert summary.faults["refused by the barrier"] > 5, "actions come after their compensations"
    assert {"completed", "compensated", "failed"} == set(summary.sagas)
    assert len(summary.awaits) > 20, "crashes hit the library in many places"


def test_nothing_goes_wrong_in_a_world_that_nobody_has_seen() -> None:
    seed = secrets.randbits(40)
    print(f"\nreplay it with: make simulate SEED={seed}")
    for each in range(seed, seed + 5):
        outcome = run_world(each)
        assert outcome.problem is None, f"make simulate SEED={each}: {outcome.problem}"


@pytest.mark.parametrize("seed", [2, 18])
def test_a_calm_world_runs_every_handler_once(seed: int) -> None:
    outcome = run_world(seed)
    assert outcome.problem is None
    assert outcome.sagas


def test_what_has_come_back_too_often_is_given_up_in_some_worlds() -> None:
    outcome = run_world(16)
    assert outcome.problem is None
    assert any("dead-lettered" in str(line) for line in outcome.lines)
