"""Running many worlds, side by side in several processes of the machine."""

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from msgspec.structs import replace

from saga_amqp.testing.world.run import Outcome, run_world


def run_worlds(seeds: Sequence[int], jobs: int = 1) -> Iterator[Outcome]:
    """Run worlds of random load, and give their outcomes in the order of the seeds, without the lines of the traces."""
    if jobs == 1:
        yield from map(_run, seeds)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_run, seeds, chunksize=4)


def _run(seed: int) -> Outcome:
    logging.disable()  # what an engine complains of in a storm is part of the weather
    return replace(run_world(seed), lines=())
