"""A world follows from its seed alone; and the names that trio keeps to itself, on which that stands, are there."""

import os
import subprocess
import sys
from random import Random

import pytest
import trio
from trio._core import _run

from saga_amqp.testing.world import run_world
from saga_amqp.testing.world.determinism import SOURCE, SWITCH, run_in_virtual_time

SEEDS = (2, 16, 17)

SCRIPT = """
import logging, sys
logging.disable()
from saga_amqp.testing.world import run_world
print(*(run_world(int(seed)).digest for seed in sys.argv[1:]))
"""


def test_trio_still_has_the_names_that_the_order_of_tasks_is_drawn_with() -> None:
    told = "trio has changed how it draws the order of its tasks: adapt saga_amqp.testing.world.determinism"
    assert isinstance(getattr(_run, SWITCH, None), bool), told
    assert isinstance(getattr(_run, SOURCE, None), Random), told
    assert "batch.sort(key=lambda t: t._counter)" in _source_of_the_loop(), told


def _source_of_the_loop() -> str:
    assert _run.__file__ is not None
    with open(_run.__file__) as file:
        return file.read()


async def shuffle() -> list[int]:
    order: list[int] = []

    async def note(number: int) -> None:
        await trio.sleep(1.0)
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(note, number)
    return order


def test_the_order_of_tasks_follows_from_the_seed_and_from_nothing_else() -> None:
    before = getattr(_run, SWITCH)
    assert run_in_virtual_time(shuffle, 1) == run_in_virtual_time(shuffle, 1)
    assert run_in_virtual_time(shuffle, 1) != run_in_virtual_time(shuffle, 2)
    assert getattr(_run, SWITCH) is before


def test_time_is_virtual() -> None:
    async def wait() -> float:
        await trio.sleep(8e4)
        return trio.current_time()

    assert run_in_virtual_time(wait, 1) == pytest.approx(8e4)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_runs_of_one_seed_are_the_same(seed: int) -> None:
    one, other = run_world(seed), run_world(seed)
    assert one.digest == other.digest
    assert one == other
    assert one.lines


def test_a_new_interpreter_with_another_order_of_hashes_runs_the_same() -> None:
    digests = [run_world(seed).digest for seed in SEEDS]
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT, *map(str, SEEDS)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert out.split() == digests
