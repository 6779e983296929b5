"""The fewest faults, and calls of users, with which a world still fails.

Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002. Whatever is left out changes what comes
after it, so what is left need not be all that is needed elsewhere: a run is the proof, each time.
"""

from collections.abc import Callable, Sequence

from saga_amqp.testing.world.run import Outcome, run_world
from saga_amqp.testing.world.world import Load


def shrink(outcome: Outcome, tries: int = 150, load: Callable[[], Load] | None = None) -> Outcome:
    """Return the outcome of the smallest run of a seed that was found to fail in the same way, within so many tries.

    Raises:
        ValueError: The world has not failed.
    """
    if outcome.problem is None:
        raise ValueError(f"The world of seed {outcome.seed} has not failed, and cannot be shrunk")
    kind = kind_of(outcome.problem)
    best, parts, left = outcome, 2, tries
    while left > 0 and best.struck:
        for some in _complements(best.struck, parts):
            left -= 1
            found = run_world(outcome.seed, load, only=frozenset(some))
            if (
                found.problem is not None
                and kind_of(found.problem) == kind
                and len(found.struck) < len(best.struck)
            ):
                best, parts = found, max(2, parts - 1)
                break
            if left == 0:
                break
        else:
            if parts >= len(best.struck):
                break
            parts = min(2 * parts, len(best.struck))
    return best


def kind_of(problem: str) -> str:
    """Return what kind of problem it is: its invariant where it names one, else its words without names."""
    for number in range(1, 9):
        if f"I{number}" in problem:
            return f"I{number}"
    return " ".join(word for word in problem.split() if not any(letter.isdigit() for letter in word))


def _complements(names: Sequence[str], parts: int) -> list[list[str]]:
    size = -(-len(names) // parts)
    return [[*names[:start], *names[start + size :]] for start in range(0, len(names), size)]
