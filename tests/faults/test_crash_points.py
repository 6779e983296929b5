"""A process with an engine that is killed at any point of its work, and what its successor makes of it.

The process kills itself, at the very point, like a machine that loses its power; the next one has its store and its
queues. What was committed stays, and the handler that brought it never runs again.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from saga_amqp import Point, SagaState
from tests.histories import check_histories

from .durable import Place, written_down
from .generations import run_generations
from .mortals import SCENES, Life, Scene
from .world import messages_ready

MESSAGES = ["action", "last action", "failing action", "compensation"]
CHILDREN = ["start of a child", "report of a child", "undoing of a child"]
NO_MESSAGES = ["start", "timer", "manual operation", "callback"]


@pytest.mark.parametrize(
    "names", [MESSAGES, CHILDREN, NO_MESSAGES], ids=["messages", "children", "no messages"]
)
async def test_what_was_committed_counts_and_nothing_is_lost(
    names: list[str], amqp_url: str, unique: str, tmp_path: Path, anyio_backend_name: str
) -> None:
    def place(number: int) -> Place:
        return Place(str(tmp_path / f"{number}.db"))

    await play(names, place, amqp_url, unique, tmp_path, anyio_backend_name)


async def test_so_it_is_on_postgres(
    amqp_url: str, unique: str, tmp_path: Path, anyio_backend_name: str, postgres_url: str
) -> None:
    def place(number: int) -> Place:
        return Place(postgres_url, f"s{number}")

    names = ["action", "manual operation"]
    await play(names, place, amqp_url, unique, tmp_path, anyio_backend_name)


async def play(
    names: list[str],
    place: Callable[[int], Place],
    url: str,
    prefix: str,
    directory: Path,
    backend: str,
) -> None:
    """Play some scenes, each with a death at each of its points; what is seen at the end is told by scene and point."""
    mortals = [
        Life(name, point, url, f"{prefix}.{number}", place(number), str(directory / f"calls{number}"))
        for number, (name, point) in enumerate(
            (name, point) for name in names for point in SCENES[name].points
        )
    ]
    successors = [replace(life, point=None) for life in mortals]
    killed, successful = await run_generations("mortals", backend, [mortals, successors])
    survived = [life for life, status in zip(mortals, killed, strict=True) if status != -9]
    assert not survived, "the point was not reached"
    assert set(successful) == {0}
    seen = {(life.scene, life.point): await what_is_left(life) for life in mortals}
    assert seen == {(life.scene, life.point): expected(SCENES[life.scene], life.point) for life in mortals}
    queues = [
        f"{life.prefix}.saga.{queue}"
        for life in mortals
        for queue in ("steps", "compensate", "orchestrator", "dead-letter")
    ]
    assert sum(messages_ready(url, queues)) == 0


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
