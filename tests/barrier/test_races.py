"""Handlers of one step that run at once, on any connection: the second waits, and finds what the first did."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from saga_amqp import RefusedByBarrierError, barrier
from saga_core import Saga

from .banks import Bank, a_saga, a_step

DEADLINE = 30.0


class Trouble(Exception):
    pass


class Race:
    """One handler that has passed the barrier and not committed, and others that come meanwhile."""

    def __init__(self, bank: Bank, saga: Saga) -> None:
        self.bank = bank
        self.saga = saga
        self._passed = threading.Event()
        self._go_on = threading.Event()
        self._threads = ThreadPoolExecutor(16)

    def __enter__(self) -> "Race":
        return self

    def __exit__(self, *_: object) -> None:
        self._go_on.set()
        self._threads.shutdown()

    def hold(self, operation: Any, answer: object = None, then: BaseException | None = None) -> Future[Any]:
        """Start a handler that waits before it commits, or before it raises."""

        def wait() -> None:
            self._passed.set()
            assert self._go_on.wait(DEADLINE)
            if then is not None:
                raise then

        held = self._threads.submit(
            self.bank.handle, self.saga, a_step(operation), answer, before_commit=wait
        )
        assert self._passed.wait(DEADLINE) or held.result()
        return held

    def come(self, operation: Any, answer: object = None) -> Future[Any]:
        """Start another one, and let it come to where it has to wait."""
        coming = self._threads.submit(self.bank.handle, self.saga, a_step(operation), answer)
        if self.bank.dialect == "postgresql":
            activity = "FROM pg_stat_activity WHERE datname = current_database()"
            waiting = f"SELECT 1 {activity} AND wait_event_type = 'Lock'"
            wait_until(lambda: bool(self.bank.ask(waiting)) or coming.done())
        # Nobody sees who waits for the lock of a SQLite file: it may not have come so far, and must do as well.
        assert not coming.done()
        return coming

    def end(self) -> None:
        self._go_on.set()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def test_the_second_of_two_finds_what_the_first_did(bank: Bank) -> None:
    saga = a_saga()
    with Race(bank, saga) as race:
        first = race.hold("execute", {"by": "the first"})
        second = race.come("execute", {"by": "the second"})
        race.end()
        assert first.result(DEADLINE) == second.result(DEADLINE) == {"by": "the first"}
    assert bank.ledger(saga) == {"execute": 1}


def test_the_second_runs_where_the_first_failed(bank: Bank) -> None:
    saga = a_saga()
    with Race(bank, saga) as race:
        first = race.hold("execute", then=Trouble())
        second = race.come("execute", {"by": "the second"})
        race.end()
        assert second.result(DEADLINE) == {"by": "the second"}
        with pytest.raises(Trouble):
            first.result(DEADLINE)
    assert bank.ledger(saga) == {"execute": 1}


def test_a_compensation_waits_for_an_action_at_work_and_undoes_it(bank: Bank) -> None:
    saga = a_saga()
    with Race(bank, saga) as race:
        action = race.hold("execute", {"by": "the action"})
        compensation = race.come("compensate")
        race.end()
        assert action.result(DEADLINE) == {"by": "the action"}
        assert compensation.result(DEADLINE) == {}
    assert bank.ledger(saga) == {"execute": 1, "compensate": 1}


def test_a_compensation_waits_for_an_action_that_fails_and_does_nothing(bank: Bank) -> None:
    saga = a_saga()
    with Race(bank, saga) as race:
        action = race.hold("execute", then=Trouble())
        compensation = race.come("compensate")
        race.end()
        assert compensation.result(DEADLINE) == {}
        with pytest.raises(Trouble):
            action.result(DEADLINE)
    assert not bank.ledger(saga)
    with pytest.raises(RefusedByBarrierError):
        bank.execute(saga)


def test_an_action_waits_for_the_compensation_that_refuses_it(bank: Bank) -> None:
    saga = a_saga()
    with Race(bank, saga) as race:
        compensation = race.hold("compensate")
        action = race.come("execute")
        race.end()
        assert compensation.result(DEADLINE) == {}
        with pytest.raises(RefusedByBarrierError):
            action.result(DEADLINE)
    assert not bank.ledger(saga)


def test_two_compensations_undo_once(bank: Bank) -> None:
    saga = a_saga()
    bank.execute(saga)
    with Race(bank, saga) as race:
        first = race.hold("compensate")
        second = race.come("compensate")
        race.end()
        assert first.result(DEADLINE) == second.result(DEADLINE) == {}
    assert bank.ledger(saga) == {"execute": 1, "compensate": 1}


def test_of_many_at_once_one_takes_effect(bank: Bank) -> None:
    saga = a_saga()
    together = threading.Barrier(8)

    def handle(number: int) -> object:
        together.wait(DEADLINE)
        return bank.execute(saga, {"by": number})

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(handle, range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert bank.ledger(saga) == {"execute": 1}


def test_sagas_do_not_wait_for_each_other(postgres_bank: Bank) -> None:
    """Where the database lets several write at once."""
    saga, other = a_saga(), a_saga()
    with Race(postgres_bank, saga) as race:
        race.hold("execute")
        postgres_bank.execute(other)
        race.end()
    assert postgres_bank.ledger(other) == Counter(execute=1)


def test_where_a_transaction_sees_only_what_was_there_when_it_began_the_second_is_to_try_again(
    postgres_bank: Bank,
) -> None:
    saga = a_saga()
    with psycopg.connect(postgres_bank.url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1 FROM ledger")
        postgres_bank.execute(saga, {"by": "the first"})
        with pytest.raises(psycopg.errors.SerializationFailure):
            barrier.run(connection, saga, a_step("execute"), lambda: pytest.fail("it ran"))
        connection.rollback()
        assert barrier.run(connection, saga, a_step("execute"), dict) == {"by": "the first"}
