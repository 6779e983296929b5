"""Running trio so that everything follows from a seed: virtual time, and an order of tasks that is drawn from it.

The only place that uses names which trio keeps to itself. `tests/world/test_determinism.py` says so when a release of
trio has changed them.
"""

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TypeVar, cast

import trio
import trio.testing
from trio._core import _run  # pyright: ignore[reportPrivateUsage]

T = TypeVar("T")

SWITCH = "_ALLOW_DETERMINISTIC_SCHEDULING"
SOURCE = "_r"


def run_in_virtual_time(
    main: Callable[[], Awaitable[T]], seed: int | str, instruments: Sequence[trio.abc.Instrument] = ()
) -> T:
    """Run an async function on trio; the seed says which of the tasks that can run runs first.

    Time is virtual: when nothing else can run it jumps to the next deadline. What makes the run another one is what
    comes from outside: threads, sockets, clocks, chance that is not drawn from the seed, the order of a set.

    Raises:
        Exception: Whatever `main` raises.
    """
    order = cast("Random", getattr(_run, SOURCE))
    before, state = getattr(_run, SWITCH), order.getstate()
    setattr(_run, SWITCH, True)
    order.seed(seed)
    try:
        clock = trio.testing.MockClock(autojump_threshold=0)
        return trio.run(main, clock=clock, instruments=instruments)
    finally:
        setattr(_run, SWITCH, before)
        order.setstate(state)
