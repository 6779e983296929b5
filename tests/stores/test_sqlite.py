"""What a store in a file promises beyond the suite: it outlives the process, and others may use the same file."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec import Raw

from saga_amqp import SagaNotFoundError, SQLiteStore, StoreError
from saga_amqp.testing.claims import timed
from saga_amqp.testing.orders import AT, apply, charged, order, reserved, same, shipped, there_and_back
from saga_core import Options, Saga, SagaState, Step, StepSucceeded, fold, new_saga, transition
from tests.stores.hammer import hammer

MOMENT = 5.0
"""Seconds in which what has to happen at once does happen, on a machine that is busy."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sagas.db"


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that SQLite runs in this test."""
    seen: list[str] = []
    connect = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    return seen


@pytest.fixture
def lock(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of somebody else, to hold the file with."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    yield connection
    connection.close()


async def until_a_writer_waits(statements: list[str]) -> None:
    """Wait until some thread tries to write, which is in vain while somebody holds the lock."""
    while "BEGIN IMMEDIATE" not in statements:
        await anyio.lowlevel.checkpoint()


# On the disk ------------------------------------------------------------------------------------------------------


async def test_everything_is_there_when_the_file_is_opened_again(path: Path) -> None:
    saga = order(options=Options(key="k", tags={"colour": "blue"}))
    waits = timed()
    async with SQLiteStore(path) as store:
        await store.create(saga, unpublished=AT)
        await store.create(waits)
        origin, events = saga, there_and_back()
        for event in events:
            saga = await apply(store, saga, event)
    async with SQLiteStore(str(path)) as store:
        same(await store.load(saga.id), saga)
        same((await store.history(saga.id))[0], origin)
        same(fold(*await store.history(saga.id)), saga)
        same(await store.create(order(options=Options(key="k"))), saga)
        same(await store.rested(saga.id), saga)
        assert (await store.count())[SagaState.COMPENSATED] == 1
        assert await store.claim_due(AT + 10, AT + 20, 10) == [waits.id]
        assert await store.claim_unpublished(AT, AT + 10, 10) == [(saga.id, 0)]
    assert os.listdir(path.parent) == [path.name], "the last one to leave tidies up"


async def test_names_of_files_may_have_any_letters(tmp_path: Path) -> None:
    path = tmp_path / "50% of sagas? #1 'naïve'.db"
    async with SQLiteStore(path) as store:
        await store.create(saga := order())
    assert os.listdir(tmp_path) == [path.name]
    async with SQLiteStore(path) as store:
        same(await store.load(saga.id), saga)


async def test_a_commit_costs_the_same_however_many_steps_there_are(path: Path) -> None:
    async def written(steps: int) -> tuple[int, list[int]]:
        names = [f"step-{number:04}" for number in range(steps)]
        plan: list[Step[Any]] = [Step(name=name, action="work", input={"of": name}) for name in names]
        saga = new_saga("long", plan, id=order().id, at=AT)
        await store.create(saga)
        for number, name in enumerate(names, 1):
            saga = await apply(store, saga, StepSucceeded(name, 1, Raw(b'{"n":%04d}' % number), AT + number))
        same(await store.load(saga.id), saga)
        assert saga.is_completed
        with sqlite3.connect(path) as connection:
            rows = connection.execute(
                "SELECT coalesce(length(event), 0) + coalesce(length(snapshot), 0) FROM saga_history"
                " WHERE saga_id = ? ORDER BY revision",
                (saga.id,),
            ).fetchall()
        connection.close()
        sizes = [size for (size,) in rows]
        return sum(sizes), sizes

    async with SQLiteStore(path, synchronous="NORMAL") as store:
        half, _ = await written(500)
        whole, sizes = await written(1000)
    assert whole <= 1.5 * 2 * half
    assert max(sizes[1:1000]) <= 1.2 * min(sizes[1:1000]), "no commit on the way writes more than its event"
    assert sum(size > 1000 for size in sizes) == 2, "the saga as created, and one snapshot"


async def test_commits_that_come_together_share_a_transaction(path: Path, statements: list[str]) -> None:
    sagas = [order() for _ in range(300)]
    async with SQLiteStore(path) as store:
        for one in sagas:
            await store.create(one)
        statements.clear()
        async with anyio.create_task_group() as tasks:
            for one in sagas:
                tasks.start_soon(apply, store, one, reserved())
        transactions = statements.count("BEGIN IMMEDIATE")
        assert transactions == statements.count("COMMIT")
        for one in sagas:
            assert (await store.load(one.id)).revision == 1
    assert 1 <= transactions <= 10


async def test_a_job_that_sqlite_refuses_does_not_harm_those_beside_it(path: Path) -> None:
    sagas = [order() for _ in range(10)]
    refused: list[StoreError] = []
    async with SQLiteStore(path) as store:
        for one in sagas:
            await store.create(one)

        async def refuse(what: Any, *arguments: Any) -> None:
            with pytest.raises(StoreError) as caught:
                await what(*arguments)
            refused.append(caught.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refuse, store.delete, "\ud800")
            tasks.start_soon(refuse, store.load, "\ud800")
            tasks.start_soon(refuse, store.claim_due, AT, AT, 2**70)
            for one in sagas:
                tasks.start_soon(apply, store, one, reserved())
                tasks.start_soon(store.load, one.id)
            tasks.start_soon(refuse, store.mark_published, [(sagas[0].id, 2**70)])
        assert len(refused) == 4
        for one in sagas:
            assert (await store.load(one.id)).revision == 1


# Opening and leaving ----------------------------------------------------------------------------------------------


async def test_a_store_works_between_entering_and_leaving_only(path: Path) -> None:
    store = SQLiteStore(path)
    with pytest.raises(StoreError, match="async with"):
        await store.create(order())
    async with store:
        await store.create(order())
    for call in (lambda: store.create(order()), store.count, lambda: store.rested("x")):
        with pytest.raises(StoreError, match="async with"):
            await call()
    with pytest.raises(StoreError, match="once"):
        async with store:
            pass


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_a_store_without_a_file_is_refused(path: str) -> None:
    with pytest.raises(StoreError, match="MemoryStore"):
        SQLiteStore(path)


def test_an_unknown_way_to_be_synchronous_is_refused(path: Path) -> None:
    with pytest.raises(StoreError, match="'OFF'"):
        SQLiteStore(path, synchronous="OFF")  # type: ignore[arg-type]


async def test_synchronous_is_as_asked_for_and_full_unless_asked(path: Path, statements: list[str]) -> None:
    async with SQLiteStore(path):
        pass
    assert statements.count("PRAGMA synchronous = FULL") == 2
    async with SQLiteStore(path, synchronous="NORMAL"):
        pass
    assert statements.count("PRAGMA synchronous = NORMAL") == 2


async def test_what_was_asked_for_is_done_before_the_store_is_closed(
    path: Path, lock: sqlite3.Connection, statements: list[str]
) -> None:
    first, second = order(), order()
    with anyio.fail_after(MOMENT):
        async with anyio.create_task_group() as tasks, SQLiteStore(path, busy_timeout=30.0) as store:
            await store.create(first)
            await store.create(second)
            lock.execute("BEGIN IMMEDIATE")
            statements.clear()
            tasks.start_soon(apply, store, first, reserved())
            await until_a_writer_waits(statements)
            tasks.start_soon(apply, store, second, reserved())
            await anyio.wait_all_tasks_blocked()
            lock.execute("COMMIT")
    async with SQLiteStore(path) as store:
        assert (await store.load(first.id)).revision == (await store.load(second.id)).revision == 1


async def test_a_store_is_closed_in_an_orderly_way_where_its_scope_is_cancelled(
    path: Path, lock: sqlite3.Connection, statements: list[str]
) -> None:
    saga = order()
    done: list[Saga] = []
    with anyio.fail_after(MOMENT), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks, SQLiteStore(path, busy_timeout=30.0) as store:
            await store.create(saga)
            lock.execute("BEGIN IMMEDIATE")
            statements.clear()

            async def commit() -> None:
                with anyio.CancelScope(shield=True):
                    done.append(await apply(store, saga, reserved()))

            tasks.start_soon(commit)
            await until_a_writer_waits(statements)
            lock.execute("COMMIT")
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert [one.revision for one in done] == [1]
    async with SQLiteStore(path) as store:
        assert (await store.load(saga.id)).revision == 1


async def test_whoever_waits_when_the_store_is_closed_learns_of_it(path: Path) -> None:
    saga = order()
    woken: list[str] = []

    async def wait() -> None:
        with pytest.raises(StoreError, match="closed"):
            await store.rested(saga.id)
        woken.append("rested")

    async def wait_for_hint() -> None:
        await store.hinted()
        woken.append("hinted")

    with anyio.fail_after(MOMENT):
        async with anyio.create_task_group() as tasks, SQLiteStore(path) as store:
            await store.create(saga)
            tasks.start_soon(wait)
            tasks.start_soon(wait_for_hint)
            await anyio.wait_all_tasks_blocked()
    assert sorted(woken) == ["hinted", "rested"]


async def test_errors_of_the_block_come_out_as_they_are(path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with SQLiteStore(path):
            raise ZeroDivisionError


# Cancellation -----------------------------------------------------------------------------------------------------


async def test_a_cancelled_commit_that_happens_all_the_same_wakes_who_waits(
    path: Path, lock: sqlite3.Connection, statements: list[str]
) -> None:
    saga = order()
    rested: list[Saga] = []

    async def wait() -> None:
        rested.append(await store.rested(saga.id))

    async with SQLiteStore(path, busy_timeout=30.0) as store:
        await store.create(saga)
        for event in (reserved(), charged()):
            saga = await apply(store, saga, event)
        with anyio.fail_after(MOMENT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                lock.execute("BEGIN IMMEDIATE")
                statements.clear()
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as cancelled:
                        cancelled.start_soon(apply, store, saga, shipped())
                        await until_a_writer_waits(statements)
                        scope.cancel()
                lock.execute("COMMIT")
        assert (await store.load(saga.id)).is_completed
    assert [one.is_completed for one in rested] == [True]


async def test_loading_after_a_cancelled_commit_tells_whether_it_happened(
    path: Path, lock: sqlite3.Connection, statements: list[str]
) -> None:
    saga = order()
    async with SQLiteStore(path, busy_timeout=30.0) as store:
        await store.create(saga)
        lock.execute("BEGIN IMMEDIATE")
        statements.clear()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(apply, store, saga, reserved())
                await until_a_writer_waits(statements)
                scope.cancel()
        with anyio.fail_after(MOMENT):
            async with anyio.create_task_group() as tasks:

                async def load() -> None:
                    assert (await store.load(saga.id)).revision == 1

                tasks.start_soon(load)
                await anyio.wait_all_tasks_blocked()
                lock.execute("COMMIT")


# Two stores, many processes ---------------------------------------------------------------------------------------


async def test_two_stores_on_one_file_see_what_the_other_commits(path: Path) -> None:
    async with SQLiteStore(path) as one, SQLiteStore(path) as other:
        saga = order()
        await one.create(saga)
        same(await other.load(saga.id), saga)
        for number, event in enumerate(there_and_back()):
            writes, reads = (one, other) if number % 2 else (other, one)
            saga = await apply(writes, saga, event)
            same(await reads.load(saga.id), saga)
            same((await reads.find()).sagas[0], saga)
            assert len((await reads.history(saga.id))[1]) == saga.revision
        with pytest.raises(StoreError, match=f"at revision {saga.revision}"):
            await other.commit(*_again(order(id=saga.id)))


async def test_a_saga_created_anew_by_another_store_is_not_taken_for_the_old_one(path: Path) -> None:
    async with SQLiteStore(path) as one, SQLiteStore(path) as other:
        old = order(input={"units": 1})
        await one.create(old)
        await apply(one, await apply(one, old, reserved()), charged())
        for at in (AT, AT + 100):  # even if it was created in the same moment as the old one
            await other.delete(old.id)
            new = order(id=old.id, at=at, input={"units": 2})
            await other.create(new)
            same(await one.load(old.id), new)
            for number in range(3):
                new = await apply(
                    other,
                    new,
                    StepSucceeded(
                        ("reserve", "charge", "ship")[number], 1, Raw(b'{"new":1}'), AT + 200 + number
                    ),
                )
            same(await one.load(old.id), new)


async def test_whoever_waits_notices_what_another_store_does(path: Path) -> None:
    ends, goes, stays = order(), order(), order()
    rested: list[Saga] = []

    async def wait() -> None:
        rested.append(await one.rested(ends.id))

    async def wait_in_vain() -> None:
        with pytest.raises(SagaNotFoundError, match=goes.id):
            await one.rested(goes.id)

    async with SQLiteStore(path) as one, SQLiteStore(path) as other:
        saga = ends
        for each in (ends, goes, stays):
            await one.create(each)
        with anyio.fail_after(MOMENT):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(wait)
                    tasks.start_soon(wait_in_vain)
                tasks.start_soon(one.rested, stays.id)
                await anyio.wait_all_tasks_blocked()
                for event in (reserved(), charged(), shipped()):
                    saga = await apply(other, saga, event)
                await other.delete(goes.id)
                while len(rested) < 3:
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        for each in rested:
            same(each, saga)


async def test_nobody_looks_at_the_file_while_nobody_waits(path: Path, statements: list[str]) -> None:
    saga = order()
    async with SQLiteStore(path) as store, SQLiteStore(path) as other:
        await store.create(saga)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.rested, saga.id)
            while sum("data_version" in statement for statement in statements) < 3:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        asked = sum("json_each" in statement for statement in statements)
        assert asked == 1, "with nothing committed by others, there is nothing to ask"
        async with anyio.create_task_group() as tasks:  # the last look may be under way
            tasks.start_soon(store.count)
            tasks.start_soon(store.delete, "nobody")
        statements.clear()
        await other.create(order())
        await anyio.sleep(0.1)
        assert not [statement for statement in statements if "data_version" in statement]


async def test_claims_are_shared_between_stores(path: Path) -> None:
    sagas = [timed(AT + number / 100) for number in range(40)]
    due: list[str] = []
    async with SQLiteStore(path) as one, SQLiteStore(path) as other:
        for saga in sagas:
            await one.create(saga, unpublished=AT)

        async def claim(store: SQLiteStore) -> None:
            while claimed := await store.claim_due(AT + 100, AT + 200, 3):
                due.extend(claimed)

        async with anyio.create_task_group() as tasks:
            for store in (one, other, one, other):
                tasks.start_soon(claim, store)
        assert sorted(due) == sorted(saga.id for saga in sagas)
        assert len(await one.claim_unpublished(AT + 100, AT + 200, 30)) == 30
        rest = await other.claim_unpublished(AT + 100, AT + 200, 30)
        assert len(rest) == 10
        await other.mark_published(rest)
        assert len(await one.claim_unpublished(AT + 200, AT + 300, 100)) == 30


async def test_many_processes_lose_nothing_and_share_the_claims(
    path: Path, anyio_backend: tuple[str, dict[str, bool]]
) -> None:
    await hammer(f"sqlite://{path}", anyio_backend[0])
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def _again(saga: Saga) -> tuple[Saga, Any]:
    event = reserved()
    return transition(saga, event).saga, event
