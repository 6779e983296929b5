"""The transfers of a trial, all of them drawn from its seed, and what has to become of each.

A transfer is a saga of three steps: debit, credit, notify. Some fail for good at one of them; some are called back when
they are through. Some handlers meet trouble in their first attempt, which changes nothing about the outcome.
"""

import random
from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct

from saga_amqp import Options, RetryPolicy, Saga, SagaState, Step, StepState
from saga_core import Operation

NAME = "transfer"
STEPS = ("debit", "credit", "notify")

ACCOUNTS = 20
OPENING = 1_000_000
"""Cents on each account."""

FAILING = 0.2
CALLED_BACK = 0.05
TROUBLED = 0.25

Trouble = Literal["refuses", "breaks", "forgets", "hangs"]
"""What happens in an attempt: an error before its transaction, or within it, or after it has committed; or no end."""

TROUBLES: tuple[Trouble, ...] = ("refuses", "breaks", "forgets", "hangs")

RETRY = RetryPolicy(max_attempts=None, initial_delay=0.3, max_delay=1.0)
TIMEOUT = 1.0
"""Seconds, for an attempt that hangs."""


class Movement(Struct):
    """The input of a step: what to write to the ledger, and what happens then."""

    account: int
    cents: int
    fails: bool = False
    trouble: dict[Operation, Trouble] = {}


class Transfer(Struct, frozen=True):
    """One transfer, and what is special about it."""

    number: int
    source: int
    target: int
    cents: int
    fails_at: str | None
    called_back: bool
    trouble: dict[str, dict[Operation, Trouble]]

    @property
    def options(self) -> Options:
        """The options of its saga."""
        return Options(key=str(self.number))

    @property
    def outcome(self) -> SagaState:
        """How its saga has to end."""
        undone = self.fails_at is not None or self.called_back
        return SagaState.COMPENSATED if undone else SagaState.COMPLETED

    @property
    def done(self) -> tuple[str, ...]:
        """The steps that are done, in order."""
        return STEPS if self.fails_at is None else STEPS[: STEPS.index(self.fails_at)]

    @property
    def ends(self) -> list[StepState]:
        """How its steps have to end."""
        well = StepState.COMPENSATED if self.outcome is SagaState.COMPENSATED else StepState.COMPLETED
        ends = [well for _ in self.done]
        if self.fails_at is not None:
            ends.append(StepState.FAILED)
        return ends + [StepState.PENDING] * (len(STEPS) - len(ends))

    @property
    def entries(self) -> list[tuple[str, Operation, int, int]]:
        """What the ledger has to say of it: step, operation, account and cents, in this order and nothing else."""
        done: list[tuple[str, Operation, int, int]] = [
            (step, "execute", *self._movement(step)) for step in self.done
        ]
        if self.outcome is SagaState.COMPLETED:
            return done
        return done + [(step, "compensate", account, -cents) for step, _, account, cents in reversed(done)]

    def steps(self) -> list[Step[Movement]]:
        """The steps of its saga."""
        return [self._step(name) for name in STEPS]

    def _step(self, name: str) -> Step[Movement]:
        trouble = self.trouble.get(name, {})
        return Step(
            name=name,
            action=f"bank.{name}",
            compensation=f"bank.{name}.undo",
            input=Movement(*self._movement(name), name == self.fails_at, trouble),
            retry=RETRY,
            compensation_retry=RETRY,
            timeout=TIMEOUT if trouble.get("execute") == "hangs" else None,
            compensation_timeout=TIMEOUT if trouble.get("compensate") == "hangs" else None,
        )

    def _movement(self, step: str) -> tuple[int, int]:
        return {
            "debit": (self.source, -self.cents),
            "credit": (self.target, self.cents),
            "notify": (self.target, 0),
        }[step]


def transfer(seed: int, number: int) -> Transfer:
    """Draw one transfer."""
    chance = random.Random(f"{seed}/{number}")
    source, target = chance.sample(range(ACCOUNTS), 2)
    fails_at = chance.choice(STEPS) if chance.random() < FAILING else None
    called_back = fails_at is None and chance.random() < CALLED_BACK
    trouble: dict[str, dict[Operation, Trouble]] = {}
    for step in STEPS:
        operations: tuple[Operation, ...] = ("execute", "compensate")
        for operation in operations:
            kind = chance.choice(TROUBLES)
            # An attempt that times out may have had its effect, so its step would be undone although it failed.
            ends = (step, operation, kind) != (fails_at, "execute", "hangs")
            if chance.random() < TROUBLED and ends:
                trouble.setdefault(step, {})[operation] = kind
    cents = chance.randint(1, 99_999)
    return Transfer(number, source, target, cents, fails_at, called_back, trouble)


def transfers(seed: int, count: int) -> Iterator[Transfer]:
    """Draw all transfers of a trial."""
    return (transfer(seed, number) for number in range(count))


def operation_of(step: Step[Any]) -> Operation:
    """Return what a handler was called for."""
    return "compensate" if step.state is StepState.COMPENSATING else "execute"


def number_of(saga: Saga) -> int:
    """Return which transfer a saga is."""
    return int(saga.plan.options.key or -1)
