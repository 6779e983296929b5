"""The commands `saga dead-letter …`: what a person sees of the dead letters, and does about them."""

import argparse
import os
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
import msgspec

from saga_amqp.config import Config
from saga_amqp.dead_letters import DeadLetter, DeadLetters
from saga_amqp.transports.amqp import AmqpTransport
from saga_core import SagaError
from saga_core.handlers import leaves

if TYPE_CHECKING:
    from argparse import _SubParsersAction  # pyright: ignore[reportPrivateUsage]

BROKER, PREFIX = "SAGA_BROKER", "SAGA_PREFIX"

Action = Callable[[DeadLetters, argparse.Namespace], Awaitable[None]]


def add_dead_letter_commands(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to those of `saga`."""
    letters = commands.add_parser(
        "dead-letter", help="look at messages that could not be handled, and see to them"
    )
    actions = letters.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, help: str, action: Action) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=help)
        parser.add_argument(
            "--broker",
            metavar="URL",
            help=f"amqp://user:password@host:port/vhost; else {BROKER} is looked at",
        )
        parser.add_argument(
            "--prefix",
            metavar="TEXT",
            help=f"what comes before each name on the broker; else {PREFIX} is looked at",
        )
        parser.add_argument(
            "--queue",
            metavar="NAME",
            help="the dead-letter queue (saga.dead-letter)",
            default="saga.dead-letter",
        )
        parser.set_defaults(run=_run, action=action)
        return parser

    listing = add("list", "show the letters, the first in the queue first", _list)
    listing.add_argument("--limit", type=int, default=100, metavar="N", help="how many at most (100)")
    showing = add("show", "show all that there is to one letter", _show)
    for parser in (listing, showing):
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object per letter, one line each"
        )
    showing.add_argument("id", metavar="ID", help="as `list` shows it")
    for name, help, action in (
        ("requeue", "put letters back into the queues that they were in", _requeue),
        ("drop", "delete letters for good", _drop),
    ):
        add(name, help, action).add_argument("ids", metavar="ID", nargs="+", help="as `list` shows it")


def _run(options: argparse.Namespace) -> int:
    status = 1
    try:
        anyio.run(_act, options)
        status = 0
    except* (SagaError, ValueError) as errors:
        for error in leaves(errors):
            print(f"saga: {error}", file=sys.stderr)
    except* KeyboardInterrupt:
        status = 130
    return status


async def _act(options: argparse.Namespace) -> None:
    broker = options.broker or os.environ.get(BROKER)
    if not broker:
        raise ValueError(f"Say which broker: --broker amqp://…, or {BROKER} in the environment")
    prefix = options.prefix if options.prefix is not None else os.environ.get(PREFIX, "")
    config = Config(prefix=prefix, dead_letter_queue=options.queue)
    async with DeadLetters(AmqpTransport(re.split(",(?=amqps?://)", broker)), config) as letters:
        await options.action(letters, options)


async def _list(letters: DeadLetters, options: argparse.Namespace) -> None:
    for letter in await letters.list(options.limit):
        if options.json:
            print(_as_json(letter))
        else:
            about = f"{letter.saga or '?'} {letter.step or '?'} {letter.attempt or '?'}"
            line = f"{letter.id}  {_when(letter)}  {letter.reason}  {letter.queue}  {about}  {letter.error}"
            print(_plain(line))


async def _show(letters: DeadLetters, options: argparse.Namespace) -> None:
    letter = await letters.show(options.id)
    if options.json:
        print(_as_json(letter))
        return
    told = {name: getattr(letter, name) for name in letter.__struct_fields__}
    for name, value in (
        told | {"when": _when(letter), "body": letter.body.decode(errors="backslashreplace")}
    ).items():
        print(_plain(f"{name}: {'unknown' if value is None else value}"))


async def _requeue(letters: DeadLetters, options: argparse.Namespace) -> None:
    await letters.requeue(*options.ids)


async def _drop(letters: DeadLetters, options: argparse.Namespace) -> None:
    await letters.drop(*options.ids)


def _when(letter: DeadLetter) -> str:
    if letter.when is None:
        return "unknown"
    return datetime.fromtimestamp(letter.when, UTC).isoformat(timespec="seconds")


def _as_json(letter: DeadLetter) -> str:
    told = {name: getattr(letter, name) for name in letter.__struct_fields__}
    told["body"] = letter.body.decode(errors="backslashreplace")
    return msgspec.json.encode(told, enc_hook=str).decode()


def _plain(line: str) -> str:
    """Return a line that does nothing to a terminal, whatever a stranger has put into it."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
