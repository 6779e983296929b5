"""The ledger's barrier answers as the one in a database does, whatever comes in whatever order."""

import sqlite3
from contextlib import closing
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from saga_amqp import RefusedByBarrierError, barrier
from saga_amqp.barrier import Answer
from saga_amqp.testing.world.agenda import Agenda
from saga_amqp.testing.world.chance import Chance
from saga_amqp.testing.world.ledger import Key, Ledger
from saga_core import Defer, Operation, Skip, Step, StepState, new_saga

ANSWERS: tuple[Answer, ...] = ({"a": 1}, {"b": 2}, Skip("nothing to do"), Defer())
STATES: dict[Operation, StepState] = {"execute": StepState.STARTED, "compensate": StepState.COMPENSATING}


@pytest.mark.parametrize("seed", range(40))
def test_the_two_barriers_agree(seed: int) -> None:
    source = Random(seed)
    saga = new_saga(
        "s", [Step(name=name, action="do") for name in "ab"], id="01J00000000000000000000000", at=0.0
    )
    ledger, effects = Ledger(Agenda(), Chance("unused")), dict[Key, int]()
    with closing(sqlite3.connect(":memory:")) as connection:
        barrier.create_table(connection)
        for _ in range(12):
            name = source.choice("ab")
            operation: Operation = source.choice(("execute", "execute", "compensate"))
            # A compensation's output is not kept, and it does not skip.
            answer = source.choice(ANSWERS if operation == "execute" else ({}, Defer()))
            key = Key(saga.id, name, operation)
            step: Step[Any] = replace(saga.step(name), state=STATES[operation])

            def body(key: Key = key, answer: Answer = answer) -> Answer:
                if not isinstance(answer, Skip):
                    effects[key] = effects.get(key, 0) + 1
                return answer

            def behind_the_real_one(step: Step[Any] = step, body: Any = body) -> object:
                with connection:
                    return barrier.run(connection, saga, step, body)

            assert _told(behind_the_real_one) == _told(
                lambda key=key, answer=answer: ledger.guard(key, answer)
            )
            assert ledger.effects == effects


def _told(call: Any) -> object:
    try:
        return call()
    except RefusedByBarrierError:
        return "refused"
