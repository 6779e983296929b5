"""The life of a manager or a participant: open, running, closed, and the tasks that live as long as it is open."""

from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Literal

import anyio
from anyio.abc import TaskStatus

from saga_amqp.config import Config
from saga_amqp.engine import Duty, Engine
from saga_amqp.errors import ManagerError
from saga_amqp.reconnecting import Reconnecting

# Seconds for the last notes to the store.
GOODBYE = 5.0


async def _nothing() -> None:
    """Do nothing."""


class Lifecycle:
    """Opens and closes what a manager or a participant needs, once, and runs its engine; the methods are `Manager`'s.

    `owner` is which of the two it is. `prepare` is done when it has connected, `meanwhile` for as long as it is open,
    `finish` at the end.
    """

    def __init__(
        self,
        owner: Literal["manager", "participant"],
        broker: Reconnecting | None,
        config: Config,
        duty: Duty,
        clock: Callable[[], float],
        chance: Callable[[], float],
        prepare: Callable[[], Coroutine[Any, Any, None]] = _nothing,
        meanwhile: Callable[[], Coroutine[Any, Any, None]] = _nothing,
        finish: Callable[[], Coroutine[Any, Any, None]] = _nothing,
    ) -> None:
        self.buried: Counter[str] = Counter()
        self._owner = owner
        self._broker = broker
        self._config = config
        self._duty = duty
        self._clock = clock
        self._chance = chance
        self._prepare = prepare
        self._meanwhile = meanwhile
        self._finish = finish
        self._engine: Engine | None = None
        self._ended = anyio.Event()
        self._stack = AsyncExitStack()
        self._scope: anyio.CancelScope | None = None
        self._end_tasks: Callable[[], None] = lambda: None
        self._state = "new"

    async def open(self) -> None:
        """Connect, and declare what is missing on the broker. Cancelled, nothing stays open.

        Raises: ConnectFailedError, AuthenticationError, VirtualHostError, TopologyError; ManagerError.
        """
        if self._state != "new":
            raise ManagerError(f"This {self._owner} is {self._state}; make a new one")
        self._state = "opening"
        # The scope lies around the task group, so that leaving both can be shielded.
        self._scope = self._stack.enter_context(anyio.CancelScope())
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._end_tasks = tasks.cancel_scope.cancel
        try:
            if self._broker is not None:
                await self._broker.open(tasks)
            await self._prepare()
            tasks.start_soon(self._meanwhile)
        except BaseException:
            await self.leave()
            raise
        self._state = "open"

    async def leave(self) -> None:
        """Close, and wait for the background tasks."""
        try:
            await self.close()
        finally:
            if self._scope is not None:
                self._scope.shield = True
            await self._stack.aclose()

    async def run(self, task_status: TaskStatus[None]) -> None:
        """Run the engine until `stop`. Raises: ManagerError; what `Engine.run` raises."""
        self.check_open()
        if self._engine is not None:
            raise ManagerError(f"This {self._owner} is running already, and runs one engine at a time")
        if self._broker is None:
            raise ManagerError("This manager has no transport, and cannot run handlers")
        self._engine = engine = Engine(
            self._broker, self._config, self._duty, self._clock, self._chance, self.buried
        )
        self._ended = anyio.Event()
        try:
            await engine.run(task_status)
        finally:
            self._engine = None
            self._ended.set()

    def stop(self) -> None:
        """Let `run` end in an orderly way."""
        if self._engine is not None:
            self._engine.stop()

    async def close(self) -> None:
        """Stop `run` and wait for its end, then close the transport. Cancelled, it closes without waiting."""
        try:
            if self._engine is not None:
                self.stop()
                await self._ended.wait()
        finally:
            try:
                if self._state != "closed":
                    self._state = "closed"
                    with anyio.move_on_after(GOODBYE, shield=True):
                        await self._finish()
            finally:
                try:
                    if self._broker is not None:
                        await self._broker.close()
                finally:
                    self._end_tasks()

    def check_open(self) -> None:
        """Raise ManagerError unless it is open."""
        if self._state != "open":
            raise ManagerError(
                f"This {self._owner} is {self._state}; use it inside `async with {self._owner.title()}(…)`"
            )
