"""Who waits for which saga to come to rest: woken at once by what this process does, and by looking for the rest."""

from collections.abc import Awaitable, Callable, Collection, Iterable

import anyio

from saga_amqp.errors import SagaNotFoundError, StoreError, StoreUnavailableError
from saga_core import Saga


class Waiting:
    """Tasks that wait for sagas to rest.

    `load` reads a saga. `changed` says whether another process may have committed since it was last asked, and costs
    little; only then `over` is asked which of some sagas rest or are gone. Both are asked while somebody waits, every
    `interval` seconds. `told` says that a saga is known not to rest, and that this process will be told when it does:
    then it need not be read to wait for it.
    """

    def __init__(
        self,
        load: Callable[[str], Awaitable[Saga]],
        changed: Callable[[], Awaitable[bool]],
        over: Callable[[Collection[str]], Awaitable[Collection[str]]],
        interval: float,
        told: Callable[[str], bool] = lambda saga_id: False,
    ) -> None:
        self._load = load
        self._changed = changed
        self._over = over
        self._interval = interval
        self._told = told
        self._waits: dict[str, _Wait] = {}
        self._wanted = anyio.Event()
        self._looking: anyio.CancelScope | None = None
        self._closed = False

    async def rested(self, saga_id: str) -> Saga:
        """Wait until a saga rests. Raises: SagaNotFoundError, StoreError."""
        told = self._told(saga_id)
        while True:
            wait = self._enter(saga_id)
            try:
                if not told:
                    # Only now, so that nothing that happens after it can be missed.
                    saga = await self._load(saga_id)
                    if saga.at_rest:
                        return saga
                told = False
                await wait.over.wait()
            finally:
                self._leave(saga_id, wait)
            if wait.error is not None:
                raise type(wait.error)(*wait.error.args) from wait.error
            if wait.saga is not None:
                return wait.saga

    def came_to_rest(self, saga: Saga) -> None:
        """Wake who waits for a saga that this process has brought to rest."""
        self._end(saga.id, saga=saga)

    def deleted(self, saga_id: str) -> None:
        """Wake who waits for a saga that this process has deleted."""
        self._end(
            saga_id, error=SagaNotFoundError(f"Saga {saga_id!r} was deleted while somebody waited for it")
        )

    def look_again(self, saga_ids: Iterable[str] | None = None) -> None:
        """Let who waits for one of these sagas look whether it rests, or everybody: another process may be done."""
        for saga_id in tuple(self._waits) if saga_ids is None else saga_ids:
            self._end(saga_id)

    def close(self) -> None:
        """Let `look` end, and wake everybody with an error."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        for saga_id in list(self._waits):
            self._end(
                saga_id, error=StoreError(f"The store was closed while somebody waited for saga {saga_id}")
            )

    async def look(self) -> None:
        """Look for what other processes have done, whenever somebody waits, until `close`."""
        with anyio.CancelScope() as self._looking:
            if not self._closed:
                await self._look()

    async def _look(self) -> None:
        doubtful = True
        while True:
            if not self._waits:
                self._wanted = anyio.Event()
                await self._wanted.wait()
            try:
                # Both in this order: what is committed in between is seen now or next time.
                doubtful = await self._changed() or doubtful
                if doubtful and self._waits:
                    for saga_id in await self._over(tuple(self._waits)):
                        self._end(saga_id)
                    doubtful = False
            except StoreUnavailableError:
                doubtful = True  # whoever waits goes on waiting: the store may come back
            except StoreError as error:
                for saga_id in tuple(self._waits):
                    self._end(saga_id, error=error)
            await anyio.sleep(self._interval)

    def _enter(self, saga_id: str) -> "_Wait":
        wait = self._waits.get(saga_id)
        if wait is None:
            wait = self._waits[saga_id] = _Wait()
        wait.tasks += 1
        self._wanted.set()
        return wait

    def _leave(self, saga_id: str, wait: "_Wait") -> None:
        wait.tasks -= 1
        if not wait.tasks and self._waits.get(saga_id) is wait:
            del self._waits[saga_id]

    def _end(self, saga_id: str, saga: Saga | None = None, error: StoreError | None = None) -> None:
        wait = self._waits.pop(saga_id, None)
        if wait is not None:
            wait.saga, wait.error = saga, error
            wait.over.set()


class _Wait:
    __slots__ = ("error", "over", "saga", "tasks")

    def __init__(self) -> None:
        self.tasks = 0
        self.over = anyio.Event()
        self.saga: Saga | None = None
        self.error: StoreError | None = None


class Hints:
    """Tasks of this process that wait for a hint."""

    def __init__(self) -> None:
        self._given = anyio.Event()
        self._awaited = False

    async def wait(self) -> None:
        """Wait for the next hint."""
        if not self._awaited:
            self._awaited, self._given = True, anyio.Event()
        await self._given.wait()

    def give(self) -> None:
        """Wake everybody who waits for one."""
        if self._awaited:
            self._awaited = False
            self._given.set()
