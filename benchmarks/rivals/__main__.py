"""Run the order saga on a rival, at one concurrency after the other, and print the outcomes as JSON."""

import argparse
import importlib
import sys

import msgspec

RIVALS = ("restate", "dbos", "celery")


def main() -> None:
    """Parse the command line, run, check, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("store", help="postgres or sqlite where the rival has a choice")
    parser.add_argument("--at-once", type=int, nargs="+", default=[32])
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of each concurrency, after a third as warm-up"
    )
    parser.add_argument("--url", default="amqp://guest:guest@127.0.0.1:5672/")
    parser.add_argument("--database", metavar="URL", help="of PostgreSQL")
    given = parser.parse_args()
    rival = importlib.import_module(f"benchmarks.rivals.with_{given.rival}")
    outcomes = rival.run(given.store, given.url, given.database, given.at_once, given.seconds)
    sys.stdout.write(msgspec.json.encode(outcomes).decode() + "\n")


if __name__ == "__main__":
    main()
