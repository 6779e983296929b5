"""Which faults strike, when, and how often: drawn from the seed, some worlds calm and some of them storms.

Each opportunity for a fault has a name that is the same in every run of the seed. So a run can be repeated with some
of its faults only, which is how a failure is shrunk.
"""

from collections import Counter
from enum import StrEnum
from random import Random

from saga_amqp.testing.world.chance import Chance
from saga_amqp.testing.world.trace import Trace


class Fault(StrEnum):
    """The kinds of faults."""

    CRASH = "crash at an await"
    CRASH_AT_POINT = "crash at a point"
    CRASH_SOON = "crash a few awaits after a point"
    CRASH_IN_HANDLER = "crash after an effect"
    STOP = "orderly stop"
    STOP_AT_POINT = "orderly stop at a point"
    CUT = "connection cut"
    RESTART = "broker restart"
    BLOCK = "publishers blocked"
    CONSUMER = "consumer cancelled"
    LATE_CONFIRM = "late confirm"
    SLOW_FRAME = "slow frame"
    STORE_SLOW = "slow store"
    STORE_REFUSED = "store refused"
    STORE_ANSWER_LOST = "store's answer lost"
    STORE_AWAY = "store away"
    HINT_LOST = "hint lost"


RATES: dict[Fault, float] = {
    Fault.CRASH: 1 / 1500,  # steps of a process's tasks
    Fault.CRASH_AT_POINT: 0.005,
    Fault.CRASH_SOON: 0.005,
    Fault.CRASH_IN_HANDLER: 0.1,
    Fault.STOP: 1 / 100,  # seconds
    Fault.STOP_AT_POINT: 0.004,
    Fault.CUT: 0.005,
    Fault.RESTART: 1 / 120,
    Fault.BLOCK: 1 / 90,
    Fault.CONSUMER: 1 / 120,
    Fault.LATE_CONFIRM: 0.03,
    Fault.SLOW_FRAME: 0.01,
    Fault.STORE_SLOW: 0.005,
    Fault.STORE_REFUSED: 0.01,
    Fault.STORE_ANSWER_LOST: 0.02,
    Fault.STORE_AWAY: 1 / 100,
    Fault.HINT_LOST: 0.3,
}
"""How often each strikes in a world of middling weather: in so many of its opportunities, or in so many seconds."""


class Faults:
    """The weather of one world. `only` are the names of the faults that may strike; None is all."""

    def __init__(self, seed: int, trace: Trace, only: frozenset[str] | None = None) -> None:
        drawn = Random(f"{seed}/weather")
        self.calm = drawn.random() < 0.1
        self.over = False
        self.struck: list[str] = []
        self.counts: Counter[str] = Counter()
        storm = 10 ** drawn.uniform(-0.8, 0.7)
        self.rates = {
            kind: 0.0
            if drawn.random() < 0.35 or self.calm
            else base * min(30.0, storm * 10 ** drawn.uniform(-0.5, 0.5))
            for kind, base in RATES.items()
        }
        self.rates[Fault.CRASH_IN_HANDLER] = min(0.5, self.rates[Fault.CRASH_IN_HANDLER])
        self.rates[Fault.HINT_LOST] = min(1.0, self.rates[Fault.HINT_LOST])
        self._chance = Chance(f"{seed}/faults")
        self._trace = trace
        self._only = only
        self._asked: Counter[str] = Counter()

    def strike(self, kind: Fault, where: str, about: str, what: str = "") -> Random | None:
        """Return a source for the details of a fault if it strikes at this opportunity, and write it down.

        `where` is the process that it strikes, and `about` what is going on there: the third opportunity about the same
        is the same in every run, whoever has it and whatever else happens.
        """
        rate = self.rates[kind]
        if self.over or rate == 0:
            return None
        about = f"{kind} {about}"
        self._asked[about] += 1
        if self._chance.random(about) >= rate:
            return None
        return self.named(kind, where, f"{about}/{self._asked[about]}", what)

    def named(self, kind: Fault, where: str, name: str, what: str = "") -> Random | None:
        """Return the same for a fault whose moment is drawn otherwise, if it may strike."""
        if self.over or (self._only is not None and name not in self._only):
            return None
        self.struck.append(name)
        self.counts[kind] += 1
        self._trace.note(where, f"{kind}{': ' if what else ''}{what}", is_fault=True)
        return self._chance.source(name)

    def doom(self, who: str, number: int) -> int | None:
        """Draw after how many steps of its tasks one life of a process is to end in a crash."""
        rate = self.rates[Fault.CRASH]
        if rate == 0:
            return None
        return 1 + int(self._chance.exponential(f"doom {who} {number}", 1 / rate))

    def asked(self, kind: str, number: int) -> bool:
        """Say whether something that a user does is done in this run: what they do is left out as faults are."""
        name = f"{kind}/{number}"
        if self._only is not None and name not in self._only:
            return False
        self.struck.append(name)
        return True
