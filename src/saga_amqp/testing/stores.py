"""What every store has to do, as runnable cases: the contract `saga_amqp.contracts.Store`, sentence by sentence.

Each case is an async function of an empty store; it returns when the store keeps that part of the contract, and
raises AssertionError when not. They need no test framework; with pytest:

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
    async def test_my_store(case):
        async with open_empty_store() as store:
            await case(store)

Run them on asyncio and on trio. `pytest.register_assert_rewrite("saga_amqp.testing")` shows more of what differs.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import anyio
import anyio.lowlevel
from msgspec import Raw
from ulid import ULID

from saga_amqp.contracts import Store
from saga_amqp.errors import ConflictError, SagaExistsError, SagaNotFoundError
from saga_core import (
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    Failure,
    Saga,
    SagaState,
    Step,
    StepFailed,
    StepSucceeded,
    encode_event,
    encode_saga,
    fold,
    new_saga,
    outstanding,
    transition,
)

Case = Callable[[Store], Awaitable[None]]

AT = 1_700_000_000.0
DEADLINE = 20.0


async def load_returns_what_create_kept(store: Store) -> None:
    """A created saga comes back, bit for bit."""
    saga = _order()
    await store.create(saga)
    _same(await store.load(saga.id), saga)


async def payloads_come_back_bit_for_bit(store: Store) -> None:
    """Inputs, outputs and errors are kept as they were written: no number, space or letter of them changes."""
    awkward = {
        "text": "naïve \u2028 \U0001f600 \x00 'quoted' \"twice\" \\",
        "big": 2**63 - 1,
        "tiny": 5e-324,
        "n": None,
    }
    saga = _order(input=awkward, context={"nested": [[{"a": 0.1}], [], {}], "": "empty key"})
    await store.create(saga)
    saga = await _apply(store, saga, StepSucceeded("reserve", 1, Raw(b'{ "spaced" : 1.50e1 }'), AT + 0.1))
    details = Raw(b'{"a":{"b":[1,2.0]}}')
    saga = await _apply(
        store, saga, StepFailed("charge", 1, Failure("no", "n\u00f6", True, details), AT + 1 / 3)
    )
    _same(await store.load(saga.id), saga)
    origin, events = await store.history(saga.id)
    _same(fold(origin, events), saga)


async def many_steps_come_back(store: Store) -> None:
    """A saga of some hundred steps is kept like one of three."""
    names = [f"step-{number}" for number in range(100)]
    saga = new_saga(
        "long", [Step(name=name, action="a", input={"of": name}) for name in names], id=str(ULID()), at=AT
    )
    await store.create(saga)
    for number, name in enumerate(names, 1):
        saga = await _apply(store, saga, StepSucceeded(name, 1, Raw(b'{"n":%d}' % number), AT + number))
    assert saga.state is SagaState.COMPLETED
    _same(await store.load(saga.id), saga)
    origin, events = await store.history(saga.id)
    assert len(events) == 100
    _same(fold(origin, events), saga)


async def create_refuses_an_id_twice(store: Store) -> None:
    """The second saga with an id is refused, and the first stays as it is, even after it moved on."""
    saga = _order()
    await store.create(saga)
    moved = await _apply(store, saga, _reserved())
    for again in (saga, _order(id=saga.id)):
        with _raises(SagaExistsError, saga.id):
            await store.create(again)
    _same(await store.load(saga.id), moved)


async def an_unknown_saga_is_an_error_that_names_it(store: Store) -> None:
    """Load, commit, history and rested say which saga they did not find, and create nothing."""
    saga = _order()
    event = _reserved()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.load(saga.id),
        lambda: store.commit(transition(saga, event).saga, event),
        lambda: store.history(saga.id),
        lambda: store.rested(saga.id),
    ]
    for call in calls:
        with _raises(SagaNotFoundError, saga.id):
            await call()
    _same_list(await store.list(frozenset(SagaState)), [])


async def commit_replaces_the_saga_and_keeps_the_event(store: Store) -> None:
    """After each commit the new saga is loaded, and the history is one event longer, in order."""
    saga = origin = _order()
    await store.create(saga)
    events = _there_and_back()
    for number, event in enumerate(events, 1):
        saga = await _apply(store, saga, event)
        assert saga.revision == number
        _same(await store.load(saga.id), saga)
        kept_origin, kept = await store.history(saga.id)
        _same(kept_origin, origin)
        assert [encode_event(one) for one in kept] == [encode_event(one) for one in events[:number]]
        assert [type(one) for one in kept] == [type(one) for one in events[:number]]
        _same(fold(kept_origin, kept), saga)
    assert saga.state is SagaState.COMPENSATED


async def commit_refuses_any_revision_but_the_next(store: Store) -> None:
    """A commit that somebody else overtook, or that skips a revision, changes neither the saga nor its history."""
    origin = _order()
    await store.create(origin)
    first = await _apply(store, origin, _reserved())
    second = transition(first, _charged()).saga
    event = _charged()
    third = transition(second, _shipped()).saga
    for wrong in (origin, first, third):
        with _raises(ConflictError, origin.id):
            await store.commit(wrong, event)
        _same(await store.load(origin.id), first)
        assert len((await store.history(origin.id))[1]) == 1
    await store.commit(second, event)
    _same(await store.load(origin.id), second)


async def delete_forgets_the_saga_and_its_history(store: Store) -> None:
    """Nothing is left of a deleted saga; its neighbours stay, and its id can be used for a new one."""
    saga, neighbour = _order(), _order()
    await store.create(saga)
    await store.create(neighbour)
    await _apply(store, saga, _reserved())
    await store.delete(saga.id)
    with _raises(SagaNotFoundError, saga.id):
        await store.load(saga.id)
    with _raises(SagaNotFoundError, saga.id):
        await store.history(saga.id)
    assert [one.id for one in await store.list(frozenset(SagaState))] == [neighbour.id]
    _same(await store.load(neighbour.id), neighbour)
    await store.create(saga)
    _same(await store.load(saga.id), saga)
    assert list((await store.history(saga.id))[1]) == []


async def delete_of_an_unknown_saga_is_no_error(store: Store) -> None:
    """Deleting is idempotent."""
    await store.delete(str(ULID()))
    saga = _order()
    await store.create(saga)
    await store.delete(saga.id)
    await store.delete(saga.id)


async def list_gives_the_sagas_in_the_states_asked_for(store: Store) -> None:
    """A saga is listed under the state that was committed last, and under no other."""
    everything = frozenset(SagaState)
    _same_list(await store.list(everything), [])
    started = _order(at=AT)
    undone = _order(at=AT + 1)
    for saga in (started, undone):
        await store.create(saga)
    seen = {SagaState.STARTED}
    for event in _there_and_back():
        undone = await _apply(store, undone, event)
        seen.add(undone.state)
        for state in SagaState:
            expected = [saga for saga in (started, undone) if saga.state is state]
            _same_list(await store.list({state}), expected)
        _same_list(await store.list(everything), [started, undone])
        _same_list(await store.list(frozenset()), [])
    assert seen == everything, "the events above are meant to lead through every state"


async def list_is_oldest_first(store: Store) -> None:
    """The order is that of the sagas' creation times, whatever order they were stored or changed in."""
    sagas = [_order(at=AT + number) for number in range(5)]
    for place in (3, 0, 4, 1, 2):
        await store.create(sagas[place])
    sagas[2] = await _apply(store, sagas[2], _reserved())
    sagas[0] = await _apply(store, sagas[0], _reserved())
    _same_list(await store.list({SagaState.STARTED}), sagas)


