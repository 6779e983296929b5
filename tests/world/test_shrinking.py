"""A failure is cut down to what it takes, and told so that people can read it."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from saga_amqp.testing.world import World, run_world
from saga_amqp.testing.world.__main__ import main
from saga_amqp.testing.world.process import Life
from saga_amqp.testing.world.shrink import kind_of, shrink
from saga_amqp.testing.world.story import tell

from .broken import notes_as_published_before_it_publishes


def test_a_failure_is_cut_down_to_the_one_call_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    notes_as_published_before_it_publishes(monkeypatch)
    outcome = run_world(0)
    assert outcome.problem is not None
    small = shrink(outcome, 60)
    assert small.problem is not None
    assert kind_of(small.problem) == kind_of(outcome.problem)
    assert len(small.struck) < len(outcome.struck)
    assert [name.partition("/")[0] for name in small.struck] == ["start"]
    assert run_world(0, only=frozenset(small.struck)) == small
    story = list(tell(small))
    assert story[-1] == small.problem
    assert any("created s1" in line for line in story)


class Calls:
    """People who call a hundred times. Two of the calls together are more than the world stands."""

    def handlers(self, life: Life) -> Mapping[str, Any]:
        return {"step_handlers": {}, "compensation_handlers": {}}

    async def run(self, world: World) -> None:
        done = [number for number in range(100) if world.faults.asked("call", number)]
        if {17, 71} <= set(done):
            world.fail(f"{len(done)} calls were too many")

    def check(self, world: World) -> Iterator[str]:
        return iter(())


def test_many_strikes_of_one_kind_are_cut_by_halves() -> None:
    outcome = run_world(2, Calls)
    assert outcome.problem == "100 calls were too many"
    small = shrink(outcome, 60, Calls)
    assert small.struck == ("call/17", "call/71")
    assert len(shrink(outcome, 4, Calls).struck) > 2, "it takes no more tries than it is given"
    assert shrink(outcome, load=Calls, seconds=0.0) is outcome


def test_faults_that_are_left_out_do_not_strike() -> None:
    outcome = run_world(1)
    assert any(line.is_fault for line in outcome.lines)
    calls = frozenset(name for name in outcome.struck if name.startswith("start/"))
    without = run_world(1, only=calls)
    assert without.problem is None
    assert not any(line.is_fault for line in without.lines)


def test_a_world_that_has_not_failed_cannot_be_shrunk() -> None:
    with pytest.raises(ValueError, match="has not failed"):
        shrink(run_world(2))


def test_the_command_line_tells_what_worlds_have_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--seeds", "2", "--first", "16"]) == 0
    assert "2 worlds" in capsys.readouterr().out
    assert main(["--seed", "16"]) == 0
    assert "Nothing was wrong." in capsys.readouterr().out
    notes_as_published_before_it_publishes(monkeypatch)
    assert main(["--seeds", "1", "--tries", "5"]) == 1
    assert "shrunk from" in capsys.readouterr().out
