"""Processes of a session's own, which end with it however it ends, in a directory that goes with them."""

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STOP_DEADLINE = 20.0
POLL_INTERVAL = 0.02

# States of processes, as /proc and ps tell them. One that has ended is a zombie until its parent has heard of it.
ENDED = "ZX"
STANDING_STILL = "Tt" + ENDED

# Each line it reads is the list of process groups that now run. Its input ends with the session, however that ends:
# then it ends those groups and removes the directory. A second removal catches what the dying have still written.
GUARD = """
while read -r line; do groups=$line; done
for group in $groups; do kill -s KILL -- "-$group"; done
rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }
"""


class ServerError(Exception):
    """A server is missing, does not start, or cannot do what is asked of it."""


class Processes:
    """Processes and the directory that they write to, until `close()` or the end of the session."""

    def __init__(self, prefix: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=prefix))
        self._owner = os.getpid()
        self._running: list[subprocess.Popen[bytes]] = []
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "sh", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self.close)

    def start(
        self, command: list[str], log: str, environment: Mapping[str, str], *, user: str | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a process in the directory, with its output in the file `log` there; as root, as another `user`."""
        with (self.directory / log).open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=environment,
                start_new_session=True,  # a process group of its own, and no Ctrl-C of the session's terminal
                **_identity(user),
            )
        self._running.append(process)
        self._tell_guard()
        return process

    def end(self, process: "subprocess.Popen[bytes]") -> None:
        """Kill a process that was started here, with its group and all that it has started; wait until they are gone.

        Killing the group would not be enough: each process of PostgreSQL leads a session of its own.
        """
        if process.returncode is None:  # until it was waited for, its number is nobody else's
            # So that it starts no more of them meanwhile. On a busy machine it goes on for some milliseconds, and
            # what it forks then is not seen before it is there.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGSTOP)
            _wait_until(STANDING_STILL, [process.pid])
            family = _descendants(process.pid)
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_DEADLINE)
            _wait_until(ENDED, family)
        if process in self._running:
            self._running.remove(process)
            self._tell_guard()

    def close(self) -> None:
        """End everything, the last started first, and remove the directory. May be called twice."""
        if self._owner != os.getpid():
            return  # the copy of this object in a forked child, which owns no processes
        atexit.unregister(self.close)
        for process in reversed(self._running.copy()):
            self.end(process)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(STOP_DEADLINE)
        shutil.rmtree(self.directory, ignore_errors=True)  # if somebody has ended the guard

    def last_words(self, *patterns: str) -> str:
        """Return the ends of the files in the directory that match."""
        files = [file for pattern in patterns for file in sorted(self.directory.glob(pattern))]
        lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
        return "\n".join(line for line in lines[-40:] if line.strip())

    def _tell_guard(self) -> None:
        assert self._guard.stdin is not None
        groups = " ".join(str(process.pid) for process in self._running)
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(f"{groups}\n".encode())
            self._guard.stdin.flush()


def run(
    command: list[str],
    *,
    environment: Mapping[str, str],
    deadline: float,
    cwd: Path | None = None,
    user: str | None = None,
    words: str = "",
) -> str:
    """Run a command to its end, as root as another `user` if wanted, and return what it prints.

    `words` are what it has to read.

    Raises:
        ServerError: It fails, or takes longer than `deadline` seconds.
    """
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=cwd,
            timeout=deadline,
            input=words,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            **_identity(user),
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{' '.join(command)} took longer than {deadline:g} s.") from error
    if done.returncode != 0:
        words = f"{done.stdout}\n{done.stderr}".strip()
        raise ServerError(f"{' '.join(command)} failed with status {done.returncode}.\n{words[-4000:]}")
    return done.stdout


def _identity(user: str | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    processes = _processes()
    found = [pid]
    for parent in found:  # which grows meanwhile
        found += [child for child, (of, _) in processes.items() if of == parent]
    return found[1:]


def _wait_until(states: str, pids: list[int]) -> None:
    """Wait until each of the processes is in one of the states, or gone."""
    deadline = time.monotonic() + STOP_DEADLINE
    while any(state[0] not in states for pid, (_, state) in _processes().items() if pid in pids):
        if time.monotonic() > deadline:
            raise ServerError(f"Some of the processes {pids} do not stop.")
        time.sleep(POLL_INTERVAL)


def _processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the state of every process. Those that ended and were not waited for are in state Z."""
    if not Path("/proc/self/stat").exists():  # on macOS; a small Linux has /proc and no ps
        command = ["ps", "-A", "-o", "pid=,ppid=,state="]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = (line.split() for line in listing.splitlines())
        return {int(pid): (int(parent), state) for pid, parent, state in rows}
    found: dict[int, tuple[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            pid, _, rest = stat.read_text(errors="replace").partition(" (")
            state, parent, *_ = rest.rpartition(") ")[2].split()  # its name may hold anything
            found[int(pid)] = (int(parent), state)
    return found
