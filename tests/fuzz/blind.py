"""Fuzzing without a guide: seeds and what was read before, spoilt by chance. The same seed gives the same inputs."""

import base64
from collections import Counter
from collections.abc import Callable
from random import Random

from tests.fuzz.mutations import mutate
from tests.fuzz.targets import READ, Target

KEPT = 300


class Finding(Exception):
    """An input on which a target did what it must not."""

    def __init__(self, name: str, data: bytes) -> None:
        shown = base64.b64encode(data[:2_000]).decode()
        super().__init__(f"{name}, {len(data)} bytes: {data[:200]!r}\nin base64: {shown}")
        self.name = name
        self.data = data


def fuzz(name: str, target: Target, chance: Random, go_on: Callable[[int], bool]) -> Counter[str]:
    """Give a target inputs as long as `go_on` says so, which is told how many it were; return what came of them.

    Raises: Finding.
    """
    outcomes: Counter[str] = Counter()
    corpus = list(target.seeds)
    while go_on(outcomes.total()):
        data = mutate(chance.choice(corpus), chance, corpus)
        outcome = take(name, target, data)
        outcomes[outcome] += 1
        if outcome == READ and len(data) < 5_000:
            if len(corpus) < len(target.seeds) + KEPT:
                corpus.append(data)
            else:
                corpus[chance.randrange(len(target.seeds), len(corpus))] = data
    return outcomes


def take(name: str, target: Target, data: bytes) -> str:
    """Give a target one input. Raises: Finding."""
    try:
        return target.take(data)
    except Exception as error:
        raise Finding(name, data) from error
