"""The part of the suite of stores that is about looking for sagas, counting them, and keys that start each but once."""

import anyio
import anyio.lowlevel

from saga_amqp.contracts import EVERYTHING, Query, Store
from saga_amqp.errors import StoreError
from saga_amqp.testing.orders import (
    AT,
    apply,
    charged,
    order,
    raises,
    reserved,
    same,
    same_list,
    shipped,
    there_and_back,
)
from saga_core import Options, Saga, SagaState


async def find_looks_at_name_tags_and_age(store: Store) -> None:
    """All that a query gives has to hold; a tag has to be there with its value, beside any others."""
    plain = order(at=AT)
    named = order(at=AT + 1, name="refund")
    blue = order(at=AT + 2, options=Options(tags={"colour": "blue", "size": "xl"}))
    red = order(at=AT + 3, options=Options(tags={"colour": "red", "a'b\"%": "\\ \u20ac"}))
    for saga in (plain, named, blue, red):
        await store.create(saga)
    plain = await apply(store, plain, reserved())  # at AT + 1
    finds: list[tuple[Query, list[Saga]]] = [
        (EVERYTHING, [plain, named, blue, red]),
        (Query(name="refund"), [named]),
        (Query(name="re%"), []),
        (Query(tags={"colour": "blue"}), [blue]),
        (Query(tags={"colour": "blue", "size": "xl"}), [blue]),
        (Query(tags={"colour": "red", "size": "xl"}), []),
        (Query(tags={"a'b\"%": "\\ \u20ac"}), [red]),
        (Query(created_before=AT + 2), [plain, named]),
        (Query(updated_before=AT + 2), [plain, named]),
        (Query(updated_before=AT + 1), []),
        (Query(states=frozenset({SagaState.STARTED}), name="order", created_before=AT + 3), [plain, blue]),
        (Query(states=frozenset({SagaState.FAILED}), name="order"), []),
    ]
    for query, expected in finds:
        same_list((await store.find(query)).sagas, expected)


async def find_gives_each_saga_once_over_all_pages(store: Store) -> None:
    """Pages follow each other without gaps, also where sagas were created in the same moment, move on, or come new."""
    sagas = [order(at=AT + number // 3) for number in range(10)]
    for saga in sagas:
        await store.create(saga)
    sagas.sort(key=lambda saga: (saga.created_at, saga.id))
    for limit in (1, 3, 10, 11):
        found: list[Saga] = []
        cursor: str | None = None
        for _ in range(11):
            page = await store.find(limit=limit, cursor=cursor)
            assert len(page.sagas) <= limit
            found += page.sagas
            cursor = page.cursor
            if cursor is None:
                break
        same_list(found, sagas)
    first = await store.find(limit=4)
    sagas[0] = await apply(store, sagas[0], reserved())
    await store.delete(sagas[4].id)
    await store.create(late := order(at=AT + 99))
    same_list((await store.find(cursor=first.cursor)).sagas, [*sagas[5:], late])
    assert (await store.find(cursor=first.cursor, limit=6)).cursor is None


async def find_refuses_a_cursor_that_is_none(store: Store) -> None:
    """What no page came with is an error that shows it."""
    for wrong in ("", "nonsense", "1.0/", "x/01ARZ3NDEKTSV4RRFFQ69G5FAV"):
        with raises(StoreError, repr(wrong)):
            await store.find(cursor=wrong)


async def count_tells_how_many_are_in_each_state(store: Store) -> None:
    """Every state is there, also where no saga is in it."""
    assert await store.count() == dict.fromkeys(SagaState, 0)
    await store.create(order())
    saga = order()
    await store.create(saga)
    for event in there_and_back():
        saga = await apply(store, saga, event)
        expected = dict.fromkeys(SagaState, 0) | {SagaState.STARTED: 1}
        expected[saga.state] += 1
        assert await store.count() == expected
    await store.delete(saga.id)
    assert await store.count() == dict.fromkeys(SagaState, 0) | {SagaState.STARTED: 1}


async def create_with_a_key_keeps_the_first_and_returns_it(store: Store) -> None:
    """Whoever starts a saga of the same name with the same key gets the one that is there, as it stands."""
    options = Options(key="order 7")
    first = order(options=options)
    same(await store.create(first), first)
    same(await store.create(order(options=options)), first)
    same(await store.create(first), first)
    other_name = order(name="refund", options=options)
    other_key = order(options=Options(key="order 8"))
    without = order()
    for saga in (other_name, other_key, without):
        same(await store.create(saga), saga)
    assert sum((await store.count()).values()) == 4
    for event in (reserved(), charged(), shipped()):
        first = await apply(store, first, event)
        same(await store.create(order(options=options)), first)
    await store.delete(first.id)
    again = order(options=options)
    same(await store.create(again), again)


async def of_many_creations_with_one_key_all_get_the_same_saga(store: Store) -> None:
    """One name and key, many tasks: one saga, and everybody gets it."""
    got: list[Saga] = []

    async def create() -> None:
        saga = order(options=Options(key="k"))
        await anyio.lowlevel.checkpoint()
        got.append(await store.create(saga))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(create)
    assert len({saga.id for saga in got}) == 1
    assert (await store.count())[SagaState.STARTED] == 1


LOOKING = (
    find_looks_at_name_tags_and_age,
    find_gives_each_saga_once_over_all_pages,
    find_refuses_a_cursor_that_is_none,
    count_tells_how_many_are_in_each_state,
    create_with_a_key_keeps_the_first_and_returns_it,
    of_many_creations_with_one_key_all_get_the_same_saga,
)
