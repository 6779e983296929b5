"""A file that says how an engine is, for a probe from outside. Its age says that the event loop still turns."""

import logging
import os
import time
from pathlib import Path
from typing import Literal

import msgspec

logger = logging.getLogger("saga_amqp.service")


class Health(msgspec.Struct, frozen=True):
    """How an engine is, `at` a moment, in seconds since 1970, UTC; `since` is when it began to consume.

    * `running`: it takes messages, and what they cause is stored and published.
    * `waiting`: the broker or the store, `waits_for` says which, cannot be reached. It goes on by itself when that is
      back, and nothing is won by starting it again.
    * `stopping`: it takes no new messages, and lets `handlers` finish.

    `handlers` is how many run.
    """

    state: Literal["running", "waiting", "stopping"]
    waits_for: tuple[str, ...]
    handlers: int
    since: float
    at: float
    pid: int


class HealthFile:
    """Writes a file in one go, so that nobody ever reads half of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fresh = path.with_name(f".{path.name}.{os.getpid()}")
        self._since = 0.0
        self._complained = False

    def begin(self) -> None:
        """Take away what an engine that was killed has left, and count from now."""
        self.remove()
        self._since = time.time()

    def write(self, *, stopping: bool, waits_for: tuple[str, ...], handlers: int) -> None:
        """Say how it is now. A file that cannot be written is logged, once: a full disk ends no engine."""
        state: Literal["running", "waiting", "stopping"] = "waiting" if waits_for else "running"
        health = Health(
            "stopping" if stopping else state, waits_for, handlers, self._since, time.time(), os.getpid()
        )
        try:
            self._fresh.write_bytes(msgspec.json.encode(health) + b"\n")
            self._fresh.replace(self._path)
        except OSError as error:
            if not self._complained:
                logger.error("The health file cannot be written: %s", error)
            self._complained = True
        else:
            self._complained = False

    def remove(self) -> None:
        """Take the file away, if it is there. It may be called by a signal's handler."""
        for path in (self._path, self._fresh):
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue  # it is older than any probe allows, soon enough
