"""Answers: what was measured, as a table for people, with what has to be known about the place of the measurement."""

import importlib.metadata
import os
import platform
import textwrap
from collections.abc import Mapping

import msgspec

from benchmarks.runner import Figure, Line, Ratio

PACKAGES = (
    "saga-amqp",
    "aiormq",
    "pamqp",
    "anyio",
    "trio",
    "uvloop",
    "msgspec",
    "psycopg",
    "python-ulid",
    "transitions",
    "python-statemachine",
    "restate-sdk",
    "dbos",
    "celery",
)


class Report(msgspec.Struct, frozen=True):
    """The answer to one question, or to a part of it."""

    question: str
    unit: str
    lines: tuple[Line, ...]
    ratios: tuple[Ratio, ...] = ()
    skipped: tuple[str, ...] = ()
    facts: Mapping[str, str] = {}


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
    timed = any(line.p50 for line in report.lines)
    heads = [f"{report.unit + ', median':>24}", f"{'min - max':>23}", f"{'cpu µs each':>11}"]
    heads += [f"{'p50 ms':>8}", f"{'p95 ms':>8}"] if timed else []
    rows = [report.question, f"  {'':{width}}  {'  '.join(heads)}"]
    for line in report.lines:
        cells = [
            f"{_short(line.rate.median):>24}",
            f"{_spread(line.rate):>23}",
            f"{f'{line.cpu.median:,.1f}' if line.cpu.median else '':>11}",
        ]
        cells += [
            f"{'' if one is None else f'{one.median:,.2f}':>8}" for one in (line.p50, line.p95) if timed
        ]
        rows.append(f"  {line.name:{width}}  {'  '.join(cells)}".rstrip())
    if report.ratios:
        rows += ["", f"  {'':{width}}  {'ratio, median of rounds':>24}  {'min - max':>23}"]
        rows += [
            f"  {each.name:{width}}  {each.value.median:>24,.2f}  "
            f"{f'{each.value.low:,.2f} - {each.value.high:,.2f}':>23}  {verdict(each)}".rstrip()
            for each in report.ratios
        ]
    rows += [f"  skipped: {reason}" for reason in report.skipped]
    rows += ["", *textwrap.wrap(told(report.facts), 118, initial_indent="  ", subsequent_indent="  ")]
    return "\n".join(rows)


def markdown(report: Report) -> str:
    """Return a report as tables for a page: a median, and in brackets the lowest and the highest value."""
    timed, thrifty = any(line.p50 for line in report.lines), any(line.cpu.median for line in report.lines)
    heads = [report.question, report.unit]
    heads += ["CPU, µs each"] if thrifty else []
    heads += ["p50, ms", "p95, ms"] if timed else []
    rows = [heads, ["---"] * len(heads)]
    for line in report.lines:
        cells = [line.name, f"{_short(line.rate.median)} ({_short(line.rate.low)}–{_short(line.rate.high)})"]
        cells += [f"{line.cpu.median:,.1f}" if line.cpu.median else ""] if thrifty else []
        cells += ["" if one is None else f"{one.median:,.2f}" for one in (line.p50, line.p95) if timed]
        rows.append(cells)
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    if report.ratios:
        ratios = [["ratio", "median of rounds", "meant to be"], ["---"] * 3]
        ratios += [
            [
                each.name,
                f"{each.value.median:,.2f} ({each.value.low:,.2f}–{each.value.high:,.2f})",
                verdict(each),
            ]
            for each in report.ratios
        ]
        text += "\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in ratios)
    return "\n\n".join([text, *(f"Skipped: {reason}." for reason in report.skipped), told(report.facts)])


def told(facts: Mapping[str, str]) -> str:
    """Return facts in one line."""
    return " · ".join(f"{name} {value}" for name, value in facts.items())


def verdict(each: Ratio) -> str:
    """Return what a ratio is meant to be, and whether it is."""
    wanted = [f"at least {each.at_least:g}"] if each.at_least is not None else []
    wanted += [f"at most {each.at_most:g}"] if each.at_most is not None else []
    if not wanted:
        return ""
    missed = f"missed by {each.missed_by:.0%}" if each.missed_by else "met"
    return f"{' and '.join(wanted)}: {missed}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def _spread(value: Figure) -> str:
    return f"{_short(value.low)} - {_short(value.high)}"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            return next(line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
