"""Whatever is delivered, how often and in which order, and whatever fails: the ledger is right."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_amqp import RefusedByBarrierError, StepError
from saga_core import Operation, Saga

from .banks import Bank, a_saga, a_step

Fate = Literal["commits", "raises", "is lost"]

OPERATIONS = st.sampled_from(["execute", "compensate"])
# Each delivery connects and commits, so a quarter of the examples is what a minute holds.
FEWER = settings(max_examples=max(1, settings().max_examples // 4))

FATES = st.sampled_from(["commits", "commits", "raises", "is lost"])


class Trouble(Exception):
    pass


@dataclass
class Account:
    """What a step has come to, as a person would reckon."""

    output: dict[str, object] | None = None
    undone: bool = False
    refused: bool = False

    def deliver(self, operation: Operation, fate: Fate, number: int) -> object:
        """Return the answer that a delivery is to have, or the error."""
        if operation == "execute" and self.refused:
            return RefusedByBarrierError
        works = (
            (self.output is None) if operation == "execute" else self.output is not None and not self.undone
        )
        if fate == "is lost" or (works and fate == "raises"):
            return Trouble
        if operation == "execute":
            self.output = self.output or {"number": number}
            return self.output
        if self.output is None:
            self.refused = True
        else:
            self.undone = True
        return {}


def deliver(bank: Bank, saga: Saga, operation: Operation, fate: Fate, number: int) -> object:
    def lose() -> None:
        if fate == "is lost":
            raise Trouble

    answer = Trouble() if fate == "raises" else {"number": number}
    try:
        return bank.handle(saga, a_step(operation), answer, before_commit=lose)
    except (Trouble, StepError) as error:
        return type(error)


@pytest.mark.parametrize("database", ["sqlite_bank", "postgres_bank"])
@FEWER
@given(deliveries=st.lists(st.tuples(OPERATIONS, FATES), max_size=8))
def test_any_order_of_deliveries_keeps_the_ledger_right(
    database: str, deliveries: list[tuple[Operation, Fate]], request: pytest.FixtureRequest
) -> None:
    bank: Bank = request.getfixturevalue(database)
    saga, account = a_saga(), Account()
    for number, (operation, fate) in enumerate(deliveries):
        expected = account.deliver(operation, fate, number)
        assert deliver(bank, saga, operation, fate, number) == expected
        ledger = bank.ledger(saga)
        assert ledger["execute"] == (account.output is not None)
        assert ledger["compensate"] == account.undone


@pytest.mark.parametrize("database", ["sqlite_bank", "postgres_bank"])
@FEWER
@given(
    rounds=st.lists(st.lists(st.tuples(OPERATIONS, FATES), min_size=2, max_size=5), min_size=1, max_size=3)
)
def test_deliveries_at_once_keep_the_ledger_right(
    database: str, rounds: list[list[tuple[Operation, Fate]]], request: pytest.FixtureRequest
) -> None:
    bank: Bank = request.getfixturevalue(database)
    saga = a_saga()
    compensated = False
    outputs: list[object] = []
    with ThreadPoolExecutor(5) as threads:
        for together in rounds:
            answers = list(threads.map(lambda one: (one[0], deliver(bank, saga, *one, 0)), together))
            outputs += [
                answer for operation, answer in answers if operation == "execute" and answer == {"number": 0}
            ]
            compensated |= any(operation == "compensate" and answer == {} for operation, answer in answers)
            ledger = bank.ledger(saga)
            assert ledger["execute"] <= 1
            assert ledger["compensate"] <= ledger["execute"]
            assert ledger["execute"] == bool(outputs)
            if compensated:
                assert ledger["compensate"] == ledger["execute"]
    bank.compensate(saga)
    assert bank.ledger(saga)["compensate"] == bank.ledger(saga)["execute"]
