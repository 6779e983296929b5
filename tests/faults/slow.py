"""A process with an engine on a store that others share, whose first step takes its time.

    python -m tests.faults.slow BACKEND JSON

Whichever of several comes first creates the saga. It sweeps every second, reports when it runs and when the step has
begun, and ends when the saga rests.
"""

import json
import sys
import time
from contextlib import suppress
from typing import Any

import anyio
import msgspec

from saga_amqp import Saga, SagaExistsError, Step
from saga_core import new_saga
from tests.engine.world import steps

from .durable import Place, WrittenDown
from .world import RabbitWorld

SAGA_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class Slow(msgspec.Struct, frozen=True):
    """Where an engine works, and how long its first step takes."""

    url: str
    prefix: str
    place: Place
    calls: str
    seconds: float


def report(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def main(slow: Slow) -> None:
    world = RabbitWorld(slow.url, slow.prefix)
    world.deadline = 60.0
    world.services.calls = WrittenDown(slow.calls)

    async def take_time(saga: Saga, step: Step[Any]) -> dict[str, object]:
        report(handling=step.name)
        began = time.monotonic()
        await anyio.sleep(slow.seconds)
        return {"took": time.monotonic() - began}

    world.replace("do.a", take_time)
    async with (
        slow.place.open() as store,
        world.running(store=store, sweep_interval=1.0, republish_after=1.0) as manager,
    ):
        with suppress(SagaExistsError):
            await store.create(new_saga("s", steps("a", "b"), id=SAGA_ID, at=time.time()), unpublished=0.0)
        report(running=True)
        saga = await manager.wait(SAGA_ID)
        await world.until_all_is_acknowledged()
    report(state=saga.state, output=saga.steps[0].output, ready=world.ready())


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[2], type=Slow), backend=sys.argv[1])
