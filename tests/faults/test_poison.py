"""Messages that cannot be handled, on RabbitMQ: those that kill their engines, and all the others."""

from pathlib import Path

import pytest

from saga_amqp import Saga
from tests.engine.poisoned import POISONED, meet
from tests.engine.world import steps
from tests.histories import check_histories

from .durable import Place, written_down
from .generations import run_generations
from .killers import Life
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
    error = saga.step("b").error
    assert error is not None
    assert error.code == "delivered_too_often"
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
