"""The barrier within sagas, on both event loops: each effect once, whatever dies, and none after it was undone."""

import threading
from collections import Counter
from typing import Any

import anyio
import pytest

from saga_amqp import Moment, Point, RefusedByBarrierError, Saga, Step, StepError
from tests.engine.world import World, run_alone, steps

from .banks import Bank

DEADLINE = 30.0


class Crash(Exception):
    """The process ends here, as far as this engine is concerned."""


def ledger(bank: Bank, saga: Saga) -> Counter[tuple[str, str]]:
    rows = bank.ask(f"SELECT step, operation FROM ledger WHERE saga = '{saga.id}'")
    return Counter((step, operation) for step, operation in rows)


def world_of(bank: Bank) -> World:
    """A world whose handlers write to a bank's ledger, and whose step `c` fails."""
    world = World()
    world.deadline = DEADLINE

    async def handle(saga: Saga, step: Step[Any]) -> object:
        answer = StepError("no", "no") if step.name == "c" else {"by": step.name}
        return await anyio.to_thread.run_sync(bank.handle, saga, step, answer)

    for letter in "abc":
        world.replace(f"do.{letter}", handle)
        world.replace(f"undo.{letter}", handle)
    return world


@pytest.mark.parametrize("at", range(1, 6))
async def test_a_handler_that_runs_again_after_a_crash_takes_effect_once(plain_bank: Bank, at: int) -> None:
    """The process dies when a handler has committed, and before the saga has."""
    world = world_of(plain_bank)

    def die(moment: Moment) -> None:
        world.watch(moment)
        if moment.point is Point.HANDLER_ENDED and world.watch.count(Point.HANDLER_ENDED) == at:
            raise Crash

    with anyio.fail_after(DEADLINE):
        async with world.manager(observer=die) as manager:

            async def during() -> None:
                await manager.wait((await manager.start("s", steps("a", "b", "c"))).id)

            with pytest.raises(Crash):
                await run_alone(manager, during)
    saga = await world.finish(world.watch.moments[0].saga_id)
    assert saga.is_compensated
    assert len(world.calls) == 6, "one of the five ran twice"
    assert [step.output for step in saga.steps] == [{"by": "a"}, {"by": "b"}, {}]
    assert ledger(plain_bank, saga) == Counter(
        [(step, operation) for step in "ab" for operation in ("execute", "compensate")]
    )


async def test_an_attempt_that_goes_on_after_it_timed_out_is_refused(plain_bank: Bank) -> None:
    """Nobody can stop a thread: its handler is given up, its step is undone, and then it comes to the database."""
    world = world_of(plain_bank)
    go_on, ended, refused = threading.Event(), threading.Event(), list[Exception]()

    def work(saga: Saga, step: Step[Any]) -> None:
        try:
            assert go_on.wait(DEADLINE)
            plain_bank.handle(saga, step)
        except Exception as error:
            refused.append(error)
        finally:
            ended.set()

    async def slow(saga: Saga, step: Step[Any]) -> None:
        await anyio.to_thread.run_sync(work, saga, step, abandon_on_cancel=True)

    world.replace("do.a", slow)
    async with world.running() as manager:
        step = Step(name="a", action="do.a", compensation="undo.a", timeout=0.05)
        saga = await manager.wait((await manager.start("s", [step])).id)
    assert saga.is_compensated
    assert world.calls == ["do.a", "undo.a"]
    go_on.set()
    assert await anyio.to_thread.run_sync(ended.wait, DEADLINE)
    assert [type(error) for error in refused] == [RefusedByBarrierError]
    assert not ledger(plain_bank, saga)
