"""Processes with an engine that kill themselves at a point of its work, and those that come after them.

Run by `generations`. Each life has a store and queues that only its successors share, so it meets its own end only.
"""

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import anyio
from msgspec import Struct

from saga_amqp import Manager, Moment, Point, TransportError
from saga_core import (
    ChildSaga,
    Command,
    Compensate,
    CompensateChild,
    Defer,
    Execute,
    Report,
    RetryPolicy,
    Saga,
    SagaState,
    StartChild,
    Step,
    StepError,
)
from tests.engine.world import Handlers, Services, Watch, steps

from .durable import Place, WrittenDown
from .generations import main
from .world import RabbitWorld


class Life(Struct, frozen=True):
    """One process: what happens in it, and at which point it dies; without a point it lives until all sagas rest."""

    scene: str
    point: Point | None
    url: str
    prefix: str
    place: Place
    calls: str


Victim = tuple[type[Command], str]

EVERY = tuple(point for point in Point if point is not Point.DEAD_LETTERED)
CHILD = (Point.RECEIVED, Point.PUBLISHING, Point.PUBLISHED, Point.ACKNOWLEDGING, Point.ACKNOWLEDGED)
NO_HANDLER = tuple(point for point in EVERY if not point.startswith("handler"))
NO_MESSAGE = (Point.COMMITTING, Point.COMMITTED, Point.PUBLISHING, Point.PUBLISHED)


class Scene(Struct, frozen=True):
    """What is played, and what is to be seen at its end.

    It dies over `victim`, or, where that is None, over what no message has caused once `act` has said so. `calls` are
    those of the handlers when none is repeated, `repeated` is the one that is, where its result was not committed.
    """

    points: tuple[Point, ...]
    victim: Victim | None
    make: Callable[[], list[Any]]
    calls: str
    repeated: str = ""
    state: SagaState = SagaState.COMPLETED
    act: str = "start"
    replaced: dict[str, Callable[[Saga, Step[Any]], Awaitable[object]]] = {}
    unless_asked: tuple[SagaState, str] | None = None
    """How it ends where the process died before the commit of what no message will bring up again."""


async def fails(saga: Saga, step: Step[Any]) -> None:
    raise StepError("no", "it cannot be")


async def fails_once(saga: Saga, step: Step[Any]) -> None:
    if step.attempt == 1:
        raise StepError("busy", "later", retryable=True)


async def later(saga: Saga, step: Step[Any]) -> Defer:
    return Defer()


def retried() -> list[Any]:
    retry = RetryPolicy(initial_delay=0.5, jitter=0.0)
    return [Step(name="a", action="do.a", compensation="undo.a", retry=retry), *steps("b")]


def with_child(*after: str) -> list[Any]:
    return [*steps("a"), Step(name="x", child=ChildSaga("inner", steps("d"))), *steps(*after)]


FAILED_CHILD = "do.a do.d do.c undo.d undo.a"

