"""The database of a world: a store in memory behind a wire, with all that a database can do to its users.

A call travels, is done at one moment whoever lives then, and its answer travels back. The call may be refused; or done,
and its answer lost, which looks the same to who called.
"""

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import trio

from saga_amqp.contracts import EVERYTHING, Commit, Page, Query
from saga_amqp.errors import SagaNotFoundError, StoreUnavailableError
from saga_amqp.stores.memory import MemoryStore
from saga_amqp.testing.world.agenda import Agenda
from saga_amqp.testing.world.chance import Chance
from saga_amqp.testing.world.faults import Fault, Faults
from saga_amqp.testing.world.pulse import Pulse
from saga_core import Event, Saga, SagaState

T = TypeVar("T")

Watcher = Callable[[Saga | None, Event | None, Saga], None]
"""Is told of each commit: the saga before it, the event, and the saga after it; None and None for a creation."""


class Vault:
    """What the database holds. `away` are the processes that cannot reach it.

    `changes` are under way to it: how many sagas will be changed though nobody may wait for it any more.
    """

    def __init__(self, agenda: Agenda, faults: Faults, chance: Chance) -> None:
        self.inner = MemoryStore()
        self.agenda = agenda
        self.faults = faults
        self.away: set[str] = set()
        self.changes = 0
        self.watchers: list[Watcher] = []
        self.publishing: list[Callable[[Collection[Commit]], None]] = []
        self.sagas: dict[str, Saga] = {}
        self.notes: dict[Commit, None] = {}
        self._chance = chance
        self._mean = 10 ** (-3.7 + 1.7 * chance.random("mean"))
        self.answers_at_once = chance.random("answers at once") < 0.5

    def delay(self, who: str, about: str) -> float:
        """Return for how many seconds a question or an answer is under way."""
        delay = self._chance.exponential(about, self._mean)
        if drawn := self.faults.strike(Fault.STORE_SLOW, who, about):
            delay += drawn.uniform(0, 8)
        return delay

    def create(self, saga: Saga, unpublished: float | None) -> Saga:
        """Keep a new saga, as `contracts.Store.create` does, at once."""
        kept = at_once(self.inner.create(saga, unpublished=unpublished))
        if kept.id not in self.sagas:
            self.sagas[kept.id] = kept
            if unpublished is not None:
                self.notes[kept.id, 0] = None
            for watcher in self.watchers:
                watcher(None, None, kept)
        return kept

    def commit(self, saga: Saga, event: Event, unpublished: float | None) -> None:
        """Replace a saga, as `contracts.Store.commit` does, at once."""
        at_once(self.inner.commit(saga, event, unpublished=unpublished))
        before, self.sagas[saga.id] = self.sagas[saga.id], saga
        if unpublished is not None:
            self.notes[saga.id, saga.revision] = None
        for watcher in self.watchers:
            watcher(before, event, saga)

    def mark(self, commits: Collection[Commit]) -> None:
        """Take notes off, at once."""
        at_once(self.inner.mark_published(commits))
        for tell in self.publishing:
            tell(commits)
        for commit in commits:
            self.notes.pop(commit, None)

    def delete(self, saga_id: str, revision: int | None) -> None:
        """Forget a saga, at once."""
        at_once(self.inner.delete(saga_id, revision=revision))
        self.sagas.pop(saga_id, None)
        self.notes = {commit: None for commit in self.notes if commit[0] != saga_id}


