"""A broker with RabbitMQ's promises and no more.

Queues are durable; what a publisher was told is kept outlives a restart, and nothing else does for certain: neither a
message before its confirm was sent, nor an acknowledgement that has just come in. A message that its consumer has not
acknowledged is delivered again, and says so. Confirms may come late and many at once.
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING

import trio
from msgspec import Struct
from msgspec.structs import replace

from saga_amqp.contracts import Exchange, Message, Queue, Topology
from saga_amqp.errors import PublishError, QueueNotFoundError, TopologyError, TransportError, UnroutableError
from saga_amqp.patterns import matches
from saga_amqp.testing.world.agenda import EPOCH, Agenda
from saga_amqp.testing.world.chance import Chance
from saga_amqp.transports import letters
from saga_amqp.transports.memory import declared_again

if TYPE_CHECKING:
    from saga_amqp.testing.world.link import Link

KEPT_AFTER = 0.002
"""Seconds until a message is on disk."""

FORGETS_AFTER = 0.05
"""Seconds until an acknowledgement is."""


class Habits(Struct, frozen=True):
    """How a broker is set up.

    `together` gathers confirms for so many seconds; `delivery_limit` is that of queues that name none.
    """

    together: float = 0.0
    delivery_limit: int | None = None


class Held:
    """A message in a queue. `place` is its place in the queue, which it keeps when it is given back.

    `headers` are the publisher's and those that the broker added.
    """

    __slots__ = ("deliveries", "headers", "kept", "message", "place")

    def __init__(self, message: Message, headers: Mapping[str, object], place: int) -> None:
        self.message = message
        self.headers = headers
        self.place = place
        self.deliveries = 0
        self.kept = False

    def __lt__(self, other: "Held") -> bool:
        return self.place < other.place


class Subscription:
    """The broker's side of a consumer."""

    def __init__(self, link: "Link", queue: "HeldQueue", number: int, prefetch: int) -> None:
        self.link = link
        self.queue = queue
        self.number = number
        self.prefetch = prefetch
        self.active = True
        self.in_hand: dict[int, Held] = {}
        self.delivered = 0


class HeldQueue:
    """One queue and its consumers, served in turn."""

    def __init__(self, broker: "Broker", declared: Queue) -> None:
        self.broker = broker
        self.declared = declared
        self.ready: list[Held] = []
        self.subscriptions: deque[Subscription] = deque()
        self.forgetting: list[tuple[float, Held]] = []

    def put(self, message: Message, headers: Mapping[str, object]) -> Held:
        """Add a message at the end."""
        self.broker.places += 1
        held = Held(message, headers, self.broker.places)
        self.ready.append(held)
        self.serve()
        return held

    def give_back(self, held: Held) -> None:
        """Take a message back to its old place; one that comes back too often is a dead letter."""
        if letters.is_given_up(self.declared, held.deliveries, self.broker.habits.delivery_limit):
            self.dead_letter(held, "delivery_limit")
        else:
            insort(self.ready, held)

    def acknowledge(self, held: Held) -> None:
        """Let a message go; a broker that is killed at once may not have noted it yet."""
        now = trio.current_time()
        self.broker.count["acknowledged"] += 1
        self.forgetting = [each for each in self.forgetting if each[0] > now]
        self.forgetting.append((now + FORGETS_AFTER, held))

    def dead_letter(self, held: Held, reason: letters.Reason) -> None:
        """Move a message to where the queue says; without such a place it is gone, and counted."""
        self.broker.count["dead-lettered"] += 1
        name = self.declared.dead_letter
        if name is not None and name in self.broker.queues:
            self.broker.count["accepted"] += 1
            was, at = held.message, EPOCH + trio.current_time()
            headers = letters.dead(held.headers, self.declared, reason, was.exchange, was.routing_key, at)
            moved = replace(was, exchange="", routing_key=name)
            self.broker.queues[name].put(moved, headers).kept = True

    def serve(self) -> None:
        """Hand out what consumers have room for."""
        while self.ready and (subscription := self._next_with_room()) is not None:
            held = self.ready.pop(0)
            held.deliveries += 1
            subscription.delivered += 1
            subscription.in_hand[subscription.delivered] = held
            subscription.link.deliver(subscription, subscription.delivered, held)

    def held(self) -> list[Held]:
        """Return all that the queue holds, what consumers have in hand included."""
        return [*self.ready, *(held for each in self.subscriptions for held in each.in_hand.values())]

    def _next_with_room(self) -> Subscription | None:
        for _ in range(len(self.subscriptions)):
            subscription = self.subscriptions[0]
            self.subscriptions.rotate(-1)
            if subscription.active and len(subscription.in_hand) < subscription.prefetch:
                return subscription
        return None


