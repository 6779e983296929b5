"""The door: `python -m benchmarks [core] [relay] [storage] [--quick] [--json]`."""

import argparse
import importlib
import sys

import msgspec

from benchmarks.runner import Report, text

QUESTIONS = ("core", "relay", "storage")


def main() -> None:
    """Answer the questions that were asked, by default all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure. Progress goes to standard error, results to standard output.",
    )
    parser.add_argument(
        "questions", nargs="*", metavar="question", help=f"{', '.join(QUESTIONS)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="small and rough, to see that everything runs")
    parser.add_argument(
        "--json", action="store_true", help="print the results, every sample included, as JSON"
    )
    options = parser.parse_args()
    if unknown := set(options.questions) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")

    reports: list[Report] = []
    for question in options.questions or QUESTIONS:
        report = importlib.import_module(f"benchmarks.{question}").run(quick=options.quick)
        reports.append(report)
        if not options.json:
            sys.stdout.write(text(report) + "\n\n")
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(reports)).decode() + "\n")


if __name__ == "__main__":
    main()
