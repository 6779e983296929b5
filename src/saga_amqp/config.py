"""What an engine is told: names on the broker, handlers, limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from saga_amqp.contracts import Exchange, Message, Queue, Topology
from saga_amqp.handlers import CompensationHandler, Registry, StepHandler, collect
from saga_amqp.observer import Observer
from saga_core import (
    Command,
    Compensate,
    CompensateChild,
    DefinitionError,
    Execute,
    Handler,
    Report,
    StartChild,
    StepPlan,
    encode_command,
)

OPERATIONS: dict[type[Command], str] = {
    Execute: "execute",
    Compensate: "compensate",
    StartChild: "start_child",
    CompensateChild: "compensate_child",
    Report: "report",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """How an engine works, and with which handlers.

    `concurrency` is how many handlers run at once; `prefetch` how many messages of each queue the broker hands over
    ahead of their acknowledgement (None: twice the concurrency). `grace_period`, seconds, is how long `stop` lets
    running handlers finish. `sweep_interval`, seconds, is how often the store is searched for timers that are due and
    for commits that nobody has published; `republish_after`, seconds, is how long whoever made such a commit has time
    to publish it himself. With `expires`, seconds, the broker removes queues that nobody has used for that long.
    `observer` is called at every `Point`, in the event loop: it must be quick, and ends the engine when it raises.

    Raises: HandlerError, ValueError.
    """

    saga_exchange: str = "sagas"
    step_queue: str = "saga.steps"
    compensate_queue: str = "saga.compensate"
    dead_letter_queue: str = "saga.dead-letter"
    step_handlers: Mapping[str, StepHandler] = field(default_factory=dict[str, StepHandler])
    compensation_handlers: Mapping[str, CompensationHandler] = field(
        default_factory=dict[str, CompensationHandler]
    )
    registries: tuple[Registry, ...] = ()
    concurrency: int = 100
    prefetch: int | None = None
    grace_period: float = 10.0
    sweep_interval: float = 1.0
    republish_after: float = 10.0
    queue_kind: Literal["quorum", "classic"] = "quorum"
    expires: float | None = None
    observer: Observer | None = None
    actions: Mapping[str, Handler] = field(init=False)
    compensations: Mapping[str, Handler] = field(init=False)

    def __post_init__(self) -> None:
        """Check everything that can be checked before anything runs."""
        names = (self.saga_exchange, self.step_queue, self.compensate_queue, self.dead_letter_queue)
        for name in names:
            if not 0 < len(name.encode()) <= 255:
                raise ValueError(f"The name {name!r} of an exchange or queue must have 1 to 255 bytes")
        if len(set(names[1:])) < 3:
            raise ValueError(
                f"Steps, compensations and dead letters need queues of their own, not {names[1:]}"
            )
        if self.concurrency < 1 or not 1 <= self.messages_ahead <= 65_535:
            raise ValueError("concurrency must be at least 1, and prefetch from 1 to 65535")
        if self.grace_period < 0:
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

    @property
    def messages_ahead(self) -> int:
        """How many messages of each queue may be unacknowledged at once."""
        return min(2 * self.concurrency, 65_535) if self.prefetch is None else self.prefetch

    def topology(self) -> Topology:
        """Return what has to exist on the broker."""

        def queue(name: str, *patterns: str) -> Queue:
            bindings = tuple((self.saga_exchange, pattern) for pattern in patterns)
            return Queue(name, bindings, self.dead_letter_queue, self.queue_kind, self.expires)

        return Topology(
            exchanges=(Exchange(self.saga_exchange, auto_delete=self.expires is not None),),
            queues=(
                Queue(self.dead_letter_queue, (), None, self.queue_kind, self.expires),
                queue(self.step_queue, "execute.#", "start_child", "report"),
                queue(self.compensate_queue, "compensate.#", "compensate_child"),
            ),
        )

    def message(self, command: Command) -> Message:
        """Return the message that carries a command."""
        operation = OPERATIONS[type(command)]
        action = f".{command.action}" if isinstance(command, Execute | Compensate) else ""
        return Message(
            self.saga_exchange,
            operation + action,
            encode_command(command),
            f"{command.saga}.{command.step}.{operation}.{command.attempt}",
            f"saga.step.{operation}",
        )

    def handler(self, command: Execute | Compensate) -> Handler | None:
        """Return what runs a command, or None."""
        return (self.actions if type(command) is Execute else self.compensations).get(command.action)

    def check(self, name: str, steps: tuple[StepPlan, ...]) -> None:
        """Check that every action and compensation that a saga or its children name has a handler.

        Raises: DefinitionError.
        """
        for step in steps:
            if step.child is not None:
                self.check(step.child.name, step.child.steps)
            elif step.action not in self.actions:
                raise DefinitionError(_missing(name, step.name, "action", step.action, self.actions))
            if step.compensation is not None and step.compensation not in self.compensations:
                raise DefinitionError(
                    _missing(name, step.name, "compensation", step.compensation, self.compensations)
                )


def _missing(saga: str, step: str, kind: str, name: str, known: Mapping[str, Handler]) -> str:
    return (
        f"Saga {saga!r}: step {step!r} names the {kind} {name!r}, and no handler is registered for it; "
        f"registered are: {', '.join(sorted(known)) or 'none'}"
    )
