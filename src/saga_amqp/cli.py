"""The command `saga`, also `python -m saga_amqp`."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import anyio
import msgspec
from ulid import ULID

from saga_amqp.config import Config
from saga_amqp.contracts import Transport
from saga_amqp.databases import add_database_commands
from saga_amqp.dead_letter_commands import add_dead_letter_commands
from saga_amqp.demo import order_steps, shop
from saga_amqp.manager import Manager
from saga_amqp.running import add_run_command
from saga_amqp.stores.memory import MemoryStore
from saga_amqp.transports.amqp import AmqpTransport
from saga_amqp.transports.memory import MemoryTransport
from saga_core import (
    CompensationFailed,
    CompensationSucceeded,
    Event,
    Saga,
    SagaError,
    SagaState,
    StepFailed,
    StepSucceeded,
)
from saga_core.handlers import leaves

DEADLINE = 60.0
FORGET_AFTER = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="saga", description="Sagas on RabbitMQ.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="run the order saga twice: once to its end, once undone")
    demo.add_argument(
        "--amqp", metavar="URL", help="go through this RabbitMQ; by default nothing has to be running"
    )
    demo.add_argument(
        "--backend", choices=["asyncio", "trio"], default="asyncio", help="the event loop (asyncio)"
    )
    demo.add_argument("--json", action="store_true", help="print one JSON object per saga, one line each")
    demo.set_defaults(run=_run_demo)
    add_run_command(commands)
    add_database_commands(commands)
    add_dead_letter_commands(commands)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


def _run_demo(options: argparse.Namespace) -> int:
    if options.backend == "trio" and find_spec("trio") is None:
        print("saga: trio is not installed; install it, or use --backend asyncio", file=sys.stderr)
        return 1
    status = 1
    try:
        status = anyio.run(_demo, options.amqp, options.json, backend=options.backend)
    except* TimeoutError:
        print("saga: the sagas did not come to rest in time", file=sys.stderr)
    except* SagaError as errors:
        for error in leaves(errors):
            print(f"saga: {error}", file=sys.stderr)
    except* KeyboardInterrupt:
        status = 130
    return status


async def _demo(url: str | None, as_json: bool) -> int:
    # Names of its own, so that two demonstrations on one broker don't eat each other's messages.
    config = Config(prefix=f"saga-demo.{ULID()}.", registries=(shop,), expires=FORGET_AFTER)
    transport: Transport = MemoryTransport() if url is None else AmqpTransport(url)
    store = MemoryStore()
    expected = (("card-456", SagaState.COMPLETED), ("card-declined", SagaState.COMPENSATED))
    as_they_should = True
    with anyio.fail_after(DEADLINE):
        async with Manager(transport, store, config) as manager, anyio.create_task_group() as tasks:
            await tasks.start(manager.run)
            for card, state in expected:
                started = await manager.start(
                    "order_processing", order_steps(card), {"customer_id": "cust-789", "order_total": 99.99}
                )
                saga = await manager.wait(started.id)
                as_they_should &= saga.state is state
                print(_as_json(saga) if as_json else _timeline(*await store.history(saga.id), saga))
            manager.stop()
    return 0 if as_they_should else 1


def _as_json(saga: Saga) -> str:
    steps = [{"name": step.name, "state": step.state, "error": step.error} for step in saga.steps]
    return msgspec.json.encode(
        {"id": saga.id, "name": saga.name, "state": saga.state, "steps": steps}
    ).decode()


def _timeline(origin: Saga, history: Sequence[Event], saga: Saga) -> str:
    def line(at: float, what: str) -> str:
        return f"  {(at - origin.created_at) * 1000:7.1f} ms  {what}"

    events = [line(event.at, _told(event)) for event in history]
    end = line(saga.updated_at, f"saga {saga.state}")
    return "\n".join([f"{saga.name} {saga.id}", line(origin.created_at, "saga started"), *events, end])


def _told(event: Event) -> str:
    match event:
        case StepSucceeded():
            return f"{event.step:<20} completed {bytes(event.output).decode()}"
        case StepFailed():
            return f"{event.step:<20} failed ({event.error.code}: {event.error.message})"
        case CompensationSucceeded():
            return f"{event.step:<20} compensated"
        case CompensationFailed():
            return f"{event.step:<20} not compensated ({event.error.code}: {event.error.message})"
        case _:
            kind = str(event.__struct_config__.tag).replace("_", " ")
            reason = getattr(event, "reason", "")
            return f"{getattr(event, 'step', ''):<20} {kind}{reason and f': {reason}'}".strip()