class WorldStore:
    """One process's handle on the database of a world; see `contracts.Store`."""

    def __init__(self, vault: Vault, pulse: Pulse) -> None:
        self._vault = vault
        self._pulse = pulse
        self._last = 0.0

    async def __aenter__(self) -> Self:
        """Open: there is nothing to."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close: there is nothing to."""

    async def create(self, saga: Saga, *, unpublished: float | None = None) -> Saga:
        """Keep a new saga, or return the one that has its key. Raises: SagaExistsError."""
        return await self._change(f"create {saga.id}", lambda: self._vault.create(saga, unpublished))

    async def load(self, saga_id: str) -> Saga:
        """Return the saga as last committed. Raises: SagaNotFoundError."""
        return await self._read(f"load {saga_id}", lambda: self._loaded(saga_id))

    async def commit(self, saga: Saga, event: Event, *, unpublished: float | None = None) -> None:
        """Replace the saga if nobody else did. Raises: ConflictError, SagaNotFoundError."""
        await self._change(f"commit {saga.id}", lambda: self._vault.commit(saga, event, unpublished))

    async def delete(self, saga_id: str, *, revision: int | None = None) -> None:
        """Forget a saga and its history. Raises: ConflictError."""
        await self._change(f"delete {saga_id}", lambda: self._vault.delete(saga_id, revision))

    async def find(self, query: Query = EVERYTHING, *, limit: int = 100, cursor: str | None = None) -> Page:
        """Return the sagas that a query finds. Raises: StoreError for a cursor that is none."""
        return await self._read(
            "find", lambda: at_once(self._vault.inner.find(query, limit=limit, cursor=cursor))
        )

    async def count(self) -> Mapping[SagaState, int]:
        """Return how many sagas there are in each state."""
        return await self._read("count", lambda: at_once(self._vault.inner.count()))

    async def history(self, saga_id: str) -> tuple[Saga, Sequence[Event]]:
        """Return the saga as created, and all its events. Raises: SagaNotFoundError."""
        return await self._read(f"history {saga_id}", lambda: at_once(self._vault.inner.history(saga_id)))

    async def rested(self, saga_id: str) -> Saga:
        """Wait until the saga rests. Raises: SagaNotFoundError."""
        await self._read(f"load {saga_id}", lambda: self._loaded(saga_id))
        saga = await self._vault.inner.rested(saga_id)
        self._pulse.check()
        return saga

    async def claim_due(self, before: float, until: float, limit: int) -> Sequence[str]:
        """Return the ids of sagas that are due, and put them off."""
        return await self._write(
            f"due {self._pulse.who}", lambda: at_once(self._vault.inner.claim_due(before, until, limit))
        )

    async def claim_unpublished(self, before: float, until: float, limit: int) -> Sequence[Commit]:
        """Return commits that nobody has published yet, and note them anew."""
        return await self._write(
            f"unpublished {self._pulse.who}",
            lambda: at_once(self._vault.inner.claim_unpublished(before, until, limit)),
        )

    async def mark_published(self, commits: Collection[Commit]) -> None:
        """Take the notes off these commits."""
        taken = tuple(commits)
        await self._write(f"mark {self._pulse.who}", lambda: self._vault.mark(taken))

    async def hinted(self) -> None:
        """Wait for a hint."""
        await self._vault.inner.hinted()
        self._pulse.check()

    def hint(self) -> None:
        """Wake everybody who waits for a hint; it may be lost."""
        vault, who = self._vault, self._pulse.who
        if self._pulse.alive and not vault.faults.strike(Fault.HINT_LOST, who, f"hint {who}"):
            vault.agenda.after(vault.delay(who, f"hint {who}"), vault.inner.hint)

    def _loaded(self, saga_id: str) -> Saga:
        if (saga := self._vault.sagas.get(saga_id)) is None:
            raise SagaNotFoundError(f"No saga {saga_id!r} is in the store")
        return saga

    async def _read(self, about: str, do: Callable[[], T]) -> T:
        return await self._call(about, do)

    async def _change(self, about: str, do: Callable[[], T]) -> T:
        return await self._call(about, do, writes=True, changes=True)

    async def _write(self, about: str, do: Callable[[], T]) -> T:
        return await self._call(about, do, writes=True)

    async def _call(
        self, about: str, do: Callable[[], T], *, writes: bool = False, changes: bool = False
    ) -> T:
        vault, who = self._vault, self._pulse.who
        self._pulse.check()
        outcome: list[T | Exception] = []
        answered = trio.Event()

        def arrive() -> None:
            vault.changes -= changes
            if who in vault.away or vault.faults.strike(Fault.STORE_REFUSED, who, about):
                outcome.append(StoreUnavailableError("The database cannot be reached"))
            else:
                try:
                    outcome.append(do())
                except Exception as error:
                    outcome.append(error)
                if writes and vault.faults.strike(Fault.STORE_ANSWER_LOST, who, about):
                    outcome[0] = StoreUnavailableError("The database did not answer")
            if vault.answers_at_once:
                answered.set()
            else:
                vault.agenda.after(vault.delay(who, f"{about} back"), answered.set)

        # In their order: whoever loads a saga after a cancelled commit is to know whether it has happened.
        self._last = max(self._last, trio.current_time() + vault.delay(who, about))
        vault.agenda.at(self._last, arrive)
        vault.changes += changes
        await answered.wait()
        self._pulse.check()
        result = outcome[0]
        if isinstance(result, Exception):
            raise result
        return result


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to its end what never waits.

    Raises:
        Exception: Whatever it raises.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    coroutine.close()
    raise AssertionError("it waits")
