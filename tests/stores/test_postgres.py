"""What PostgresStore does beyond the suite for stores: several stores on one database, and what a commit costs."""

import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest
from anyio.abc import TaskStatus
from msgspec import Raw
from msgspec.structs import replace
from ulid import ULID

from saga_amqp import ConflictError, SagaNotFoundError, StoreError
from saga_amqp.contracts import Query
from saga_amqp.stores.postgres import PostgresStore, conversation, hint_channel, store, upgrade
from saga_amqp.stores.postgres.conversation import Conversation, Prepared
from saga_amqp.testing.orders import AT, apply, charged, order, reserved, same, shipped, there_and_back
from saga_core import (
    Options,
    ResumeRequested,
    Saga,
    SagaState,
    Step,
    StepSucceeded,
    SuspendRequested,
    fold,
    new_saga,
    transition,
)
from tests.stores.hammer import hammer

DEADLINE = 30.0
NEVER = 3600.0


@pytest.fixture
def url(postgres_url: str) -> str:
    """The URL of a database that has the tables, and no saga."""
    upgrade(postgres_url)
    return postgres_url


@pytest.fixture
def without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is told, or never learns of it."""
    monkeypatch.setattr(store, "LOOK_EVERY", NEVER)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many statements were executed, by the name of the application in the URL."""
    counted: Counter[str] = Counter()
    execute, converse = psycopg.Connection.execute, Conversation.execute

    def counting(connection: "psycopg.Connection[Any]", *given: Any, **more: Any) -> Any:
        counted[connection.info.parameter_status("application_name") or ""] += 1
        return execute(connection, *given, **more)

    async def counting_together(conversation: Conversation, given: Sequence[Prepared]) -> Any:
        counted[(conversation._server.parameter_status(b"application_name") or b"").decode()] += len(given)
        return await converse(conversation, given)

    monkeypatch.setattr(psycopg.Connection, "execute", counting)
    monkeypatch.setattr(Conversation, "execute", counting_together)
    return counted


async def ask(url: str, query: str, *values: object) -> Any:
    """Ask the database itself, and return the first value of the first row."""

    def blocking() -> Any:
        with psycopg.connect(url, autocommit=True) as connection:
            answer = connection.execute(query.encode(), values)
            return (answer.fetchone() or [None])[0] if answer.description else None

    return await anyio.to_thread.run_sync(blocking)


def named(url: str, application: str) -> str:
    return f"{url}?application_name={application}"


async def shipped_order(kept_in: PostgresStore, saga: Saga) -> Saga:
    for event in (reserved(), charged(), shipped()):
        saga = await apply(kept_in, saga, event)
    return saga


# Sagas outlive the store ------------------------------------------------------------------------------------------


async def test_sagas_are_there_when_the_store_is_opened_again(url: str) -> None:
    options = Options(key="k", tags={"colour": "blue"})
    async with PostgresStore(url) as first:
        saga = origin = await first.create(order(options=options), unpublished=AT)
        for event in there_and_back():
            saga = await apply(first, saga, event)
    async with PostgresStore(url) as second:
        same(await second.load(saga.id), saga)
        same(await second.rested(saga.id), saga)
        same(await second.create(order(options=options)), saga)
        kept, events = await second.history(saga.id)
        same(kept, origin)
        same(fold(kept, events), saga)
        (found,) = (await second.find(Query(tags={"colour": "blue"}))).sagas
        same(found, saga)
        assert list(await second.claim_unpublished(AT, AT + 9, 10)) == [(saga.id, 0)]


async def test_two_schemas_of_a_database_are_two_stores(url: str) -> None:
    async with (
        PostgresStore(url) as one,
        PostgresStore(url, schema='Other "sagas" %', upgrade=True) as other,
    ):
        saga = await one.create(order(options=Options(key="k")))
        with pytest.raises(SagaNotFoundError):
            await other.load(saga.id)
        assert (await other.create(order(options=Options(key="k")))).id != saga.id
        same(await one.rested((await shipped_order(one, saga)).id), await one.load(saga.id))
        assert (await other.count())[SagaState.COMPLETED] == 0


