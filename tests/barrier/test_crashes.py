"""What the barrier promises when a participant, or its database, is killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from saga_amqp import RefusedByBarrierError
from saga_core import Saga
from tests.postgres import PostgreSQL
from tests.test_servers import ROOT

from .banks import Bank, a_saga, open_bank


@contextmanager
def participant(bank: Bank, saga: Saga, operation: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that has done a handler's work and not committed."""
    command = [sys.executable, "-m", "tests.barrier.participant", bank.url, bank.kind, saga.id, operation]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "passed\n"
            yield process
        finally:
            process.kill()


def commit(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("commit\n")
    process.stdin.flush()
    assert process.stdout.readline() == "committed\n"


@pytest.mark.parametrize(
    "bank",
    ["sqlite3", "aiosqlite", "psycopg", "sqlalchemy Session, SQLite", "sqlalchemy AsyncSession, PostgreSQL"],
    indirect=True,
)
def test_a_participant_killed_before_its_commit_has_done_nothing(bank: Bank) -> None:
    saga = a_saga()
    with participant(bank, saga, "execute") as process:
        process.kill()
    assert bank.execute(saga, {"by": "the next"}) == {"by": "the next"}
    assert bank.ledger(saga) == {"execute": 1}
    with participant(bank, saga, "compensate") as process:
        process.kill()
    bank.compensate(saga)
    assert bank.ledger(saga) == {"execute": 1, "compensate": 1}


def test_a_participant_killed_after_its_commit_has_done_all(plain_bank: Bank) -> None:
    saga = a_saga()
    with participant(plain_bank, saga, "execute") as process:
        commit(process)
        process.kill()
    assert plain_bank.execute(saga, {"by": "the next"}) == {"by": "the process"}
    assert plain_bank.ledger(saga) == {"execute": 1}


def test_a_null_compensation_killed_before_its_commit_refuses_nothing(plain_bank: Bank) -> None:
    saga = a_saga()
    with participant(plain_bank, saga, "compensate") as process:
        process.kill()
    plain_bank.execute(saga)
    assert plain_bank.ledger(saga) == {"execute": 1}


@pytest.fixture
def killed_bank(private_postgres: PostgreSQL, unique: str) -> Iterator[Bank]:
    """A bank on a server that the test may kill."""
    private_postgres.create_database(unique)
    yield open_bank(private_postgres.url(unique), "psycopg")
    if not private_postgres.running:
        private_postgres.restart()
    private_postgres.drop_database(unique)


def test_a_database_that_loses_power_keeps_work_and_record_or_neither(
    killed_bank: Bank, private_postgres: PostgreSQL
) -> None:
    done, refused, open_action, open_compensation = (a_saga() for _ in range(4))
    killed_bank.execute(done, {"by": "the first"})
    killed_bank.compensate(refused)
    killed_bank.execute(open_compensation)

    def lose_power() -> None:
        private_postgres.kill()

    with pytest.raises(psycopg.OperationalError):
        killed_bank.execute(open_action, before_commit=lose_power)
    private_postgres.restart()
    with pytest.raises(psycopg.OperationalError):
        killed_bank.compensate(open_compensation, within=lambda _: lose_power())
    private_postgres.restart()
    assert killed_bank.execute(done, {"by": "the next"}) == {"by": "the first"}
    with pytest.raises(RefusedByBarrierError):
        killed_bank.execute(refused)
    assert not killed_bank.records(open_action)
    killed_bank.execute(open_action)
    killed_bank.compensate(open_compensation)
    ledgers: list[Any] = [
        killed_bank.ledger(saga) for saga in (done, refused, open_action, open_compensation)
    ]
    assert ledgers == [{"execute": 1}, {}, {"execute": 1}, {"execute": 1, "compensate": 1}]
