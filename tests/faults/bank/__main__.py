"""The long trial: minutes of transfers and kills, with store and ledger in SQLite and in PostgreSQL by turns.

    python -m tests.faults.bank [--minutes 10] [--seed NUMBER]

The same seed draws the same transfers and kills. Where these meet, and how many there are, is up to the machine.
"""

import argparse
import random
import sys
import time
from collections import Counter

from tests.postgres import PostgreSQL
from tests.servers import RabbitMQ

from .report import Report, tally
from .trial import Kill, Load, try_out

ROUND = 150.0
"""Seconds that a trial lasts, at most about."""
OVERHEAD = 15.0
"""Of these before and after the load."""
SAGAS_A_SECOND = 10.0
"""On the whole; after each kill so many are released that this is kept, and come faster."""
PER_SECOND = 30.0
PAUSES = (0.5, 4.0)
EVERY = 7.0
"""Seconds from one kill to the next, with what it takes."""

SHARES: dict[Kill, int] = {
    "engine": 6, "all engines": 1, "starter": 2, "broker": 2, "database": 3, "blackout": 1, "stop": 2, "freeze": 2,
}  # fmt: skip


def load(seed: int, seconds: float, *, postgres: bool) -> Load:
    """Return what to ask of a trial that is to last so long."""
    seconds = max(seconds - OVERHEAD, 10.0)
    kinds = [kind for kind, share in SHARES.items() for _ in range(share) if postgres or kind != "database"]
    chance = random.Random(seed)
    kills: dict[Kill, int] = dict.fromkeys(kinds, 1)
    while sum(kills.values()) < seconds / EVERY:
        kills[chance.choice(kinds)] += 1
    return Load(seed, int(seconds * SAGAS_A_SECOND), PER_SECOND, kills, PAUSES)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.bank", description="Kill everything, and see that no cent is lost."
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, about {options.minutes:g} minutes", flush=True)
    began = time.monotonic()
    whole = options.minutes * 60
    each = min(ROUND, whole / 2)
    reports: list[Report] = []
    with RabbitMQ() as rabbit, PostgreSQL() as postgres:
        # In pairs, of which a quick machine makes more.
        while len(reports) % 2 or not reports or time.monotonic() - began < whole - each:
            on_postgres = len(reports) % 2 == 1
            asked = load(seed + len(reports), each, postgres=on_postgres)
            report = try_out(asked, rabbit, postgres if on_postgres else None)
            print(*report.lines(), sep="\n", flush=True)
            reports.append(report)
    struck, outcomes = Counter[str](), Counter[str]()
    for report in reports:
        struck += report.kills
        outcomes += report.findings.outcomes
    wrong = sum(len(report.findings.wrong) for report in reports)
    minutes = (time.monotonic() - began) / 60
    print(f"in all: seed {seed}, {minutes:.1f} minutes")
    print(f"  struck    {tally(struck)}")
    print(f"  sagas     {tally(outcomes)}")
    print(f"  checked   {sum(report.findings.checked for report in reports)} things: {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
