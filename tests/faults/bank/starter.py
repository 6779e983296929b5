"""A process that starts the transfers of a trial, each with its key. Killed and run again, it begins with the first.

    python -m tests.faults.bank.starter SETTING asyncio|uvloop|trio

It starts what the trial has released, and each transfer until that succeeds, but never lets too many be under way. It
ends when all rest, and those that are to be called back are being undone.
"""

from pathlib import Path

import anyio

from saga_amqp import Manager, StoreUnavailableError, TransportError

from .handlers import handlers
from .ledger import Ledger
from .setting import PAUSE, Setting, manager_for, run
from .transfers import NAME, Transfer, transfers

UNDER_WAY = 60
"""Sagas, at most."""


async def carry_out(manager: Manager, transfer: Transfer, room: anyio.Semaphore) -> None:
    async with room:
        while True:
            try:
                saga = await manager.start(NAME, transfer.steps(), options=transfer.options)
                await manager.wait(saga.id)
                if transfer.called_back:
                    await manager.compensate(saga.id, reason="called back")
                return
            except (StoreUnavailableError, TransportError) as error:
                print(f"transfer {transfer.number} again: {error}", flush=True)
                await anyio.sleep(PAUSE)


def released(setting: Setting) -> int:
    """Return how many transfers may be started. The trial replaces the file as a whole."""
    return int(Path(setting.released).read_text())


async def main(setting: Setting) -> None:
    room = anyio.Semaphore(UNDER_WAY)
    async with (
        manager_for(setting, handlers(Ledger(setting.ledger))) as manager,
        anyio.create_task_group() as tasks,
    ):
        before = released(setting)
        for transfer in transfers(setting.seed, setting.sagas):
            # A file tells nobody that it has changed.
            while transfer.number >= released(setting):  # noqa: ASYNC110
                await anyio.sleep(PAUSE)
            if transfer.number >= before:
                await anyio.sleep(1 / setting.per_second)
            async with room:
                pass
            tasks.start_soon(carry_out, manager, transfer, room)
    print("all rest", flush=True)


if __name__ == "__main__":
    run(main)
