"""Fuzzing that is guided by the lines that an input reaches, with Atheris: one target in a process of its own.

    python -m tests.fuzz.guided TARGET COUNTS [options of libFuzzer] CORPUS…

libFuzzer ends the process itself when its time is over, so what came of the inputs is written to the file COUNTS now
and then. It has no more to say of an input that hangs, or takes more memory than it may, than the input itself.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["saga_core", "saga_amqp", "pamqp"]):
    from tests.fuzz.mutations import LONGEST, mutate
    from tests.fuzz.targets import TARGETS

WRITE_EVERY = 0.5
"""Seconds."""


def main(name: str, counts: Path, *options: str) -> None:
    target = TARGETS[name]
    outcomes: Counter[str] = Counter()
    written = time.monotonic()

    def take(data: bytes) -> None:
        nonlocal written
        outcomes[target.take(data)] += 1
        if time.monotonic() - written > WRITE_EVERY:
            counts.write_text(json.dumps(outcomes))
            written = time.monotonic()

    def spoil(data: bytes, most: int, seed: int) -> bytes:
        chance = Random(seed)
        which = chance.random()
        if which < 0.4:
            return atheris.Mutate(data, most)
        # libFuzzer sees nothing of what is written in C, and most that it keeps was refused there: begin anew at times.
        return mutate(data if which < 0.7 else chance.choice(target.seeds), chance, target.seeds)[:most]

    atheris.Setup([sys.argv[0], f"-max_len={LONGEST}", *options], take, custom_mutator=spoil)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