async def what_is_handed_out_is_not_shared(store: Store) -> None:
    """Changing what a store returned, or what went into it, changes nothing in the store."""
    input_: dict[str, object] = {"items": ["a"]}
    saga = _order(input=input_)
    await store.create(saga)
    saga = await _apply(store, saga, _reserved())
    input_["items"] = "changed"
    loaded = await store.load(saga.id)
    loaded.context["customer"] = "changed"
    for step in loaded.steps:
        step.input["items"] = "changed"
        step.output["reservation"] = "changed"
    events = (await store.history(saga.id))[1]
    if isinstance(events, list):
        events.clear()
    listed = await store.list({SagaState.STARTED})
    if isinstance(listed, list):
        listed.clear()
    _same(await store.load(saga.id), saga)
    assert len((await store.history(saga.id))[1]) == 1
    _same_list(await store.list({SagaState.STARTED}), [saga])


async def rested_returns_at_once_where_the_saga_rests(store: Store) -> None:
    """Completed, compensated and failed are rest."""
    rests: dict[SagaState, list[Event]] = {
        SagaState.COMPLETED: [_reserved(), _charged(), _shipped()],
        SagaState.COMPENSATED: [StepFailed("reserve", 1, Failure("no", "none left"), AT)],
        SagaState.FAILED: [
            _reserved(),
            StepFailed("charge", 1, Failure("no", "no money"), AT),
            CompensationFailed("reserve", 1, Failure("no", "cannot"), AT),
        ],
    }
    for state, events in rests.items():
        saga = _order()
        await store.create(saga)
        for event in events:
            saga = await _apply(store, saga, event)
        assert saga.state is state
        _same(await store.rested(saga.id), saga)


