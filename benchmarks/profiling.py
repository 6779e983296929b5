"""What one step costs, by function and by thread: samples of the stacks, weighed with processor time.

A profiler that counts calls makes small functions look dear, and sees one thread. This one looks a thousand times in a
second of processor time which functions each thread is in, and how much time it has used since the last look.
"""

import contextlib
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

EVERY = 0.001  # seconds of processor time
MOST = 60

Stack = tuple[str, ...]


@contextlib.contextmanager
def profiled(steps: Callable[[], int], file: str) -> Iterator[None]:
    """Profile every thread; on leaving, say on standard error what a step costs where. In the main thread only.

    The file gets the stacks, each with its nanoseconds per step, in the form of which flame graphs are drawn.
    """
    stacks: Counter[Stack] = Counter()
    seen = _used()

    def look(_: int, frame: FrameType | None) -> None:
        frames, main = sys._current_frames(), threading.get_ident()
        for thread, used in _used().items():
            if (spent := used - seen.get(thread, 0.0)) > 0:
                stacks[_stack(thread, frame if thread == main else frames.get(thread))] += spent
            seen[thread] = used

    before = steps()
    previous = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, previous)
        count = max(steps() - before, 1)
        costs = {stack: spent / count * 1e6 for stack, spent in stacks.items()}
        Path(file).write_text(
            "".join(f"{';'.join(stack)} {cost * 1e3:.0f}\n" for stack, cost in costs.items())
        )
        _tell(costs, count)


def _tell(costs: Mapping[Stack, float], count: int) -> None:
    own: Counter[str] = Counter()
    everything: Counter[str] = Counter()
    threads: Counter[str] = Counter()
    for stack, cost in costs.items():
        threads[stack[0]] += cost
        own[stack[-1]] += cost
        for function in set(stack):
            everything[function] += cost
    lines = [f"{sum(costs.values()):.1f} µs of processor time per step, of {count:,} steps"]
    lines += [f"{cost:8.2f}  thread {thread}" for thread, cost in threads.most_common()]
    lines += ["", f"{'own µs':>8} {'with all it calls':>18}"]
    lines += [
        f"{cost:8.2f} {everything[function]:18.2f}  {function}" for function, cost in own.most_common(MOST)
    ]
    lines += ["", f"{'with all':>8} {'own µs':>18}"]
    lines += [
        f"{cost:8.2f} {own[function]:18.2f}  {function}"
        for function, cost in everything.most_common(2 * MOST)
    ]
    print("\n".join(lines), file=sys.stderr)


def _stack(thread: int, frame: FrameType | None) -> Stack:
    names: list[str] = []
    while frame is not None:
        code = frame.f_code
        names.append(f"{'/'.join(Path(code.co_filename).parts[-2:])} {code.co_qualname}")
        frame = frame.f_back
    name = next((one.name for one in threading.enumerate() if one.ident == thread), "?")
    return (name, *reversed(names))


def _used() -> dict[int, float]:
    """Return the processor time of each thread, in seconds."""
    used: dict[int, float] = {}
    for thread in threading.enumerate():
        if thread.ident is not None:
            with contextlib.suppress(OSError):  # it has just ended
                used[thread.ident] = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return used
