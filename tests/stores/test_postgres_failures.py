"""PostgresStore and a server that is killed, away, full, locked, or asked for too much."""

import os
import signal
from collections.abc import Iterator
from functools import partial

import anyio
import anyio.to_thread
import psycopg
import pytest
from ulid import ULID

from saga_amqp import ConflictError, StoreError, StoreUnavailableError
from saga_amqp.backoff import pauses
from saga_amqp.stores.postgres import PostgresStore, link, store, upgrade
from saga_amqp.testing.orders import AT, apply, charged, order, reserved, same, shipped
from saga_amqp.testing.stores import CASES, Case, run_case
from saga_core import ResumeRequested, Saga, SagaState, SuspendRequested, fold, transition
from tests.ports import HOST, free_ports
from tests.postgres import PostgreSQL

DEADLINE = 60.0


@pytest.fixture
def url(private_postgres: PostgreSQL) -> Iterator[str]:
    """The URL of a database, with the tables and no saga, on a server that may be killed."""
    name = f"failures_{ULID()}".lower()
    private_postgres.create_database(name)
    upgrade(private_postgres.url(name))
    yield private_postgres.url(name)
    if not private_postgres.running:
        private_postgres.restart()
    private_postgres.drop_database(name)


@pytest.fixture
def user(private_postgres: PostgreSQL, url: str) -> Iterator[str]:
    """The name of a user who is none of those whom the server allows everything."""
    name = f"user_{ULID()}".lower()
    command(url, f"CREATE ROLE {name} LOGIN")
    command(url, f"GRANT USAGE ON SCHEMA saga TO {name}")
    command(url, f"GRANT ALL ON ALL TABLES IN SCHEMA saga TO {name}")
    yield name
    command(url, f"DROP OWNED BY {name}")
    command(url, f"DROP ROLE {name}")


