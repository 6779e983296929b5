"""Sagas that are started inside a transaction of the user's own: they come to be with it, or not at all."""

import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import anyio.to_thread
import psycopg
import pytest
import sqlalchemy
from msgspec import Struct
from sqlalchemy import pool
from ulid import ULID

from saga_amqp import (
    Manager,
    MemoryStore,
    NoTransactionError,
    Options,
    Query,
    Saga,
    StoreError,
    UnsupportedConnectionError,
)
from saga_amqp.stores.sqlite import upgrade
from saga_core import DefinitionError
from tests.barrier.banks import ASYNC_KINDS, KINDS, PATIENCE, sqlalchemy_url
from tests.engine.world import steps
from tests.histories import check_histories
from tests.postgres import External, PostgreSQL

from .customers import MOMENTS, Life, options, place_order, place_order_async
from .durable import Place, counted
from .generations import run_generations
from .world import RabbitWorld

MOMENT = 5.0
"""Seconds: what happens at once takes less, on a busy machine too."""

FAR = 60.0
"""Seconds between sweeps that are not to be what helps."""


class Regret(Exception):
    pass


class Shop(Struct, frozen=True):
    """A database with orders, and the sagas beside them."""

    place: Place

    @property
    def url(self) -> str:
        return self.place.url

    def ask(self, sql: str) -> list[Any]:
        if self.url.startswith("postgresql://"):
            with psycopg.connect(self.url) as connection:
                cursor = connection.execute(sql.encode())
                return cursor.fetchall() if cursor.description else []
        with closing(sqlite3.connect(self.url, timeout=PATIENCE)) as connection, connection:
            return connection.execute(sql).fetchall()

    def orders(self) -> list[str]:
        return [order for (order,) in self.ask("SELECT id FROM orders ORDER BY id")]


def new_shop(url: str) -> Shop:
    """Open a shop in an empty database. In a file the tables of sagas come first: it has to be one of sagas."""
    shop = Shop(Place(url, "saga"))
    if not url.startswith("postgresql://"):
        upgrade(url)
    shop.ask("CREATE TABLE orders (id TEXT)")
    return shop


@pytest.fixture(scope="module")
def postgres_shop(postgres: PostgreSQL | External) -> Iterator[Shop]:
    """Shared: no order meets another."""
    name = f"saga_test_{ULID()}".lower()
    postgres.create_database(name)
    yield new_shop(postgres.url(name))
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def sqlite_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return new_shop(str(tmp_path_factory.mktemp("shop") / "shop.db"))


@pytest.fixture
def shop_of(request: pytest.FixtureRequest) -> Callable[[str], Shop]:
    def shop_of(dialect: str) -> Shop:
        shop: Shop = request.getfixturevalue("sqlite_shop" if dialect == "sqlite" else "postgres_shop")
        return shop

    return shop_of


DIALECTS = ["sqlite", "postgresql"]

PLAIN = {"sqlite": "sqlite3", "postgresql": "psycopg"}


async def in_a_thread(manager: Manager, kind: str, url: str, order: str, *more: Any) -> Saga:
    return await anyio.to_thread.run_sync(partial(place_order, manager, kind, url, order, *more))


def regret(moment: str) -> None:
    if moment == "just before COMMIT":
        raise Regret


# Commit and rollback -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_order_and_saga_are_committed_or_rolled_back_together(
    kind: str, shop_of: Callable[[str], Shop], rabbit: RabbitWorld, unique: str
) -> None:
    await check_together(kind, shop_of(KINDS[kind][0]), rabbit, unique, in_a_thread)


# The drivers know no other event loop.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", ASYNC_KINDS)
async def test_so_they_are_on_asynchronous_connections(
    kind: str, shop_of: Callable[[str], Shop], rabbit: RabbitWorld, unique: str
) -> None:
    await check_together(kind, shop_of(ASYNC_KINDS[kind][0]), rabbit, unique, place_order_async)


