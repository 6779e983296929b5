"""Publishing what no message has caused: starts, timers, manual operations.

Such a commit is noted in the store as unpublished. Whoever made it publishes its commands, and takes the note off
when the broker has confirmed them: later, in batches, beside everything else. If its process dies before, a sweep
finds the note (`sweep`) and publishes them again. So nothing is written twice, and nothing is lost.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import anyio

from saga_amqp.config import Config
from saga_amqp.contracts import AT_ONCE, Commit, Message, Store
from saga_amqp.deciding import decide
from saga_amqp.errors import (
    ConnectionLostError,
    PublishError,
    SagaNotFoundError,
    StoreError,
    TransportError,
    UnroutableError,
)
from saga_amqp.observer import Point
from saga_amqp.patience import PatientStore
from saga_amqp.poison import Poison, oversize, unroutable
from saga_amqp.reconnecting import Reconnecting
from saga_core import Carried, Event, Outcome, Saga

logger = logging.getLogger("saga_amqp.engine")


class Unsent(NamedTuple):
    """Messages that could not be sent, and until when nobody else will try to: seconds since 1970."""

    commit: Commit
    messages: Sequence[Message]
    until: float


LINGER = 0.02
"""Seconds for which notes are gathered before they are taken off together."""


class Outgoing:
    """Commits what no message has caused, publishes what comes of it, and takes the notes off the commits.

    Without a broker it leaves the publishing to the engines, and gives these a hint. `committed` is told of
    every commit.
    """

    def __init__(
        self,
        broker: Reconnecting | None,
        store: PatientStore,
        config: Config,
        clock: Callable[[], float],
        committed: Callable[[Outcome], None],
    ) -> None:
        self._broker = broker
        self._store = store
        self._config = config
        self._clock = clock
        self._committed = committed
        self._unsent: list[Unsent] = []
        self._published: list[Commit] = []
        self._changed = anyio.Event()
        self._sending_again = False

    def note(self, outcome: Outcome) -> float | None:
        """Return the note for a commit that is to be published here: when others may think that it was not.

        None when there is nothing to publish.
        """
        if not self._config.publishes(outcome):
            return None
        return AT_ONCE if self._broker is None else self._clock() + self._config.republish_after

    async def apply(
        self, store: PatientStore | Store, saga: Saga, event: Event, command: Carried | None = None
    ) -> Outcome:
        """Commit an event that no message would bring up again, and publish what comes of it, as `publish` does.

        Raises: SagaNotFoundError, StoreError, TransportError.
        """
        outcome = await self.commit(store, saga, event, command, note=self.note)
        if outcome.ignored is None and self._config.publishes(outcome):
            await self.publish((saga.id, outcome.saga.revision), self._config.messages(outcome))
        return outcome

    async def commit(
        self,
        store: PatientStore | Store,
        saga: Saga,
        event: Event,
        command: Carried | None,
        *,
        note: Callable[[Outcome], float | None] | None = None,
    ) -> Outcome:
        """Commit an event, and tell whoever has to know; see `decide` for `note`.

        Raises: SagaNotFoundError, StoreError.
        """
        observed = self._config.observer is not None
        committing = partial(self._config.observe, Point.COMMITTING, saga.id, command) if observed else None
        outcome = await decide(store, saga, event, note=note, committing=committing)
        self._committed(outcome)
        if observed and outcome.ignored is None:
            self._config.observe(Point.COMMITTED, saga.id, command)
        return outcome

    async def publish(self, commit: Commit, messages: Sequence[Message]) -> None:
        """Publish the messages of a commit and wait until the broker has confirmed them all.

        While the broker is away it does not wait: `run` publishes them when it is back, or else a sweep does. Where
        nobody takes a message, its saga is told.

        Raises: TransportError, the first of them, when every message is settled. Cancelled, some may have been sent.
        """
        if self._broker is None:
            self._store.hint()
            return
        began = self._clock()
        self._config.observe(Point.PUBLISHING, commit[0])
        try:
            await self._send(self._broker, messages)
        except ConnectionLostError as error:
            # That the broker is gone was logged already, once.
            logger.info("Saga %s goes on when the broker is back: %s", commit[0], error)
            self._unsent.append(Unsent(commit, messages, began + self._config.republish_after / 2))
        else:
            self._config.observe(Point.PUBLISHED, commit[0])
            self._published.append(commit)
        self._changed.set()

    async def send(self, messages: Sequence[Message]) -> None:
        """Publish messages of no commit in particular, as often as the connection is lost.

        Raises: TransportError.
        """
        while self._broker is not None:
            await self._broker.restored()
            with suppress(ConnectionLostError):
                return await self._send(self._broker, messages)

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
                    await self.publish(one.commit, one.messages)
        except TransportError as error:
            logger.warning("What is next in some sagas is left to the sweep: %s", error)
        finally:
            self._sending_again = False
            self._changed.set()  # there may be more by now

    async def _send(self, broker: Reconnecting, messages: Sequence[Message]) -> None:
        """Send messages, and once more if they are refused: a queue of our own was deleted, or an exchange."""
        try:
            await self._try_to_send(broker, messages)
        except PublishError:
            await broker.declare()
            await self._try_to_send(broker, messages)

    async def _try_to_send(self, broker: Reconnecting, messages: Sequence[Message]) -> None:
        sending = _Sending(self._config, len(messages))
        for message in messages:
            if (poison := oversize(message, self._config)) is not None:
                sending.refuse(poison)
                continue
            try:
                await broker.publish(message, partial(sending.settled, message))
            except TransportError as error:
                sending.settled(message, error)
        if messages:
            await sending.done.wait()
        for poison in sending.refused:
            await self._tell(poison)
        if sending.errors:
            raise sending.errors[0]

    async def _tell(self, poison: Poison) -> None:
        """Tell a saga that what it asks for cannot be published."""
        command = poison.about
        event = poison.event(self._clock())
        if command is not None and event is not None:
            logger.error("Saga %s, step %r: %s", command.saga, command.step, poison)
            with suppress(SagaNotFoundError):
                await self.apply(self._store, await self._store.load(command.saga), event, command)


class _Sending:
    """Messages that are sent together, until the last of so many is settled."""

    __slots__ = ("_config", "_left", "done", "errors", "refused")

    def __init__(self, config: Config, count: int) -> None:
        self.done = anyio.Event()
        self.errors: tuple[TransportError, ...] = ()
        self.refused: tuple[Poison, ...] = ()
        self._config = config
        self._left = count

    def settled(self, message: Message, error: TransportError | None) -> None:
        """Take the outcome of one publish. Called by the transport."""
        if error is not None:
            poison = unroutable(message, error, self._config) if isinstance(error, UnroutableError) else None
            if poison is not None:
                return self.refuse(poison)
            self.errors += (error,)
        self._count()

    def refuse(self, poison: Poison) -> None:
        """Note a message that nobody takes."""
        self.refused += (poison,)
        self._count()

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.done.set()
