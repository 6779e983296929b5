"""What a trial has done, and what the auditor says of it."""

from collections import Counter
from collections.abc import Iterator

from msgspec import Struct

from .audit import Findings

MOST_SHOWN = 20


class Report(Struct):
    """What a trial has done, and what was found."""

    where: str
    seed: int
    kills: Counter[str]
    runs: int
    repeats: int
    seconds: float
    findings: Findings

    def lines(self) -> Iterator[str]:
        """Say it to people."""
        found = self.findings
        yield f"{self.where}: seed {self.seed}, {self.seconds:.0f} s"
        yield f"  struck    {tally(self.kills)}"
        yield f"  sagas     {tally(found.outcomes)}"
        yield f"  handlers  ran {self.runs} times, {self.repeats} times again in the same attempt"
        yield f"  ledger    {found.entries} entries, {found.cents / 100:,.2f} in all accounts"
        yield f"  checked   {found.checked} things, with {found.events} events folded: {len(found.wrong)} wrong"
        yield from (f"  WRONG     {what}" for what in found.wrong[:MOST_SHOWN])


def tally(counts: Counter[str]) -> str:
    """Say how many there are in all, and of each kind."""
    return f"{counts.total()}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
