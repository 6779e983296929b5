"""One message in an engine's hands, and what becomes of it."""

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from saga_amqp.contracts import Delivery, Message
from saga_amqp.errors import ConnectionLostError, PublishError, TransportError, UnroutableError
from saga_amqp.observer import Point
from saga_amqp.poison import Examined, oversize, unroutable

if TYPE_CHECKING:
    from saga_amqp.engine import Engine
    from saga_amqp.intake import Intake


class InHand:
    """One message from its arrival until it is acknowledged or given back; as often as it was delivered.

    `poison` says why it cannot be handled, once that is known; then there may be no command. `given_back` is how often
    it came back before. `key` is the same for those of its deliveries that can be known to be of one message.
    """

    __slots__ = (
        "_engine",
        "command",
        "deliveries",
        "given_back",
        "intake",
        "key",
        "pauses",
        "poison",
        "unconfirmed",
    )

    def __init__(
        self,
        engine: "Engine",
        intake: "Intake",
        delivery: Delivery,
        examined: Examined,
        key: Hashable,
    ) -> None:
        self._engine = engine
        self.intake = intake
        self.deliveries = [delivery]
        self.command = examined.command
        self.poison = examined.poison
        self.given_back = examined.given_back
        self.key = key
        self.unconfirmed = 0
        self.pauses: Iterator[float] | None = None

    def __str__(self) -> str:
        return f"message {self.deliveries[0].message_id}" if self.command is None else str(self.command)

    def observe(self, point: Point) -> None:
        """Tell the observer, if the message is one that can be told of."""
        if (config := self._engine.config).observer is not None and self.command is not None:
            config.observe(point, self.command.saga, self.command)

    async def publish(self, messages: Sequence[Message]) -> None:
        """Publish what the message has caused; when the broker has confirmed all of it, it is acknowledged."""
        if not messages:
            self.acknowledge()
            return
        self.unconfirmed = len(messages)
        self.observe(Point.PUBLISHING)
        await self._send(messages)

    async def publish_instead(self, messages: Sequence[Message]) -> None:
        """Publish something else in the place of one message that nobody takes."""
        self.unconfirmed += len(messages)
        self._confirmed()
        await self._send(messages)

    async def publish_again(self, message: Message) -> None:
        """Publish one message once more that was not taken."""
        await self._send([message])

    async def _send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if (poison := oversize(message, self._engine.config)) is not None:
                self._engine.refused(self, poison)
                continue
            try:
                await self._engine.broker.publish(message, partial(self._settled, message))
            except ConnectionLostError as error:
                self._settled(message, error)
                return

    def _settled(self, message: Message, error: TransportError | None) -> None:
        """Take the outcome of one publish; the last good one acknowledges the message. Called by the transport."""
        try:
            if error is None:
                self._confirmed()
            elif isinstance(error, ConnectionLostError):
                self._engine.publish_later(self)
            elif isinstance(error, UnroutableError) and (
                poison := unroutable(message, error, self._engine.config)
            ):
                self._engine.refused(self, poison)
            elif isinstance(error, PublishError):
                self._engine.publish_again(self, message, error)
            else:
                self._engine.fail(error)
        except BaseException as failure:  # an observer's; it must not reach the transport's tasks
            self._engine.fail(failure)

    def _confirmed(self) -> None:
        self.observe(Point.PUBLISHED)
        self.unconfirmed -= 1
        if self.unconfirmed == 0:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Tell the broker that the message is done with."""
        if self.poison is not None:
            self.observe(Point.DEAD_LETTERED)
        self.observe(Point.ACKNOWLEDGING)
        if self._engine.let_go(self):
            for delivery in self.deliveries:
                delivery.acknowledge()
            if self.poison is not None:
                self._engine.buried(self, self.poison)
            self.observe(Point.ACKNOWLEDGED)

    def give_back(self) -> None:
        """Have the message delivered again, here or elsewhere."""
        if self._engine.let_go(self):
            for delivery in self.deliveries:
                delivery.reject(requeue=True)
