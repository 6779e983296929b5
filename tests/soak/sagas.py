"""What is asked of an engine that is soaked: mostly sagas of three steps, and something of all that sagas can do."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
from msgspec import Struct

from saga_amqp import ChildSaga, Defer, Options, Registry, RetryPolicy, Saga, SagaState, Step, StepError

PAUSE = 0.2
"""Seconds that a saga waits, where it is one that waits."""
PATIENCE = 30.0
"""Seconds that an attempt may take, where that is bounded: the engine holds a timer for so long."""


class Work(Struct, frozen=True):
    """What a step meets."""

    trouble: str = ""


class Kind(Struct, frozen=True):
    """Sagas of one kind: how they end, and how many seconds they wait because they are meant to."""

    name: str
    steps: Callable[[], Sequence[Step]]
    ends: SagaState = SagaState.COMPLETED
    waits: float = 0.0
    delayed: bool = False

    def options(self) -> Options:
        return Options(start_at=time.time() + self.waits) if self.delayed else Options()


def _step(name: str, trouble: str = "", **more: Any) -> Step:
    return Step(name=name, action="soak.do", compensation="soak.undo", input=Work(trouble), **more)


def plain() -> list[Step]:
    return [_step("first"), _step("second"), _step("third")]


def undone() -> list[Step]:
    return [*plain()[:2], _step("third", "refuses")]


def deferred() -> list[Step]:
    return [_step("first"), _step("second", "defers"), _step("third")]


def retried() -> list[Step]:
    policy = RetryPolicy(max_attempts=2, initial_delay=PAUSE, jitter=0.0)
    return [_step("first"), _step("second", "stumbles", retry=policy, timeout=PATIENCE), _step("third")]


def with_child() -> list[Step]:
    return [_step("first"), Step(name="second", child=ChildSaga("part", plain()[:2])), _step("third")]


KINDS = (
    Kind("plain", plain),
    Kind("undone", undone, ends=SagaState.COMPENSATED),
    Kind("plain", plain),
    Kind("deferred", deferred, waits=PAUSE),
    Kind("plain", plain),
    Kind("retried", retried, waits=PAUSE),
    Kind("plain", plain),
    Kind("with a child", with_child),
    Kind("plain", plain),
    Kind("delayed", plain, waits=PAUSE, delayed=True),
)
"""They take turns, so one in ten is undone."""


def handlers(complete: Callable[[str], None]) -> Registry:
    """Return the handlers; `complete` is given the tokens of the steps that wait for somebody outside."""
    registry = Registry()

    @registry.action("soak.do")
    async def do(saga: Saga, step: Step[Work]) -> object:
        await anyio.lowlevel.checkpoint()
        match step.input.trouble:
            case "refuses":
                raise StepError("refused", "as it is meant to")
            case "stumbles" if step.attempt == 1:
                raise StepError("stumbled", "as it is meant to", retryable=True)
            case "defers":
                complete(step.token)
                return Defer()
        return {"number": saga.context["number"]}

    @do.compensation("soak.undo")
    async def undo(saga: Saga, step: Step) -> None:
        await anyio.lowlevel.checkpoint()

    return registry
