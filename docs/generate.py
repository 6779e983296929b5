"""Write the generated parts of the documentation: `python docs/generate.py`. A test fails when they are stale."""

import itertools
import re
from pathlib import Path

from saga_core.diagram import machine_diagram, machine_table
from saga_core.states import StepState

FOLDER = Path(__file__).parent
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def states_of_a_step() -> str:
    """Name the states of a step, in the order of its life."""
    return ", ".join(f"`{state}`" for state in StepState) + "\n"


def scenarios() -> str:
    """List the transcripts that are run as tests, each with the rule that it shows."""
    folder = FOLDER.parent / "tests" / "core" / "scenarios"
    lines: list[str] = []
    for path in sorted(folder.glob("*.txt")):
        comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
        told = " ".join(line.lstrip("# ") for line in comment)
        lines.append(f"* [{path.stem.replace('_', ' ')}](../tests/core/scenarios/{path.name}): {told}\n")
    return "".join(lines)


PARTS = {
    "machine_diagram": lambda: f"```mermaid\n{machine_diagram()}```\n",
    "machine_table": machine_table,
    "step_states": states_of_a_step,
    "scenarios": scenarios,
}


def generated(text: str) -> str:
    """Return a page with its generated parts made anew."""
    return PART.sub(lambda found: found[1] + PARTS[found[2]]() + found[3], text)


if __name__ == "__main__":
    for page in FOLDER.glob("*.md"):
        page.write_text(generated(page.read_text()))