def command(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def do(url: str, *statements: str) -> None:
    await anyio.to_thread.run_sync(command, url, *statements)


def database(url: str) -> str:
    return url.rpartition("/")[2]


def refusing(code: str, *, times: int) -> list[str]:
    """Statements that let commits fail with a code, so many times."""
    return [
        "CREATE SEQUENCE saga.failures",
        "CREATE FUNCTION saga.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('saga.failures') <= {times} THEN RAISE EXCEPTION USING ERRCODE = '{code}'; END IF;"
        " RETURN NEW; END $$",
        "CREATE TRIGGER fail BEFORE INSERT ON saga.history FOR EACH STATEMENT EXECUTE FUNCTION saga.fail()",
    ]


# Killed -----------------------------------------------------------------------------------------------------------


class Life:
    """A saga that somebody commits to again and again, whatever happens to the server, and what he was told."""

    def __init__(self, kept_in: PostgresStore, saga: Saga) -> None:
        self.kept_in = kept_in
        self.saga = saga
        self.acknowledged = 0
        self.failures = 0

    async def live(self, commits: int) -> None:
        pause = pauses()
        while self.acknowledged < commits:
            event = (ResumeRequested if self.saga.suspended else SuspendRequested)("", AT)
            after = transition(self.saga, event).saga
            try:
                await self.kept_in.commit(after, event)
            except StoreUnavailableError:
                self.failures += 1
                await anyio.sleep(next(pause))
                self.saga = await self.load()
            else:
                self.saga = after
                pause = pauses()
            self.acknowledged = self.saga.revision

    async def load(self) -> Saga:
        for pause in pauses():
            try:
                saga = await self.kept_in.load(self.saga.id)
            except StoreUnavailableError:
                await anyio.sleep(pause)
            else:
                assert saga.revision >= self.acknowledged, "an acknowledged commit is lost"
                return saga
        raise AssertionError


async def test_a_killed_server_loses_nothing_and_the_store_goes_on_by_itself(
    private_postgres: PostgreSQL, url: str
) -> None:
    async with PostgresStore(url) as kept_in:
        lives = [Life(kept_in, await kept_in.create(order())) for _ in range(20)]
        waits = await kept_in.create(order())
        rested: list[Saga] = []

        async def wait() -> None:
            for pause in pauses():
                try:
                    rested.append(await kept_in.rested(waits.id))
                except StoreUnavailableError:
                    await anyio.sleep(pause)
                else:
                    return

        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                for kill_at in (50, 100):
                    async with anyio.create_task_group() as living:
                        for one in lives:
                            living.start_soon(one.live, kill_at + 50)
                        while sum(one.acknowledged for one in lives) < kill_at * len(lives):
                            await anyio.wait_all_tasks_blocked()
                        private_postgres.kill()
                        await anyio.to_thread.run_sync(private_postgres.restart)
                async with PostgresStore(url) as other:
                    for event in (reserved(), charged(), shipped()):
                        waits = await apply(other, waits, event)
        assert rested[0].state is SagaState.COMPLETED
        assert sum(one.failures for one in lives) > 0
    async with PostgresStore(url) as kept_in:
        for one in lives:
            saga = await kept_in.load(one.saga.id)
            same(saga, one.saga)
            same(fold(*await kept_in.history(saga.id)), saga)


async def test_connections_that_were_ended_while_nobody_used_them_are_replaced_unnoticed(url: str) -> None:
    async with PostgresStore(url) as kept_in:
        saga = await kept_in.create(order())
        await kept_in.load(saga.id)
        await do(
            url,
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        saga = await apply(kept_in, saga, reserved())
        same(await kept_in.load(saga.id), saga)


async def test_a_store_can_be_left_while_the_server_is_gone(private_postgres: PostgreSQL, url: str) -> None:
    async with PostgresStore(url) as kept_in:
        saga = await kept_in.create(order())
        await anyio.to_thread.run_sync(private_postgres.kill)
        for call in (partial(kept_in.load, saga.id), partial(kept_in.create, order()), kept_in.count):
            with pytest.raises(StoreUnavailableError, match=HOST):
                await call()
        kept_in.hint()


# Away, or short of something --------------------------------------------------------------------------------------


async def test_entering_while_nobody_answers_is_an_error_that_shows_no_password() -> None:
    (port,) = free_ports(1)
    kept_in = PostgresStore(f"postgresql://shop:s3cret@{HOST}:{port}/sagas")
    with pytest.raises(StoreUnavailableError, match=f"{HOST}:{port}/sagas: see that it runs") as caught:
        await kept_in.__aenter__()
    for text in (str(caught.value), repr(caught.value.__cause__), repr(kept_in)):
        assert "s3cret" not in text


@pytest.mark.parametrize(
    "bad",
    [
        "postgresql://shop:s3cret@host:port/sagas",
        "postgresql://shop:/s3cret@host/sagas",
        "postgresql://shop:9/s3cret@host/sagas",
        "postgresql://shop:s3cret@[::1/sagas",
        "postgresql://shop:s3cret%zz@host/sagas",
        "postgresql://shop:s3cret@host/sagas?no=such",
        "host=localhost password='s3cret",
        "amqp://shop:s3cret@host",
        "s3cret",
        "postgresql://shop:s3cret\0@host/sagas",
        "postgresql://shop:s3cret\ud800@host/sagas",
    ],
)
def test_a_url_that_cannot_be_read_is_an_error_that_shows_no_password(bad: str) -> None:
    with pytest.raises(StoreError, match=r"postgresql://user:password@host") as caught:
        PostgresStore(bad)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("schema", ["", "a\0b", "é" * 26])
def test_a_schema_that_cannot_be_is_refused(schema: str) -> None:
    with pytest.raises(StoreError, match="schema"):
        PostgresStore("postgresql://localhost/sagas", schema=schema)


async def test_a_server_that_refuses_connections_for_a_while_is_unavailable_until_then(
    private_postgres: PostgreSQL, url: str
) -> None:
    name = database(url)
    async with PostgresStore(url) as kept_in:
        saga = await kept_in.create(order())
        await do(
            private_postgres.url(),
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match=name):
                await kept_in.load(saga.id)
            with pytest.raises(StoreUnavailableError, match=name):
                await apply(kept_in, saga, reserved())
        with pytest.raises(StoreUnavailableError, match=name):
            await PostgresStore(url).__aenter__()
        await do(private_postgres.url(), f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        saga = await apply(kept_in, saga, reserved())
        same(await kept_in.load(saga.id), saga)


async def test_too_many_connections_are_an_error_that_says_so(url: str, user: str) -> None:
    await do(url, f"ALTER ROLE {user} CONNECTION LIMIT 1")
    async with PostgresStore(url.replace("postgres@", f"{user}@")) as kept_in:
        saga = await kept_in.create(order())  # by the first connection, which there is
        with pytest.raises(StoreUnavailableError, match=r"max_connections.*too many connections"):
            await kept_in.load(saga.id)
        with pytest.raises(StoreUnavailableError, match=r"max_connections.*too many connections"):
            await PostgresStore(url.replace("postgres@", f"{user}@")).__aenter__()
        await do(url, f"ALTER ROLE {user} CONNECTION LIMIT 9")
        same(await kept_in.load(saga.id), saga)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("53100", "disk is full"),
        ("53200", "memory"),
        ("53400", "short of resources"),
        ("55P03", "lock"),
        ("57014", "too slow"),
        ("57P03", "starting up"),
        ("58030", "its log"),
        ("25006", "primary"),
        ("08006", "try again"),
    ],
)
async def test_what_passes_is_unavailable_and_says_what_to_do(url: str, code: str, says: str) -> None:
    async with PostgresStore(url) as kept_in:
        saga = await kept_in.create(order())
        await do(url, *refusing(code, times=1))
        with pytest.raises(StoreUnavailableError, match=says):
            await apply(kept_in, saga, reserved())
        same(await kept_in.load(saga.id), saga)
        await apply(kept_in, saga, reserved())


async def test_what_does_not_pass_is_not_called_unavailable(url: str, user: str) -> None:
    await do(url, f"REVOKE INSERT ON saga.history FROM {user}")
    async with PostgresStore(url.replace("postgres@", f"{user}@")) as kept_in:
        with pytest.raises(StoreError, match="grant") as caught:
            await kept_in.create(order())
        assert type(caught.value) is StoreError


async def test_a_server_that_takes_no_writes_is_unavailable_until_it_does(url: str) -> None:
    name = database(url)
    async with PostgresStore(url) as kept_in:
        saga = await kept_in.create(order())
    await do(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    async with PostgresStore(url) as kept_in:
        same(await kept_in.load(saga.id), saga)
        with pytest.raises(StoreUnavailableError, match="primary"):
            await apply(kept_in, saga, reserved())
        # As when another server has become the primary: it is found without opening the store again.
        await do(url.replace(name, "postgres"), f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await apply(kept_in, saga, reserved())


async def test_a_lock_of_somebody_elses_is_not_waited_for_for_ever(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LOCK_TIMEOUT", 0.2)
    async with PostgresStore(url) as kept_in:
        saga = await kept_in.create(order())
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE saga.history")
            with pytest.raises(StoreUnavailableError, match="lock"):
                await apply(kept_in, saga, reserved())
            connection.rollback()
        await apply(kept_in, saga, reserved())


async def test_a_statement_has_its_time(url: str) -> None:
    async with PostgresStore(url, timeout=0.2) as kept_in:
        saga = await kept_in.create(order())
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE saga.history")
            with pytest.raises(StoreUnavailableError, match="too slow"):
                await apply(kept_in, saga, reserved())
            connection.rollback()
        await apply(kept_in, saga, reserved())


async def test_a_server_that_answers_no_more_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PATIENCE", 0.2)
    monkeypatch.setattr(store, "GUARD_EVERY", 0.05)
    async with PostgresStore(url, timeout=0.2) as kept_in:
        saga = await kept_in.create(order())
        await kept_in.load(saga.id)
        with psycopg.connect(url) as connection:
            processes = [
                pid
                for (pid,) in connection.execute(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid()"
                )
            ]
        try:
            for process in processes:
                os.kill(process, signal.SIGSTOP)
            with anyio.fail_after(DEADLINE):
                with pytest.raises(StoreUnavailableError, match="lost"):
                    await apply(kept_in, saga, reserved())
                same(await kept_in.load(saga.id), saga)  # through a connection to a process that runs
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)


# In each other's way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_a_transaction_that_collides_with_others_is_done_again(url: str, code: str) -> None:
    async with PostgresStore(url) as kept_in:
        sagas = [await kept_in.create(order()) for _ in range(5)]
        await do(url, *refusing(code, times=3))
        async with anyio.create_task_group() as tasks:
            for saga in sagas:
                tasks.start_soon(apply, kept_in, saga, reserved())
        for saga in sagas:
            assert (await kept_in.load(saga.id)).revision == 1


async def test_a_transaction_that_collides_for_ever_is_given_up(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "TRIES", 2)
    async with PostgresStore(url) as kept_in:
        saga = await kept_in.create(order())
        await do(url, *refusing("40001", times=3))
        with pytest.raises(StoreUnavailableError, match="each other's way"):
            await apply(kept_in, saga, reserved())
        await apply(kept_in, saga, reserved())


SIDE_BY_SIDE = [case for case in CASES if case.__name__.startswith(("of_many", "many_who", "sagas_do_not"))]


@pytest.mark.parametrize("case", SIDE_BY_SIDE, ids=lambda case: case.__name__)
async def test_a_database_that_is_serializable_by_default_changes_nothing(url: str, case: Case) -> None:
    await do(url, f"ALTER DATABASE {database(url)} SET default_transaction_isolation = 'serializable'")
    async with PostgresStore(url) as kept_in:
        await run_case(case, kept_in)


async def test_stores_that_commit_to_the_same_sagas_at_once_get_by_without_errors(url: str) -> None:
    async with PostgresStore(url) as one, PostgresStore(url) as other:
        sagas = [await one.create(order()) for _ in range(20)]
        conflicts = 0

        async def push(kept_in: PostgresStore, saga_id: str) -> None:
            nonlocal conflicts
            for _ in range(20):
                saga = await kept_in.load(saga_id)
                event = (ResumeRequested if saga.suspended else SuspendRequested)("", AT)
                try:
                    await kept_in.commit(transition(saga, event).saga, event)
                except ConflictError:
                    conflicts += 1

        async with anyio.create_task_group() as tasks:
            for kept_in in (one, other):
                for saga in sagas:
                    tasks.start_soon(push, kept_in, saga.id)
        for saga in sagas:
            found = await one.load(saga.id)
            same(fold(*await other.history(saga.id)), found)
        revisions = [(await one.load(saga.id)).revision for saga in sagas]
        assert sum(revisions) == 2 * 20 * 20 - conflicts
        assert conflicts > 0
