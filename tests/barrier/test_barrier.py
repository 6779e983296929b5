"""Each rule of the barrier, on every kind of connection."""

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec import structs

from saga_amqp import (
    Defer,
    PayloadError,
    RefusedByBarrierError,
    Saga,
    Skip,
    StepError,
    StepState,
    TransactionEndedError,
    barrier,
)

from .banks import ASYNC_KINDS, Bank, Desk, a_saga, a_step


class Trouble(Exception):
    pass


# Once ---------------------------------------------------------------------------------------------------------------


def test_an_action_runs_once_and_its_output_is_remembered(bank: Bank) -> None:
    saga = a_saga()
    assert bank.execute(saga, {"receipt": "é1"}) == {"receipt": "é1"}
    assert bank.execute(saga, {"receipt": "another"}) == {"receipt": "é1"}
    assert bank.execute(saga, Trouble()) == {"receipt": "é1"}
    assert bank.ledger(saga) == {"execute": 1}
    assert bank.records(saga) == {"execute": "done"}


def test_a_compensation_runs_once(bank: Bank) -> None:
    saga = a_saga()
    bank.execute(saga, {"receipt": 1})
    assert bank.compensate(saga) == {}
    assert bank.compensate(saga, Trouble()) == {}
    assert bank.ledger(saga) == {"execute": 1, "compensate": 1}


def test_an_action_that_comes_again_after_it_was_undone_is_not_done_again(bank: Bank) -> None:
    saga = a_saga()
    bank.execute(saga, {"receipt": 1})
    bank.compensate(saga)
    assert bank.execute(saga, {"receipt": 2}) == {"receipt": 1}
    bank.compensate(saga)
    assert bank.ledger(saga) == {"execute": 1, "compensate": 1}


@dataclass
class Receipt:
    number: int


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (None, {}),
        ({}, {}),
        (Receipt(7), {"number": 7}),
        ({"text": 'a "b" % ? :c \\ \0', "list": [1, 2.5, None, True]}, None),
        (Skip("nothing to pay"), None),
        (Skip(), None),
        (Defer(), None),
    ],
    ids=["nothing", "an empty object", "a dataclass", "any JSON", "Skip", "Skip without a reason", "Defer"],
)
def test_the_answer_is_the_same_every_time(plain_bank: Bank, answer: object, kept: object) -> None:
    saga = a_saga()
    first = plain_bank.execute(saga, answer)
    assert first == (answer if kept is None else kept)
    assert plain_bank.execute(saga, Trouble()) == first
    assert plain_bank.ledger(saga) == {"execute": 1}


def test_attempts_are_tries_at_one_effect(plain_bank: Bank) -> None:
    saga, first = a_saga(), structs.replace(a_step("execute"), attempt=1)
    plain_bank.handle(saga, first, {"attempt": 1})
    second = structs.replace(first, attempt=2)
    assert plain_bank.handle(saga, second, {"attempt": 2}) == {"attempt": 1}
    assert plain_bank.ledger(saga) == {"execute": 1}


def test_sagas_and_steps_do_not_meet(plain_bank: Bank) -> None:
    one, other = a_saga(), a_saga()
    for saga in (one, other):
        for name in ("pay", "thank"):
            plain_bank.handle(saga, a_step("execute", name), {"of": name})
    plain_bank.handle(one, a_step("compensate", "pay"))
    assert plain_bank.ledger(one) == {"execute": 2, "compensate": 1}
    assert plain_bank.ledger(other) == {"execute": 2}


def test_only_a_step_that_is_being_compensated_is_compensated(plain_bank: Bank) -> None:
    for state in StepState:
        saga = a_saga()
        step = structs.replace(a_step("execute"), state=state)
        plain_bank.handle(saga, step)
        expected = "compensate" if state == "compensating" else "execute"
        assert plain_bank.records(saga)[expected] == "done"


def test_a_compensation_can_read_what_its_action_has_recorded(bank: Bank) -> None:
    """The saga does not know it where the action's result was lost."""

    def seen(saga: Saga) -> list[dict[str, object]]:
        outputs: list[dict[str, object]] = []

        def read(at: Desk) -> object:
            if not bank.is_async:
                outputs.append(barrier.action_output(at.connection, saga, a_step("compensate")))
                return None

            async def read_async() -> None:
                outputs.append(await barrier.action_output_async(at.connection, saga, a_step("compensate")))

            return read_async()

        bank.compensate(saga, within=read)
        if not outputs:  # the compensation did nothing
            bank.execute(a_saga(), within=read)
        return outputs

    acted, skipped, deferred, never = (a_saga() for _ in range(4))
    bank.execute(acted, {"receipt": 7})
    bank.execute(skipped, Skip("why"))
    bank.execute(deferred, Defer())
    assert [seen(saga) for saga in (acted, skipped, deferred, never)] == [[{"receipt": 7}], [{}], [{}], [{}]]


# Out of order -------------------------------------------------------------------------------------------------------


