"""Private servers for tests and benchmarks, which leave nothing behind.

A `RabbitMQ` is a node of its own: own ports on 127.0.0.1, own directory, own Erlang port mapper, so that any number
of sessions run side by side, next to a RabbitMQ of the system. It can be killed like a machine that loses power, and
started again on what is then on disk. With the variable SAGA_TEST_AMQP_URL set, `broker()` uses that broker instead.

Everything here blocks: from an event loop, call it in a thread. This module knows nothing of pytest.
"""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import pamqp.frame
from pamqp.commands import Connection

from tests.packages import find_or_install
from tests.ports import HOST, free_ports
from tests.processes import Processes, ServerError, run

URL_VARIABLE = "SAGA_TEST_AMQP_URL"

START_DEADLINE = 120.0
COMMAND_DEADLINE = 60.0
POLL_INTERVAL = 0.05

PACKAGE = "rabbitmq-server"
# The script of this name in /usr/sbin is Debian's wrapper, which changes the user and the directories.
LIBRARY = Path("/usr/lib/rabbitmq/bin")


class RabbitMQ:
    """A private RabbitMQ node, from `start()` to `stop()`."""

    private = True

    def __init__(self) -> None:
        self.port = 0
        self.version = ""
        self._ports: tuple[int, ...] = (0, 0, 0)
        self._scripts = LIBRARY
        self._processes: Processes | None = None
        self._node: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the node, on an empty directory, and wait until it takes connections.

        Raises:
            ServerError: RabbitMQ is missing and cannot be installed here, or it does not start.
        """
        if self._processes is not None:
            raise ServerError("The node was started already.")
        self._scripts = ensure_rabbitmq().parent
        for attempts_left in (2, 1, 0):
            try:
                self._prepare()
                self._launch()
            except BaseException as error:
                self.stop()
                # Between choosing a port and listening on it, another session may have taken it.
                if not isinstance(error, ServerError) or "eaddrinuse" not in str(error) or attempts_left == 0:
                    raise
            else:
                return

    def url(self, vhost: str = "/") -> str:
        """Return the AMQP URL of a virtual host, with the node's only user."""
        return f"amqp://guest:guest@{HOST}:{self.port}/{'' if vhost == '/' else quote(vhost, safe='')}"

    def describe(self) -> str:
        """Return what this is, for the report of a session."""
        return f"RabbitMQ {self.version} at {HOST}:{self.port} (private node)"

    @property
    def directory(self) -> Path:
        """The directory of the node's data, logs and cookie."""
        return self._own().directory

    @property
    def pid(self) -> int:
        """The process of the node: what `kill` kills."""
        return self._running().pid

    def freeze(self) -> None:
        """Send SIGSTOP, and return when the node stands still: on a busy machine it goes on for some milliseconds."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    @property
    def running(self) -> bool:
        """Whether the node runs."""
        return self._node is not None and self._node.poll() is None

    def kill(self) -> None:
        """End the node at once, with kill -9. What is on disk stays; `restart` goes on from there."""
        self._own().end(self._running())
        self._node = None

    def restart(self) -> None:
        """Start the node again on the same ports and the same directory; kill it first if it runs.

        Raises:
            ServerError: The node was never started or was stopped, or it does not come back.
        """
        self._own()
        if self._node is not None:
            self.kill()
        self._launch()

    def stop(self) -> None:
        """End everything that was started and remove the directory. May be called at any time, and twice."""
        if self._processes is not None:
            self._processes.close()
        self._processes = self._node = None

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` against the node and return what it prints.

        Raises:
            ServerError: It says that it failed, or takes longer than a minute.
        """
        own = self._own()
        command = [str(self._scripts / "rabbitmqctl"), "-q", *arguments]
        return run(command, environment=self._environment(own), cwd=own.directory, deadline=COMMAND_DEADLINE)

    def evaluate(self, expression: str) -> str:
        """Have the node evaluate Erlang, and return the result as Erlang writes it: `ctl eval`, and ten times as fast.

        Raises:
            ServerError: The expression fails, or takes longer than a minute.
        """
        own, deadline = self._own(), time.monotonic() + COMMAND_DEADLINE
        command = ["erl_call", "-sname", f"saga-{self.port}@localhost", "-e"]
        while True:
            try:
                answer = run(
                    command,
                    environment=self._environment(own),
                    cwd=own.directory,
                    deadline=COMMAND_DEADLINE,
                    words=f"{expression}\n",
                )
                break
            except ServerError as error:
                # A busy node may not shake hands in time.
                if not (self.running and "failed to connect" in str(error)) or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_INTERVAL)
        if not answer.startswith("{ok, "):
            raise ServerError(f"The node cannot evaluate {expression}: {answer}")
        return answer.removeprefix("{ok, ").removesuffix("}")

    def enable_plugin(self, name: str) -> None:
        """Enable a plugin, until the node is started again."""
        enabled = self.directory / "enabled_plugins"
        before = enabled.read_text()
        enabled.write_text(f"[{name}].\n")
        self.ctl("eval", f'{{ok, _, _}} = rabbit_plugins:ensure("{enabled}").')
        enabled.write_text(before)

    def write_down(self) -> None:
        """Have the node write down which queues there are, and who leads them; then it can be killed.

        It does so by itself some time after it has said that there is a queue. Killed before, it has forgotten the
        queue; or it knows the queue and not its leader, and never confirms nor delivers (3.10).
        """
        self.ctl("eval", "ok = mnesia:sync_log(), [ok = dets:sync(T) || T <- dets:all()], ok.")

    def create_vhost(self, name: str) -> None:
        """Create a virtual host that the node's user may do everything in."""
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with everything in it; who is connected to it loses the connection."""
        self.ctl("delete_vhost", name)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._node is None:
            raise ServerError("The node does not run.")
        return self._node

    def _own(self) -> Processes:
        if self._processes is None:
            raise ServerError("The node was not started.")
        return self._processes

    def _prepare(self) -> None:
        epmd = shutil.which("epmd")
        if epmd is None:
            raise ServerError("epmd, a part of Erlang, is not on the PATH.")
        own = self._processes = Processes("saga-rabbitmq-")
        (own.directory / "enabled_plugins").write_text("[].\n")
        (own.directory / "rabbitmq.conf").write_text(
            f"log.console = false\ncluster_name = {own.directory.name}\n"
        )
        self._ports = free_ports(3)
        self.port = self._ports[0]
        # Erlang would start this by itself, shared by all nodes of a machine and with no end.
        own.start([epmd, "-address", HOST, "-port", str(self._ports[2])], "epmd.log", self._environment(own))

    def _launch(self) -> None:
        own = self._own()
        node = self._node = own.start(
            [str(self._scripts / "rabbitmq-server")], "node.log", self._environment(own)
        )
        deadline = time.monotonic() + START_DEADLINE
        while True:
            try:
                greeting = greet(HOST, self.port)
                if greeting.get("cluster_name") != own.directory.name:
                    raise ConnectionError(f"another broker has port {self.port}: eaddrinuse")
            except OSError as error:
                status = node.poll()
                if status is not None or time.monotonic() > deadline:
                    what = "is not ready in time" if status is None else f"ended with status {status}"
                    words = own.last_words("node.log", "log/*.log")
                    raise ServerError(f"The RabbitMQ node {what} ({error}).\n{words}") from error
            else:
                self.version = version_of(greeting)
                return
            time.sleep(POLL_INTERVAL)

    def _environment(self, own: Processes) -> dict[str, str]:
        port, distribution_port, epmd_port = self._ports
        there = str(own.directory)
        settings = {
            "HOME": there,  # of the Erlang cookie, by which rabbitmqctl and the node know each other
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": f"saga-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": f"{there}/mnesia",
            "RABBITMQ_LOG_BASE": f"{there}/log",
            "RABBITMQ_SCHEMA_DIR": f"{there}/schema",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{there}/config",
            "RABBITMQ_PID_FILE": f"{there}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{there}/enabled_plugins",
            "RABBITMQ_CONFIG_FILE": f"{there}/rabbitmq",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{there}/advanced.config",
            "RABBITMQ_CONF_ENV_FILE": f"{there}/rabbitmq-env.conf",
            # The script then becomes the node, instead of a shell that waits for it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        foreign = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
        return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | settings


class External:
    """A broker that somebody else runs: it can be used, and not be stopped or changed."""

    private = False

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"amqp", "amqps"}:
            raise ServerError(f"{URL_VARIABLE} is to be an amqp:// or amqps:// URL.")
        self._url = url
        self._parts = parts
        self.host = parts.hostname or "localhost"
        self.port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
        self.version = ""

    def start(self) -> None:
        """See that the broker is there, and of which version it is.

        Raises:
            ServerError: It does not answer.
        """
        try:
            self.version = version_of(greet(self.host, self.port, tls=self._parts.scheme == "amqps"))
        except OSError as error:
            raise ServerError(
                f"No broker answers at {self.host}:{self.port} ({URL_VARIABLE}): {error}"
            ) from error

    def url(self, vhost: str = "/") -> str:
        """Return the URL as it was given, or with another virtual host."""
        return self._url if vhost == "/" else self._parts._replace(path=f"/{quote(vhost, safe='')}").geturl()

    def describe(self) -> str:
        """Return what this is, for the report of a session; without its password."""
        return f"RabbitMQ {self.version} at {self.host}:{self.port} (from {URL_VARIABLE})"

    def stop(self) -> None:
        """Leave the broker as it is."""

    @property
    def pid(self) -> int:
        """Not to be had."""
        raise self._not_ours("its process be looked at")

    def kill(self) -> None:
        """Refuse to: the broker is not ours."""
        raise self._not_ours("be killed")

    def restart(self) -> None:
        """Refuse to: the broker is not ours."""
        raise self._not_ours("be restarted")

    def ctl(self, *arguments: str) -> str:
        """Refuse to: the broker is not ours."""
        raise self._not_ours(f"be asked to {' '.join(arguments)}")

    def create_vhost(self, name: str) -> None:
        """Refuse to: the broker is not ours."""
        raise self._not_ours(f"get the virtual host {name!r}")

    def delete_vhost(self, name: str) -> None:
        """Refuse to: the broker is not ours."""
        raise self._not_ours(f"lose the virtual host {name!r}")

    def _not_ours(self, what: str) -> ServerError:
        return ServerError(
            f"The broker of {URL_VARIABLE} cannot {what}. Unset the variable to run this on a private node."
        )


@contextlib.contextmanager
def broker() -> Iterator[RabbitMQ | External]:
    """Give the broker to use: that of SAGA_TEST_AMQP_URL, else a private node for as long as the context lasts."""
    url = os.environ.get(URL_VARIABLE)
    rabbit = External(url) if url else RabbitMQ()
    rabbit.start()
    try:
        yield rabbit
    finally:
        rabbit.stop()


def ensure_rabbitmq() -> Path:
    """Return the script that starts RabbitMQ; install the Debian package if it is missing and that is possible.

    Raises:
        ServerError: RabbitMQ is missing and cannot be installed here.
    """
    return find_or_install(find_rabbitmq, product="RabbitMQ", package=PACKAGE, variable=URL_VARIABLE)


def find_rabbitmq() -> Path | None:
    """Return the script that starts RabbitMQ, if there is one."""
    if (script := LIBRARY / "rabbitmq-server").is_file():
        return script
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


def greet(host: str, port: int, *, tls: bool = False, deadline: float = 5.0) -> Mapping[str, Any]:
    """Open a connection, wait for the broker's greeting, and return what it says of itself.

    A broker listens as the last thing of its start, and greets when it takes work.

    Raises:
        OSError: Nobody listens there, or whoever does is no AMQP broker.
    """
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, port), timeout=deadline))
        if tls:
            context = ssl.create_default_context()
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname=host))
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        answer = b""
        while len(answer) < 7 or len(answer) < 8 + int.from_bytes(answer[3:7]):
            part = connection.recv(65536)
            if not part:
                raise ConnectionError("the connection was closed before the greeting")
            answer += part
            if answer[0] != 1:
                raise ConnectionError("this is no AMQP 0-9-1 broker")
    _, _, greeting = pamqp.frame.unmarshal(answer)
    if not isinstance(greeting, Connection.Start):
        raise ConnectionError("this is no AMQP 0-9-1 broker")
    return greeting.server_properties or {}


def version_of(greeting: Mapping[str, Any]) -> str:
    """Return the version in what a broker says of itself."""
    return str(greeting.get("version", "of unknown version"))
