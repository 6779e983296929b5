"""What an engine is told: names on the broker, handlers, limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from saga_amqp.contracts import Exchange, Message, Queue, Topology
from saga_amqp.handlers import CompensationHandler, Registry, StepHandler, collect
from saga_amqp.observer import Moment, Observer, Point
from saga_amqp.patterns import matches
from saga_core import (
    WITH_HANDLER,
    Carried,
    Compensate,
    CompensateChild,
    DefinitionError,
    Execute,
    Handler,
    Outcome,
    Reply,
    Report,
    Saga,
    StartChild,
    StateChanged,
    StepPlan,
    encode_command,
    within_the_sagas_time,
    work_of,
)

OPERATIONS: dict[type[Carried], str] = {
    Execute: "execute",
    Compensate: "compensate",
    StartChild: "start_child",
    CompensateChild: "compensate_child",
    Report: "report",
    Reply: "reply",
}

COMMAND = "saga.step."
"""What the types of messages with commands begin with."""

DIRECT = ".direct"
"""What the direct exchange has behind the name of the other."""

UNLIMITED = 1_000_000_000
"""Deliveries of one message. To say nothing would not do: RabbitMQ 4 has a limit of its own for quorum queues."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How an engine works, and with which handlers.

    Names on the broker: `prefix` comes before each of them, so that several tenants can share one. The step queue and
    the compensation queue take what this service has handlers for; whoever has others needs queues of his own. The
    orchestrator's queue takes what needs the store alone, and is shared by all who share a store. `saga_exchange`
    routes by topics, to all services and listeners; beside it there is a direct one, with `.direct` behind its name,
    for what stays within this service. `queue_kind` is that of all queues; with `expires`, seconds, the broker removes
    those that nobody has used for that long.

    `remote` are actions and compensations that other services run, as patterns of words: `payment.*` or `payment.#`.

    `concurrency` is how many handlers run at once for each of the queues, `compensation_concurrency` the same for
    the compensation queue alone; `prefetch` and `compensation_prefetch` are how many messages of the queue the broker
    hands over ahead of their acknowledgement (None: twice the concurrency). `delivery_limit` is how often a message
    may come back before it is given up (quorum queues only); `max_message_size`, bytes, how long it may be.

    `grace_period`, seconds, is how long `stop` lets running handlers finish. `sweep_interval`, seconds, is how often
    the store is searched for timers that are due and for commits that nobody has published; `republish_after`, seconds,
    is how long whoever made such a commit has time to publish it himself. With `lifecycle_events` each state that a
    saga comes to is published with the routing key `saga.<name>.<state>`, at least once. `observer` is called at every
    `Point`, in the event loop: it must be quick, and ends the engine when it raises.

    Raises: HandlerError, ValueError.
    """

    prefix: str = ""
    saga_exchange: str = "sagas"
    step_queue: str = "saga.steps"
    compensate_queue: str = "saga.compensate"
    orchestrator_queue: str = "saga.orchestrator"
    dead_letter_queue: str = "saga.dead-letter"
    step_handlers: Mapping[str, StepHandler] = field(default_factory=dict[str, StepHandler])
    compensation_handlers: Mapping[str, CompensationHandler] = field(
        default_factory=dict[str, CompensationHandler]
    )
    registries: tuple[Registry, ...] = ()
    remote: tuple[str, ...] = ()
    concurrency: int = 100
    prefetch: int | None = None
    compensation_concurrency: int | None = None
    compensation_prefetch: int | None = None
    delivery_limit: int = 20
    max_message_size: int = 16_777_216
    grace_period: float = 10.0
    sweep_interval: float = 1.0
    republish_after: float = 10.0
    queue_kind: Literal["quorum", "classic"] = "quorum"
    expires: float | None = None
    lifecycle_events: bool = False
    observer: Observer | None = None
    exchange: str = field(init=False)
    direct_exchange: str = field(init=False)
    orchestrator: str = field(init=False)
    actions: Mapping[str, Handler] = field(init=False)
    compensations: Mapping[str, Handler] = field(init=False)

    def __post_init__(self) -> None:
        """Check everything that can be checked before anything runs."""
        if isinstance(self.remote, str):
            raise ValueError(f"remote takes a tuple of patterns, not the text {self.remote!r}")
        queues = (self.step_queue, self.compensate_queue, self.orchestrator_queue, self.dead_letter_queue)
        for name in (self.saga_exchange, self.saga_exchange + DIRECT, *queues):
            if not name or len(self.on_broker(name).encode()) > 255:
                raise ValueError(
                    f"The name {self.on_broker(name)!r} of an exchange or queue must have 1 to 255 bytes"
                )
        if len(set(queues)) < 4:
            raise ValueError(
                f"Steps, compensations, the orchestrator and dead letters need queues of their own, not {queues}"
            )
        object.__setattr__(self, "exchange", self.on_broker(self.saga_exchange))
        object.__setattr__(self, "direct_exchange", self.exchange + DIRECT)
        object.__setattr__(self, "orchestrator", self.on_broker(self.orchestrator_queue))
        for concurrency, prefetch in self.limits().values():
            if concurrency < 1 or not 1 <= prefetch <= 65_535:
                raise ValueError("concurrency must be at least 1, and prefetch from 1 to 65535")
        if self.delivery_limit < 1 or self.max_message_size < 1:
            raise ValueError("delivery_limit and max_message_size must be at least 1")
        if not self.grace_period >= 0:
            raise ValueError("grace_period must not be negative")
        if not (self.sweep_interval > 0 and self.republish_after > 0):
            raise ValueError("sweep_interval and republish_after must be positive numbers of seconds")
        actions = collect(self.step_handlers, (registry.actions for registry in self.registries), "action")
        undo = collect(
            self.compensation_handlers,
            (registry.compensations for registry in self.registries),
            "compensation",
        )
        object.__setattr__(self, "actions", actions)
        object.__setattr__(self, "compensations", undo)

    def on_broker(self, name: str) -> str:
        """Return the name that an exchange or queue has on the broker."""
        return self.prefix + name

    def limits(self) -> dict[str, tuple[int, int]]:
        """Return, by queue on the broker, how many of its messages may be worked on and be unacknowledged at once."""

        def limit(concurrency: int, prefetch: int | None) -> tuple[int, int]:
            return concurrency, min(2 * concurrency, 65_535) if prefetch is None else prefetch

        undoing = self.concurrency if self.compensation_concurrency is None else self.compensation_concurrency
        ahead = self.prefetch if self.compensation_concurrency is None else None
        return {
            self.on_broker(self.step_queue): limit(self.concurrency, self.prefetch),
            self.on_broker(self.compensate_queue): limit(undoing, self.compensation_prefetch or ahead),
            self.orchestrator: limit(self.concurrency, self.prefetch),
        }

    def topology(self) -> Topology:
        """Return what has to exist on the broker."""
        orchestrator, dead = self.orchestrator, self.on_broker(self.dead_letter_queue)
        temporary = self.expires is not None
        exchanges = (
            Exchange(self.exchange, auto_delete=temporary),
            Exchange(self.direct_exchange, "direct", temporary),
        )

        def queue(name: str, dead_letter: str | None, limit: int, *keys: str) -> Queue:
            bindings = tuple((exchange.name, key) for exchange in exchanges for key in keys)
            return Queue(name, bindings, dead_letter, self.queue_kind, self.expires, limit)

        def own(name: str, operation: str, handlers: Mapping[str, Handler]) -> Queue:
            keys = [f"{operation}.{action}" for action in sorted(handlers)]
            # What the broker gives up on goes to an orchestrator first, who tells its saga.
            return queue(self.on_broker(name), orchestrator, self.delivery_limit, *keys)

        return Topology(
            exchanges=exchanges,
            queues=(
                queue(dead, None, UNLIMITED),
                queue(orchestrator, dead, UNLIMITED, "start_child", "compensate_child", "report", "reply"),
                own(self.step_queue, "execute", self.actions),
                own(self.compensate_queue, "compensate", self.compensations),
            ),
        )

    def message(self, command: Carried, saga: Saga | None = None) -> Message:
        """Return the message that carries a command; where a participant handles it, with what it needs of the saga.

        What an engine with this configuration handles itself goes through the direct exchange: RabbitMQ needs a quarter
        less time for it.
        """
        operation = OPERATIONS[type(command)]
        id, key, work = f"{command.saga}.{command.step}.{operation}.{command.attempt}", operation, None
        exchange = self.direct_exchange
        if isinstance(command, WITH_HANDLER):
            key = f"{operation}.{command.action}"
            if self.handler(command) is None:
                exchange = self.exchange
                if saga is not None:
                    work, command = work_of(saga, command), within_the_sagas_time(saga, command)
        elif isinstance(command, Reply):
            exchange = self.exchange
            # It repeats the names that came, and they may be anybody's.
            id = f"{command.saga}.{command.step}.{command.of}.{operation}.{command.attempt}"
            id = id.encode()[:255].decode(errors="ignore")
        return Message(exchange, key, encode_command(command, work), id, f"{COMMAND}{operation}")

    def messages(self, outcome: Outcome) -> list[Message]:
        """Return the messages that carry what a commit has caused."""
        messages = [self.message(command, outcome.saga) for command in outcome.commands]
        if self.lifecycle_events and outcome.news is not None:
            messages.append(self._announcement(outcome.news))
        return messages

    def publishes(self, outcome: Outcome) -> bool:
        """Whether a commit has caused any message."""
        return bool(outcome.commands) or (self.lifecycle_events and outcome.news is not None)

    def handler(self, command: Execute | Compensate) -> Handler | None:
        """Return what runs a command, or None."""
        return (self.actions if type(command) is Execute else self.compensations).get(command.action)

    def observe(self, point: Point, saga_id: str, command: Carried | None = None) -> None:
        """Tell the observer, if there is one."""
        if self.observer is not None:
            self.observer(Moment(point, saga_id, command))

    def check(self, name: str, steps: tuple[StepPlan, ...]) -> None:
        """Check that every action and compensation that a saga or its children name has a handler, here or elsewhere.

        Raises: DefinitionError.
        """
        for step in steps:
            if step.child is not None:
                self.check(step.child.name, step.child.steps)
            elif step.action not in self.actions:
                self._check_elsewhere(name, step, "action", step.action, self.actions)
            if step.compensation is not None and step.compensation not in self.compensations:
                self._check_elsewhere(name, step, "compensation", step.compensation, self.compensations)

    def _check_elsewhere(
        self, saga: str, step: StepPlan, kind: str, action: str, known: Mapping[str, Handler]
    ) -> None:
        if not any(matches("topic", one, action) for one in self.remote):
            raise DefinitionError(
                f"Saga {saga!r}: step {step.name!r} names the {kind} {action!r}, and no handler is registered for it; "
                f"registered are: {', '.join(sorted(known)) or 'none'}; "
                f"elsewhere: {', '.join(self.remote) or 'none'}"
            )

    def _announcement(self, news: StateChanged) -> Message:
        return Message(
            self.exchange,
            f"saga.{news.name}.{news.state}",
            encode_command(news),
            f"{news.saga}.{news.state}.{news.revision}",
            "saga.state",
            mandatory=False,
        )
