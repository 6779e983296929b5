"""The fewest faults, and calls of users, with which a world still fails.

Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002: of the list of all that has struck, one
after the other, a half is tried, then quarters and what they leave, then ever smaller parts. Whatever is left out
changes what comes after it, so what is left need not be all that is needed elsewhere: a run is the proof, each time.
"""

from collections.abc import Callable, Iterator, Sequence
from time import monotonic

from saga_amqp.testing.world.run import Outcome, run_world
from saga_amqp.testing.world.world import Load

SMALL = 8
"""Up to so many parts, each is tried alone: of more, hardly one has all that it takes."""


def shrink(
    outcome: Outcome,
    tries: int = 1_000,
    load: Callable[[], Load] | None = None,
    *,
    seconds: float = 120.0,
) -> Outcome:
    """Return the outcome of the smallest run of a seed that was found to fail in the same way.

    It looks no further after so many runs, or so many seconds.

    Raises:
        ValueError: The world has not failed.
    """
    if outcome.problem is None:
        raise ValueError(f"The world of seed {outcome.seed} has not failed, and cannot be shrunk")
    kind, end = kind_of(outcome.problem), monotonic() + seconds
    best, parts, tried = outcome, 2, set[frozenset[str]]()
    while best.struck:
        parts = min(parts, len(best.struck))
        for some, then in _attempts(best.struck, parts):
            if len(tried) == tries or monotonic() > end:
                return best
            if some in tried:
                continue
            tried.add(some)
            found = run_world(outcome.seed, load, only=some, until=_patience(best.seconds))
            if (
                found.problem is not None
                and kind_of(found.problem) == kind
                and len(found.struck) < len(best.struck)
            ):
                best, parts = found, then
                break
        else:
            if parts == len(best.struck):
                break
            parts *= 2
    return best


def kind_of(problem: str) -> str:
    """Return what kind of problem it is: its invariant where it names one, else its words without names."""
    for number in range(1, 9):
        if f"I{number}" in problem:
            return f"I{number}"
    return " ".join(word for word in problem.split() if not any(letter.isdigit() for letter in word))


def _attempts(names: Sequence[str], parts: int) -> Iterator[tuple[frozenset[str], int]]:
    """Go through what is to be tried, and into how many parts to cut it if it fails."""
    size = len(names)
    cuts = [(size * part // parts, size * (part + 1) // parts) for part in range(parts)]
    yield frozenset(), 2
    if parts <= SMALL:
        yield from ((frozenset(names[start:stop]), 2) for start, stop in cuts)
    yield from ((frozenset((*names[:start], *names[stop:])), max(2, parts - 1)) for start, stop in cuts)


def _patience(seconds: float) -> float:
    """Return for how long a smaller world runs in which nothing is wrong yet, when another failed after `seconds`."""
    return 1.2 * seconds + 10.0
