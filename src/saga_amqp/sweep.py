"""Timers and recovery: what no message and no living process will bring up is found in the store.

Any number of engines sweep one store. Each claims its share, so that none does another's work, and commits decide
between those that meet all the same. A step that is merely slow is left alone: nothing in the store speaks of it.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from saga_amqp.config import Config
from saga_amqp.contracts import Commit
from saga_amqp.patience import PatientStore
from saga_amqp.timers import Timers

ItemT = TypeVar("ItemT")

SHARE = 100
"""How much one claim takes, and how many of it are worked on at once."""


class Sweep:
    """Finds due sagas and unpublished commits, and hands them on.

    `fire` does what is due in a saga; `publish` publishes what a commit caused, as soon as `until_up` returns. What
    they raise is handed to `fail`.
    """

    def __init__(
        self,
        store: PatientStore,
        config: Config,
        clock: Callable[[], float],
        *,
        fire: Callable[[str], Awaitable[None]],
        publish: Callable[[Commit], Awaitable[None]],
        until_up: Callable[[], Awaitable[object]],
        fail: Callable[[Exception], None],
    ) -> None:
        self.timers = Timers(clock)
        self._store = store
        self._config = config
        self._clock = clock
        self._fire = fire
        self._publish = publish
        self._until_up = until_up
        self._fail = fail
        self._hinted = anyio.Event()
        self._room = anyio.Semaphore(SHARE)

    async def run(self) -> None:
        """Sweep now, and then at every interval or hint, while timers fire when they are due. For ever."""
        async with anyio.create_task_group() as tasks:

            def fire(saga_id: str) -> None:
                tasks.start_soon(self._do, self._fire, saga_id)

            tasks.start_soon(self.timers.run, fire)
            tasks.start_soon(self._listen)
            tasks.start_soon(self._keep_sweeping, self._due, self._fire)
            tasks.start_soon(self._keep_sweeping, self._unpublished, self._publish)

    async def _keep_sweeping(
        self, claim: Callable[[], Awaitable[Sequence[ItemT]]], do: Callable[[ItemT], Awaitable[None]]
    ) -> None:
        while True:
            hinted = self._hinted  # before claiming: a hint that comes meanwhile counts
            items = await claim()
            async with anyio.create_task_group() as doing:
                for item in items:
                    doing.start_soon(self._do, do, item)
            if len(items) < SHARE:
                with anyio.move_on_after(self._config.sweep_interval):
                    await hinted.wait()

    async def _listen(self) -> None:
        while True:
            await self._store.hinted()
            self._hinted.set()
            self._hinted = anyio.Event()

    async def _do(self, do: Callable[[ItemT], Awaitable[None]], item: ItemT) -> None:
        try:
            async with self._room:
                await do(item)
        except Exception as error:
            self._fail(error)

    async def _due(self) -> Sequence[str]:
        # Whoever holds a timer in memory is left the time to fire it.
        now = self._clock()
        return await self._store.claim_due(
            now - self._config.sweep_interval, now + self._config.republish_after, SHARE
        )

    async def _unpublished(self) -> Sequence[Commit]:
        await self._until_up()  # what is claimed and cannot be published is kept from others for nothing
        now = self._clock()
        return await self._store.claim_unpublished(now, now + self._config.republish_after, SHARE)