class Broker:
    """Exchanges, queues and connections. `count` says what has become of all messages."""

    def __init__(self, agenda: Agenda, habits: Habits, chance: Chance) -> None:
        self.agenda = agenda
        self.habits = habits
        self.exchanges: dict[str, Exchange] = {}
        self.queues: dict[str, HeldQueue] = {}
        self.links: list[Link] = []
        self.up = True
        self.blocked = False
        self.places = 0
        self.count: Counter[str] = Counter()
        self._chance = chance

    def declare(self, topology: Topology) -> None:
        """Create what is missing. Raises: TopologyError when something exists and is different."""
        for exchange in topology.exchanges:
            if self.exchanges.setdefault(exchange.name, exchange) != exchange:
                raise TopologyError(f"Exchange {exchange.name!r} exists as {self.exchanges[exchange.name]}")
        for queue in topology.queues:
            existing = self.queues.setdefault(queue.name, HeldQueue(self, queue))
            existing.declared = declared_again(existing.declared, queue)

    def accept(self, message: Message, confirm: Callable[[TransportError | None], None]) -> None:
        """Take a message that has arrived, and confirm it when it is kept."""
        if message.exchange and message.exchange not in self.exchanges:
            confirm(PublishError(f"There is no exchange {message.exchange!r} to publish {message.id} to"))
            return
        targets = self._targets(message)
        if message.mandatory and not targets:
            confirm(
                UnroutableError(
                    f"Message {message.id} has nowhere to go: no queue is bound to exchange {message.exchange!r} "
                    f"for {message.routing_key!r}"
                )
            )
            return
        self.count["accepted"] += len(targets)
        # Delivered at once, be it before it is on disk.
        taken = [queue.put(message, message.headers or {}) for queue in targets]

        def keep() -> None:
            if self.up:
                for held in taken:
                    held.kept = True
                confirm(None)

        self.agenda.after(self._chance.exponential(message.id, KEPT_AFTER), keep)

    def restart(self, drawn: Random) -> None:
        """Die, and come back after some seconds, without what was not on disk."""
        self.up = False
        for link in list(self.links):
            link.cut(0.0, drawn.uniform(0, 0.2))
        now = trio.current_time()
        for queue in self.queues.values():
            lost = [held for held in queue.ready if not held.kept and drawn.random() < 0.7]
            back = [held for until, held in queue.forgetting if until > now and drawn.random() < 0.5]
            queue.forgetting = []
            self.count["lost before the confirm"] += len(lost)
            self.count["acknowledged"] -= len(back)
            queue.ready = sorted([held for held in queue.ready if held not in lost] + back)
            for held in queue.ready:
                held.kept = True
        self.agenda.after(drawn.choice((0.3, 3.0, 20.0)), self.come_back)

    def come_back(self) -> None:
        """Take connections again."""
        self.up = True

    def block(self, blocked: bool) -> None:
        """Block publishers, or let them go on: disk or memory are short."""
        self.blocked = blocked
        for link in self.links:
            link.tell_blocked(blocked)

    def depth(self, queue: str) -> int:
        """Return how many messages of a queue are ready. Raises: QueueNotFoundError."""
        if queue not in self.queues:
            raise QueueNotFoundError(f"There is no queue {queue!r} on the broker; declare it first")
        return len(self.queues[queue].ready)

    def held(self, queue: str) -> int:
        """Return how many messages a queue holds, those with consumers included."""
        return len(self.queues[queue].held()) if queue in self.queues else 0

    def has_kept_body(self, body: bytes) -> bool:
        """Whether a message is in a queue, or in a consumer's hands, and would outlive a restart."""
        return any(
            held.kept and held.message.body == body for queue in self.queues.values() for held in queue.held()
        )

    def _targets(self, message: Message) -> list[HeldQueue]:
        if message.exchange == "":
            return [self.queues[message.routing_key]] if message.routing_key in self.queues else []
        kind = self.exchanges[message.exchange].kind
        return [
            queue
            for queue in self.queues.values()
            if any(
                exchange == message.exchange and matches(kind, pattern, message.routing_key)
                for exchange, pattern in queue.declared.bindings
            )
        ]