# Two stores on one database ---------------------------------------------------------------------------------------


async def test_each_store_sees_what_the_other_has_committed(url: str) -> None:
    async with PostgresStore(url) as one, PostgresStore(url) as other:
        saga = await one.create(order())
        for number, event in enumerate(there_and_back()):
            mine, theirs = (one, other) if number % 2 else (other, one)
            saga = await apply(mine, saga, event)
            same(await theirs.load(saga.id), saga)
        same(fold(*await other.history(saga.id)), saga)


async def test_a_saga_that_was_replaced_by_another_of_its_id_is_not_mixed_up_with_it(url: str) -> None:
    first, second = order(), order()
    second = replace(second, plan=replace(second.plan, id=first.id), updated_at=AT)
    async with PostgresStore(url) as one, PostgresStore(url) as other:
        await one.create(first)
        await apply(one, await apply(one, first, reserved()), charged())
        await other.delete(first.id)
        await other.create(second)
        for event in there_and_back():
            moved = replace(event, at=event.at + 100)
            second = await apply(other, second, moved)
            same(await one.load(first.id), second)


@pytest.mark.usefixtures("without_looking")
@pytest.mark.uvloop
async def test_who_waits_is_told_of_a_saga_that_another_store_has_ended(url: str) -> None:
    async with PostgresStore(url) as one, PostgresStore(url) as other:
        saga = await one.create(order())
        deleted = await one.create(order())
        results: list[Saga | SagaNotFoundError] = []

        async def wait(saga_id: str) -> None:
            try:
                results.append(await one.rested(saga_id))
            except SagaNotFoundError as error:
                results.append(error)

        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                for saga_id in (saga.id, saga.id, deleted.id):
                    tasks.start_soon(wait, saga_id)
                await anyio.wait_all_tasks_blocked()
                await other.delete(deleted.id)
                saga = await shipped_order(other, saga)
        assert Counter(map(type, results)) == {Saga: 2, SagaNotFoundError: 1}
        same(next(one for one in results if isinstance(one, Saga)), saga)


async def test_who_waits_notices_the_end_of_a_saga_also_where_nobody_tells(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOOK_EVERY", 0.05)
    monkeypatch.setattr("saga_amqp.stores.postgres.listening.rest_channel", lambda schema: "deaf")
    async with PostgresStore(url) as one, PostgresStore(url) as other:
        saga = await one.create(order())
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.rested, saga.id)
                await anyio.wait_all_tasks_blocked()
                await shipped_order(other, saga)


@pytest.mark.usefixtures("without_looking")
async def test_to_wait_for_a_saga_that_was_seen_to_run_it_is_not_read(
    url: str, statements: Counter[str]
) -> None:
    async with PostgresStore(named(url, "waits")) as one, PostgresStore(url) as other:
        await wakes(one, other.hint)  # now it is connected, and listens
        await one.count()  # and reads
        before = statements["waits"]
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    saga = await one.create(order())
                    tasks.start_soon(one.rested, saga.id)
                    await anyio.wait_all_tasks_blocked()
                # Beside the creations a look at all that are waited for, when there is the first of them.
                assert statements["waits"] - before <= 10 + 1
                tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("without_looking")
async def test_a_saga_that_another_store_has_ended_is_not_thought_to_run(url: str) -> None:
    async with PostgresStore(url) as one, PostgresStore(url) as other:
        await wakes(one, other.hint)
        saga, deleted = await one.create(order()), await one.create(order())
        saga = await shipped_order(other, saga)
        await other.delete(deleted.id)
        await wakes(one, other.hint)  # what was told before has been heard
        with anyio.fail_after(DEADLINE):
            same(await one.rested(saga.id), saga)
            with pytest.raises(SagaNotFoundError):
                await one.rested(deleted.id)


