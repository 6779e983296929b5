"""A process with an engine that is killed at any point of its work, and what its successor makes of it.

The process kills itself, at the very point, like a machine that loses its power; the next one has its store and its
queues. What was committed stays, and the handler that brought it never runs again.
"""

from pathlib import Path

import pytest

from saga_amqp import Point, SagaState

from .durable import Place, check_histories, written_down
from .generations import run_generations
from .mortals import SCENES, Life, Scene
from .world import messages_ready

ON_POSTGRES = ["action", "compensation", "start", "timer", "manual operation"]


@pytest.mark.parametrize("scene", SCENES)
async def test_what_was_committed_counts_and_nothing_is_lost(
    scene: str, amqp_url: str, unique: str, tmp_path: Path, anyio_backend_name: str
) -> None:
    places = [Place(str(tmp_path / f"{number}.db")) for number in range(len(Point))]
    await play(scene, places, amqp_url, unique, tmp_path, anyio_backend_name)


@pytest.mark.parametrize("scene", ON_POSTGRES)
async def test_so_it_is_on_postgres(
    scene: str, amqp_url: str, unique: str, tmp_path: Path, anyio_backend_name: str, postgres_url: str
) -> None:
    places = [Place(postgres_url, f"s{number}") for number in range(len(Point))]
    await play(scene, places, amqp_url, unique, tmp_path, anyio_backend_name)


async def play(name: str, places: list[Place], url: str, prefix: str, directory: Path, backend: str) -> None:
    scene = SCENES[name]
    mortals = [
        Life(name, point, url, f"{prefix}.{number}", places[number], str(directory / f"calls{number}"))
        for number, point in enumerate(scene.points)
    ]
    successors = [Life(name, None, *life_parts(life)) for life in mortals]
    killed, successful = await run_generations("mortals", backend, [mortals, successors])
    assert dict(zip(scene.points, killed, strict=True)) == dict.fromkeys(scene.points, -9)
    assert dict(zip(scene.points, successful, strict=True)) == dict.fromkeys(scene.points, 0)
    seen = {life.point: await what_is_left(life) for life in mortals}
    assert seen == {point: expected(scene, point) for point in scene.points}
    queues = [
        f"{life.prefix}.{queue}" for life in mortals for queue in ("steps", "compensate", "dead-letter")
    ]
    assert sum(messages_ready(url, queues)) == 0


def life_parts(life: Life) -> tuple[str, str, Place, str]:
    return life.url, life.prefix, life.place, life.calls


async def what_is_left(life: Life) -> tuple[list[SagaState], str]:
    """Return the states of the sagas that nobody else has started, and the calls of all handlers."""
    async with life.place.open() as store:
        sagas = await check_histories(store)
        assert all(saga.at_rest for saga in sagas)
        states = [saga.state for saga in sagas if saga.plan.parent is None]
    return states, " ".join(written_down(Path(life.calls)))


def expected(scene: Scene, point: Point | None) -> tuple[list[SagaState], str]:
    if point is Point.COMMITTING and scene.unless_asked is not None:
        state, calls = scene.unless_asked
        return ([state] if calls else []), calls
    calls = scene.calls
    if scene.repeated and point in (Point.HANDLER_ENDED, Point.COMMITTING):
        calls = calls.replace(scene.repeated, f"{scene.repeated} {scene.repeated}", 1)
    return [scene.state], calls
