"""`python -m saga_amqp.testing.world`: run many worlds, or tell the story of one."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from saga_amqp.testing.world.many import run_worlds
from saga_amqp.testing.world.run import Outcome, run_world
from saga_amqp.testing.world.shrink import shrink
from saga_amqp.testing.world.story import tell
from saga_amqp.testing.world.summary import Summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if a world has failed."""
    parser = argparse.ArgumentParser(prog="python -m saga_amqp.testing.world", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, and tell its story")
    parser.add_argument("--seeds", type=int, default=100, help="run so many")
    parser.add_argument("--first", type=int, default=0, help="beginning with this one")
    parser.add_argument("--jobs", type=int, default=1, help="in so many processes")
    parser.add_argument("--tries", type=int, default=1_000, help="runs that shrinking a failure may take")
    parser.add_argument("--all", action="store_true", help="tell everything, not only what matters")
    given = parser.parse_args(arguments)
    logging.disable()  # see `many`
    if given.seed is not None:
        outcome = run_world(given.seed)
        _explain(outcome, given.tries, everything=given.all)
        return int(outcome.problem is not None)
    summary, began = Summary(), time.monotonic()
    for outcome in run_worlds(range(given.first, given.first + given.seeds), given.jobs):
        summary.add(outcome)
        if outcome.problem is not None:
            print(f"seed {outcome.seed}: {outcome.problem}", flush=True)
    print(*summary.lines(time.monotonic() - began), sep="\n")
    if summary.failures:
        print(f"\nThe first that failed, SEED={summary.failures[0][0]}:\n")
        _explain(run_world(summary.failures[0][0]), given.tries)
    return int(bool(summary.failures))


def _explain(outcome: Outcome, tries: int, *, everything: bool = False) -> None:
    if outcome.problem is not None and not everything:
        small = shrink(outcome, tries)
        print(f"shrunk from {len(outcome.struck)} faults and calls to {len(small.struck)}:")
        outcome = small
    print(*tell(outcome, everything=everything), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