async def test_waiting_for_many_sagas_asks_the_database_next_to_nothing(
    url: str, statements: Counter[str]
) -> None:
    async with PostgresStore(named(url, "waits")) as one, PostgresStore(named(url, "works")) as other:
        sagas = [await other.create(order()) for _ in range(100)]
        await wakes(one, other.hint)  # now both are connected, and listen
        await wakes(other, one.hint)
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                for saga in sagas:
                    tasks.start_soon(one.rested, saga.id)
                await anyio.wait_all_tasks_blocked()
                statements.clear()
                begun = anyio.current_time()
                for place, saga in enumerate(sagas):
                    sagas[place] = await apply(other, await apply(other, saga, reserved()), charged())
                elapsed = anyio.current_time() - begun
                # One look a second, whatever the number of sagas; the other store has had two hundred statements.
                assert statements["works"] >= 200
                assert statements["waits"] <= elapsed / store.LOOK_EVERY + 5
                for saga in sagas:
                    await apply(other, saga, shipped())
        assert statements["waits"] <= 100 + (anyio.current_time() - begun) / store.LOOK_EVERY + 5


async def test_a_hint_reaches_other_stores(url: str) -> None:
    async with PostgresStore(url) as one, PostgresStore(url) as other:
        await wakes(one, other.hint)
        await wakes(other, other.hint)
        assert hint_channel() == "saga.hint"
        with psycopg.connect(url) as connection:

            def notify() -> None:
                connection.execute("SELECT pg_notify(%s, '')", (hint_channel(),))
                connection.commit()

            await wakes(one, notify)
            await wakes(other, notify)


async def wakes(waiting: PostgresStore, hint: Callable[[], None]) -> None:
    """Hint until somebody wakes: a store that was just opened may not listen yet, and a hint may be lost."""
    woken = anyio.Event()

    async def wait() -> None:
        await waiting.hinted()
        woken.set()

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            while not woken.is_set():
                await anyio.wait_all_tasks_blocked()
                hint()
                with anyio.move_on_after(0.5):
                    await woken.wait()


async def test_many_processes_may_use_one_database(postgres_url: str, anyio_backend_name: str) -> None:
    await hammer(postgres_url, anyio_backend_name)


# What it costs ----------------------------------------------------------------------------------------------------


async def test_a_step_of_a_long_saga_writes_no_more_than_that_of_a_short_one(url: str) -> None:
    steps = [Step(name=f"step-{number}", action="a", input={"of": number}) for number in range(1000)]
    saga = new_saga("long", steps, id=str(ULID()), at=AT)
    async with PostgresStore(url) as kept_in:
        await kept_in.create(saga)
        for number in range(1000):
            saga = await apply(
                kept_in, saga, StepSucceeded(f"step-{number}", 1, Raw(b'{"n":1}'), AT + number)
            )
        same(await kept_in.load(saga.id), saga)
    async with PostgresStore(url) as kept_in:
        same(await kept_in.load(saga.id), saga)
        same(fold(*await kept_in.history(saga.id)), saga)
    history = "FROM saga.history AS log WHERE snapshot IS NULL"
    assert await ask(url, f"SELECT count(*) {history}") == 999, (
        "only the first and the last row hold the saga"
    )
    assert await ask(url, f"SELECT max(pg_column_size(log)) {history}") < 300
    assert await ask(url, "SELECT max(pg_column_size(head)) FROM saga.sagas AS head") < 300


@pytest.mark.uvloop
async def test_many_commits_at_once_share_a_few_transactions(url: str) -> None:
    sagas = [order() for _ in range(200)]
    transactions = "SELECT txid_current()"
    async with PostgresStore(url) as kept_in:
        before = await ask(url, transactions)
        async with anyio.create_task_group() as tasks:
            for saga in sagas:
                tasks.start_soon(kept_in.create, saga)
        created = await ask(url, transactions)
        async with anyio.create_task_group() as tasks:
            for saga in sagas:
                tasks.start_soon(apply, kept_in, saga, reserved())
        committed = await ask(url, transactions)
    assert created - before < 20
    assert committed - created < 20


