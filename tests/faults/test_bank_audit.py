"""The auditor of the bank finds what is wrong: else it would prove nothing that it finds no fault."""

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from saga_amqp import Manager, MemoryTransport, SQLiteStore

from .bank.audit import compare
from .bank.handlers import handlers
from .bank.ledger import Ledger
from .bank.setting import Setting, config
from .bank.starter import carry_out
from .bank.transfers import transfers

SEED, SAGAS = 5, 12
DEADLINE = 30.0


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    store, ledger = (f"sqlite://{tmp_path}/{name}.sqlite" for name in ("store", "ledger"))
    return Setting(
        SEED, SAGAS, per_second=1.0, released="", unique="bank", amqp="", store=store, ledger=ledger
    )


async def carry_out_all(setting: Setting) -> None:
    """Carry out all transfers, with nobody who kills."""
    Ledger(setting.ledger).create()
    registry = handlers(Ledger(setting.ledger))
    with anyio.fail_after(DEADLINE):
        async with (
            SQLiteStore(setting.store.removeprefix("sqlite://")) as store,
            Manager(MemoryTransport(), store, config(setting, registry)) as manager,
            anyio.create_task_group() as running,
        ):
            await running.start(manager.run)
            room = anyio.Semaphore(SAGAS)
            async with anyio.create_task_group() as tasks:
                for transfer in transfers(SEED, SAGAS):
                    tasks.start_soon(carry_out, manager, transfer, room)
            for transfer in transfers(SEED, SAGAS):
                saga = await manager.start("transfer", transfer.steps(), options=transfer.options)
                await manager.wait(saga.id)
            manager.stop()


def tamper(url: str, *statements: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite://"))) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_the_transfers_are_of_every_kind() -> None:
    drawn = list(transfers(SEED, 200))
    assert drawn == list(transfers(SEED, 200))
    assert {transfer.fails_at for transfer in drawn} == {None, "debit", "credit", "notify"}
    assert {transfer.called_back for transfer in drawn} == {False, True}
    troubles = {
        (operation, kind)
        for transfer in drawn
        for steps in transfer.trouble.values()
        for operation, kind in steps.items()
    }
    assert len(troubles) == 8


async def test_the_auditor_finds_no_fault_where_there_is_none_and_any_where_there_is(
    setting: Setting,
) -> None:
    await carry_out_all(setting)
    findings = await compare(setting)
    assert findings.wrong == []
    assert findings.outcomes.total() == SAGAS

    async def wrong(statement: str, undo: str) -> list[str]:
        tamper(setting.ledger, statement)
        found = (await compare(setting)).wrong
        tamper(setting.ledger, undo)
        return found

    again = (
        "INSERT INTO entries SELECT 9999, saga, step, operation, account, cents FROM entries WHERE number = 3"
    )
    (found,) = await wrong(again, "DELETE FROM entries WHERE number = 9999")
    assert "the ledger has" in found
    (found,) = await wrong(again.replace("saga,", "'?',", 1), "DELETE FROM entries WHERE number = 9999")
    assert "sagas that there are not" in found
    (found,) = await wrong(
        "UPDATE entries SET number = 9999 WHERE number = 1",
        "UPDATE entries SET number = 1 WHERE number = 9999",
    )
    assert "the ledger has" in found
    found, _ = await wrong(
        "UPDATE accounts SET cents = cents + 1 WHERE account = 1",
        "UPDATE accounts SET cents = cents - 1 WHERE account = 1",
    )
    assert f"the bank has {20 * 1_000_000 + 1} cents" in found
    assert not (await compare(setting)).wrong
