"""`saga run` as a container runs it: a process that is told to end by signals, and others that go on from there."""

import json
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import SocketAttribute

from saga_amqp.service import Status
from saga_core import StepState
from tests.faults.proxy import proxy_to
from tests.faults.world import DEADLINE, POLL_INTERVAL
from tests.histories import check_histories

from . import app as application
from .engines import Engine, Place


@pytest.fixture
def place(amqp_url: str, unique: str, tmp_path: Path) -> Place:
    return Place(amqp_url, f"sqlite:///{tmp_path}/sagas.db", unique)


@pytest.fixture
def backend(anyio_backend: tuple[str, dict[str, bool]]) -> str:
    """The event loop of the engine, which is that of the test."""
    name, options = anyio_backend
    return "uvloop" if options.get("use_uvloop") else name


@pytest.mark.uvloop
async def test_a_running_handler_finishes_and_what_it_brings_is_stored_published_and_acknowledged(
    place: Place, backend: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with place.manager() as manager:
        async with Engine.start(place, backend, f"wait {gate}") as engine:
            await engine.until_logged("takes messages")
            saga_id = await place.start(manager, "a", "b")
            assert await engine.until("handling") == "a"
            engine.send(signal.SIGTERM)
            await engine.until_logged(
                "SIGTERM: no new messages; running handlers, 1 of them, have 10 s to finish"
            )
            gate.touch()
            assert await engine.ended() == Status.IN_ORDER, engine.log
            assert "Ended in order" in engine.log
        saga = await manager.get(saga_id)
        assert [step.state for step in saga.steps] == [StepState.COMPLETED, StepState.STARTED]
        assert place.ready() == [1, 0, 0, 0], "the next step, and nothing that would be done twice"
        async with Engine.start(place, backend) as successor:
            assert await successor.until("handling") == "b"
            assert (await manager.wait(saga_id)).is_completed
            successor.send(signal.SIGINT)
            assert await successor.ended() == Status.IN_ORDER, successor.log
        assert place.ready() == [0, 0, 0, 0]


async def test_what_does_not_finish_in_time_runs_again_elsewhere(
    postgres_url: str, amqp_url: str, unique: str, backend: str
) -> None:
    from saga_amqp.stores import postgres

    postgres.upgrade(postgres_url)
    place = Place(amqp_url, postgres_url, unique)
    async with place.manager() as manager:
        async with Engine.start(place, backend, "hang", "--grace-period", "0.1") as engine:
            await engine.until_logged("takes messages")
            saga_id = await place.start(manager, "a")
            await engine.until("handling")
            engine.send(signal.SIGTERM)
            assert await engine.ended() == Status.UNFINISHED, engine.log
            assert f"Not finished in 0.1 s, and to run again elsewhere: do.a of saga {saga_id}" in engine.log
        await place.until_ready(1)
        async with Engine.start(place, backend) as successor:
            assert await successor.until("handling") == "a"
            assert (await manager.wait(saga_id)).is_completed
            successor.send(signal.SIGTERM)
            assert await successor.ended() == Status.IN_ORDER, successor.log
        assert place.ready() == [0, 0, 0, 0]


async def test_without_a_store_it_is_a_participant(place: Place, backend: str) -> None:
    async with (
        Engine.start(place, backend, "work", name="participant", SAGA_STORE="none") as participant,
        place.manager(runs=application.orchestrator) as manager,
        anyio.create_task_group() as tasks,
    ):
        await participant.until_logged("takes messages")
        await tasks.start(manager.run)
        saga_id = await place.start(manager, "a", "b")
        assert (await manager.wait(saga_id)).is_completed
        participant.send(signal.SIGTERM)
        assert await participant.ended() == Status.IN_ORDER, participant.log
        manager.stop()


@pytest.mark.parametrize("how", ["hang", "cling"])
async def test_a_second_signal_ends_at_once_whatever_a_handler_does(
    place: Place, backend: str, how: str
) -> None:
    async with place.manager() as manager:
        async with Engine.start(place, backend, how, SAGA_GRACE_PERIOD="600") as engine:
            await engine.until_logged("takes messages")
            saga_id = await place.start(manager, "a")
            await engine.until("handling")
            engine.send(signal.SIGTERM)
            await engine.until_logged("no new messages")
            engine.send(signal.SIGINT)
            assert await engine.ended() == Status.CUT_OFF, engine.log
        await place.until_ready(1)
        assert not (await manager.get(saga_id)).at_rest


async def test_signals_end_also_an_engine_whose_event_loop_is_blocked(place: Place, backend: str) -> None:
    async with place.manager() as manager:
        async with Engine.start(place, backend, "block") as engine, anyio.create_task_group() as tasks:
            await engine.until_logged("takes messages")
            await place.start(manager, "a")
            await engine.until("handling")

            async def insist() -> None:
                while True:  # one that comes just before the system call that blocks does not interrupt it
                    engine.send(signal.SIGTERM)
                    await anyio.sleep(POLL_INTERVAL)

            tasks.start_soon(insist)
            assert await engine.ended() == Status.CUT_OFF, engine.log
            tasks.cancel_scope.cancel()
        await place.until_ready(1)


async def test_a_signal_before_anything_has_begun_ends_it(place: Place, backend: str) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener:
        place.amqp_url = f"amqp://guest:guest@127.0.0.1:{port}/"
        async with Engine.start(place, backend) as engine:
            await engine.until_logged("begins")
            engine.send(signal.SIGTERM)
            assert await engine.ended() == Status.IN_ORDER, engine.log


async def test_an_error_of_the_application_ends_it_and_is_in_the_log(place: Place, backend: str) -> None:
    async with place.manager() as manager:
        async with Engine.start(place, backend, name="failing") as engine:
            await engine.until_logged("takes messages")
            await place.start(manager, "a")
            assert await engine.ended() == Status.FAILED
        assert "ValueError: a defect of the application" in engine.log
        await place.until_ready(1)


async def test_the_health_file_says_how_the_engine_is(place: Place, backend: str, tmp_path: Path) -> None:
    file, gate = tmp_path / "health", tmp_path / "gate"
    file.write_text("left by another")
    flags = ("--health-file", str(file), "--health-interval", "0.05")
    url = place.amqp_url

    async def until(state: str, **more: object) -> dict[str, Any]:
        with anyio.fail_after(DEADLINE):
            while True:
                try:
                    health: dict[str, Any] = json.loads(file.read_bytes())
                except (OSError, ValueError):
                    health = {}
                if health.get("state") == state and {**health, **more} == health:
                    return health
                await anyio.sleep(POLL_INTERVAL)

    async with place.manager() as manager, AsyncExitStack() as stack:
        async with proxy_to(url) as way:
            place.amqp_url, port = way.url, urlsplit(way.url).port or 0
            engine = await stack.enter_async_context(Engine.start(place, backend, f"wait {gate}", *flags))
            running = await until("running", waits_for=[], handlers=0)
        # The way is closed now, and nobody answers.
        waiting = await until("waiting", waits_for=["broker"])
        assert waiting["since"] == running["since"] < waiting["at"]
        later = await until("waiting")
        while later["at"] == waiting["at"]:
            later = await until("waiting")
        async with proxy_to(url, port):
            await until("running")
            saga_id = await place.start(manager, "a")
            await until("running", handlers=1)
            engine.send(signal.SIGINT)
            await until("stopping", handlers=1)
            gate.touch()
            assert await engine.ended() == Status.IN_ORDER, engine.log
        assert not any("health" in name for name in os.listdir(tmp_path))
        assert (await manager.get(saga_id)).is_completed
        await check_histories(manager._store)
