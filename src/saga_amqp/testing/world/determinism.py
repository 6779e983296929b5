"""Running trio so that everything follows from a seed: virtual time, and an order of tasks that is drawn from it.

The only place that uses names which trio keeps to itself. `tests/world/test_determinism.py` says so when a release of
trio has changed them.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio
import trio.testing
from trio._core import _run  # pyright: ignore[reportPrivateUsage]

from saga_amqp.testing.world.chance import Chance

T = TypeVar("T")

SWITCH = "_ALLOW_DETERMINISTIC_SCHEDULING"
SOURCE = "_r"


class Order:
    """What trio draws with which of the tasks that can run runs first."""

    def __init__(self, seed: int | str) -> None:
        self._chance = Chance(f"{seed}/order")

    def shuffle(self, tasks: list[trio.lowlevel.Task]) -> None:
        """Bring tasks into an order that follows from the seed and the virtual time."""
        if len(tasks) > 1:
            self._chance.source(repr(trio.current_time())).shuffle(tasks)


def run_in_virtual_time(
    main: Callable[[], Awaitable[T]], seed: int | str, instruments: Sequence[trio.abc.Instrument] = ()
) -> T:
    """Run an async function on trio; the seed says which of the tasks that can run runs first.

    Time is virtual: when nothing else can run it jumps to the next deadline. What makes the run another one is what
    comes from outside: threads, sockets, clocks, chance that is not drawn from the seed, the order of a set.

    Raises:
        Exception: Whatever `main` raises.
    """
    before = {name: getattr(_run, name) for name in (SWITCH, SOURCE)}
    setattr(_run, SWITCH, True)
    setattr(_run, SOURCE, Order(seed))
    try:
        clock = trio.testing.MockClock(autojump_threshold=0)
        return trio.run(main, clock=clock, instruments=instruments)
    finally:
        for name, value in before.items():
            setattr(_run, name, value)
