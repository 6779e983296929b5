"""What every store has to do, as runnable cases: the contract `saga_amqp.contracts.Store`, sentence by sentence.

Each case is an async function of an empty store; it returns when the store keeps that part of the contract, and
raises AssertionError when not. They need no test framework; with pytest:

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
    async def test_my_store(case):
        async with open_empty_store() as store:
            await run_case(case, store)

Run them on asyncio and on trio. `pytest.register_assert_rewrite("saga_amqp.testing")` shows more of what differs.
"""

from collections.abc import Awaitable, Callable

import anyio
from msgspec import Raw
from ulid import ULID

from saga_amqp.contracts import Store
from saga_amqp.errors import ConflictError, SagaExistsError, SagaNotFoundError
from saga_amqp.testing.claims import CLAIMS
from saga_amqp.testing.looking import LOOKING
from saga_amqp.testing.many_tasks import (
    a_cancelled_commit_happened_or_not_but_never_by_halves,
    of_many_commits_at_once_exactly_one_wins,
    of_many_creations_at_once_exactly_one_wins,
    sagas_do_not_disturb_each_other,
)
from saga_amqp.testing.orders import (
    AT,
    apply,
    charged,
    in_states,
    order,
    raises,
    reserved,
    same,
    same_list,
    shipped,
    there_and_back,
)
from saga_core import (
    CompensationFailed,
    Event,
    Failure,
    Saga,
    SagaState,
    Step,
    StepFailed,
    StepSucceeded,
    encode_event,
    fold,
    new_saga,
    transition,
)

Case = Callable[[Store], Awaitable[None]]

DEADLINE = 20.0


async def load_returns_what_create_kept(store: Store) -> None:
    """A created saga comes back, bit for bit."""
    saga = order()
    await store.create(saga)
    same(await store.load(saga.id), saga)


async def payloads_come_back_bit_for_bit(store: Store) -> None:
    """Inputs, outputs and errors are kept as they were written: no number, space or letter of them changes."""
    awkward: dict[str, object] = {
        "text": "naïve \u2028 \U0001f600 \x00 'quoted' \"twice\" \\",
        "big": 2**63 - 1,
        "tiny": 5e-324,
        "n": None,
    }
    nested: dict[str, object] = {"nested": [[{"a": 0.1}], [1, "2"]], "": "empty key"}
    saga = order(input=awkward, context=nested)
    await store.create(saga)
    saga = await apply(store, saga, StepSucceeded("reserve", 1, Raw(b'{ "spaced" : 1.50e1 }'), AT + 0.1))
    details = Raw(b'{"a":{"b":[1,2.0]}}')
    saga = await apply(
        store, saga, StepFailed("charge", 1, Failure("no", "n\u00f6", True, details), AT + 1 / 3)
    )
    same(await store.load(saga.id), saga)
    origin, events = await store.history(saga.id)
    same(fold(origin, events), saga)


async def many_steps_come_back(store: Store) -> None:
    """A saga of some hundred steps is kept like one of three."""
    names = [f"step-{number}" for number in range(100)]
    saga = new_saga(
        "long", [Step(name=name, action="a", input={"of": name}) for name in names], id=str(ULID()), at=AT
    )
    await store.create(saga)
    for number, name in enumerate(names, 1):
        saga = await apply(store, saga, StepSucceeded(name, 1, Raw(b'{"n":%d}' % number), AT + number))
    assert saga.state is SagaState.COMPLETED
    same(await store.load(saga.id), saga)
    origin, events = await store.history(saga.id)
    assert len(events) == 100
    same(fold(origin, events), saga)


async def create_refuses_an_id_twice(store: Store) -> None:
    """The second saga with an id is refused, and the first stays as it is, even after it moved on."""
    saga = order()
    await store.create(saga)
    moved = await apply(store, saga, reserved())
    for again in (saga, order(id=saga.id)):
        with raises(SagaExistsError, saga.id):
            await store.create(again)
    same(await store.load(saga.id), moved)


async def an_unknown_saga_is_an_error_that_names_it(store: Store) -> None:
    """Load, commit, history and rested say which saga they did not find, and create nothing."""
    saga = order()
    event = reserved()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.load(saga.id),
        lambda: store.commit(transition(saga, event).saga, event),
        lambda: store.history(saga.id),
        lambda: store.rested(saga.id),
    ]
    for call in calls:
        with raises(SagaNotFoundError, saga.id):
            await call()
    same_list(await in_states(store, *SagaState), [])


