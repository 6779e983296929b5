"""The part of the suite of stores that is about many tasks at once, and about tasks that are cancelled."""

import anyio
import anyio.lowlevel
from msgspec import Raw
from ulid import ULID

from saga_amqp.contracts import Store
from saga_amqp.errors import ConflictError, SagaExistsError
from saga_amqp.testing.orders import (
    AT,
    apply,
    charged,
    in_states,
    order,
    reserved,
    same,
    there_and_back,
)
from saga_core import Saga, SagaState, StepSucceeded, fold, transition


async def of_many_commits_at_once_exactly_one_wins(store: Store) -> None:
    """Compare-and-set holds against any number of tasks; the losers get ConflictError and leave no trace."""
    saga = order()
    await store.create(saga)
    won: list[int] = []
    lost: list[int] = []

    async def commit(number: int) -> None:
        event = StepSucceeded("reserve", 1, Raw(b'{"by":%d}' % number), AT + number)
        await anyio.lowlevel.checkpoint()
        try:
            await store.commit(transition(saga, event).saga, event)
        except ConflictError:
            lost.append(number)
        else:
            won.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(commit, number)
    assert len(won) == 1
    assert len(lost) == 19
    assert (await store.load(saga.id)).step("reserve").output == {"by": won[0]}
    assert len((await store.history(saga.id))[1]) == 1


async def of_many_creations_at_once_exactly_one_wins(store: Store) -> None:
    """One id, many tasks: one saga."""
    id_ = str(ULID())
    won: list[Saga] = []

    async def create(number: int) -> None:
        saga = order(id=id_, at=AT + number)
        await anyio.lowlevel.checkpoint()
        try:
            await store.create(saga)
        except SagaExistsError:
            return
        won.append(saga)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(create, number)
    assert len(won) == 1
    same(await store.load(id_), won[0])


async def sagas_do_not_disturb_each_other(store: Store) -> None:
    """Tasks that each move a saga of their own never meet, and all of them arrive."""

    async def live(number: int) -> None:
        saga = order(at=AT + number)
        await store.create(saga)
        for event in there_and_back():
            saga = await apply(store, saga, event)
            await anyio.lowlevel.checkpoint()
        same(await store.rested(saga.id), saga)
        origin, events = await store.history(saga.id)
        same(fold(origin, events), saga)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(live, number)
    assert len(await in_states(store, SagaState.COMPENSATED)) == 20


async def a_cancelled_commit_happened_or_not_but_never_by_halves(store: Store) -> None:
    """After a cancelled commit the saga and its history tell the same, and the next commit can be made."""
    for steps_before_cancelling in range(3):
        saga = order()
        await store.create(saga)
        event = reserved()
        after = transition(saga, event).saga
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.commit, after, event)
                for _ in range(steps_before_cancelling):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        found = await store.load(saga.id)
        origin, events = await store.history(saga.id)
        same(fold(origin, events), found)
        assert found.revision in (0, 1)
        if found.revision == 0:
            found = await apply(store, found, event)
        await apply(store, found, charged())
