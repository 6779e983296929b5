"""Processes that run the engine as it is shipped, crash at any await, and come back with nothing but their name."""

from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from random import Random
from typing import TYPE_CHECKING

import trio

from saga_amqp.config import Config
from saga_amqp.errors import StoreUnavailableError, TransportError
from saga_amqp.manager import Manager
from saga_amqp.observer import Moment, Point
from saga_amqp.testing.world.client import WorldTransport
from saga_amqp.testing.world.faults import Fault
from saga_amqp.testing.world.pulse import Pulse
from saga_amqp.testing.world.vault import WorldStore
from saga_core import Carried, Compensate, Execute

if TYPE_CHECKING:
    from saga_amqp.testing.world.world import World

TOO_MANY = 1_000_000
"""Steps of tasks in one world. Hardly one needs a tenth of them."""

LIFE: ContextVar["Life | None"] = ContextVar("life", default=None)
"""The life that a task belongs to."""


class Dooms(trio.abc.Instrument):
    """Counts the steps of each process's tasks, and lets it crash after the one that is drawn for it."""

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a step: the task waits for something now."""
        life = task.context.get(LIFE)
        if life is not None and life.pulse.alive:
            life.steps += 1
            life.world.steps += 1
            if life.world.steps == TOO_MANY:
                life.world.fail(f"{TOO_MANY} steps of tasks, and no end: something goes round in circles")
            if life.steps == life.soon or (
                life.steps == life.doom
                and life.world.faults.named(
                    Fault.CRASH, life.pulse.who, life.name, f"after {life.steps} steps"
                )
            ):
                life.crash()


class Life:
    """One life of a process, from its start to its crash or its orderly end."""

    def __init__(
        self, world: "World", who: str, number: int, source: Random, offset: float, runs: bool
    ) -> None:
        self.world = world
        self.name = f"life {number} of {who}"
        self.pulse = Pulse(who)
        self.offset = offset
        self.runs = runs
        self.steps = 0
        self.doom = world.faults.doom(who, number)
        self.soon = 0
        self.last = "before its first message"
        self.is_up = False
        self._source = source
        self._scope = trio.CancelScope()
        self._task: trio.lowlevel.Task | None = None
        self._tasks: trio.Nursery | None = None
        self._stopping = trio.Event()
        transport = WorldTransport(world.broker, world.network, self.pulse, world.checker.acknowledging)
        config = self._config()
        if world.faults.calm:
            # Engines that find a broker without queues publish again what is running, be it only begun.
            world.broker.declare(config.topology())
        self.manager = Manager(
            transport if runs else None,
            WorldStore(world.vault, self.pulse),
            config,
            clock=self.clock,
            new_id=lambda: world.new_id(self.clock()),
            new_secret=world.new_secret,
            chance=source.random,
        )

    def clock(self) -> float:
        """Tell the time as this process sees it."""
        return self.world.clock() + self.offset

    async def live(self) -> None:
        """Live until a crash, or until `stop`."""
        LIFE.set(self)
        self._task = trio.lowlevel.current_task()
        try:
            with self._scope:
                await self._serve()
        except BaseException as error:
            if self.pulse.alive:
                self._explain(error)
        self.is_up = False
        if self.pulse.alive:
            self.pulse.die()
        LIFE.set(None)

    def crash(self) -> None:
        """End here and now: nothing of it gets out any more."""
        if self.pulse.alive:
            self.is_up = False
            self.world.crashed(self.last, self._awaits())
            self.pulse.die()
            self._scope.cancel()

    def stop(self) -> None:
        """End in an orderly way."""
        self.is_up = False
        self._stopping.set()

    async def perform(self, doing: Callable[[], Awaitable[None]]) -> None:
        """Do something in this process; it ends with the process, done or not.

        What it raises because the store or the broker is away is a user's daily bread; whatever else is a failure.
        """
        done = trio.Event()

        async def do() -> None:
            try:
                await doing()
            except (StoreUnavailableError, TransportError) as error:
                self.world.trace.note(self.pulse.who, f"a user was told: {error}")
            except Exception as error:
                if self.pulse.alive:
                    self.world.fail(f"a call of a user raised {error!r}")
            finally:
                done.set()

        if self._tasks is not None and self.is_up and not self._tasks.cancel_scope.cancel_called:
            self._tasks.start_soon(do)
            await done.wait()
        else:  # whoever tries again without end is to let it end
            await trio.lowlevel.checkpoint()

    async def _serve(self) -> None:
        async with self.manager, trio.open_nursery() as self._tasks:
            async with trio.open_nursery() as engine:
                if self.runs:
                    await engine.start(self._run)
                self.is_up = True
                self.world.somebody_is_up()
                await self._stopping.wait()
                self.manager.stop()
            self._tasks.cancel_scope.cancel()

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self.manager.run(task_status=task_status)
        if not self._stopping.is_set():
            self.world.fail(f"the engine of {self.pulse.who} has ended by itself")

    def _explain(self, error: BaseException) -> None:
        """Decide what it means that a process has ended with an error that is no crash."""
        leaves = list(_leaves(error))
        if not self.is_up and all(isinstance(leaf, TransportError) for leaf in leaves):
            self.world.trace.note(self.pulse.who, "cannot connect")
            return
        self.world.fail(f"process {self.pulse.who} ended with {leaves!r}")

    def _config(self) -> Config:
        world = self.world
        return Config(
            **world.load.handlers(self),
            concurrency=self._source.choice((1, 1, 2, 5, 100)),
            prefetch=self._source.choice((None, None, 1, 3)),
            delivery_limit=world.delivery_limit,
            grace_period=self._source.choice((0.1, 1.0, 10.0)),
            sweep_interval=world.sweep_interval,
            republish_after=world.republish_after,
            observer=self._observe,
        )

    def _observe(self, moment: Moment) -> None:
        if not self.pulse.alive:
            return
        self.last = moment.point
        world, who = self.world, self.pulse.who
        if moment.command is not None:
            what = f"{moment.point}: {world.trace.command(moment.command)}"
        else:
            what = f"{moment.point}: {world.trace.name(moment.saga_id)}"
        world.trace.note(who, what, moment.saga_id)
        if moment.point is Point.HANDLER_BEGAN and isinstance(moment.command, Execute | Compensate):
            world.checker.handler_begins(who, moment.command)
        about = f"{moment.point} {moment.saga_id} {_about(moment.command)}"
        if world.faults.strike(Fault.CRASH_AT_POINT, who, about, moment.point):
            self.crash()
        elif not self.soon and (drawn := world.faults.strike(Fault.CRASH_SOON, who, about, moment.point)):
            self.soon = self.steps + drawn.randint(1, 60)
        elif world.faults.strike(Fault.STOP_AT_POINT, who, about, moment.point):
            self.stop()

    def _awaits(self) -> Iterator[str]:
        """Go through the places in the library where the tasks of this life are."""
        todo = [] if self._task is None else [self._task]
        while todo:
            task = todo.pop()
            todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
            if task.coro.cr_frame is None:
                continue
            places: list[str] = []
            for frame, _ in task.iter_await_frames():
                name = frame.f_globals.get("__name__", "")
                if name.startswith("saga_amqp.") and not name.startswith("saga_amqp.testing"):
                    places.append(f"{name.removeprefix('saga_amqp.')}.{frame.f_code.co_name}")
            if places:
                yield " > ".join(places[-3:])


class Process:
    """A place for lives, one after the other: on one machine, with one clock."""

    def __init__(self, world: "World", who: str, runs: bool) -> None:
        self.world = world
        self.who = who
        self.life: Life | None = None
        self._runs = runs
        self._source = world.source(f"process/{who}")
        self._offset = 0.0 if world.faults.calm else self._source.gauss(0, 1) * world.skew
        self._over = False

    @property
    def is_up(self) -> bool:
        """Whether somebody can be asked for something here."""
        return self.life is not None and self.life.is_up

    async def run(self) -> None:
        """Live one life after the other, until `end`."""
        number = 0
        while not self._over:
            number += 1
            source = self.world.source(f"process/{self.who}/{number}")
            self.life = Life(self.world, self.who, number, source, self._offset, self._runs)
            await self.life.live()
            self.life = None
            if not self._over:
                await trio.sleep(source.choice((0.1, 1.0, 5.0, 30.0)) * source.random())

    def end(self) -> None:
        """Stop, and do not come back."""
        self._over = True
        if self.life is not None:
            self.life.stop()


def _about(command: Carried | None) -> str:
    return "" if command is None else f"{type(command).__name__} {command.step} {command.attempt}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield from _leaves(inner)  # pyright: ignore[reportUnknownArgumentType]
    else:
        yield error
