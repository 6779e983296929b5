"""What to do next. A command is data for outside, and is its own message: its JSON is what travels (`codec`)."""

from typing import Literal

from msgspec import Raw, Struct

from saga_core.payload import EMPTY
from saga_core.plan import Failure
from saga_core.states import Operation, SagaState


class Execute(Struct, frozen=True, gc=False, tag_field="operation", tag="execute"):
    """Run a step's action. `deadline`: when the attempt times out, in seconds since 1970, UTC."""

    saga: str
    step: str
    action: str
    attempt: int
    deadline: float | None = None
    version: int = 1


class Compensate(Struct, frozen=True, gc=False, tag_field="operation", tag="compensate"):
    """Run a step's compensation; `action` is the compensation's name."""

    saga: str
    step: str
    action: str
    attempt: int
    deadline: float | None = None
    version: int = 1


class StartChild(Struct, frozen=True, gc=False, tag_field="operation", tag="start_child"):
    """Start the child saga of a step; `child` is the id that it has to have."""

    saga: str
    step: str
    attempt: int
    child: str
    version: int = 1


class CompensateChild(Struct, frozen=True, gc=False, tag_field="operation", tag="compensate_child"):
    """Have the child saga of a step undone. `attempt` counts the attempts to."""

    saga: str
    step: str
    attempt: int
    child: str
    version: int = 1


class Report(Struct, frozen=True, gc=False, tag_field="operation", tag="report"):
    """Tell a parent saga how its child came to rest. `attempt` is that of the parent's step which started it.

    `asked` is the latest attempt to undo it that the child knows of, so that its parent can tell an old report by it.
    """

    saga: str
    step: str
    attempt: int
    child: str
    state: SagaState
    asked: int = 0
    version: int = 1


Command = Execute | Compensate | StartChild | CompensateChild | Report

WITH_HANDLER = (Execute, Compensate)
"""What a handler is called for."""


class Reply(Struct, frozen=True, gc=False, tag_field="operation", tag="reply"):
    """Tell an orchestrator how an attempt ended that a participant has run. `of` is what it had been asked for.

    `output` goes with `succeeded`, `error` with `failed`, `reason` with `skipped`; a compensation has no output.
    `unknown`, with `failed`: nobody can say whether it had its effect.
    """

    saga: str
    step: str
    attempt: int
    of: Operation
    outcome: Literal["succeeded", "failed", "skipped", "deferred"]
    output: Raw = EMPTY
    error: Failure | None = None
    reason: str = ""
    unknown: bool = False
    version: int = 1

    def __hash__(self) -> int:
        """Leave out what cannot be hashed."""
        return hash((self.saga, self.step, self.attempt, self.of, self.outcome))


Carried = Command | Reply
"""What the messages on the queues carry."""


class StateChanged(Struct, frozen=True, gc=False):
    """Tell whoever listens that a saga has come to a state, with its `revision` and the moment, seconds since 1970."""

    saga: str
    name: str
    state: SagaState
    revision: int
    at: float
    tags: dict[str, str]
    version: int = 1
