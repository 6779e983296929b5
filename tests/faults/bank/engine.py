"""A process that runs the bank's handlers until it is told to end, with SIGTERM, or is killed.

python -m tests.faults.bank.engine SETTING BACKEND
"""

import signal

import anyio
from anyio.abc import TaskStatus

from saga_amqp import Manager

from .handlers import handlers
from .ledger import Ledger
from .setting import Setting, manager_for, run


async def stop_when_told(manager: Manager, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            manager.stop()
            return


async def main(setting: Setting) -> None:
    async with (
        manager_for(setting, handlers(Ledger(setting.ledger))) as manager,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(stop_when_told, manager)
        await tasks.start(manager.run)
        print("runs", flush=True)


if __name__ == "__main__":
    run(main)