SCENES = {
    "action": Scene(EVERY, (Execute, "a"), lambda: steps("a", "b"), "do.a do.b", "do.a"),
    "last action": Scene(
        (Point.COMMITTING, Point.COMMITTED, Point.ACKNOWLEDGING),
        (Execute, "b"),
        lambda: steps("a", "b"),
        "do.a do.b",
        "do.b",
    ),
    "failing action": Scene(
        (Point.HANDLER_ENDED, Point.COMMITTING, Point.COMMITTED, Point.PUBLISHED),
        (Execute, "b"),
        lambda: steps("a", "b"),
        "do.a do.b undo.a",
        "do.b",
        SagaState.COMPENSATED,
        replaced={"do.b": fails},
    ),
    "compensation": Scene(
        EVERY,
        (Compensate, "b"),
        lambda: steps("a", "b", "c"),
        "do.a do.b do.c undo.b undo.a",
        "undo.b",
        SagaState.COMPENSATED,
        replaced={"do.c": fails},
    ),
    "start of a child": Scene(CHILD, (StartChild, "x"), lambda: with_child("b"), "do.a do.d do.b"),
    "report of a child": Scene(NO_HANDLER, (Report, "x"), lambda: with_child("b"), "do.a do.d do.b"),
    "undoing of a child": Scene(
        NO_HANDLER,
        (CompensateChild, "x"),
        lambda: with_child("c"),
        FAILED_CHILD,
        state=SagaState.COMPENSATED,
        replaced={"do.c": fails},
    ),
    "start": Scene(
        NO_MESSAGE, None, lambda: steps("a", "b"), "do.a do.b", unless_asked=(SagaState.STARTED, "")
    ),
    "timer": Scene(
        NO_MESSAGE, None, retried, "do.a do.a do.b", act="start and wait", replaced={"do.a": fails_once}
    ),
    "manual operation": Scene(
        NO_MESSAGE,
        None,
        lambda: steps("a", "b"),
        "do.a do.b undo.b undo.a",
        state=SagaState.COMPENSATED,
        act="compensate",
        unless_asked=(SagaState.COMPLETED, "do.a do.b"),
    ),
    "callback": Scene(
        NO_MESSAGE, None, lambda: steps("a", "b"), "do.a do.b", act="complete", replaced={"do.a": later}
    ),
}


async def live(life: Life) -> None:
    scene = SCENES[life.scene]
    world = RabbitWorld(life.url, life.prefix)
    world.services = Services(WrittenDown(life.calls), dict(scene.replaced))
    is_time, is_over = scene.act == "start", False

    def die(moment: Moment) -> None:
        nonlocal is_over
        world.watch(moment)
        command = moment.command
        if (command is None and scene.victim is None and is_time) or (
            command is not None and scene.victim == (type(command), command.step)
        ):
            is_over = is_over or (
                moment.point in (Point.COMMITTED, Point.PUBLISHING) and life.point is not None
            )
            if moment.point is life.point:
                os.kill(os.getpid(), signal.SIGKILL)

    def last(handlers: Handlers) -> Handlers:
        """Let no handler begin what comes after the victim: it would be killed in its midst, and repeated."""

        def held(handler: Callable[[Saga, Step[Any]], Awaitable[object]]) -> Any:
            async def call(saga: Saga, step: Step[Any]) -> object:
                if is_over:
                    await anyio.sleep_forever()
                return await handler(saga, step)

            return call

        return {name: held(handler) for name, handler in handlers.items()}

    async def act(manager: Manager) -> None:
        nonlocal is_time
        saga = await manager.start("s", scene.make())
        if scene.act == "compensate":
            saga = await manager.wait(saga.id)
            is_time = True
            await manager.compensate(saga.id)
        elif scene.act == "complete":
            await world.watch.until(Point.ACKNOWLEDGED)
            is_time = True
            await manager.complete(saga.token("a", "execute"))
        is_time = True
        await anyio.sleep_forever()

    def running(observer: Callable[[Moment], None]) -> AbstractAsyncContextManager[Manager]:
        return world.running(
            observer=observer,
            republish_after=0.5,
            step_handlers=last(world.services.handlers("do")),
            compensation_handlers=last(world.services.handlers("undo")),
        )

    async with life.place.open() as world.store:
        if life.point is not None:
            async with running(die) as manager:
                await act(manager)
        await bring_to_rest(world, running, scene)


async def bring_to_rest(
    world: RabbitWorld,
    running: Callable[[Callable[[Moment], None]], AbstractAsyncContextManager[Manager]],
    scene: Scene,
) -> None:
    """Run engines until all sagas rest and no message is left; what a stopping engine had been sent comes back."""
    while True:
        world.watch = Watch()
        async with running(world.watch) as manager:
            while sagas := await manager.list_active():
                for saga in sagas:
                    if scene.act == "complete":
                        with suppress(TransportError):
                            await manager.complete(saga.token("a", "execute"))
                    await manager.wait(saga.id)
            await world.until_all_is_acknowledged()
        if not any(world.ready()):
            return


if __name__ == "__main__":
    main(Life, live)
