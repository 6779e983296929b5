"""A connection: frames under way in both directions, in their order, until somebody cuts it.

What is under way when it is cut is lost, and neither side knows what the other has received. Each learns of the end
in its own time.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from saga_amqp.contracts import Message, Settled
from saga_amqp.errors import ConnectionLostError, ConsumerCancelledError, TransportError
from saga_amqp.testing.world.broker import Broker, Held, Subscription
from saga_amqp.testing.world.faults import Fault
from saga_amqp.transports import letters

if TYPE_CHECKING:
    from saga_amqp.testing.world.client import Consuming
    from saga_amqp.testing.world.network import Network


class Link:
    """One connection between a client and the broker."""

    def __init__(self, broker: Broker, network: "Network", who: str) -> None:
        self.who = who
        self.why: TransportError | None = None
        self.lost = trio.Event()
        self.blocked = broker.blocked
        self.unblocked = trio.Event()
        self.consuming: dict[int, Consuming] = {}
        self._broker = broker
        self._network = network
        self._carries = True
        self._known_to_broker = True
        self._last = {"up": 0.0, "down": 0.0}
        self._unsettled: dict[int, Settled] = {}
        self._published = 0
        self._subscriptions: dict[int, Subscription] = {}
        broker.links.append(self)

    # The client's side

    @property
    def is_up(self) -> bool:
        """Whether the client takes the connection for a working one."""
        return self.why is None

    def send(self, about: str, do: Callable[[], None]) -> None:
        """Send a frame to the broker, which does something when it arrives."""
        self._carry("up", about, lambda: do() if self._known_to_broker else None)

    def publish(self, message: Message, settled: Settled) -> None:
        """Send a message."""
        self._published += 1
        number = self._published
        self._unsettled[number] = settled

        def settle(error: TransportError | None) -> None:
            if (told := self._unsettled.pop(number, None)) is not None:
                told(error)

        def confirm(error: TransportError | None) -> None:
            delay = self._until_together()
            if drawn := self._network.faults.strike(Fault.LATE_CONFIRM, self.who, message.id):
                delay += drawn.expovariate(1 / 5)
            self.answer(f"confirm {message.id}", lambda: settle(error), delay)

        self.send(f"publish {message.id}", lambda: self._broker.accept(message, confirm))

    async def until(self, event: trio.Event) -> None:
        """Wait for an event, or for the end of the connection, whatever comes first."""
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await self.lost.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            await event.wait()
            nursery.cancel_scope.cancel()

    def gone(self, why: TransportError) -> None:
        """Let the client know that the connection has ended."""
        if self.why is not None:
            return
        self.why = why
        self._carries = False
        self.lost.set()
        self.unblocked.set()
        unsettled, self._unsettled = self._unsettled, {}
        for settled in unsettled.values():
            settled(why)

    def forget_client(self) -> None:
        """Let the client be dead: it hears nothing any more, and nothing it says leaves it."""
        self._unsettled.clear()
        self.why = ConnectionLostError("The process is dead")
        # What it had sent is under way still. Its machine closes the connection, or is silent for a while.
        source = self._network.chance.source(f"{self.who} dies")
        delay = source.uniform(0, 0.02) if source.random() < 0.7 else source.uniform(0, 10)
        self._network.agenda.after(delay, self.end_at_broker)

    # The broker's side

    def subscribe(self, number: int, queue: str, prefetch: int) -> TransportError | None:
        """Begin a subscription, or return why it cannot be."""
        if queue not in self._broker.queues:
            return ConsumerCancelledError(f"There is no queue {queue!r} to consume from; declare it first")
        found = self._broker.queues[queue]
        subscription = self._subscriptions[number] = Subscription(self, found, number, prefetch)
        found.subscriptions.append(subscription)
        found.serve()
        return None

    def pause(self, number: int) -> None:
        """Deliver no more; what is in hand can still be acknowledged."""
        if number in self._subscriptions:
            self._subscriptions[number].active = False

    def unsubscribe(self, number: int) -> None:
        """End a subscription, and take back what it has in hand."""
        if (subscription := self._subscriptions.pop(number, None)) is None:
            return
        subscription.active = False
        subscription.queue.subscriptions.remove(subscription)
        for held in subscription.in_hand.values():
            subscription.queue.give_back(held)
        subscription.in_hand.clear()
        subscription.queue.serve()

    def deliver(self, subscription: Subscription, tag: int, held: Held) -> None:
        """Send a message to a consumer."""
        number, given_back = subscription.number, held.deliveries - 1
        headers = letters.delivered(held.headers, subscription.queue.declared, given_back)

        def arrive() -> None:
            if (consuming := self.consuming.get(number)) is not None:
                consuming.take(tag, held, given_back > 0, headers)

        self.answer(f"deliver {held.message.id}", arrive)

    def settle(self, number: int, tag: int, requeue: bool | None) -> None:
        """Take an acknowledgement (None), or a message back for its queue (True) or the dead letters (False)."""
        subscription = self._subscriptions.get(number)
        if subscription is None or (held := subscription.in_hand.pop(tag, None)) is None:
            return
        if requeue is None:
            subscription.queue.acknowledge(held)
        elif requeue:
            subscription.queue.give_back(held)
        else:
            subscription.queue.dead_letter(held, "rejected")
        subscription.queue.serve()

    def cancel_consumers(self) -> None:
        """End every subscription from the broker's side, as when a queue's leader moves."""
        for number in list(self._subscriptions):
            self.unsubscribe(number)

            def tell(number: int = number) -> None:
                if (consuming := self.consuming.get(number)) is not None:
                    consuming.end(ConsumerCancelledError("The broker has cancelled this consumer"))

            self.answer(f"cancel {self.who}", tell)

    def tell_blocked(self, blocked: bool) -> None:
        """Tell the client to publish nothing, or that it may again."""

        def tell() -> None:
            self.blocked = blocked
            if not blocked:
                self.unblocked.set()
                self.unblocked = trio.Event()

        self.answer(f"block {self.who}", tell)

    def answer(self, about: str, do: Callable[[], None], delay: float = 0.0) -> None:
        """Send a frame to the client after so many seconds, which does something when it arrives."""
        self._carry("down", about, lambda: do() if self.why is None else None, delay)

    def take_back(self) -> None:
        """End all subscriptions: the client has asked to close."""
        for number in list(self._subscriptions):
            self.unsubscribe(number)

    def end_at_broker(self) -> None:
        """Let the broker notice that the connection has ended: it takes back what was not acknowledged."""
        if self._known_to_broker:
            self._known_to_broker = False
            self._carries = False
            self._broker.links.remove(self)
            self.take_back()

    # Between them

    def cut(self, broker_notices: float, client_notices: float) -> None:
        """Lose what is under way, and everything after; each side notices after so many seconds."""
        if not self._carries:
            return
        self._carries = False
        error = ConnectionLostError("The connection to the broker was lost")
        if broker_notices == 0:
            self.end_at_broker()
        else:
            self._network.agenda.after(broker_notices, self.end_at_broker)
        self._network.agenda.after(client_notices, lambda: self.gone(error))

    def _until_together(self) -> float:
        together = self._broker.habits.together
        return -trio.current_time() % together if together else 0.0

    def _carry(self, way: str, about: str, do: Callable[[], None], delay: float = 0.0) -> None:
        if not self._carries:
            return
        network = self._network
        if drawn := network.faults.strike(Fault.CUT, self.who, about):
            network.cut(self, drawn)
            return
        arrival = max(self._last[way], trio.current_time() + delay + network.delay(self.who, about))
        if not delay:  # what waits at the broker keeps nothing back
            self._last[way] = arrival
        network.under_way += 1

        def arrive() -> None:
            network.under_way -= 1
            if self._carries:
                do()

        network.agenda.at(arrival, arrive)