async def rested_wakes_every_waiter_at_the_end_and_none_before(store: Store) -> None:
    """Many tasks can wait for one saga; only what ends it wakes them."""
    saga = _order()
    await store.create(saga)
    results: list[Saga] = []

    async def wait() -> None:
        results.append(await store.rested(saga.id))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(wait)
        for event in (_reserved(), _charged(), _shipped()):
            await anyio.wait_all_tasks_blocked()
            assert results == []
            saga = await _apply(store, saga, event)
    assert len(results) == 10
    for result in results:
        _same(result, saga)


async def rested_of_a_deleted_saga_is_an_error(store: Store) -> None:
    """Whoever waits learns that there is nothing left to wait for."""
    saga = _order()
    await store.create(saga)

    async def wait() -> None:
        with _raises(SagaNotFoundError, saga.id):
            await store.rested(saga.id)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await store.delete(saga.id)


async def rested_can_be_cancelled(store: Store) -> None:
    """A cancelled wait ends promptly and disturbs neither the store nor another waiter."""
    saga = _order()
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
        for event in (_reserved(), _charged(), _shipped()):
            saga = await _apply(store, saga, event)
    _same(results[0], saga)


async def of_many_commits_at_once_exactly_one_wins(store: Store) -> None:
    """Compare-and-set holds against any number of tasks; the losers get ConflictError and leave no trace."""
    saga = _order()
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
        saga = _order(id=id_, at=AT + number)
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
    _same(await store.load(id_), won[0])


async def sagas_do_not_disturb_each_other(store: Store) -> None:
    """Tasks that each move a saga of their own never meet, and all of them arrive."""

    async def live(number: int) -> None:
        saga = _order(at=AT + number)
        await store.create(saga)
        for event in _there_and_back():
            saga = await _apply(store, saga, event)
            await anyio.lowlevel.checkpoint()
        _same(await store.rested(saga.id), saga)
        origin, events = await store.history(saga.id)
        _same(fold(origin, events), saga)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(live, number)
    assert len(await store.list({SagaState.COMPENSATED})) == 20


async def a_cancelled_commit_happened_or_not_but_never_by_halves(store: Store) -> None:
    """After a cancelled commit the saga and its history tell the same, and the next commit can be made."""
    for steps_before_cancelling in range(3):
        saga = _order()
        await store.create(saga)
        event = _reserved()
        after = transition(saga, event).saga
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.commit, after, event)
                for _ in range(steps_before_cancelling):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        found = await store.load(saga.id)
        origin, events = await store.history(saga.id)
        _same(fold(origin, events), found)
        assert found.revision in (0, 1)
        if found.revision == 0:
            found = await _apply(store, found, event)
        await _apply(store, found, _charged())


