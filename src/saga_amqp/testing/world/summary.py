"""What a number of worlds have shown, in a few lines."""

from collections import Counter
from collections.abc import Iterable, Iterator

from saga_amqp.testing.world.run import Outcome


class Summary:
    """Adds up outcomes."""

    def __init__(self) -> None:
        self.worlds = 0
        self.virtual = 0.0
        self.failures: list[tuple[int, str]] = []
        self.faults: Counter[str] = Counter()
        self.points: Counter[str] = Counter()
        self.awaits: Counter[str] = Counter()
        self.sagas: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        """Take one world in."""
        self.worlds += 1
        self.virtual += outcome.seconds
        if outcome.problem is not None:
            self.failures.append((outcome.seed, outcome.problem))
        self.faults.update(outcome.faults)
        self.points.update(outcome.points)
        self.awaits.update(outcome.awaits)
        self.sagas.update(outcome.sagas)

    def lines(self, seconds: float, *, most: int = 40) -> Iterator[str]:
        """Go through the lines of a report; `seconds` is the real time that it took."""
        hours = self.virtual / 3600
        yield (
            f"{self.worlds} worlds, {hours:.1f} virtual hours in {seconds:.0f} s: "
            f"{hours / max(seconds, 0.001):.3f} virtual hours per real second; {len(self.failures)} failed"
        )
        yield f"sagas: {_listed(self.sagas.most_common())}"
        yield f"faults: {_listed(self.faults.most_common())}"
        yield f"crashes by the last point that the process had passed: {_listed(self.points.most_common())}"
        yield f"awaits of the library hit by a crash, {len(self.awaits)} places:"
        yield from (f"  {count:7}  {place}" for place, count in self.awaits.most_common(most))


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts) or "none"
