"""Measure rivals side by side: the rules that every question here follows.

Machines get faster and slower while one looks at them, so rivals are never measured one after the other: they
take turns (A B C A B C …), and a ratio is the median of the ratios of the single rounds.
"""

import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec


class Options(msgspec.Struct, frozen=True):
    """How much is measured: everything, in as many rounds as the question takes by itself, unless told otherwise.

    `long` takes in what takes many minutes. `only` narrows it to what has all words of one of its entries in its name.
    """

    quick: bool = False
    long: bool = False
    rounds: int | None = None
    only: tuple[tuple[str, ...], ...] = ()

    def wants(self, name: str) -> bool:
        """Whether something of this name is to be measured."""
        words = set(re.findall(r"[\w-]+", re.sub(r"(?<=\d),(?=\d)", "", name.lower())))
        return not self.only or any(words.issuperset(some) for some in self.only)


class Latency(msgspec.Struct, frozen=True):
    """How long single operations took, in milliseconds: the median, and what 5 and 1 of 100 exceeded."""

    p50: float
    p95: float
    p99: float


class Sample(msgspec.Struct, frozen=True):
    """One run of one rival.

    `cpu` is the processor time of one operation in microseconds, over all threads of the measuring process.
    It moves less than the rate when others use the machine, so look at it before believing a difference.
    """

    rate: float
    cpu: float
    latency: Latency | None = None


Samples = Mapping[str, Sample]


class Rival(msgspec.Struct, frozen=True):
    """Something to measure; `run` measures it once, warm-up included. One that is several things names each sample.

    `every` so many rounds, beginning with the first, it takes part.
    """

    name: str
    run: Callable[[], Sample | Samples]
    every: int = 1


class Figure(msgspec.Struct, frozen=True):
    """A median with the lowest and the highest value that were seen."""

    median: float
    low: float
    high: float


class Line(msgspec.Struct, frozen=True):
    """All runs of one rival: operations per second, processor time in microseconds and milliseconds per operation."""

    name: str
    rate: Figure
    cpu: Figure
    p50: Figure | None
    p95: Figure | None
    samples: tuple[Sample, ...]


class Ratio(msgspec.Struct, frozen=True):
    """How many times as much one thing is as another, round by round, and what it is meant to be."""

    name: str
    value: Figure
    at_least: float | None = None
    at_most: float | None = None

    @property
    def missed_by(self) -> float:
        """How far the median is from what it is meant to be, as a part of that; 0 when it is not."""
        low = 0.0 if self.at_least is None else 1 - self.value.median / self.at_least
        high = 0.0 if self.at_most is None else self.value.median / self.at_most - 1
        return max(low, high, 0.0)


LOOK = 0.001  # seconds
AT_ONCE = re.compile(r"(.*), ([\d,]+) at once(.*)")

Rounds = Mapping[str, Sequence[Sample]]
Value = Callable[[Sample], float]


def rate(sample: Sample) -> float:
    """Return operations per second."""
    return sample.rate


def cpu(sample: Sample) -> float:
    """Return microseconds of processor time for an operation."""
    return sample.cpu


def p50(sample: Sample) -> float:
    """Return the median of the times of single operations, in milliseconds."""
    if sample.latency is None:
        raise ValueError("this rival does not time single operations")
    return sample.latency.p50


def take_turns(rivals: Sequence[Rival], options: Options, usual: int) -> Rounds:
    """Run every rival once, then every rival once more, and so on, in so many rounds by usual."""
    rounds: dict[str, list[Sample]] = {}
    repeats = options.rounds or (1 if options.quick else usual)
    wanted = [rival for rival in rivals if options.wants(rival.name)]
    for repeat in range(repeats):
        for rival in wanted:
            if repeat % rival.every:
                continue
            result = rival.run()
            for name, sample in ({rival.name: result} if isinstance(result, Sample) else result).items():
                rounds.setdefault(name, []).append(sample)
                say(f"{repeat + 1}/{repeats} {name}: {_told(sample)}")
    return rounds


def figure(values: Sequence[float]) -> Figure:
    """Return the median and the extremes of some values."""
    return Figure(statistics.median(values), min(values), max(values))


def curve_of(name: str) -> tuple[str, int]:
    """Take the concurrency out of a name; it is 0 where there is none. What is left is the name of a curve."""
    told = AT_ONCE.fullmatch(name)
    return (told[1] + told[3], int(told[2].replace(",", ""))) if told else (name, 0)


def lines(rounds: Rounds) -> tuple[Line, ...]:
    """Sum up each rival's runs, in the order in which they came, and by concurrency."""
    curves = list(dict.fromkeys(curve_of(name)[0] for name in rounds))

    def order(name: str) -> tuple[int, int]:
        curve, at_once = curve_of(name)
        return curves.index(curve), at_once

    return tuple(
        Line(
            name,
            figure([sample.rate for sample in samples]),
            figure([sample.cpu for sample in samples]),
            figure([one.p50 for one in latencies]) if latencies else None,
            figure([one.p95 for one in latencies]) if latencies else None,
            tuple(samples),
        )
        for name in sorted(rounds, key=order)
        for samples in (rounds[name],)
        for latencies in ([one.latency for one in samples if one.latency is not None],)
    )


def ratio(
    name: str,
    rounds: Rounds,
    ours: Sequence[str],
    theirs: Sequence[str],
    *,
    of: Value = rate,
    best: Callable[[Sequence[float]], float] = max,
    at_least: float | None = None,
    at_most: float | None = None,
) -> list[Ratio]:
    """Divide the best of some rivals by the best of others, round by round. None, where one side was not measured."""
    mine, other = (
        [
            best([of(sample) for sample in samples])
            for samples in zip(*(rounds[one] for one in some), strict=True)
        ]
        for some in ([one for one in side if one in rounds] for side in (ours, theirs))
    )
    if not mine or not other:
        return []
    return [Ratio(name, figure([a / b for a, b in zip(mine, other, strict=True)]), at_least, at_most)]


def thrift(name: str, rounds: Rounds, ours: Sequence[str], theirs: Sequence[str]) -> list[Ratio]:
    """Return how many times as much processor time the most thrifty of the others takes."""
    return ratio(name, rounds, theirs, ours, of=cpu, best=min)


def repeatedly(prepare: Callable[[], Callable[[], int]], seconds: float) -> Callable[[], Sample]:
    """Return a measurement in this process: a prepared function, called for so many seconds, and for half as warm-up.

    The function returns how many operations it did.
    """

    def measure() -> Sample:
        drive = prepare()
        _until(seconds / 2, drive)
        cpu = time.process_time()
        done, taken = _until(seconds, drive)
        return Sample(done / taken, (time.process_time() - cpu) / done * 1e6)

    return measure


def _until(seconds: float, drive: Callable[[], int]) -> tuple[int, float]:
    """Call a function for so many seconds; return how many operations that were, and the seconds taken.

    The clock is looked at every millisecond or so: looking each time would make a saga of three steps a tenth dearer.
    """
    began, done, calls, more = time.perf_counter(), 0, 0, 1
    while True:
        for _ in range(more):
            done += drive()
        calls += more
        taken = time.perf_counter() - began
        if taken >= seconds:
            return done, taken
        more = max(1, int(LOOK * calls / taken))


def say(message: str) -> None:
    """Report progress where it can't get into the results."""
    print(message, file=sys.stderr, flush=True)


def _told(sample: Sample) -> str:
    latency = f", p50 {sample.latency.p50:.2f} ms" if sample.latency else ""
    return f"{sample.rate:,.0f}/s, {sample.cpu:.1f} µs{latency}"
