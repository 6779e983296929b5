"""An application to run: its handlers tell what they do, one JSON object a line, and do what the environment says."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from saga_amqp import Config, Moment, Point, Registry, Saga, Step

POLL_INTERVAL = 0.02

registry = Registry()


def report(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def _do(saga: Saga, step: Step[Any]) -> dict[str, object]:
    report(handling=step.name)
    match os.environ.get("TEST_HOW", "work").split():
        case ["wait", gate]:
            while not await anyio.Path(gate).exists():  # noqa: ASYNC110 - it is another process that opens it
                await anyio.sleep(POLL_INTERVAL)
        case ["hang"]:
            await anyio.sleep_forever()
        case ["cling"]:
            with anyio.CancelScope(shield=True):
                await anyio.sleep_forever()
        case ["block"]:
            time.sleep(600)  # noqa: ASYNC251 - a handler that ought to know better
    return {"done": step.name}


for _name in ("a", "b"):
    registry.action(f"do.{_name}")(_do).compensation(f"undo.{_name}")(_do)


def app() -> Config:
    return Config(
        prefix=f"{os.environ['TEST_UNIQUE']}.", registries=(registry,), sweep_interval=0.1, expires=60.0
    )


def participant() -> Config:
    return replace(app(), step_queue="parts.steps", compensate_queue="parts.compensate")


def orchestrator() -> Config:
    return replace(app(), registries=(), remote=("do.*", "undo.*"))


def failing() -> Config:
    def fail(moment: Moment) -> None:
        if moment.point is Point.RECEIVED:
            raise ValueError("a defect of the application")

    return replace(app(), observer=fail)


def raising() -> Config:
    raise KeyError("TEST_MISSING")


async def waiting() -> Config:
    return app()


made = Config(registries=(registry,))
empty = Registry()
number = 7
path = Path("x")