async def check_together(kind: str, shop: Shop, rabbit: RabbitWorld, order: str, place: Any) -> None:
    before = shop.orders()
    async with shop.place.open() as store, rabbit.running(store=store) as manager:
        with pytest.raises(Regret):
            await place(manager, kind, shop.url, order, regret)
        assert shop.orders() == before
        tagged = Query(tags={"order": order})
        assert (await manager.find(tagged)).sagas == ()
        saga = await place(manager, kind, shop.url, order)
        assert shop.orders() == sorted([*before, order])
        rested = await manager.wait(saga.id)
        assert rested.is_completed
        assert rested.context == {"order": order}
        assert (await manager.find(tagged)).sagas == (rested,)
        # Who has its key gets the saga as it is by now, in whatever transaction.
        assert await place(manager, kind, shop.url, order) == rested
        await check_histories(store)
    assert rabbit.calls == ["do.a", "do.b"]
    await rabbit.until_ready()


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_key_holds_within_the_transaction_that_it_came_with(
    dialect: str, shop_of: Callable[[str], Shop], rabbit: RabbitWorld, unique: str
) -> None:
    shop = shop_of(dialect)

    def twice(manager: Manager) -> list[Saga]:
        with KINDS[PLAIN[dialect]][1](shop.url) as desk:
            return [
                manager.start_in(desk.connection, name, steps("a"), options=options(unique))
                for name in ("order", "order", "another")
            ]

    async with shop.place.open() as store, Manager(None, store, rabbit.config()) as manager:
        first, again, another = await anyio.to_thread.run_sync(twice, manager)
        assert first == again
        assert another.id != first.id
        assert await manager.get(first.id) == first
        assert len((await manager.find(Query(tags={"order": unique}))).sagas) == 2
        for saga in (first, another):
            await store.delete(saga.id)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_start_that_is_put_off_is_found_by_its_time(
    dialect: str, shop_of: Callable[[str], Shop], rabbit: RabbitWorld
) -> None:
    """Nothing is outstanding when it is stored, so nothing is noted."""
    shop = shop_of(dialect)
    async with shop.place.open() as store, rabbit.running(store=store) as manager:
        at = time.time() + 0.3
        with KINDS[PLAIN[dialect]][1](shop.url) as desk:
            saga = manager.start_in(desk.connection, "order", steps("a"), options=Options(start_at=at))
        rested = await manager.wait(saga.id)
    assert rested.is_completed
    assert rested.updated_at >= at


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_that_it_was_put_off_is_told_at_once_where_states_are_told(
    dialect: str, shop_of: Callable[[str], Shop], rabbit: RabbitWorld
) -> None:
    shop = shop_of(dialect)
    config = rabbit.config(lifecycle_events=True)
    async with shop.place.open() as store, Manager(None, store, config) as manager:
        now = time.time()
        with KINDS[PLAIN[dialect]][1](shop.url) as desk:
            later = Options(start_at=now + FAR)
            saga = manager.start_in(desk.connection, "order", steps("a"), options=later)
        assert (saga.id, 0) in await store.claim_unpublished(now, now + FAR, 100)
        await manager.cancel(saga.id)


# When an engine learns of it ---------------------------------------------------------------------------------------


@asynccontextmanager
async def engine_elsewhere(shop: Shop, rabbit: RabbitWorld, **changes: Any) -> AsyncIterator[Manager]:
    """Give a manager without a broker, while an engine runs on a store object of its own, and has swept once."""
    async with (
        shop.place.open() as theirs,
        shop.place.open() as ours,
        rabbit.running(store=theirs, **changes) as engine,
        Manager(None, ours, rabbit.config()) as manager,
    ):
        await engine.wait((await engine.start("warm", steps("c"))).id)
        yield manager


async def test_an_engine_on_postgres_goes_on_at_once_after_the_commit(
    postgres_shop: Shop, rabbit: RabbitWorld, unique: str
) -> None:
    async with engine_elsewhere(postgres_shop, rabbit, sweep_interval=FAR) as manager:
        with psycopg.connect(postgres_shop.url) as connection:
            saga = manager.start_in(connection, "order", steps("a", "b"))
            await anyio.sleep(0.3)
            assert rabbit.calls == ["do.c"]
        with anyio.fail_after(MOMENT):
            assert (await manager.wait(saga.id)).is_completed


async def test_an_engine_on_sqlite_goes_on_after_a_hint_in_its_process(
    sqlite_shop: Shop, rabbit: RabbitWorld, unique: str
) -> None:
    async with sqlite_shop.place.open() as store, rabbit.running(store=store, sweep_interval=FAR) as manager:
        await manager.wait((await manager.start("warm", steps("c"))).id)
        saga = await in_a_thread(manager, "sqlite3", sqlite_shop.url, unique)
        await anyio.sleep(0.3)
        assert rabbit.calls == ["do.c"]
        manager.hint()
        with anyio.fail_after(MOMENT):
            assert (await manager.wait(saga.id)).is_completed


async def test_an_engine_elsewhere_on_sqlite_goes_on_with_its_next_sweep(
    sqlite_shop: Shop, rabbit: RabbitWorld, unique: str
) -> None:
    async with engine_elsewhere(sqlite_shop, rabbit, sweep_interval=0.5) as manager:
        saga = await in_a_thread(manager, "sqlite3", sqlite_shop.url, unique)
        with anyio.fail_after(MOMENT):
            assert (await manager.wait(saga.id)).is_completed


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite3", "psycopg", "sqlalchemy, SQLite", "sqlalchemy, PostgreSQL"])
async def test_a_connection_that_commits_each_statement_is_refused(
    kind: str, shop_of: Callable[[str], Shop], rabbit: RabbitWorld
) -> None:
    shop = shop_of("sqlite" if "sqlite" in kind.lower() else "postgresql")
    connection: Any
    if kind == "sqlite3":
        connection = sqlite3.connect(shop.url, isolation_level=None)
    elif kind == "psycopg":
        connection = psycopg.connect(shop.url, autocommit=True)
    else:
        engine = sqlalchemy.create_engine(sqlalchemy_url(shop.url, "pysqlite"), poolclass=pool.NullPool)
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    async with shop.place.open() as store, Manager(None, store, rabbit.config()) as manager:
        before = await manager.count()
        with closing(connection), pytest.raises(NoTransactionError, match="Open one first"):
            manager.start_in(connection, "order", steps("a"))
        assert await manager.count() == before


