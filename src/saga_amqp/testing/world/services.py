"""Handlers that behave as their step's input says: well, badly, slowly, later, once or more than once.

What they do is drawn when a saga is defined, and follows from the step and the attempt alone: a handler that runs once
more does the same once more. The input is `{"do": [act, …], "undo": [act, …], "guarded": true}`; the last act of a list
is that of all further attempts.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Literal

import trio
from msgspec import Struct

from saga_amqp.errors import RefusedByBarrierError
from saga_amqp.testing.world.faults import Fault
from saga_amqp.testing.world.ledger import Key
from saga_amqp.testing.world.pulse import Died
from saga_core import Defer, Operation, Saga, Skip, Step, StepError

if TYPE_CHECKING:
    from saga_amqp.barrier import Answer
    from saga_amqp.testing.world.process import Life

Outcome = Literal["well", "busy", "broken", "odd", "unwritable", "skip", "later", "hang"]


class Call(Struct, frozen=True, omit_defaults=True):
    """How the outside world answers a handler that deferred: after how many seconds, with what, and how often."""

    after: float
    outcome: Literal["well", "busy", "broken"] = "well"
    times: int = 1
    forged: bool = False


class Act(Struct, frozen=True, omit_defaults=True):
    """What a handler does in one attempt: seconds before its effect, seconds after it, and what comes of it.

    `call` is how the outside answers; it answers too where the handler has an answer itself, and does not defer.
    `deaf` handlers hear of no cancellation, as those that block a thread: only the death of their process ends them.
    """

    outcome: Outcome = "well"
    before: float = 0.0
    after: float = 0.0
    call: Call | None = None
    deaf: bool = False


class Behaviour(Struct, frozen=True):
    """What a step's handlers do, by attempt."""

    do: tuple[Act, ...] = (Act(),)
    undo: tuple[Act, ...] = (Act(),)
    guarded: bool = True


Service = Callable[[Saga, Step[Behaviour]], Awaitable[object]]


def service(life: "Life", operation: Operation) -> Service:
    """Return the handler of every action, or of every compensation, in one life of a process."""

    async def handle(saga: Saga, step: Step[Behaviour]) -> object:
        acts = step.input.do if operation == "execute" else step.input.undo
        attempt = step.attempt if operation == "execute" else step.compensation_attempt
        act = _act(acts, attempt)
        if not act.deaf:
            return await perform(act, attempt, saga, step)
        with trio.CancelScope(shield=True) as scope:
            life.pulse.at_death(scope.cancel)
            return await perform(act, attempt, saga, step)
        raise Died

    async def perform(act: Act, attempt: int, saga: Saga, step: Step[Behaviour]) -> object:
        await trio.sleep(act.before)
        _fail(act.outcome)
        if act.outcome == "hang":
            await trio.sleep_forever()
        if act.outcome == "unwritable":
            return {"output": object()}
        answer: Answer = {"by": step.name, "attempt": attempt}
        if act.outcome == "later":
            answer = Defer()
        elif act.outcome == "skip":
            answer = Skip("nothing to do")
        key = Key(saga.id, step.name, operation)
        try:
            answer = await life.world.ledger.take_effect(life.pulse, key, answer, guarded=step.input.guarded)
        except RefusedByBarrierError:
            life.world.faults.counts["refused by the barrier"] += 1
            raise
        where = f"{life.pulse.who} in a handler"
        if life.world.faults.strike(Fault.CRASH_IN_HANDLER, where, f"{' '.join(key)} {attempt}"):
            life.crash()
        # The outside world is asked in each attempt, for each has a token of its own.
        asks = isinstance(answer, Defer) or (act.call is not None and not isinstance(answer, Skip))
        if asks and life.pulse.alive:
            life.world.outside.ask(step.token, act.call or Call(0.0))
        await trio.sleep(act.after)
        return answer

    return handle


def _act(acts: Sequence[Act], attempt: int) -> Act:
    return acts[min(attempt, len(acts)) - 1]


def _fail(outcome: Outcome) -> None:
    if outcome == "busy":
        raise StepError("busy", "try again", retryable=True)
    if outcome == "broken":
        raise StepError("broken", "for good")
    if outcome == "odd":
        raise ValueError("this was not foreseen")
