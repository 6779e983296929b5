"""How long to wait before something outside is tried again: longer each time, up to a cap, and never all at once."""

import random
from collections.abc import Iterator

FIRST, MOST = 0.05, 5.0


def pauses() -> Iterator[float]:
    """Give the seconds to wait before each next try, without end."""
    pause = FIRST
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, MOST)