def test_an_action_that_arrives_after_its_compensation_is_refused(bank: Bank) -> None:
    saga = a_saga()
    assert bank.compensate(saga) == {}
    assert bank.compensate(saga) == {}
    for _ in range(2):
        with pytest.raises(RefusedByBarrierError, match=f"'pay' of saga {saga.id}") as refusal:
            bank.execute(saga)
        assert isinstance(refusal.value, StepError)
        assert refusal.value.code == "refused_by_barrier"
        assert not refusal.value.retryable
    assert bank.compensate(saga) == {}
    assert not bank.ledger(saga)
    assert bank.records(saga) == {"execute": "refused", "compensate": "done"}


def test_a_refused_action_leaves_its_transaction_usable(bank: Bank) -> None:
    saga, other = a_saga(), a_saga()
    bank.compensate(saga)

    def refused_within(at: Desk) -> object:
        step = a_step("execute")
        if not bank.is_async:
            with pytest.raises(RefusedByBarrierError):
                at.run(saga, step, lambda: pytest.fail("it ran"))
            return None

        async def run() -> None:
            with pytest.raises(RefusedByBarrierError):
                await at.run(saga, step, lambda: pytest.fail("it ran"))

        return run()

    bank.execute(other, within=refused_within)
    assert bank.ledger(other) == {"execute": 1}


def test_what_was_skipped_is_not_undone(plain_bank: Bank) -> None:
    saga = a_saga()
    plain_bank.execute(saga, Skip("nothing to pay"))
    assert plain_bank.compensate(saga) == {}
    assert plain_bank.compensate(saga) == {}
    assert plain_bank.ledger(saga) == {"execute": 1}


def test_what_was_deferred_is_undone(plain_bank: Bank) -> None:
    saga = a_saga()
    plain_bank.execute(saga, Defer())
    assert plain_bank.compensate(saga, Defer()) == Defer()
    assert plain_bank.compensate(saga) == Defer()
    assert plain_bank.ledger(saga) == {"execute": 1, "compensate": 1}


# Failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["execute", "compensate"])
def test_a_body_that_raises_leaves_nothing_and_can_run_again(bank: Bank, operation: Any) -> None:
    saga, step = a_saga(), a_step(operation)
    if operation == "compensate":
        bank.execute(saga)
    before = bank.records(saga)
    for error in (Trouble("for now"), StepError("declined", "no money")):
        with pytest.raises(type(error)) as raised:
            bank.handle(saga, step, error)
        assert raised.value is error
    assert bank.records(saga) == before
    assert not bank.ledger(saga)[operation]
    bank.handle(saga, step)
    assert bank.ledger(saga)[operation] == 1


def test_a_body_whose_sql_fails_leaves_nothing_and_can_run_again(bank: Bank) -> None:
    saga = a_saga()
    with pytest.raises(Exception, match="no_such_table"):
        bank.execute(saga, within=lambda at: at.write("INSERT INTO no_such_table VALUES (1)"))
    assert not bank.records(saga)
    bank.execute(saga)
    assert bank.ledger(saga) == {"execute": 1}


def test_a_transaction_that_fails_after_the_barrier_leaves_nothing(bank: Bank) -> None:
    saga = a_saga()

    def fail() -> None:
        raise Trouble

    with pytest.raises(Trouble):
        bank.execute(saga, before_commit=fail)
    assert not bank.records(saga)
    assert not bank.ledger(saga)
    bank.execute(saga)
    assert bank.ledger(saga) == {"execute": 1}


def forgive(bank: Bank, saga: Saga, within: Callable[[Desk], object] = lambda _: None) -> None:
    """Run an action whose body raises, and commit nevertheless."""

    def handle(at: Desk) -> object:
        def body() -> object:
            within(at)
            raise Trouble

        async def body_async() -> object:
            awaitable = within(at)
            if isinstance(awaitable, Awaitable):
                await awaitable
            raise Trouble

        async def run_async() -> None:
            with pytest.raises(Trouble):
                await at.run(saga, a_step("execute"), body_async)

        if bank.is_async:
            return run_async()
        with pytest.raises(Trouble):
            at.run(saga, a_step("execute"), body)
        return None

    bank.execute(a_saga(), within=handle)


def test_an_owner_who_commits_although_the_body_raised_may_try_again(bank: Bank) -> None:
    saga = a_saga()
    forgive(bank, saga)
    assert not bank.records(saga)
    bank.execute(saga)
    assert bank.ledger(saga) == {"execute": 1}


@pytest.mark.parametrize("bank", ASYNC_KINDS, indirect=True)
def test_a_body_that_is_cancelled_leaves_nothing_and_can_run_again(bank: Bank) -> None:
    saga = a_saga()

    async def cancel(at: Desk) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await at.write("SELECT 1")
        pytest.fail("it went on")

    with pytest.raises(asyncio.CancelledError):
        bank.execute(saga, within=cancel)
    assert not bank.records(saga)
    bank.execute(saga)
    assert bank.ledger(saga) == {"execute": 1}