CASES: tuple[Case, ...] = (
    load_returns_what_create_kept,
    payloads_come_back_bit_for_bit,
    many_steps_come_back,
    create_refuses_an_id_twice,
    an_unknown_saga_is_an_error_that_names_it,
    commit_replaces_the_saga_and_keeps_the_event,
    commit_refuses_any_revision_but_the_next,
    delete_forgets_the_saga_and_its_history,
    delete_of_an_unknown_saga_is_no_error,
    list_gives_the_sagas_in_the_states_asked_for,
    list_is_oldest_first,
    what_is_handed_out_is_not_shared,
    rested_returns_at_once_where_the_saga_rests,
    rested_wakes_every_waiter_at_the_end_and_none_before,
    rested_of_a_deleted_saga_is_an_error,
    rested_can_be_cancelled,
    of_many_commits_at_once_exactly_one_wins,
    of_many_creations_at_once_exactly_one_wins,
    sagas_do_not_disturb_each_other,
    a_cancelled_commit_happened_or_not_but_never_by_halves,
)


async def run_case(case: Case, store: Store) -> None:
    """Run one case, and fail it when it does not end: no case needs more than a moment."""
    with anyio.fail_after(DEADLINE):
        await case(store)


def _order(
    *, id: str | None = None, at: float = AT, input: dict[str, object] | None = None, context: object = None
) -> Saga:
    steps: list[Step[dict[str, object]]] = [
        Step(
            name="reserve", action="goods.reserve", compensation="goods.release", input=input or {"units": 2}
        ),
        Step(name="charge", action="card.charge", compensation="card.refund"),
        Step(name="ship", action="parcel.ship"),
    ]
    return new_saga("order", steps, context or {"customer": "c-1"}, id=id or str(ULID()), at=at)


def _reserved() -> Event:
    return StepSucceeded("reserve", 1, Raw(b'{"reservation":"r-1"}'), AT + 1)


def _charged() -> Event:
    return StepSucceeded("charge", 1, Raw(b'{"transaction":"t-1"}'), AT + 2)


def _shipped() -> Event:
    return StepSucceeded("ship", 1, Raw(b"{}"), AT + 3)


def _there_and_back() -> list[Event]:
    """Lead an order through every state: completed, undone in vain, and undone in the end."""
    return [
        _reserved(),
        _charged(),
        _shipped(),
        CompensationRequested("the customer thought again", AT + 4),
        CompensationFailed("charge", 1, Failure("bank_closed", "try on Monday", True), AT + 5),
        CompensationRequested("it is Monday", AT + 6),
        CompensationSucceeded("charge", 2, AT + 7),
        CompensationSucceeded("reserve", 1, AT + 8),
    ]


async def _apply(store: Store, saga: Saga, event: Event) -> Saga:
    answer = transition(saga, event)
    assert answer.ignored is None, f"the case itself is wrong: {answer.ignored}"
    await store.commit(answer.saga, event)
    return answer.saga


async def _cancel_when_all_wait(scope: anyio.CancelScope) -> None:
    await anyio.wait_all_tasks_blocked()
    scope.cancel()


@contextmanager
def _raises(kind: type[Exception], text: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        assert text in str(error), f"{kind.__name__} should name {text}, and says: {error}"
    else:
        raise AssertionError(f"{kind.__name__} should have been raised")


def _same(found: Saga, expected: Saga) -> None:
    assert found == expected
    assert encode_saga(found) == encode_saga(expected)
    assert outstanding(found) == outstanding(expected)


def _same_list(found: Sequence[Saga], expected: Sequence[Saga]) -> None:
    assert [saga.id for saga in found] == [saga.id for saga in expected]
    assert list(found) == list(expected)
