"""Messages that cannot be handled, on RabbitMQ: those that kill their engines, and all the others."""

import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from saga_amqp import AmqpTransport, Moment, Options, Point, Saga, Step
from tests.engine.poisoned import (
    LIMIT,
    LIMITS,
    POISONED,
    code,
    errors,
    meet,
    ordered,
    publish,
    take,
    until_buried,
)
from tests.engine.world import nothing, steps
from tests.histories import check_histories

from .durable import Place, written_down
from .generations import run_generations
from .killers import Life
from .proxy import proxy_to
from .world import RabbitWorld

KILLED = -9


@pytest.mark.parametrize("poisoned", POISONED)
async def test_a_message_that_cannot_be_handled_is_a_dead_letter_and_its_saga_is_told(
    rabbit: RabbitWorld, poisoned: str, caplog: pytest.LogCaptureFixture
) -> None:
    await meet(rabbit, POISONED[poisoned], "execute", caplog)


@pytest.mark.parametrize("poisoned", ["later version", "too often for the broker"])
async def test_so_it_is_with_compensations(
    rabbit: RabbitWorld, poisoned: str, caplog: pytest.LogCaptureFixture
) -> None:
    await meet(rabbit, POISONED[poisoned], "compensate", caplog)


# Nowhere to go, and no way there -----------------------------------------------------------------------------------


async def test_sagas_are_told_that_nobody_takes_what_they_ask_for(
    rabbit: RabbitWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """From the start, from a step's result and from a timer; and what else there is goes on."""

    def far(name: str) -> Step[Any]:
        return Step(name=name, action=f"far.{name}", compensation=f"undo.{name}")

    async with rabbit.running(remote=("far.*",)) as manager:
        good = [await manager.start("s", steps("c", "d")) for _ in range(20)]
        sagas = [
            await manager.start("s", [far("a")]),
            await manager.start("s", [*steps("b"), far("a")]),
            await manager.start("s", [far("a")], options=Options(start_at=time.time() + 0.1)),
        ]
        for saga in sagas:
            saga = await manager.wait(saga.id)
            assert saga.is_compensated
            assert code(saga, "a") == "unroutable"
        for saga in good:
            assert (await manager.wait(saga.id)).is_completed
    said = errors(caplog)
    assert len(said) == 3
    assert all(any(saga.id in line for line in said) for saga in sagas)
    await rabbit.until_ready()


async def test_a_dead_letter_is_not_lost_with_the_connection(rabbit: RabbitWorld) -> None:
    """Its burial is on the way when the connection is cut: it is buried at least once, and its saga told once."""
    saga, command = await ordered(rabbit, "execute")
    message = rabbit.config().message(command)
    await publish(rabbit, replace(message, body=POISONED["later version"].spoil(message.body)))
    async with proxy_to(rabbit.url) as proxy:
        cut = False

        def observe(moment: Moment) -> None:
            nonlocal cut
            if moment.point is Point.COMMITTED and not cut:
                cut = True
                proxy.cut()

        transport = AmqpTransport(proxy.url)
        async with rabbit.running(transport=transport, observer=observe, **LIMITS) as manager:
            saga = await manager.wait(saga.id)
            await until_buried(manager)
    assert cut
    assert saga.is_compensated
    assert saga.revision == 2
    assert {letter.saga for letter in await rabbit.letters()} == {saga.id}


async def test_what_the_broker_gives_up_of_another_service_is_told_by_an_orchestrator(
    rabbit: RabbitWorld,
) -> None:
    """Whoever takes it there dies over it, in whatever language."""
    elsewhere = rabbit.config(
        step_queue="far.steps",
        compensate_queue="far.compensate",
        step_handlers={"far.a": nothing},
        compensation_handlers={},
        **LIMITS,
    )
    async with AmqpTransport(rabbit.url) as transport:
        await transport.declare(elsewhere.topology())
    asked = [*steps("b"), Step(name="a", action="far.a")]
    async with rabbit.running(remote=("far.*",), **LIMITS) as manager:
        saga = await manager.start("s", asked)
        await take(rabbit, "far.steps", LIMIT + 1)
        saga = await manager.wait(saga.id)
        await until_buried(manager)
        assert manager.dead_lettered() == {"delivered_too_often": 1}
    assert saga.is_compensated
    assert code(saga, "a") == "delivered_too_often"
    assert rabbit.calls == ["do.b", "undo.b"]
    (letter,) = await rabbit.letters()
    assert (letter.queue, letter.saga, letter.step) == (f"{rabbit.prefix}.far.steps", saga.id, "a")


# Engines that are killed --------------------------------------------------------------------------------------------


async def started(rabbit: RabbitWorld, place: Place, limit: int, harmless: int = 0) -> Saga:
    """Start a saga whose first step kills whoever runs it, amid others; nobody runs them yet."""
    async with (
        place.open() as store,
        rabbit.manager(store=store, observer=None, delivery_limit=limit) as manager,
    ):
        for number in range(harmless + 1):
            started = await manager.start(
                "s", steps("b", "d") if number == harmless // 2 else steps("c", "e")
            )
            if number == harmless // 2:
                killer = started
    return killer


@pytest.mark.parametrize("reading", [False, True], ids=["by its handler", "by being read"])
async def test_a_message_that_kills_its_engines_is_given_up_and_its_saga_undone(
    rabbit: RabbitWorld, reading: bool, tmp_path: Path, anyio_backend_name: str
) -> None:
    """Where no engine lives to count, the broker gives it up, and it is an orchestrator that tells the saga."""
    place, calls, limit = Place(str(tmp_path / "sagas.db")), tmp_path / "calls", 2
    saga = await started(rabbit, place, limit)
    life = Life(rabbit.url, rabbit.prefix, place, str(calls), limit, reading)
    deaths = limit + reading
    ended = await run_generations("killers", anyio_backend_name, [[life]] * (deaths + 1))
    assert ended == [[KILLED]] * deaths + [[0]]
    async with place.open() as store:
        await check_histories(store)
        saga = await store.load(saga.id)
    assert saga.is_compensated
    assert code(saga, "b") == "delivered_too_often"
    assert written_down(calls) == [*(["do.b"] * (0 if reading else deaths)), "undo.b"]
    (letter,) = await rabbit.letters()
    assert (letter.reason, letter.queue) == ("delivered_too_often", f"{rabbit.prefix}.saga.steps")
    assert (letter.saga, letter.step, letter.attempt) == (saga.id, "b", 1)
    assert letter.deliveries == (None if reading else limit + 1)
    await rabbit.until_ready(dead_letters=1)


async def test_who_was_in_hand_beside_a_message_that_kills_is_not_given_up_with_it(
    rabbit: RabbitWorld, tmp_path: Path, anyio_backend_name: str
) -> None:
    """They came back as often as it did, through no fault of their own."""
    place, calls, limit = Place(str(tmp_path / "sagas.db")), tmp_path / "calls", 4
    saga = await started(rabbit, place, limit, harmless=6)
    life = Life(rabbit.url, rabbit.prefix, place, str(calls), limit, False)
    ended = await run_generations("killers", anyio_backend_name, [[life]] * (limit + 1))
    assert ended == [[KILLED]] * limit + [[0]]
    async with place.open() as store:
        sagas = await check_histories(store)
    assert {one.id: one.is_completed for one in sagas} == {one.id: one.id != saga.id for one in sagas}
    assert len(sagas) == 7
    assert written_down(calls).count("do.b") == limit
    assert [letter.saga for letter in await rabbit.letters()] == [saga.id]
