"""The six methods of the Go package, on every store."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from ulid import ULID

from saga_amqp import (
    Options,
    PayloadError,
    ReferenceStore,
    RefusedError,
    RetryPolicy,
    SagaExistsError,
    SagaNotFoundError,
    SagaState,
    Step,
    StepState,
)
from saga_amqp.contracts import Store
from saga_amqp.testing.orders import AT, apply, charged, order, reserved, same, shipped
from saga_core import Saga, UnknownStepError, new_saga, outstanding
from tests.histories import check_histories

NOW = AT + 100
STUBBORN = RetryPolicy(max_attempts=5)

Update = Callable[[], Awaitable[Saga]]


@pytest.fixture
def reference(store: Store) -> ReferenceStore:
    return ReferenceStore(store, clock=lambda: NOW)


def stubborn(*names: str, options: Options | None = None) -> Saga:
    """A saga of independent steps, each of which would be tried again and again."""
    steps: list[Step[Any]] = [
        Step(
            name=name,
            action=f"do.{name}",
            compensation=f"undo.{name}",
            depends_on=(),
            retry=STUBBORN,
            compensation_retry=STUBBORN,
        )
        for name in names
    ]
    return new_saga("s", steps, id=str(ULID()), at=AT, options=options or Options())


async def noted(store: Store) -> list[tuple[str, int]]:
    """Return the commits that the next engine which looks publishes."""
    return list(await store.claim_unpublished(0.0, 0.0, 100))


# Keeping, finding, forgetting --------------------------------------------------------------------------------------


async def test_a_saved_saga_is_for_the_engines_to_begin(store: Store, reference: ReferenceStore) -> None:
    hinted = anyio.Event()

    async def listen() -> None:
        await store.hinted()
        hinted.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            saga = order()
            same(await reference.save_saga(saga), saga)
            await hinted.wait()
    same(await reference.load_saga(saga.id), saga)
    assert await noted(store) == [(saga.id, 0)]


async def test_a_saved_saga_that_begins_later_is_not_noted(store: Store, reference: ReferenceStore) -> None:
    saga = stubborn("a", options=Options(start_at=NOW + 60))
    await reference.save_saga(saga)
    assert await noted(store) == []
    assert await store.claim_due(NOW + 60, NOW + 90, 10) == [saga.id]


async def test_an_id_is_saved_once_and_a_key_gives_the_saga_that_has_it(
    store: Store, reference: ReferenceStore
) -> None:
    saga = order(options=Options(key="k"))
    await reference.save_saga(saga)
    moved = await apply(store, saga, reserved())
    same(await reference.save_saga(order(options=Options(key="k"))), moved)
    with pytest.raises(SagaExistsError, match=saga.id):
        await reference.save_saga(order(id=saga.id))


async def test_the_active_sagas_are_those_that_are_started_or_compensating_oldest_first(
    store: Store, reference: ReferenceStore
) -> None:
    younger, older, undone, ended = order(at=AT + 2), order(at=AT), order(at=AT + 1), order(at=AT + 3)
    for saga in (younger, older, undone, ended):
        await reference.save_saga(saga)
    await apply(store, undone, reserved())
    await reference.update_saga_state(undone.id, SagaState.COMPENSATING)
    for event in (reserved(), charged(), shipped()):
        ended = await apply(store, ended, event)
    assert [saga.id for saga in await reference.list_active_sagas()] == [older.id, undone.id, younger.id]


async def test_a_deleted_saga_is_gone_and_deleting_it_again_is_no_error(reference: ReferenceStore) -> None:
    saga = await reference.save_saga(order())
    for _ in range(2):
        await reference.delete_saga(saga.id)
    calls: list[Update] = [
        lambda: reference.load_saga(saga.id),
        lambda: reference.update_saga_step(saga.id, "reserve", StepState.COMPLETED),
        lambda: reference.update_saga_state(saga.id, SagaState.COMPENSATING),
    ]
    for call in calls:
        with pytest.raises(SagaNotFoundError, match=saga.id):
            await call()


# Steps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["name", "id"])
async def test_a_step_is_told_to_be_completed_and_what_follows_is_noted(
    by: str, store: Store, reference: ReferenceStore
) -> None:
    saga = await reference.save_saga(order())
    await store.mark_published([(saga.id, 0)])
    step = saga.step("reserve")
    told = await reference.update_saga_step(
        saga.id, step.name if by == "name" else step.id, StepState.COMPLETED, {"reservation": 7}
    )
    same(await store.load(saga.id), told)
    assert told.step("reserve").state is StepState.COMPLETED
    assert told.step("reserve").output == {"reservation": 7}
    assert [command.step for command in outstanding(told)] == ["charge"]
    assert told.updated_at == NOW
    assert await noted(store) == [(saga.id, 1)]
    await check_histories(store)


async def test_a_step_is_told_to_be_failed_for_good_however_often_it_would_be_tried(
    reference: ReferenceStore, store: Store
) -> None:
    saga = await reference.save_saga(stubborn("a", "b"))
    await reference.update_saga_step(saga.id, "b", StepState.COMPLETED)
    told = await reference.update_saga_step(saga.id, "a", StepState.FAILED, error="the warehouse burnt down")
    assert told.step("a").state is StepState.FAILED
    error = told.step("a").error
    assert error is not None
    assert error.message == "the warehouse burnt down"
    assert told.is_compensating
    assert [command.step for command in outstanding(told)] == ["b"]
    await check_histories(store)


async def test_a_step_is_told_to_be_skipped(reference: ReferenceStore) -> None:
    saga = await reference.save_saga(stubborn("a"))
    told = await reference.update_saga_step(saga.id, "a", StepState.SKIPPED)
    assert told.step("a").state is StepState.SKIPPED
    assert told.is_completed


async def test_a_compensation_is_told_to_have_ended_either_way(
    reference: ReferenceStore, store: Store
) -> None:
    saga = await reference.save_saga(stubborn("a", "b"))
    for name in ("a", "b"):
        await reference.update_saga_step(saga.id, name, StepState.COMPLETED)
    await reference.update_saga_state(saga.id, SagaState.COMPENSATING)
    told = await reference.update_saga_step(saga.id, "a", StepState.COMPENSATED)
    assert told.step("a").state is StepState.COMPENSATED
    told = await reference.update_saga_step(saga.id, "b", StepState.FAILED, error="closed for ever")
    assert told.is_failed
    assert told.step("b").error is not None
    await check_histories(store)


async def test_to_tell_what_is_known_changes_nothing(reference: ReferenceStore, store: Store) -> None:
    saga = await reference.save_saga(order())
    told = await reference.update_saga_step(saga.id, "reserve", StepState.COMPLETED, {"n": 1})
    same(await reference.update_saga_step(saga.id, "reserve", StepState.COMPLETED, {"n": 2}), told)
    same(await reference.update_saga_step(saga.id, "ship", StepState.PENDING), told)
    same(await reference.update_saga_state(saga.id, SagaState.STARTED), told)
    assert (await store.load(saga.id)).revision == 1


@pytest.mark.parametrize(
    ("step", "state", "why"),
    [
        ("reserve", StepState.PENDING, "by itself"),
        ("reserve", StepState.COMPENSATING, "by itself"),
        ("ship", StepState.STARTED, "by itself"),
        ("ship", StepState.COMPLETED, "ship"),
        ("ship", StepState.FAILED, "ship"),
        ("ship", StepState.SKIPPED, "ship"),
        ("reserve", StepState.COMPENSATED, "nothing is being undone"),
    ],
)
async def test_what_does_not_follow_is_refused(
    step: str, state: StepState, why: str, store: Store, reference: ReferenceStore
) -> None:
    saga = await reference.save_saga(order())
    with pytest.raises(RefusedError, match=why):
        await reference.update_saga_step(saga.id, step, state)
    same(await store.load(saga.id), saga)


async def test_what_is_no_step_or_no_output_is_an_error(store: Store, reference: ReferenceStore) -> None:
    saga = await reference.save_saga(order())
    with pytest.raises(UnknownStepError, match="no-such-step"):
        await reference.update_saga_step(saga.id, "no-such-step", StepState.COMPLETED)
    with pytest.raises(PayloadError, match=f"step 'reserve' of saga {saga.id}"):
        await reference.update_saga_step(saga.id, "reserve", StepState.COMPLETED, {"socket": object()})
    same(await store.load(saga.id), saga)


# Sagas -------------------------------------------------------------------------------------------------------------


async def test_a_saga_is_undone_when_that_is_asked_for(store: Store, reference: ReferenceStore) -> None:
    saga = order()
    await reference.save_saga(saga)
    for event in (reserved(), charged(), shipped()):
        saga = await apply(store, saga, event)
    await store.mark_published([(saga.id, 0)])
    asked = await reference.update_saga_state(saga.id, SagaState.COMPENSATING)
    assert asked.is_compensating
    assert await noted(store) == [(saga.id, 4)]
    same(await reference.update_saga_state(saga.id, SagaState.COMPENSATING), asked)
    await check_histories(store)


@pytest.mark.parametrize("state", [SagaState.COMPLETED, SagaState.FAILED, SagaState.COMPENSATED])
async def test_any_other_state_follows_from_the_steps(
    state: SagaState, store: Store, reference: ReferenceStore
) -> None:
    saga = await reference.save_saga(order())
    with pytest.raises(RefusedError, match=f"{saga.id}.*is started, and becomes {state} by what becomes"):
        await reference.update_saga_state(saga.id, state)
    same(await store.load(saga.id), saga)


# Many at once ------------------------------------------------------------------------------------------------------


async def at_once(updates: list[Update]) -> None:
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for update in updates:
                tasks.start_soon(update)


async def test_updates_of_different_steps_at_once_all_count(store: Store, reference: ReferenceStore) -> None:
    names = [f"s{number}" for number in range(30)]
    saga = await reference.save_saga(stubborn(*names))

    def tell(name: str) -> Update:
        return lambda: reference.update_saga_step(saga.id, name, StepState.COMPLETED, {"from": name})

    await at_once([tell(name) for name in names])
    told = await store.load(saga.id)
    assert told.is_completed
    assert told.revision == len(names)
    assert [step.output for step in told.steps] == [{"from": name} for name in names]
    await check_histories(store)


async def test_of_the_same_update_many_times_at_once_one_counts_and_none_is_refused(
    store: Store, reference: ReferenceStore
) -> None:
    saga = await reference.save_saga(order())
    seen: list[Saga] = []

    def tell(number: int) -> Update:
        async def update() -> Saga:
            seen.append(
                await reference.update_saga_step(saga.id, "reserve", StepState.COMPLETED, {"n": number})
            )
            return seen[-1]

        return update

    await at_once([tell(number) for number in range(20)])
    told = await store.load(saga.id)
    assert told.revision == 1
    assert [one == told for one in seen] == [True] * 20
    await at_once([lambda: reference.update_saga_state(saga.id, SagaState.COMPENSATING)] * 20)
    assert (await store.load(saga.id)).revision == 2


async def test_of_contradicting_updates_at_once_one_counts_and_the_others_are_refused(
    store: Store, reference: ReferenceStore
) -> None:
    saga = await reference.save_saga(stubborn("a"))
    states = [StepState.COMPLETED, StepState.FAILED, StepState.SKIPPED]
    refused: list[StepState] = []

    def tell(state: StepState) -> Update:
        async def update() -> Saga:
            try:
                return await reference.update_saga_step(saga.id, "a", state)
            except RefusedError:
                refused.append(state)
                return saga

        return update

    await at_once([tell(state) for state in states])
    told = await store.load(saga.id)
    assert told.revision == 1
    assert sorted(refused) == sorted(set(states) - {told.step("a").state})
    await check_histories(store)
