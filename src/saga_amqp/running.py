"""The command `saga run module:app`: which engine to run, read from the command line, the environment and a module."""

import argparse
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from saga_amqp.config import Config
from saga_amqp.databases import open_store
from saga_amqp.handlers import Registry
from saga_amqp.service import BACKENDS, Service, Status
from saga_amqp.transports.amqp import AmqpTransport
from saga_core import SagaError

if TYPE_CHECKING:
    from argparse import _SubParsersAction  # pyright: ignore[reportPrivateUsage]

NO_STORE = "none"
"""What is said of a participant's store."""

LEVELS = ("debug", "info", "warning", "error")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class UsageError(Exception):
    """What was asked for makes no sense; the message says what to do."""


def _whole(text: str) -> int:
    return int(text)


def _seconds(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError
    return number


class Option(Struct, frozen=True):
    """A flag, which has its variable too: --grace-period is SAGA_GRACE_PERIOD. `what` says what it takes."""

    name: str
    what: str
    help: str
    read: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """How it is written on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """How it is written in the environment."""
        return f"SAGA_{self.name.upper()}"


def _urls(text: str) -> list[str]:
    return re.split(",(?=amqps?://)", text)


FIELDS = (
    Option("prefix", "TEXT", "what comes before each name on the broker"),
    Option("concurrency", "N", "how many handlers run at once", _whole),
    Option("prefetch", "N", "how many messages of each queue are taken ahead", _whole),
    Option("compensation_concurrency", "N", "the same for the queue of compensations", _whole),
    Option("compensation_prefetch", "N", "the same for the queue of compensations", _whole),
    Option("grace_period", "SECONDS", "how long running handlers may go on after a first signal", _seconds),
    Option("sweep_interval", "SECONDS", "how often the store is searched for what is due", _seconds),
    Option("republish_after", "SECONDS", "after how long a commit counts as left unpublished", _seconds),
)
"""Fields of the `Config`, which override what the application has set."""

OPTIONS = (
    Option("broker", "URL", "amqp://user:password@host:port/vhost; several nodes with commas between", _urls),
    Option(
        "store",
        "URL",
        "postgresql://user:password@host:port/database, sqlite:///path, or none: a participant",
    ),
    Option("schema", "NAME", "the schema that the tables are in, in PostgreSQL (saga)"),
    Option(
        "backend", "NAME", "the event loop: asyncio (the default), uvloop or trio", choices=tuple(BACKENDS)
    ),
    *FIELDS,
    Option("log_level", "LEVEL", "debug, info (the default), warning or error", choices=LEVELS),
    Option("health_file", "PATH", "a file that says how the engine is, for a probe", Path),
    Option("health_interval", "SECONDS", "how often it is written (5)", _seconds),
)


def add_run_command(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `saga`."""
    run = commands.add_parser(
        "run",
        help="run an engine until it is told to end",
        description="Run the handlers of an application for the messages of a broker, until SIGTERM or SIGINT.",
        epilog="Each option can also be given in the environment: --grace-period is SAGA_GRACE_PERIOD. Exit status: "
        "0 stopped in order; 1 an error; 2 wrong usage; 3 stopped, and some handlers were cancelled when the grace "
        "period was over; 4 ended at once by a second signal.",
    )
    run.add_argument(
        "app", metavar="MODULE:NAME", help="a Config, a Registry, or a function that returns one"
    )
    for option in OPTIONS:
        run.add_argument(option.flag, dest=option.name, metavar=option.what, help=option.help)
    run.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        settings = read_settings(vars(options), os.environ)
        level = settings.get("log_level", "info").upper()
        logging.basicConfig(level=level, stream=sys.stderr, format=LOG_FORMAT)
        backend = settings.get("backend", "asyncio")
        _check_backend(backend)
        service = _service(options.app, settings)
    except (UsageError, SagaError, ImportError) as error:
        print(f"saga: {error}", file=sys.stderr)
        return Status.MISUSED
    return service.run(backend)


def read_settings(given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what was set, by name: on the command line, else in the environment, where empty is not set.

    Raises: UsageError.
    """
    settings: dict[str, Any] = {}
    for option in OPTIONS:
        where, text = option.flag, given.get(option.name)
        if text is None:
            where, text = option.variable, environment.get(option.variable) or None
        if text is None:
            continue
        try:
            settings[option.name] = option.read(text)
        except ValueError:
            kind = "a whole number" if option.read is _whole else "a number of seconds"
            raise UsageError(f"{where} takes {kind}, not {text!r}") from None
        if option.choices and text not in option.choices:
            raise UsageError(f"{where} takes {', '.join(option.choices)}, not {text!r}")
    return settings


def load_app(path: str) -> Config:
    """Return the Config that `module:name` leads to. The current directory can be imported from.

    Raises: UsageError, which shows the traceback of whatever the user's own code raised.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise UsageError(f"Give a module and a name in it, like shop.sagas:app, not {path!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = _import(module_name)
    try:
        found: object = reduce(getattr, name.split("."), module)
    except AttributeError:
        raise UsageError(f"Module {module_name!r} has no {name!r}{_candidates(module)}") from None
    what = path
    if iscoroutinefunction(found):
        raise UsageError(f"{path} is async, and there is no event loop yet; make it a plain function")
    if callable(found) and not isinstance(found, type):
        what = f"{path}()"
        try:
            found = cast("Callable[[], object]", found)()
        except Exception:
            traceback.print_exc()
            raise UsageError(f"{path}, called without arguments, raised the above") from None
    if isinstance(found, Registry):
        found = Config(registries=(found,))
    if not isinstance(found, Config):
        raise UsageError(f"{what} is of type {type(found).__name__}, and has to be a Config or a Registry")
    if not (found.actions or found.compensations or found.remote):
        raise UsageError(f"{path} has no handlers, and names none that others have (Config.remote)")
    return found


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"There is no module {name!r}, also not in {os.getcwd()}") from None
        traceback.print_exc()
        raise UsageError(f"Module {name!r} cannot be imported; the above says why") from None


def _candidates(module: object) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Config | Registry)]
    return f"; it has {', '.join(names)}" if names else ""


def _check_backend(backend: str) -> None:
    if find_spec(backend) is None:
        raise UsageError(f"{backend} is not installed; try: pip install 'saga-amqp[{backend}]'")


def _service(path: str, settings: Mapping[str, Any]) -> Service:
    for name in ("broker", "store"):
        if name not in settings:
            raise UsageError(f"Say which {name} to use: --{name} URL, or SAGA_{name.upper()}")
    transport = AmqpTransport(settings["broker"])
    store = None if settings["store"] == NO_STORE else open_store(settings["store"], settings.get("schema"))
    config = load_app(path)
    try:
        config = replace(
            config, **{field.name: settings[field.name] for field in FIELDS if field.name in settings}
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    health: Path | None = settings.get("health_file")
    if health is not None and not os.access(health.absolute().parent, os.W_OK):
        raise UsageError(
            f"The health file cannot be written: {health.absolute().parent} is no directory to write to"
        )
    interval: float = settings.get("health_interval", 5.0)
    if interval <= 0:
        raise UsageError("The health file's interval has to be a positive number of seconds")
    return Service(path, config, transport, store, health=health, health_interval=interval)
