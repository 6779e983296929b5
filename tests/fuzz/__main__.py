"""Fuzz everything that reads what comes from outside: `make fuzz MINUTES=5`, or

    python -m tests.fuzz [--minutes N] [--target NAME …] [--seed N] [--blind] [--input FILE]

Where Atheris is installed (the extra `fuzz`) it is guided by what an input reaches, and goes on from the inputs that it
found in an earlier run; else, or with `--blind`, inputs are drawn from the seed alone. An input that does what it must
not is kept in .fuzz/found, and `--input` gives it to its target again.
"""

import argparse
import json
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path
from random import Random
from types import FrameType

from tests.fuzz.blind import Finding, fuzz
from tests.fuzz.targets import READ, TARGETS

KEPT = Path(".fuzz")
LONGEST_RUN = 20
"""Seconds that one input may take, on a machine that does other things as well."""
MOST_MEMORY = 1_024
"""Megabytes, the interpreter and every module included, which are a tenth of it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=5.0, help="of all targets together (5)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of chance, where nothing guides (0)")
    parser.add_argument("--blind", action="store_true", help="not guided, also where Atheris is installed")
    parser.add_argument(
        "--input", type=Path, metavar="FILE", help="give this to one target and see what it does"
    )
    options = parser.parse_args()
    names: list[str] = options.target or list(TARGETS)
    if options.input is not None:
        print(*(f"{name}: {TARGETS[name].take(options.input.read_bytes())}" for name in names), sep="\n")
        return 0
    blind = options.blind or find_spec("atheris") is None
    seconds = max(1, round(options.minutes * 60 / len(names)))
    print(f"{len(names)} targets, {seconds} s each, {'blind' if blind else 'guided'}", flush=True)
    sound = True
    for name in names:
        sound &= _blind(name, seconds, options.seed) if blind else _guided(name, seconds)
    return 0 if sound else 1


def _blind(name: str, seconds: int, seed: int) -> bool:
    end = time.monotonic() + seconds

    def too_slow(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"an input took {LONGEST_RUN} seconds")

    def go_on(done: int) -> bool:
        signal.alarm(LONGEST_RUN)
        return time.monotonic() < end

    signal.signal(signal.SIGALRM, too_slow)
    try:
        outcomes = fuzz(name, TARGETS[name], Random(seed), go_on)
    except Finding as finding:
        traceback.print_exception(finding.__cause__)
        print(finding)
        _keep(name, finding.data)
        return False
    finally:
        signal.alarm(0)
    _tell(name, outcomes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    return True


def _guided(name: str, seconds: int) -> bool:
    corpus = KEPT / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        counts, seeds = Path(directory, "counts"), Path(directory, "seeds")
        seeds.mkdir()
        for number, seed in enumerate(TARGETS[name].seeds):
            (seeds / str(number)).write_bytes(seed)
        found = KEPT / "found"
        found.mkdir(exist_ok=True)
        limits = [f"-max_total_time={seconds}", f"-timeout={LONGEST_RUN}", f"-rss_limit_mb={MOST_MEMORY}"]
        command = [sys.executable, "-m", "tests.fuzz.guided", name, str(counts), *limits]
        command += ["-print_final_stats=1", f"-artifact_prefix={found}/{name}-", str(corpus), str(seeds)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        outcomes = Counter(json.loads(counts.read_text())) if counts.exists() else Counter()
    memory = re.search(r"peak_rss_mb:\s*(\d+)", done.stderr)
    _tell(name, outcomes, int(memory[1]) if memory else 0)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if not line.startswith(("INFO:", "WARNING:", "#"))]
        print(done.stdout[-4_000:], *said[-60:], sep="\n")
    return done.returncode == 0


def _keep(name: str, data: bytes) -> None:
    found = KEPT / "found"
    found.mkdir(parents=True, exist_ok=True)
    kept = found / f"{name}-{sha1(data).hexdigest()}"
    kept.write_bytes(data)
    print(f"kept in {kept}")


def _tell(name: str, outcomes: Counter[str], memory: int) -> None:
    refused = ", ".join(f"{count:,} {kind}" for kind, count in sorted(outcomes.items()) if kind != READ)
    print(
        f"{name:<11}{outcomes.total():>11,} inputs: {outcomes[READ]:,} read, {refused or 'none refused'}; "
        f"at most {memory} MB",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
