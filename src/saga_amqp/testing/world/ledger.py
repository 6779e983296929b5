"""The world outside: what handlers have done to it, behind a barrier or without one.

The barrier is that of `saga_amqp.barrier`, told once more on a dict: record and effect are one, and the key is
the saga, the name of the step and the operation. `tests/world/test_ledger.py` holds the two against each other.
"""

from typing import NamedTuple

import trio

from saga_amqp.barrier import Answer
from saga_amqp.errors import RefusedByBarrierError
from saga_amqp.testing.world.agenda import Agenda
from saga_amqp.testing.world.chance import Chance
from saga_amqp.testing.world.pulse import Pulse
from saga_core import Defer, Operation, Skip

MEAN = 0.002
"""Seconds for which a call of a service is under way, on average."""

REFUSED = "refused"
"""The record of an action whose compensation came first."""


class Key(NamedTuple):
    """What takes effect once behind the barrier."""

    saga: str
    step: str
    operation: Operation


class Ledger:
    """Effects, counted by their key; `skipped` has none, and so is left out."""

    def __init__(self, agenda: Agenda, chance: Chance) -> None:
        self.effects: dict[Key, int] = {}
        self.order: list[Key] = []
        self._records: dict[Key, Answer | str] = {}
        self._agenda = agenda
        self._chance = chance

    async def take_effect(self, pulse: Pulse, key: Key, answer: Answer, *, guarded: bool) -> Answer:
        """Have an effect, once if it is guarded, and return the handler's answer: the recorded one, if there is one.

        Raises: RefusedByBarrierError.
        """
        pulse.check()
        outcome: list[Answer | RefusedByBarrierError] = []
        answered = trio.Event()

        def arrive() -> None:
            try:
                outcome.append(self.guard(key, answer) if guarded else self.apply(key, answer))
            except RefusedByBarrierError as error:
                outcome.append(error)
            self._agenda.after(self._chance.exponential(about, MEAN), answered.set)

        about = " ".join(key)
        self._agenda.after(self._chance.exponential(about, MEAN), arrive)
        await answered.wait()
        pulse.check()
        if isinstance(outcome[0], RefusedByBarrierError):
            raise outcome[0]
        return outcome[0]

    def guard(self, key: Key, answer: Answer) -> Answer:
        """Have an effect behind the barrier. Raises: RefusedByBarrierError."""
        if key.operation == "compensate":
            action = key._replace(operation="execute")
            recorded = self._records.setdefault(action, REFUSED)
            if recorded == REFUSED or isinstance(recorded, Skip):
                self._records.setdefault(key, {})
                return {}
        found = self._records.get(key)
        if found is None:
            self._records[key] = answer if isinstance(answer, Defer) or key.operation == "execute" else {}
            return self.apply(key, answer)
        if isinstance(found, str):
            raise RefusedByBarrierError("refused_by_barrier", f"{key.step} was compensated before")
        return found

    def apply(self, key: Key, answer: Answer) -> Answer:
        """Have an effect, whatever was before."""
        if not isinstance(answer, Skip):
            self.effects[key] = self.effects.get(key, 0) + 1
            self.order.append(key)
        return answer