async def commit_replaces_the_saga_and_keeps_the_event(store: Store) -> None:
    """After each commit the new saga is loaded, and the history is one event longer, in order."""
    saga = origin = order()
    await store.create(saga)
    events = there_and_back()
    for number, event in enumerate(events, 1):
        saga = await apply(store, saga, event)
        assert saga.revision == number
        same(await store.load(saga.id), saga)
        kept_origin, kept = await store.history(saga.id)
        same(kept_origin, origin)
        assert [encode_event(one) for one in kept] == [encode_event(one) for one in events[:number]]
        assert [type(one) for one in kept] == [type(one) for one in events[:number]]
        same(fold(kept_origin, kept), saga)
    assert saga.state is SagaState.COMPENSATED


async def commit_refuses_any_revision_but_the_next(store: Store) -> None:
    """A commit that somebody else overtook, or that skips a revision, changes neither the saga nor its history."""
    origin = order()
    await store.create(origin)
    first = await apply(store, origin, reserved())
    second = transition(first, charged()).saga
    event = charged()
    third = transition(second, shipped()).saga
    for wrong in (origin, first, third):
        with raises(ConflictError, origin.id):
            await store.commit(wrong, event)
        same(await store.load(origin.id), first)
        assert len((await store.history(origin.id))[1]) == 1
    await store.commit(second, event)
    same(await store.load(origin.id), second)


async def delete_forgets_the_saga_and_its_history(store: Store) -> None:
    """Nothing is left of a deleted saga; its neighbours stay, and its id can be used for a new one."""
    saga, neighbour = order(), order()
    await store.create(saga)
    await store.create(neighbour)
    await apply(store, saga, reserved())
    await store.delete(saga.id)
    with raises(SagaNotFoundError, saga.id):
        await store.load(saga.id)
    with raises(SagaNotFoundError, saga.id):
        await store.history(saga.id)
    assert [one.id for one in await in_states(store, *SagaState)] == [neighbour.id]
    same(await store.load(neighbour.id), neighbour)
    await store.create(saga)
    same(await store.load(saga.id), saga)
    assert list((await store.history(saga.id))[1]) == []


async def delete_can_ask_for_a_revision(store: Store) -> None:
    """A saga that has moved on meanwhile is not deleted by whoever has not seen that."""
    saga = order()
    await store.create(saga)
    moved = await apply(store, saga, reserved())
    with raises(ConflictError, saga.id):
        await store.delete(saga.id, revision=0)
    same(await store.load(saga.id), moved)
    await store.delete(saga.id, revision=1)
    with raises(SagaNotFoundError, saga.id):
        await store.load(saga.id)
    await store.delete(saga.id, revision=1)


async def delete_of_an_unknown_saga_is_no_error(store: Store) -> None:
    """Deleting is idempotent."""
    await store.delete(str(ULID()))
    saga = order()
    await store.create(saga)
    await store.delete(saga.id)
    await store.delete(saga.id)


async def find_gives_the_sagas_in_the_states_asked_for(store: Store) -> None:
    """A saga is found under the state that was committed last, and under no other."""
    same_list(await in_states(store, *SagaState), [])
    started = order(at=AT)
    undone = order(at=AT + 1)
    for saga in (started, undone):
        await store.create(saga)
    seen = {SagaState.STARTED}
    for event in there_and_back():
        undone = await apply(store, undone, event)
        seen.add(undone.state)
        for state in SagaState:
            expected = [saga for saga in (started, undone) if saga.state is state]
            same_list(await in_states(store, state), expected)
        same_list(await in_states(store, *SagaState), [started, undone])
        same_list(await in_states(store), [])
    assert seen == set(SagaState), "the events above are meant to lead through every state"


async def find_is_oldest_first(store: Store) -> None:
    """The order is that of the sagas' creation times, whatever order they were stored or changed in."""
    sagas = [order(at=AT + number) for number in range(5)]
    for place in (3, 0, 4, 1, 2):
        await store.create(sagas[place])
    sagas[2] = await apply(store, sagas[2], reserved())
    sagas[0] = await apply(store, sagas[0], reserved())
    same_list(await in_states(store, SagaState.STARTED), sagas)


