"""What happened in a world, for people: the faults, and what has to do with the sagas that the problem names."""

import re
from collections.abc import Iterator

from saga_amqp.testing.world.run import Outcome
from saga_amqp.testing.world.trace import Line

_NAME = re.compile(r"\bs\d+(?:\.\w+#\d+)*")


def tell(outcome: Outcome, *, everything: bool = False) -> Iterator[str]:
    """Go through the lines of a story."""
    yield f"seed {outcome.seed}, {outcome.seconds:.1f} s of virtual time, trace {outcome.digest}"
    yield ""
    named = set(_NAME.findall(outcome.problem or ""))
    families = {name.partition(".")[0] for name in named}
    for line in outcome.lines:
        if everything or (outcome.problem is not None and (not families or _matters(line, families))):
            yield str(line)
    yield ""
    yield outcome.problem or "Nothing was wrong."


def _matters(line: Line, families: set[str]) -> bool:
    if line.is_fault or line.who in ("checker", "people"):
        return True
    return any(name.partition(".")[0] in families for name in _NAME.findall(line.what))
