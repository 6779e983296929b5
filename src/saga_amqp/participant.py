"""A service that runs handlers with nothing but a broker: its results go to an orchestrator, by message."""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskStatus

from saga_amqp.config import Config
from saga_amqp.contracts import Delivery, Message, Transport
from saga_amqp.handling import run_handler
from saga_amqp.lifecycle import Lifecycle
from saga_amqp.poison import Poison, Reason
from saga_amqp.reconnecting import Reconnecting
from saga_core import (
    WITH_HANDLER,
    Carried,
    CodecError,
    DefinitionError,
    TimePassed,
    decode_work,
    reply_of,
    saga_at_work,
)

logger = logging.getLogger("saga_amqp.engine")


class Participant:
    """Runs handlers for the sagas of others, while `run` runs. It has no store, and starts no sagas.

    Use it as an async context manager. Its `config` names the same exchange, orchestrator's queue and dead-letter
    queue as the orchestrator's, and queues of its own for steps and compensations; the orchestrator's `Config.remote`
    names its actions. What a handler is given of the saga is its context, its tags, the step, and the outputs of the
    steps that this one depends on.

    A handler may run again although it has succeeded, whenever its message comes again: make it idempotent, for example
    by the barrier. `clock` gives seconds since 1970, UTC; `chance` numbers from 0 to 1.
    """

    def __init__(
        self,
        transport: Transport,
        config: Config,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._broker = Reconnecting(transport, config.topology(), chance)
        self._life = Lifecycle(
            "participant", self._broker, config, _Participation(config, clock), clock, chance
        )

    async def __aenter__(self) -> Self:
        """Connect, and declare what is missing on the broker.

        Raises: ConnectFailedError, AuthenticationError, VirtualHostError, TopologyError; ManagerError when entered
        a second time.
        """
        await self._life.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, as `close` does."""
        await self._life.leave()

    @property
    def waits_for(self) -> tuple[str, ...]:
        """What is away: "broker", or nothing. See `Manager.waits_for`."""
        return ("broker",) if self._broker.is_away else ()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run handlers for arriving messages until `stop`; see `Manager.run`.

        Raises: ManagerError when it is running already; TransportError, but not for a broker that is away.
        """
        await self._life.run(task_status)

    def stop(self) -> None:
        """Stop `run` in an orderly way: no new messages, and the grace period for running handlers."""
        self._life.stop()

    async def close(self) -> None:
        """Stop `run` and wait for its end, then close the transport. Cancelled, it closes without waiting."""
        await self._life.close()

    def dead_lettered(self) -> Mapping[str, int]:
        """Return how many messages this participant has put to the dead letters, by reason."""
        return {str(reason): count for reason, count in self._life.buried.items()}


class _Participation:
    """Answers commands by replies; see `engine.Duty`."""

    def __init__(self, config: Config, clock: Callable[[], float]) -> None:
        self.queues = tuple(config.limits())[:2]
        self._config = config
        self._clock = clock

    async def settle(self, command: Carried, delivery: Delivery) -> Sequence[Message]:
        if not isinstance(command, WITH_HANDLER):
            raise Poison(Reason.UNDECODABLE, "This is for an orchestrator, not for a participant", None)
        if command.deadline is not None and self._clock() >= command.deadline:
            # Whoever asks has given it up, and may be undoing it already.
            logger.info("%s comes too late, its time is over: it is not run", command)
            return ()
        try:
            work = decode_work(delivery.body)
            saga = saga_at_work(command, work)
        except (CodecError, DefinitionError) as error:
            raise Poison(Reason.UNDECODABLE, str(error), command) from error
        event = await run_handler(self._config, self._clock, saga, command, work.token)
        if isinstance(event, TimePassed):
            return ()  # the orchestrator has a clock too
        return [self._config.message(reply_of(command, event))]

    async def give_up(self, poison: Poison) -> Sequence[Message]:
        command = poison.about
        if not isinstance(command, WITH_HANDLER):
            return ()
        event = poison.event(self._clock())
        return () if event is None else [self._config.message(reply_of(command, event))]

    async def attend(self, fail: Callable[[Exception], None]) -> None:
        await anyio.sleep_forever()
