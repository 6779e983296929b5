"""The transcripts under scenarios/ tell the truth. They read as documentation: each shows one rule of the design.

Where an answer changes on purpose, `SAGA_WRITE_SCENARIOS=1 pytest tests/core/test_scenarios.py` writes them anew.
"""

import os
from difflib import unified_diff
from pathlib import Path

import pytest

from saga_core.testing.transcript import play

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_scenario(path: Path) -> None:
    told = path.read_text()
    played = play(told)
    if os.environ.get("SAGA_WRITE_SCENARIOS"):
        path.write_text(played)
        return
    diff = unified_diff(
        told.splitlines(), played.splitlines(), path.name, "what the core answers", lineterm=""
    )
    assert told == played, "\n".join(diff)
    assert told.startswith("# "), "the first line must say which rule is shown"