# The drivers know no other event loop.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", ["aiosqlite", "psycopg"])
async def test_so_is_an_asynchronous_one(
    kind: str, shop_of: Callable[[str], Shop], rabbit: RabbitWorld
) -> None:
    shop = shop_of("sqlite" if kind == "aiosqlite" else "postgresql")
    connecting: Any = (
        aiosqlite.connect(shop.url, isolation_level=None)
        if kind == "aiosqlite"
        else await psycopg.AsyncConnection.connect(shop.url, autocommit=True)
    )
    async with (
        connecting as connection,
        shop.place.open() as store,
        Manager(None, store, rabbit.config()) as manager,
    ):
        before = await manager.count()
        with pytest.raises(NoTransactionError, match="Open one first"):
            await manager.start_in_async(connection, "order", steps("a"))
        assert await manager.count() == before


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_connection_to_another_kind_of_database_is_refused(
    dialect: str, shop_of: Callable[[str], Shop], rabbit: RabbitWorld
) -> None:
    there, here = (shop_of(one) for one in (dialect, next(one for one in DIALECTS if one != dialect)))
    async with here.place.open() as store, Manager(None, store, rabbit.config()) as manager:
        with (
            KINDS[PLAIN[dialect]][1](there.url) as desk,
            pytest.raises(StoreError, match=f"connection is to {dialect}, and the store is in"),
        ):
            manager.start_in(desk.connection, "order", steps("a"))


# aiosqlite knows no other event loop.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_store_in_memory_shares_no_transaction(sqlite_shop: Shop, rabbit: RabbitWorld) -> None:
    async with Manager(None, MemoryStore(), rabbit.config()) as manager:
        with (
            KINDS["sqlite3"][1](sqlite_shop.url) as desk,
            pytest.raises(StoreError, match=r"MemoryStore is in no database.*use `start`"),
        ):
            manager.start_in(desk.connection, "order", steps("a"))
        async with ASYNC_KINDS["aiosqlite"][1](sqlite_shop.url) as desk:
            with pytest.raises(StoreError, match="MemoryStore is in no database"):
                await manager.start_in_async(desk.connection, "order", steps("a"))


async def test_what_cannot_be_a_saga_or_a_connection_is_refused_before_anything_is_written(
    sqlite_shop: Shop, rabbit: RabbitWorld
) -> None:
    async with sqlite_shop.place.open() as store, Manager(None, store, rabbit.config()) as manager:
        with KINDS["sqlite3"][1](sqlite_shop.url) as desk:
            with pytest.raises(DefinitionError, match="no handler is registered"):
                manager.start_in(desk.connection, "order", steps("unheard-of"))
            assert not desk.connection.in_transaction
        for thing in (object(), None):
            with pytest.raises(UnsupportedConnectionError):
                manager.start_in(thing, "order", steps("a"))
            with pytest.raises(UnsupportedConnectionError):
                await manager.start_in_async(thing, "order", steps("a"))


# Customers that are killed -----------------------------------------------------------------------------------------


def kinds_on(backend: str, dialect: str) -> list[str]:
    kinds = KINDS | ASYNC_KINDS if backend == "asyncio" else KINDS
    return [kind for kind, (spoken, _) in kinds.items() if spoken == dialect]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_customer_killed_at_any_moment_leaves_order_and_saga_or_neither(
    dialect: str,
    rabbit: RabbitWorld,
    anyio_backend_name: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    url = str(tmp_path / "shop.db") if dialect == "sqlite" else request.getfixturevalue("postgres_url")
    shop = new_shop(url)
    async with shop.place.open():
        pass  # the tables are there before anybody is killed
    kinds = kinds_on(anyio_backend_name, dialect)
    at_moments = [Life(shop.place, f"{kind} {moment}", kind, moment) for kind in kinds for moment in MOMENTS]
    at_random = [
        Life(shop.place, f"{kind} {number}", kind, seconds=random.uniform(0.02, 0.2))
        for number in range(3)
        for kind in kinds
    ]
    calls = tmp_path / "calls"
    engine = Life(shop.place, url=rabbit.url, prefix=rabbit.prefix, calls=str(calls))
    generations = [at_moments, at_random, [engine]]
    *killed, ended = await run_generations("customers", anyio_backend_name, generations)
    assert {status for generation in killed for status in generation} == {-9}
    assert ended == [0]
    async with shop.place.open() as store:
        sagas = await check_histories(store)
    orders = sorted(str(saga.context["order"]) for saga in sagas)
    assert orders == shop.orders()
    assert {f"{kind} just after COMMIT.0" for kind in kinds} <= set(orders)
    assert len(orders) > len(kinds)
    never = [f"{life.order}.0" for life in at_moments if life.moment != "just after COMMIT"]
    assert not set(never) & set(orders)
    assert all(saga.is_completed for saga in sagas)
    assert counted(calls) == {"do.a": len(sagas), "do.b": len(sagas)}
    assert rabbit.ready() == [0, 0, 0, 0]
