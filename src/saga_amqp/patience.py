"""What an engine does while its store cannot be reached: wait, and try again, with everything that it has in hand.

No message is acknowledged meanwhile, so nothing is lost, and the broker hands over no more than the prefetch. What a
handler has returned is kept, and the handler is not run again.
"""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import ParamSpec, TypeVar

import anyio

from saga_amqp.backoff import pauses
from saga_amqp.contracts import Commit, Page, Query, Store
from saga_amqp.errors import ConflictError, SagaExistsError, SagaNotFoundError, StoreUnavailableError
from saga_core import Event, Saga

logger = logging.getLogger("saga_amqp.store")

P = ParamSpec("P")
T = TypeVar("T")


class PatientStore:
    """The part of a store that engines use. Cancel any call at any time.

    A commit that is tried again may have happened the first time. Then it meets a conflict with itself, and whoever
    decides anew on the saga as it stands finds the event applied.
    """

    def __init__(self, store: Store, chance: Callable[[], float] = random.random) -> None:
        self._store = store
        self._chance = chance
        # It is back when no call waits any more, and not when one has worked: a disk that is full has room for
        # something small now and then, and what finds nothing to write finds it in good order.
        self._waiting = 0
        self._complaints: set[str] = set()
        self._away_since = 0.0

    @property
    def is_away(self) -> bool:
        """Whether a call waits for the store."""
        return self._waiting > 0

    def create(self, saga: Saga, *, unpublished: float | None = None) -> Awaitable[Saga]:
        """See `contracts.Store.create`."""
        return self._call("create a saga", self._store.create, saga, unpublished=unpublished)

    def load(self, saga_id: str) -> Awaitable[Saga]:
        """See `contracts.Store.load`."""
        return self._call("load a saga", self._store.load, saga_id)

    def commit(self, saga: Saga, event: Event, *, unpublished: float | None = None) -> Awaitable[None]:
        """See `contracts.Store.commit`."""
        return self._call("commit", self._store.commit, saga, event, unpublished=unpublished)

    def find(self, query: Query, cursor: str | None) -> Awaitable[Page]:
        """See `contracts.Store.find`."""
        return self._call("look for sagas", self._store.find, query, cursor=cursor)

    def history(self, saga_id: str) -> Awaitable[tuple[Saga, Sequence[Event]]]:
        """See `contracts.Store.history`."""
        return self._call("read a history", self._store.history, saga_id)

    def claim_due(self, before: float, until: float, limit: int) -> Awaitable[Sequence[str]]:
        """See `contracts.Store.claim_due`."""
        return self._call("look for timers", self._store.claim_due, before, until, limit)

    def claim_unpublished(self, before: float, until: float, limit: int) -> Awaitable[Sequence[Commit]]:
        """See `contracts.Store.claim_unpublished`."""
        return self._call("look for unpublished commits", self._store.claim_unpublished, before, until, limit)

    def mark_published(self, commits: Collection[Commit]) -> Awaitable[None]:
        """See `contracts.Store.mark_published`."""
        return self._call("mark published commits", self._store.mark_published, commits)

    def hinted(self) -> Awaitable[None]:
        """See `contracts.Store.hinted`."""
        return self._call("listen", self._store.hinted)

    def hint(self) -> None:
        """See `contracts.Store.hint`."""
        self._store.hint()

    async def _call(
        self, what: str, method: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            return await method(*args, **kwargs)
        except StoreUnavailableError as error:
            why = error
        waiting = pauses(self._chance)
        works = False
        self._waiting += 1
        try:
            while True:
                self._complain(what, why)
                await anyio.sleep(next(waiting))
                try:
                    result = await method(*args, **kwargs)
                except StoreUnavailableError as error:
                    why = error
                else:
                    works = True
                    return result
        except (ConflictError, SagaExistsError, SagaNotFoundError):
            works = True
            raise
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._rejoice(works)

    def _complain(self, what: str, error: StoreUnavailableError) -> None:
        """Log that something does not work, once, however many calls notice."""
        if not self._complaints:
            self._away_since = time.monotonic()
        if what not in self._complaints:
            self._complaints.add(what)
            logger.warning("The store cannot %s; what is in hand waits, and tries again: %s", what, error)

    def _rejoice(self, works: bool) -> None:
        """Log that everything works again, if it does, and is not only given up: by an engine that ends."""
        self._complaints.clear()
        if works:
            logger.warning("The store works again, after %.1f s", time.monotonic() - self._away_since)