def test_an_output_that_cannot_be_kept_is_an_error_and_leaves_nothing(plain_bank: Bank) -> None:
    saga = a_saga()
    for output in (["no object"], {"a set": {1}, "of": object()}, {"nan": float("nan")}, {"text": "\ud800"}):
        with pytest.raises(PayloadError, match=f"output of step 'pay' of saga {saga.id}"):
            plain_bank.execute(saga, output)
    assert not plain_bank.records(saga)
    assert not plain_bank.ledger(saga)


def test_what_a_compensation_returns_does_not_matter(plain_bank: Bank) -> None:
    saga = a_saga()
    plain_bank.execute(saga)
    assert plain_bank.compensate(saga, object()) == {}
    assert plain_bank.ledger(saga) == {"execute": 1, "compensate": 1}


def commit(at: Desk) -> object:
    return at.connection.commit()


def roll_back(at: Desk) -> object:
    return at.connection.rollback()


def test_a_body_that_commits_is_an_error_until_somebody_has_looked(bank: Bank) -> None:
    if bank.kind == "psycopg transaction()":
        return  # it lets nobody commit within
    saga = a_saga()
    with pytest.raises(
        TransactionEndedError, match=f"'pay' of saga {saga.id}.*delete the row of saga_barrier"
    ):
        bank.execute(saga, within=commit)
    for handle in (bank.execute, bank.compensate):
        with pytest.raises(TransactionEndedError):
            handle(saga)
    assert bank.ledger(saga) == {"execute": 1}
    with bank.connect() as connection:
        connection.execute(f"UPDATE saga_barrier SET outcome = 'done' WHERE saga_id = '{saga.id}'")
    assert bank.execute(saga) == {}
    bank.compensate(saga)
    assert bank.ledger(saga) == {"execute": 1, "compensate": 1}


@pytest.mark.parametrize(
    "within",
    [roll_back, lambda at: (roll_back(at), at.write("DELETE FROM ledger"))],
    ids=["only", "and goes on"],
)
def test_a_body_that_rolls_back_is_an_error_and_leaves_nothing(
    plain_bank: Bank, within: Callable[[Desk], object]
) -> None:
    saga = a_saga()
    with pytest.raises(TransactionEndedError):
        plain_bank.execute(saga, within=within)
    assert not plain_bank.records(saga)
    assert not plain_bank.ledger(saga)


def test_a_body_that_commits_and_then_raises_is_an_error_the_next_time(plain_bank: Bank) -> None:
    saga = a_saga()
    with pytest.raises(Trouble):
        plain_bank.execute(saga, Trouble(), within=commit)
    with pytest.raises(TransactionEndedError):
        plain_bank.execute(saga)
    assert plain_bank.ledger(saga) == {"execute": 1}


def test_so_it_is_when_its_owner_commits_once_more(plain_bank: Bank) -> None:
    saga = a_saga()
    # The bank's own action, around it, finds its transaction ended as well.
    with pytest.raises(TransactionEndedError):
        forgive(plain_bank, saga, commit)
    assert plain_bank.records(saga) == {"execute": "begun"}
    with pytest.raises(TransactionEndedError):
        plain_bank.execute(saga)


# The table ----------------------------------------------------------------------------------------------------------


def test_the_table_can_be_created_again_and_keeps_what_is_in_it(bank: Bank) -> None:
    saga = a_saga()
    bank.execute(saga)

    def create(at: Desk) -> object:
        make = barrier.create_table_async if bank.is_async else barrier.create_table
        return make(at.connection)

    bank.execute(a_saga(), within=create)
    with bank.connect() as connection:
        connection.execute(barrier.DDL[bank.dialect])
    assert bank.records(saga) == {"execute": "done"}


def test_the_table_that_the_ddl_makes_is_the_one_that_is_needed(tmp_path: Path, postgres_url: str) -> None:
    path = str(tmp_path / "bank.sqlite")
    with closing(sqlite3.connect(path)) as sqlite, psycopg.connect(postgres_url) as postgres:
        for connection, dialect in ((sqlite, "sqlite"), (postgres, "postgresql")):
            connection.execute(barrier.DDL[dialect])
            for _ in range(2):
                assert barrier.run(connection, SAGA, a_step("execute"), lambda: {"a": 1}) == {"a": 1}
            connection.commit()


SAGA = a_saga()


def test_many_may_create_the_table_at_once(postgres_url: str) -> None:
    errors: list[Exception] = []
    together = threading.Barrier(8)

    def create(autocommit: bool) -> None:
        try:
            with psycopg.connect(postgres_url, autocommit=autocommit) as connection:
                together.wait(30)
                barrier.create_table(connection)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=create, args=(number % 2 == 0,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_when_a_record_was_made_is_kept(plain_bank: Bank) -> None:
    saga = a_saga()
    plain_bank.execute(saga)
    recent = {
        "postgresql": "now() - recorded_at < interval '1 hour'",
        "sqlite": "recorded_at > datetime('now', '-1 hour')",
    }[plain_bank.dialect]
    assert plain_bank.ask(f"SELECT {recent} FROM saga_barrier WHERE saga_id = '{saga.id}'") == [(True,)]
