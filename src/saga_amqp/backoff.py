"""How long to wait before something outside is tried again: longer each time, up to a cap, and never all at once."""

import random
from collections.abc import Callable, Iterator

FIRST, MOST = 0.05, 5.0


def pauses(chance: Callable[[], float] = random.random) -> Iterator[float]:
    """Give the seconds to wait before each next try, without end; `chance` gives numbers from 0 to 1."""
    pause = FIRST
    while True:
        yield pause * (1 + chance()) / 2
        pause = min(2 * pause, MOST)