async def test_commits_touch_no_index_while_the_state_stays(url: str) -> None:
    saga = order()
    async with PostgresStore(url) as kept_in:
        await kept_in.create(saga)
        for number in range(200):
            event = ResumeRequested("", AT) if number % 2 else SuspendRequested("", AT)
            saga = await apply(kept_in, saga, event)
    updates, hot = 0, 0
    with anyio.fail_after(DEADLINE):
        while updates < 200:  # until the store's process of the server, which is ending, has said what it did
            counted = (
                "SELECT ARRAY[n_tup_upd, n_tup_hot_upd] FROM pg_stat_user_tables WHERE relname = 'sagas'"
            )
            updates, hot = await ask(url, counted)
    assert hot > 0.95 * updates


async def test_statements_go_by_the_index_also_when_planned_on_empty_tables(url: str) -> None:
    """The plan of a prepared statement is kept while the tables grow under it."""
    async with PostgresStore(url) as kept_in:
        for _ in range(8):  # after five of them the plan stays
            saga = await kept_in.create(order())
            saga = await apply(kept_in, await kept_in.load(saga.id), reserved())
        await ask(
            url,
            "INSERT INTO saga.sagas SELECT created_at, updated_at, wake_at, revision, base, 'x' || n, name, state"
            " FROM saga.sagas, generate_series(1, 20000) AS n WHERE id = %s",
            saga.id,
        )
        for number in range(40):
            event = ResumeRequested("", AT) if number % 2 else SuspendRequested("", AT)
            saga = await apply(kept_in, await kept_in.load(saga.id), event)
            await kept_in.claim_due(AT, AT, 1)
    scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'sagas'"
    assert await ask(url, scans) < 40  # a few are those of this test


# What is asked for is done, or refused, each for itself -----------------------------------------------------------


async def test_a_commit_that_the_database_refuses_takes_no_other_with_it(url: str) -> None:
    async with PostgresStore(url) as kept_in:
        await ask(url, "ALTER TABLE saga.history ADD CONSTRAINT not_too_late CHECK (at < 1e12)")
        good = [await kept_in.create(order()) for _ in range(5)]
        bad = replace(transition(await kept_in.create(order()), reserved()).saga, updated_at=1e12)
        refused: list[StoreError] = []

        async def commit(saga: Saga) -> None:
            try:
                await kept_in.commit(saga, reserved())
            except StoreError as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            for saga in [*(transition(saga, reserved()).saga for saga in good), bad]:
                tasks.start_soon(commit, saga)
        (error,) = refused
        assert type(error) is StoreError
        assert "not_too_late" in str(error)
        for saga in good:
            assert (await kept_in.load(saga.id)).revision == 1


async def test_what_cannot_even_be_sent_takes_no_other_with_it(url: str) -> None:
    async with PostgresStore(url) as kept_in:
        saga = await kept_in.create(order())

        async def claim() -> None:
            with pytest.raises(StoreError, match="cannot be sent"):
                await kept_in.claim_due(object(), AT, 1)  # type: ignore[arg-type]

        async def commit() -> None:
            with pytest.raises(StoreError, match="cannot be sent"):
                await kept_in.commit(replace(saga, revision=2**31), reserved())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kept_in.create, order())
            tasks.start_soon(apply, kept_in, saga, reserved())
            tasks.start_soon(claim)
            tasks.start_soon(commit)
        assert (await kept_in.load(saga.id)).revision == 1
        assert (await kept_in.count())[SagaState.STARTED] == 2


