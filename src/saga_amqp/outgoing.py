"""Publishing what no message has caused: starts, timers, manual operations.

Such a commit is noted in the store as unpublished. Whoever made it publishes its commands, and takes the note off
when the broker has confirmed them: later, in batches, beside everything else. If its process dies before, a sweep
finds the note (`sweep`) and publishes them again. So nothing is written twice, and nothing is lost.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio

from saga_amqp.config import Config
from saga_amqp.contracts import AT_ONCE, Commit
from saga_amqp.errors import ConnectionLostError, StoreError, TransportError
from saga_amqp.observer import Moment, Point
from saga_amqp.patience import PatientStore
from saga_amqp.reconnecting import Reconnecting
from saga_core import Command

logger = logging.getLogger("saga_amqp.engine")


class Unsent(NamedTuple):
    """Commands that could not be sent, and until when nobody else will try to: seconds since 1970."""

    commit: Commit
    commands: Sequence[Command]
    until: float


LINGER = 0.02
"""Seconds for which notes are gathered before they are taken off together."""


class Outgoing:
    """Publishes commands and takes the notes off their commits.

    Without a broker it leaves them to the engines, and gives these a hint.
    """

    def __init__(
        self, broker: Reconnecting | None, store: PatientStore, config: Config, clock: Callable[[], float]
    ) -> None:
        self._broker = broker
        self._store = store
        self._config = config
        self._clock = clock
        self._unsent: list[Unsent] = []
        self._published: list[Commit] = []
        self._changed = anyio.Event()
        self._sending_again = False

    def note(self) -> float:
        """Return the note for a commit that is to be published here: when others may think that it was not."""
        return AT_ONCE if self._broker is None else self._clock() + self._config.republish_after

    async def publish(self, commit: Commit, commands: Sequence[Command]) -> None:
        """Publish the commands of a commit and wait until the broker has confirmed them all.

        While the broker is away it does not wait: `run` publishes them when it is back, or else a sweep does.

        Raises: TransportError, the first of them, when every message is settled. Cancelled, some may have been sent.
        """
        if self._broker is None:
            self._store.hint()
            return
        began = self._clock()
        self._observe(Point.PUBLISHING, commit[0])
        try:
            if commands:
                await self._send(self._broker, commands)
        except ConnectionLostError as error:
            # That the broker is gone was logged already, once.
            logger.info("Saga %s goes on when the broker is back: %s", commit[0], error)
            self._unsent.append(Unsent(commit, commands, began + self._config.republish_after / 2))
        else:
            self._observe(Point.PUBLISHED, commit[0])
            self._published.append(commit)
        self._changed.set()

    async def run(self) -> None:
        """Take notes off, a little after they are done with, and send what could not be sent before. For ever."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self._changed.wait()
                await anyio.sleep(LINGER)
                self._changed = anyio.Event()
                if self._unsent and self._broker is not None and not self._sending_again:
                    self._sending_again = True
                    tasks.start_soon(self._send_again, self._broker)
                if self._published:
                    commits, self._published = self._published, []
                    try:
                        await self._mark(commits)
                    except BaseException:
                        self._published += commits
                        raise

    async def finish(self) -> None:
        """Take the last notes off. Cancelled before, a sweep publishes once more, which is harmless."""
        if self._published:
            await self._mark(self._published)

    async def _mark(self, commits: Sequence[Commit]) -> None:
        try:
            await self._store.mark_published(commits)
        except StoreError as error:
            logger.error("%d published commits stay noted as unpublished: %s", len(commits), error)

    async def _send_again(self, broker: Reconnecting) -> None:
        """Send what could not be sent, unless so much time has passed that a sweep may do so."""
        try:
            await broker.restored()
            unsent, self._unsent = self._unsent, []
            for one in unsent:
                if self._clock() < one.until:
                    await self.publish(one.commit, one.commands)
        except TransportError as error:
            logger.warning("What is next in some sagas is left to the sweep: %s", error)
        finally:
            self._sending_again = False
            self._changed.set()  # there may be more by now

    async def _send(self, broker: Reconnecting, commands: Sequence[Command]) -> None:
        done = anyio.Event()
        errors: list[TransportError] = []
        left = len(commands)

        def settled(error: TransportError | None) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                errors.append(error)
            if left == 0:
                done.set()

        for command in commands:
            try:
                await broker.publish(self._config.message(command), settled)
            except TransportError as error:
                settled(error)
        await done.wait()
        if errors:
            raise errors[0]

    def _observe(self, point: Point, saga_id: str) -> None:
        if self._config.observer is not None:
            self._config.observer(Moment(point, saga_id))
