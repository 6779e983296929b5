"""Chance that follows from what it is drawn for, and not from what was drawn before.

So what is left out of a world changes what has to do with it, and hardly anything else. `shrink` lives on that.
"""

from collections import Counter
from hashlib import blake2b
from math import log
from random import Random


class Chance:
    """Draws follow from a name, from what they are for, and from how many were drawn for that."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._drawn: Counter[str] = Counter()

    def bytes(self, what: str, size: int) -> bytes:
        """Draw so many bytes, at most 64."""
        self._drawn[what] += 1
        return blake2b(f"{self._name}/{what}/{self._drawn[what]}".encode(), digest_size=size).digest()

    def random(self, what: str) -> float:
        """Draw a number from 0 to 1, without 1."""
        return (int.from_bytes(self.bytes(what, 8), "big") >> 11) / (1 << 53)

    def exponential(self, what: str, mean: float) -> float:
        """Draw a number that is 0 or more, `mean` on average, and seldom a multiple of that."""
        return -mean * log(1.0 - self.random(what))

    def source(self, what: str) -> Random:
        """Return a source for several draws, which takes longer to make than one draw does."""
        return Random(self.bytes(what, 16))