async def test_more_than_a_socket_takes_at_once_is_written(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = 0
    wait = conversation._readable_or_writable

    async def counting(descriptor: int) -> None:
        nonlocal waited
        waited += 1
        await wait(descriptor)

    monkeypatch.setattr(conversation, "_readable_or_writable", counting)
    step = Step(name="one", action="a", input={"much": "x" * 30_000_000})
    async with PostgresStore(url) as kept_in:
        saga = await kept_in.create(new_saga("large", [step], id=str(ULID()), at=AT))
        same(await kept_in.load(saga.id), saga)
    async with PostgresStore(url) as kept_in:
        same(await kept_in.load(saga.id), saga)
    assert waited


async def test_it_works_with_a_libpq_that_cannot_send_several_statements_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation.capabilities, "has_pipeline", lambda check=False: False)
    async with PostgresStore(url) as kept_in:
        sagas = [await kept_in.create(order()) for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            for saga in sagas[:2]:
                tasks.start_soon(apply, kept_in, saga, reserved())
            tasks.start_soon(kept_in.create, order())
            tasks.start_soon(kept_in.delete, sagas[2].id)
        with pytest.raises(ConflictError):
            await apply(kept_in, sagas[0], reserved())
        assert [(await kept_in.load(saga.id)).revision for saga in sagas[:2]] == [1, 1]
        assert (await kept_in.count())[SagaState.STARTED] == 3


async def test_text_that_postgresql_cannot_keep_is_refused_or_not_found(url: str) -> None:
    async with PostgresStore(url) as kept_in:
        for options in (Options(key="\0"), Options(tags={"a": "\0"}), Options(tags={"\0": "a"})):
            with pytest.raises(StoreError, match="cannot keep"):
                await kept_in.create(order(options=options))
        unknown = order()
        calls: list[Callable[[str], Awaitable[object]]] = [kept_in.load, kept_in.history, kept_in.rested]
        for text in ("\0", "a\0b", "\ud800"):
            for call in calls:
                with pytest.raises(SagaNotFoundError):
                    await call(text)
            await kept_in.delete(text)
            await kept_in.mark_published([(text, 0), (unknown.id, 0)])
            assert (await kept_in.find(Query(name=text))).sagas == ()
            assert (await kept_in.find(Query(tags={"a": text}))).sagas == ()


async def test_a_row_that_is_missing_is_an_error_and_not_another_saga(url: str) -> None:
    saga = order()
    async with PostgresStore(url) as kept_in:
        await shipped_order(kept_in, await kept_in.create(saga))
        await ask(url, "DELETE FROM saga.history WHERE revision = 2")
    async with PostgresStore(url) as kept_in:
        with pytest.raises(StoreError, match=f"{saga.id}.*damaged"):
            await kept_in.load(saga.id)


async def test_leaving_finishes_what_was_asked_for_also_when_cancelled(url: str) -> None:
    saga = order()

    async def commit(kept_in: PostgresStore, *, task_status: TaskStatus[None]) -> None:
        with anyio.CancelScope(shield=True):
            task_status.started()
            await apply(kept_in, saga, reserved())

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks, PostgresStore(url) as kept_in:
            await kept_in.create(saga)
            await tasks.start(commit, kept_in)
            scope.cancel()
    async with PostgresStore(url) as kept_in:
        assert (await kept_in.load(saga.id)).revision == 1


async def test_a_cancelled_commit_that_ends_a_saga_wakes_who_waits_for_it(url: str) -> None:
    async with PostgresStore(url) as kept_in:
        saga = await kept_in.create(order())
        for event in (reserved(), charged()):
            saga = await apply(kept_in, saga, event)
        results: list[Saga] = []

        async def wait() -> None:
            results.append(await kept_in.rested(saga.id))

        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                with anyio.move_on_after(0):
                    await apply(kept_in, saga, shipped())
                if not (found := await kept_in.load(saga.id)).at_rest:
                    await apply(kept_in, found, shipped())
        assert results[0].state is SagaState.COMPLETED


async def test_a_store_is_used_inside_its_context_and_entered_once(url: str) -> None:
    kept_in = PostgresStore(url)
    with pytest.raises(StoreError, match="async with"):
        await kept_in.load("x")
    async with kept_in:
        pass
    with pytest.raises(StoreError, match="async with"):
        await kept_in.commit(transition(order(), reserved()).saga, reserved())
    kept_in.hint()
    with pytest.raises(StoreError, match="once"):
        await kept_in.__aenter__()


# Without psycopg --------------------------------------------------------------------------------------------------


def test_without_psycopg_only_this_store_is_missing_and_says_what_to_install() -> None:
    program = """
import sys
sys.modules["psycopg"] = None
import saga_amqp, saga_amqp.cli
try:
    import saga_amqp.stores.postgres
except ImportError as error:
    assert "saga-amqp[postgres]" in str(error), error
    sys.exit(saga_amqp.cli.main(["db", "upgrade", "postgresql://localhost/x"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "saga-amqp[postgres]" in done.stderr
    assert "Traceback" not in done.stderr
