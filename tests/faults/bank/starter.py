"""A process that starts the transfers of a trial, each with its key. Killed and run again, it begins with the first.

    python -m tests.faults.bank.starter SETTING BACKEND

It tries until it succeeds, and waits for sagas to rest before it starts many more: so the load lasts while servers are
away. It ends when every transfer is started, and those that are to be called back are being undone.
"""

import sys
import time

import anyio
import msgspec

from saga_amqp import Manager, StoreUnavailableError, TransportError

from .handlers import handlers
from .ledger import Ledger
from .setting import PAUSE, Setting, manager_for
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


async def main(setting: Setting) -> None:
    room = anyio.Semaphore(UNDER_WAY)
    async with (
        manager_for(setting, handlers(Ledger(setting.ledger))) as manager,
        anyio.create_task_group() as tasks,
    ):
        for transfer in transfers(setting.seed, setting.sagas):
            due = setting.begin + transfer.number / setting.per_second
            await anyio.sleep(max(0.0, due - time.time()))
            async with room:
                pass
            tasks.start_soon(carry_out, manager, transfer, room)
    print("all started", flush=True)


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[1], type=Setting), backend=sys.argv[2])
