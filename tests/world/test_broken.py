"""The simulation finds every engine that is broken on purpose. `python -m tests.world.within` writes the table."""

import pytest

from saga_amqp.testing.world import run_world

from .broken import BROKEN, Patch


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_engine_is_found(broken: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = BROKEN[broken]
    assert run_world(seed).problem is None, "nothing is wrong with the engine as it is"
    broken(monkeypatch)
    # A change of the engine draws other worlds from the seeds, so a few more are looked at.
    found = next((outcome for outcome in map(run_world, range(seed, seed + 60)) if outcome.problem), None)
    assert found is not None, f"{broken.__name__} passes 60 worlds"
    print(f"{broken.__name__}: seed {found.seed}: {found.problem}")
