"""The handlers of the bank: each does its work in the ledger, once, and meets the trouble that was drawn for it."""

import random

import anyio
import anyio.to_thread

from saga_amqp import Registry, Saga, Step, StepError, barrier

from .ledger import Ledger
from .transfers import STEPS, Movement, operation_of

LONGEST = 0.04
"""Seconds that the work of a handler takes, apart from the ledger's."""


def handlers(ledger: Ledger) -> Registry:
    """Return the handlers of the three steps."""
    registry = Registry()

    async def handle(saga: Saga, step: Step[Movement]) -> barrier.Answer:
        operation = operation_of(step)
        attempt = step.attempt if operation == "execute" else step.compensation_attempt
        print("handles", saga.id, step.name, operation, attempt, flush=True)
        trouble = step.input.trouble.get(operation) if attempt == 1 else None
        await anyio.sleep(random.uniform(0, LONGEST))
        if trouble == "refuses":
            raise StepError("refused", "before its transaction", retryable=True)

        def last() -> None:
            if trouble == "breaks":
                raise StepError("broken", "within its transaction", retryable=True)
            if step.input.fails and operation == "execute":
                raise StepError("failed", "for good")

        answer = await anyio.to_thread.run_sync(ledger.move, saga, step, last)
        if trouble == "forgets":
            raise StepError("forgotten", "after its transaction", retryable=True)
        if trouble == "hangs":
            await anyio.sleep_forever()
        return answer

    for name in STEPS:
        registry.action(f"bank.{name}")(handle).compensation(f"bank.{name}.undo")(handle)
    return registry
