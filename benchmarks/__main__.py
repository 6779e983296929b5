"""The door: `python -m benchmarks [NAME…] [--quick] [--rounds N] [--only WORDS] [--json]`."""

import argparse
import importlib
import sys
from pathlib import Path

import msgspec

from benchmarks.plots import draw
from benchmarks.report import Report, markdown, text
from benchmarks.runner import Options, say

QUESTIONS = ("core", "codec", "relay", "storage", "engine", "scale", "peers")


def main() -> None:
    """Answer the questions that were asked, by default all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure. Progress goes to standard error, results to standard output.",
    )
    parser.add_argument(
        "questions", nargs="*", metavar="question", help=f"{', '.join(QUESTIONS)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="short and rough, to see that everything runs")
    parser.add_argument("--long", action="store_true", help="also what takes many minutes: a million sagas")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="how often each is measured; else by question"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help="only what has all these words in its name, for example memory,asyncio,100; may be repeated",
    )
    parser.add_argument("--plots", type=Path, metavar="DIRECTORY", help="draw the curves (extra: bench)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the results, every sample included, as JSON")
    form.add_argument("--markdown", action="store_true", help="print tables for a page")
    given = parser.parse_args()
    if unknown := set(given.questions) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")

    only = tuple(tuple(word.strip().lower() for word in words.split(",")) for words in given.only)
    options = Options(quick=given.quick, long=given.long, rounds=given.rounds, only=only)
    reports: list[Report] = []
    for question in given.questions or QUESTIONS:
        for report in importlib.import_module(f"benchmarks.{question}").run(options):
            reports.append(report)
            if not given.json:
                print((markdown if given.markdown else text)(report), end="\n\n", flush=True)
    if given.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(reports)).decode() + "\n")
    if given.plots:
        for file in draw(reports, given.plots):
            say(f"drawn: {file}")


if __name__ == "__main__":
    main()
