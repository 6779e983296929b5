"""One engine as a process: from its first message to its exit status, by way of the signals that end it.

The first SIGTERM or SIGINT stops it in order. The second ends it at once, whatever handlers do: also one that never
lets go of the event loop. Either way nothing is lost, for what was not acknowledged is delivered again.
"""

import logging
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, cast

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus

from saga_amqp.config import Config
from saga_amqp.contracts import Store, Transport
from saga_amqp.health import HealthFile
from saga_amqp.manager import Manager
from saga_amqp.observer import Moment, Observer, Point
from saga_amqp.participant import Participant
from saga_core import Command, Compensate, Execute, SagaError
from saga_core.handlers import leaves

logger = logging.getLogger("saga_amqp.service")

ENDING = (signal.SIGTERM, signal.SIGINT)

LAST_MOMENT = 1.0
"""Seconds, from the second signal, in which what is cancelled may clean up and messages are given back."""

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


class Status(IntEnum):
    """How a service ended: the exit status of its process."""

    IN_ORDER = 0
    """Stopped, and everything that had begun was finished."""
    FAILED = 1
    """Ended by an error, or never begun because of one: the log says which."""
    MISUSED = 2
    """Not started: what was asked for makes no sense."""
    UNFINISHED = 3
    """Stopped, and some handlers were cancelled when the grace period was over: they run again elsewhere."""
    CUT_OFF = 4
    """Ended at once, by a second signal: handlers that were cut off run again elsewhere."""


class Service:
    """Runs an engine until a signal ends it: that of a manager, or without a store that of a participant.

    `name` is what it is called in the log. With `health`, that file says how the engine is every `health_interval`
    seconds, from when it consumes to its end.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        transport: Transport,
        store: Store | None,
        *,
        health: Path | None = None,
        health_interval: float = 5.0,
    ) -> None:
        self._name = name
        self._underway = Underway(config.observer)
        self._config = replace(config, observer=self._underway)
        self._transport = transport
        self._store = store
        self._health = None if health is None else HealthFile(health)
        self._health_interval = health_interval
        self._scope: anyio.CancelScope | None = None
        self._runner: Manager | Participant | None = None
        self._stopping = self._consuming = False

    def run(self, backend: str) -> Status:
        """Run to the end and say how it ended. Call it in the main thread; it handles SIGTERM and SIGINT meanwhile."""
        signals = Signals(self._leave_no_trace)
        name, options = BACKENDS[backend]
        failed = False
        try:
            with signals:
                anyio.run(self._serve, signals, backend=name, backend_options=options)
        except* SagaError as errors:
            failed = True
            for error in leaves(errors):
                logger.error("%s", error)
        except* Exception as errors:
            failed = True
            logger.critical("%s was ended by an error", self._name, exc_info=errors)
        finally:
            self._leave_no_trace()
        return Status.FAILED if failed else self._status(signals)

    def _status(self, signals: "Signals") -> Status:
        if signals.count > 1:
            logger.warning("Ended at once")
            return Status.CUT_OFF
        if unfinished := self._underway.unfinished():
            logger.warning(
                "Not finished in %g s, and to run again elsewhere: %s",
                self._config.grace_period,
                ", ".join(f"{command.action} of saga {command.saga}" for command in unfinished[:10]),
            )
            return Status.UNFINISHED
        logger.info("Ended in order")
        return Status.IN_ORDER

    async def _serve(self, signals: "Signals") -> None:
        with anyio.CancelScope() as self._scope:
            signals.tell(self._stop, self._scope.cancel)
            logger.info("%s begins: %r, %r", self._name, self._transport, self._store or "a participant")
            async with (
                self._store or nullcontext(),
                self._made() as runner,
                anyio.create_task_group() as tasks,
            ):
                self._runner = runner

                async def consume(*, task_status: TaskStatus[None]) -> None:
                    await runner.run(task_status=task_status)
                    tasks.cancel_scope.cancel()

                await tasks.start(consume)
                self._consuming = True
                logger.info("%s takes messages, up to %d at once", self._name, self._config.concurrency)
                await self._keep_health()

    def _made(self) -> Manager | Participant:
        if self._store is None:
            return Participant(self._transport, self._config)
        return Manager(self._transport, self._store, self._config)

    def _stop(self, signal_name: str) -> None:
        """Stop in order; where nothing has begun yet, there is nothing to put in order."""
        self._stopping = True
        assert self._scope is not None
        if self._runner is None or not self._consuming:
            self._scope.cancel()
            return
        logger.info(
            "%s: no new messages; running handlers, %d of them, have %g s to finish; a second signal ends at once",
            signal_name,
            self._underway.handlers,
            self._config.grace_period,
        )
        self._runner.stop()
        self._write_health()

    async def _keep_health(self) -> None:
        if self._health is None:
            return
        self._health.begin()
        while True:
            self._write_health()
            await anyio.sleep(self._health_interval)

    def _write_health(self) -> None:
        if self._health is not None and self._runner is not None:
            self._health.write(
                stopping=self._stopping,
                waits_for=self._runner.waits_for,
                handlers=self._underway.handlers,
            )

    def _leave_no_trace(self) -> None:
        if self._health is not None:
            self._health.remove()


class Underway:
    """An observer that knows which handlers run and which results are not stored yet, and tells another one all."""

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer
        self._running: set[Execute | Compensate] = set()
        self._unstored: set[Command] = set()

    def __call__(self, moment: Moment) -> None:
        """Take note of a moment."""
        command = moment.command
        if isinstance(command, Execute | Compensate):
            match moment.point:
                case Point.HANDLER_BEGAN:
                    self._running.add(command)
                case Point.HANDLER_ENDED:
                    self._running.discard(command)
                    self._unstored.add(command)
                case Point.COMMITTED | Point.ACKNOWLEDGED:
                    self._unstored.discard(command)
                case _:
                    pass
        if self._observer is not None:
            self._observer(moment)

    @property
    def handlers(self) -> int:
        """How many handlers run."""
        return len(self._running)

    def unfinished(self) -> list[Execute | Compensate]:
        """Return what has begun, and has come to nothing that counts."""
        return [*self._running, *cast("set[Execute | Compensate]", self._unstored)]


class Signals:
    """Counts the signals that end a process. Use it as a context manager, around the event loop.

    Handlers are those of the operating system, and not of the event loop: a loop that is blocked would hear nothing.
    `last` is called when the process is ended without the event loop's doing.
    """

    def __init__(self, last: Callable[[], None]) -> None:
        self.count = 0
        self._last = last
        self._before: dict[signal.Signals, Any] = {}
        self._soon: Callable[..., None] = lambda *_: None
        self._first: Callable[[str], None] = lambda _: None
        self._second: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._arrived) for number in ENDING}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def tell(self, first: Callable[[str], None], second: Callable[[], None]) -> None:
        """Call these in this event loop, `first` with the name of the first signal; also of one that came before."""
        loop = cast("Any", anyio.lowlevel.current_token().native_token)
        soon = loop.run_sync_soon if hasattr(loop, "run_sync_soon") else loop.call_soon_threadsafe

        def call_soon(function: Callable[..., None], *arguments: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                soon(function, *arguments)

        self._first, self._second, self._soon = first, second, call_soon
        if self.count:
            second()

    def _arrived(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self._soon(self._first, signal.Signals(number).name)
        elif self.count == 2:
            signal.setitimer(signal.ITIMER_REAL, LAST_MOMENT)
            self._soon(self._second)
        else:
            self._give_up()

    def _give_up(self, *_: object) -> None:
        self._last()
        os._exit(Status.CUT_OFF)