async def what_is_handed_out_is_not_shared(store: Store) -> None:
    """Changing what a store returned, or what went into it, changes nothing in the store."""
    input_: dict[str, object] = {"items": ["a"]}
    saga = order(input=input_)
    await store.create(saga)
    saga = await apply(store, saga, reserved())
    input_["items"] = "changed"
    loaded = await store.load(saga.id)
    loaded.context["customer"] = "changed"
    for step in loaded.steps:
        step.input["items"] = "changed"
        step.output["reservation"] = "changed"
    events = (await store.history(saga.id))[1]
    if isinstance(events, list):
        events.clear()
    same(await store.load(saga.id), saga)
    assert len((await store.history(saga.id))[1]) == 1
    same_list(await in_states(store, SagaState.STARTED), [saga])


async def rested_returns_at_once_where_the_saga_rests(store: Store) -> None:
    """Completed, compensated and failed are rest."""
    rests: dict[SagaState, list[Event]] = {
        SagaState.COMPLETED: [reserved(), charged(), shipped()],
        SagaState.COMPENSATED: [StepFailed("reserve", 1, Failure("no", "none left"), AT)],
        SagaState.FAILED: [
            reserved(),
            StepFailed("charge", 1, Failure("no", "no money"), AT),
            CompensationFailed("reserve", 1, Failure("no", "cannot"), AT),
        ],
    }
    for state, events in rests.items():
        saga = order()
        await store.create(saga)
        for event in events:
            saga = await apply(store, saga, event)
        assert saga.state is state
        same(await store.rested(saga.id), saga)


async def rested_wakes_every_waiter_at_the_end_and_none_before(store: Store) -> None:
    """Many tasks can wait for one saga; only what ends it wakes them."""
    saga = order()
    await store.create(saga)
    results: list[Saga] = []

    async def wait() -> None:
        results.append(await store.rested(saga.id))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(wait)
        for event in (reserved(), charged(), shipped()):
            await anyio.wait_all_tasks_blocked()
            assert results == []
            saga = await apply(store, saga, event)
    assert len(results) == 10
    for result in results:
        same(result, saga)


async def rested_of_a_deleted_saga_is_an_error(store: Store) -> None:
    """Whoever waits learns that there is nothing left to wait for."""
    saga = order()
    await store.create(saga)

    async def wait() -> None:
        with raises(SagaNotFoundError, saga.id):
            await store.rested(saga.id)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await store.delete(saga.id)


async def rested_can_be_cancelled(store: Store) -> None:
    """A cancelled wait ends promptly and disturbs neither the store nor another waiter."""
    saga = order()
    await store.create(saga)
    results: list[Saga] = []

    async def wait() -> None:
        results.append(await store.rested(saga.id))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        with anyio.CancelScope() as scope:
            tasks.start_soon(_cancel_when_all_wait, scope)
            await store.rested(saga.id)
        assert scope.cancelled_caught
        for event in (reserved(), charged(), shipped()):
            saga = await apply(store, saga, event)
    same(results[0], saga)


CASES: tuple[Case, ...] = (
    load_returns_what_create_kept,
    payloads_come_back_bit_for_bit,
    many_steps_come_back,
    create_refuses_an_id_twice,
    an_unknown_saga_is_an_error_that_names_it,
    commit_replaces_the_saga_and_keeps_the_event,
    commit_refuses_any_revision_but_the_next,
    delete_forgets_the_saga_and_its_history,
    delete_can_ask_for_a_revision,
    delete_of_an_unknown_saga_is_no_error,
    find_gives_the_sagas_in_the_states_asked_for,
    find_is_oldest_first,
    what_is_handed_out_is_not_shared,
    rested_returns_at_once_where_the_saga_rests,
    rested_wakes_every_waiter_at_the_end_and_none_before,
    rested_of_a_deleted_saga_is_an_error,
    rested_can_be_cancelled,
    of_many_commits_at_once_exactly_one_wins,
    of_many_creations_at_once_exactly_one_wins,
    sagas_do_not_disturb_each_other,
    a_cancelled_commit_happened_or_not_but_never_by_halves,
    *LOOKING,
    *CLAIMS,
)


async def run_case(case: Case, store: Store) -> None:
    """Run one case, and fail it when it does not end: no case needs more than a moment."""
    with anyio.fail_after(DEADLINE):
        await case(store)


async def _cancel_when_all_wait(scope: anyio.CancelScope) -> None:
    await anyio.wait_all_tasks_blocked()
    scope.cancel()
