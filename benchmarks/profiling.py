"""What one step costs, by function and by thread."""

import contextlib
import cProfile
import pstats
import sys
import threading
import time
from collections.abc import Callable, Iterator

MOST = 60


@contextlib.contextmanager
def profiled(steps: Callable[[], int], file: str) -> Iterator[None]:
    """Profile this thread, write the profile to a file, and say on standard error what a step costs where.

    The profiler itself makes small functions look dear: look at what is called how often, and at a sampling profiler
    (`py-spy record --native -- python -m benchmarks.orders …`) for the proportions.
    """
    profile, before, began = cProfile.Profile(), steps(), _by_thread()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        ended, count = _by_thread(), max(steps() - before, 1)
        profile.dump_stats(file)
        _tell(pstats.Stats(profile), count)
        for thread, seconds in ended.items():
            print(
                f"{(seconds - began.get(thread, 0.0)) / count * 1e6:9.2f} µs  thread {thread}",
                file=sys.stderr,
            )


def _tell(stats: pstats.Stats, count: int) -> None:
    rows = [
        (
            own / count * 1e6,
            total / count * 1e6,
            calls / count,
            f"{place[0].rpartition('/')[2]}:{place[1]} {place[2]}",
        )
        for place, (_, calls, own, total, _) in stats.stats.items()  # type: ignore[attr-defined]
    ]
    print(f"{'own µs':>9} {'with all':>9} {'calls':>7}  per step, of {count:,}", file=sys.stderr)
    for own, total, calls, name in sorted(rows, reverse=True)[:MOST]:
        print(f"{own:9.2f} {total:9.2f} {calls:7.2f}  {name}", file=sys.stderr)


def _by_thread() -> dict[str, float]:
    """Return the processor time of each thread, in seconds."""
    return {
        thread.name: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.ident is not None
    }
