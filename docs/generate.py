"""Write the generated parts of the documentation: `python docs/generate.py`. A test fails when they are stale."""

import re
from pathlib import Path

from saga_core.diagram import machine_diagram, machine_table
from saga_core.states import StepState

FOLDER = Path(__file__).parent
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def states_of_a_step() -> str:
    """Name the states of a step, in the order of its life."""
    return ", ".join(f"`{state}`" for state in StepState) + "\n"


PARTS = {
    "machine_diagram": lambda: f"```mermaid\n{machine_diagram()}```\n",
    "machine_table": machine_table,
    "step_states": states_of_a_step,
}


def generated(text: str) -> str:
    """Return a page with its generated parts made anew."""
    return PART.sub(lambda found: found[1] + PARTS[found[2]]() + found[3], text)


if __name__ == "__main__":
    for page in FOLDER.glob("*.md"):
        page.write_text(generated(page.read_text()))
