"""Measure rivals side by side and say it in a table: the rules that every question here follows.

Machines get faster and slower while one looks at them, so rivals are never measured one after the other: they
take turns (A B C A B C …), and a ratio is the median of the ratios of the single rounds.
"""

import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

import msgspec

PACKAGES = (
    "saga-amqp",
    "aiormq",
    "pamqp",
    "anyio",
    "trio",
    "uvloop",
    "msgspec",
    "python-ulid",
    "transitions",
)


class Sample(msgspec.Struct, frozen=True):
    """One run of one rival.

    `cpu` is the processor time of one operation in microseconds, over all threads of the measuring process.
    It moves less than the rate when others use the machine, so look at it before believing a difference.
    """

    rate: float
    cpu: float


class Rival(msgspec.Struct, frozen=True):
    """Something to measure; `run` measures it once, warm-up included."""

    name: str
    run: Callable[[], Sample]


class Figure(msgspec.Struct, frozen=True):
    """A median with the lowest and the highest value that were seen."""

    median: float
    low: float
    high: float


class Line(msgspec.Struct, frozen=True):
    """All runs of one rival: operations per second, processor time in microseconds per operation."""

    name: str
    rate: Figure
    cpu: Figure
    samples: tuple[Sample, ...]


class Ratio(msgspec.Struct, frozen=True):
    """How many times as fast one thing is as another, round by round."""

    name: str
    value: Figure


class Report(msgspec.Struct, frozen=True):
    """The answer to one question."""

    question: str
    unit: str
    lines: tuple[Line, ...]
    ratios: tuple[Ratio, ...] = ()
    skipped: tuple[str, ...] = ()
    facts: Mapping[str, str] = {}


Rounds = Mapping[str, Sequence[Sample]]


def take_turns(rivals: Sequence[Rival], repeats: int, say: Callable[[str], None]) -> Rounds:
    """Run every rival once, then every rival once more, and so on; `say` is told each result."""
    rounds: dict[str, list[Sample]] = {rival.name: [] for rival in rivals}
    for repeat in range(repeats):
        for rival in rivals:
            sample = rival.run()
            rounds[rival.name].append(sample)
            say(f"{repeat + 1}/{repeats} {rival.name}: {sample.rate:,.0f}/s, {sample.cpu:.1f} µs")
    return rounds


def figure(values: Sequence[float]) -> Figure:
    """Return the median and the extremes of some values."""
    return Figure(statistics.median(values), min(values), max(values))


def lines(rounds: Rounds) -> tuple[Line, ...]:
    """Sum up each rival's runs."""
    return tuple(
        Line(name, figure([s.rate for s in samples]), figure([s.cpu for s in samples]), tuple(samples))
        for name, samples in rounds.items()
    )


def ratio(name: str, rounds: Rounds, ours: Sequence[str], theirs: Sequence[str]) -> Ratio:
    """Compare the fastest of some rivals with the fastest of others, round by round."""
    mine = _each_round(rounds, ours, lambda samples: max(sample.rate for sample in samples))
    other = _each_round(rounds, theirs, lambda samples: max(sample.rate for sample in samples))
    return Ratio(name, figure([a / b for a, b in zip(mine, other, strict=True)]))


def thrift(name: str, rounds: Rounds, ours: Sequence[str], theirs: Sequence[str]) -> Ratio:
    """Return how many times as much processor time the most thrifty of the others takes."""
    mine = _each_round(rounds, ours, lambda samples: min(sample.cpu for sample in samples))
    other = _each_round(rounds, theirs, lambda samples: min(sample.cpu for sample in samples))
    return Ratio(name, figure([b / a for a, b in zip(mine, other, strict=True)]))


def _each_round(
    rounds: Rounds, rivals: Sequence[str], best: Callable[[Sequence[Sample]], float]
) -> Sequence[float]:
    return [best(samples) for samples in zip(*(rounds[rival] for rival in rivals), strict=True)]


def load() -> str:
    """Return how busy the machine is, over 1, 5 and 15 minutes."""
    return " ".join(f"{average:.1f}" for average in os.getloadavg())


def machine() -> dict[str, str]:
    """Return what a reader has to know about the place of the measurement."""
    facts = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}",
        "cpu": f"{os.cpu_count()} x {_cpu_model()}",
        "load after": load(),
    }
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def text(report: Report) -> str:
    """Return a report as a table for people."""
    names = [line.name for line in report.lines] + [each.name for each in report.ratios]
    width = max(map(len, names), default=0)
    rows = [
        report.question,
        f"  {'':{width}}  {report.unit + ', median':>24}  {'min - max':>23}  {'cpu µs each':>11}",
    ]
    for line in report.lines:
        rate, cpu = f"{line.rate.median:,.0f}", f"{line.cpu.median:,.1f}"
        rows.append(f"  {line.name:{width}}  {rate:>24}  {_spread(line.rate, ',.0f'):>23}  {cpu:>11}")
    if report.ratios:
        rows += ["", f"  {'':{width}}  {'ratio, median of rounds':>24}  {'min - max':>23}"]
        rows += [
            f"  {each.name:{width}}  {each.value.median:>24,.2f}  {_spread(each.value, ',.2f'):>23}"
            for each in report.ratios
        ]
    rows += [f"  skipped: {reason}" for reason in report.skipped]
    rows += ["", *(f"  {name}: {value}" for name, value in report.facts.items())]
    return "\n".join(rows)


def say(message: str) -> None:
    """Report progress where it can't get into the results."""
    print(message, file=sys.stderr, flush=True)


def _spread(value: Figure, form: str) -> str:
    return f"{value.low:{form}} - {value.high:{form}}"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            return next(line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
