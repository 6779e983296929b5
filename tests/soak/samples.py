"""What was seen of an engine from time to time, and whether it grows."""

import math
import statistics
from collections.abc import Mapping, Sequence

from msgspec import Struct

from benchmarks.runner import Latency

SMALL = 0.1
"""Percent of the memory a minute that are no growth, whatever their error."""
ERRORS = 2.0
"""So many standard errors away from none a slope may be."""
WARM_UP = 0.2
"""The part of a run that nothing is concluded from. As long are the stretches that are compared: after it, and last."""
ALLOWED_OBJECTS = 0.01
"""The part by which objects, and the blocks of memory in use, may become more."""
OF_A_WORKER = {"objects": 50, "blocks": 200}
"""So many may be more for each worker that has been added."""
KEPT_RATE = 0.95

AT_REST = ("tasks", "connections", "channels", "messages", "in flight", "stored")
"""What has to be after the load as it was before."""


class Sample(Struct, frozen=True):
    """One look. `at` is in seconds since the load began, `memory` in KB, resident; `cpu` in seconds until then.

    `counts` has what there was of each thing; what is dear to count is not in each sample. `latency` is that of the
    sagas that came to rest since the last look: from when they were due to be started, without what they wait for.
    """

    at: float
    memory: int
    cpu: float
    counts: dict[str, int]
    latency: Latency | None = None


class Slope(Struct, frozen=True):
    """How fast something grows, in units a minute, with the standard error, and in percent of what there is."""

    per_minute: float
    error: float
    percent: float

    @property
    def is_flat(self) -> bool:
        return self.per_minute <= ERRORS * self.error or self.percent <= SMALL


class Growth(Struct, frozen=True):
    """The least that there was of a thing after the warm-up, and at the end: a leak raises it, what varies does not."""

    early: int
    late: int
    allowed: int = 0

    @property
    def is_none(self) -> bool:
        return self.late - self.early <= self.allowed


class Soak(Struct, frozen=True):
    """A run: what was to be done, and what was seen. `before` and `after` are of an engine that had nothing to do."""

    facts: dict[str, str]
    seconds: float
    rate: float
    samples: list[Sample]
    before: Sample
    after: Sample
    started: int
    ended: dict[str, int]
    wrong: dict[str, int]

    @property
    def memory(self) -> Slope:
        """How fast memory grows in the second half."""
        half = [one for one in self.samples if one.at >= self.seconds / 2]
        return slope([(one.at / 60, one.memory) for one in half])

    @property
    def crowds(self) -> tuple[int, int]:
        """The most sagas in flight in either half. More of them than ever before need memory, and leak none."""
        halves = ([0], [0])
        for one in self.samples:
            halves[one.at >= self.seconds / 2].append(one.counts["in flight"])
        return max(halves[0]), max(halves[1])

    @property
    def growth(self) -> Mapping[str, Growth]:
        """What has become more, by name."""
        names = dict.fromkeys(name for one in self.samples for name in one.counts)
        names.pop("workers", None)  # which become as many as they may
        return {name: found for name in names if (found := self._growth(name)) is not None}

    def _growth(self, name: str) -> Growth | None:
        stretch = WARM_UP * self.seconds
        seen = [one for one in self.samples if name in one.counts]
        early = [one for one in seen if stretch <= one.at <= 2 * stretch]
        late = [one for one in seen if one.at >= self.seconds - stretch]
        if not early or not late:
            return None
        first, last = (min(some, key=lambda one: one.counts[name]).counts for some in (early, late))
        allowed = 0
        if name in OF_A_WORKER:
            workers = last["workers"] - first["workers"]
            allowed = int(first[name] * ALLOWED_OBJECTS) + OF_A_WORKER[name] * max(workers, 0)
        elif name in ("tasks", "in flight", "messages", "stored"):
            allowed = math.ceil(self.rate)  # of a second: the machine may have become slower by as much
        return Growth(first[name], last[name], allowed)

    def complaints(self) -> list[str]:
        """Say what is not as it must be; nothing when all is."""
        found: list[str] = []
        memory = self.memory
        if not memory.is_flat:
            first, second = self.crowds
            found.append(
                f"memory grows by {memory.per_minute:.0f} ± {memory.error:.0f} KB a minute; in flight were at most "
                f"{first:,} sagas in the first half, {second:,} in the second"
            )
        for name, growth in self.growth.items():
            if not growth.is_none:
                found.append(f"{name} grew from {growth.early} to {growth.late}")
        for name in AT_REST:
            before, after = self.before.counts[name], self.after.counts[name]
            if after > before:
                found.append(f"at rest there were {before} {name}, and are {after}")
        for kind, count in self.wrong.items():
            found.append(f"{count} sagas of the kind {kind!r} did not end as they must")
        if self.started < KEPT_RATE * self.rate * self.seconds:
            found.append(f"only {self.started} sagas were started")
        return found


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    """Return the slope by least squares, with its standard error. There have to be three points."""
    times, values = zip(*points, strict=True)
    line = statistics.linear_regression(times, values)
    middle = statistics.fmean(times)
    spread = sum((time - middle) ** 2 for time in times)
    off = sum((value - line.intercept - line.slope * time) ** 2 for time, value in points)
    error = math.sqrt(off / (len(points) - 2) / spread)
    return Slope(line.slope, error, 100 * line.slope / statistics.fmean(values))
