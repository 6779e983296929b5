"""`python -m tests.world.within`: write the table of broken engines, each with the seed that finds it."""

import logging
import sys

import pytest

from saga_amqp.testing.world import run_world

from .broken import BROKEN

MOST = 120


def main() -> None:
    logging.disable()
    wanted = sys.argv[1:]
    print("| broken on purpose | found by seed | as |\n|---|---|---|")
    for broken in BROKEN:
        if wanted and broken.__name__ not in wanted:
            continue
        with pytest.MonkeyPatch.context() as patch:
            broken(patch)
            for seed in range(MOST):
                outcome = run_world(seed)
                if outcome.problem is not None:
                    print(f"| {broken.__name__.replace('_', ' ')} | {seed} | {outcome.problem} |", flush=True)
                    break
            else:
                print(f"| {broken.__name__.replace('_', ' ')} | none of {MOST} | |", flush=True)


if __name__ == "__main__":
    main()
