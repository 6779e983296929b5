"""A private PostgreSQL for tests and benchmarks, the twin of `RabbitMQ` in `servers`.

A `PostgreSQL` is a server of its own: own port on 127.0.0.1, own directory, no Unix socket, and what it has committed
is on disk. It can be killed like a machine that loses power, and started again on what is then there. With the
variable SAGA_TEST_POSTGRES_URL set, `database_server()` uses that server instead, in a database of its own.

Everything here blocks: from an event loop, call it in a thread. This module knows nothing of pytest.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql
from ulid import ULID

from tests.packages import find_or_install, install_package
from tests.ports import HOST, free_ports
from tests.processes import Processes, ServerError, run

URL_VARIABLE = "SAGA_TEST_POSTGRES_URL"

START_DEADLINE = 60.0
COMMAND_DEADLINE = 60.0
POLL_INTERVAL = 0.05

PACKAGE = "postgresql"
# Debian has the programs here, a directory for each version, and only clients on the PATH.
LIBRARY = Path("/usr/lib/postgresql")
# Read by the package's scripts: without it they would start a server of the system.
NO_MAIN_CLUSTER = Path("/etc/postgresql-common/createcluster.d/saga-tests.conf")

# PostgreSQL does not run as root, so root runs it as one of these.
USERS = ("postgres", "nobody")


class PostgreSQL:
    """A private PostgreSQL server, from `start()` to `stop()`."""

    private = True

    def __init__(self) -> None:
        self.port = 0
        self.version = ""
        self._programs = LIBRARY
        self._user: str | None = None
        self._processes: Processes | None = None
        self._postmaster: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, on an empty directory, and wait until it takes connections.

        Raises:
            ServerError: PostgreSQL is missing and cannot be installed here, or it does not start.
        """
        if self._processes is not None:
            raise ServerError("The server was started already.")
        self._programs = ensure_postgres()
        self._user = unprivileged_user()
        for attempts_left in (2, 1, 0):
            try:
                self._prepare()
                self._launch()
            except BaseException as error:
                self.stop()
                # Between choosing a port and listening on it, another session may have taken it.
                taken = isinstance(error, ServerError) and "already in use" in str(error)
                if not taken or attempts_left == 0:
                    raise
            else:
                return

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database, with the server's only user."""
        return f"postgresql://postgres@{HOST}:{self.port}/{quote(database, safe='')}"

    def describe(self) -> str:
        """Return what this is, for the report of a session."""
        return f"PostgreSQL {self.version} at {HOST}:{self.port} (private server)"

    @property
    def directory(self) -> Path:
        """The directory of the server's data and log."""
        return self._own().directory

    @property
    def pid(self) -> int:
        """The first process of the server, which starts one more for each connection."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._postmaster is not None and self._postmaster.poll() is None

    def kill(self) -> None:
        """End all of its processes at once, with kill -9. What is on disk stays; `restart` goes on from there."""
        self._own().end(self._running())
        self._postmaster = None
        self._forget_memory()

    def restart(self) -> None:
        """Start the server again on the same port and the same directory; kill it first if it runs.

        Raises:
            ServerError: The server was never started or was stopped, or it does not come back.
        """
        self._own()
        if self._postmaster is not None:
            self.kill()
        self._launch()

    def stop(self) -> None:
        """End everything that was started and remove the directory. May be called at any time, and twice."""
        if self._processes is not None:
            if self._postmaster is not None:
                self.kill()
            self._processes.close()
        self._processes = self._postmaster = None

    def create_database(self, name: str) -> None:
        """Create an empty database."""
        create_database(self.url(), name)

    def drop_database(self, name: str) -> None:
        """Drop a database; who is connected to it loses the connection."""
        drop_database(self.url(), name)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._postmaster is None:
            raise ServerError("The server does not run.")
        return self._postmaster

    def _own(self) -> Processes:
        if self._processes is None:
            raise ServerError("The server was not started.")
        return self._processes

    def _prepare(self) -> None:
        own = self._processes = Processes("saga-postgres-")
        if self._user is not None:
            shutil.chown(own.directory, self._user)
        (self.port,) = free_ports(1)
        # The files need not be on disk yet: these servers lose their processes, not the machine under them.
        options = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]
        run(
            [str(self._programs / "initdb"), "-D", str(own.directory / "data"), *options],
            environment=self._environment(own),
            cwd=own.directory,
            deadline=COMMAND_DEADLINE,
            user=self._user,
        )

    def _launch(self) -> None:
        own = self._own()
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "cluster_name": own.directory.name,
            "fsync": "on",
            "shared_buffers": "32MB",
            # Else a server that is killed leaves files in /dev/shm.
            "dynamic_shared_memory_type": "mmap",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(own.directory / "data"), *options]
        postmaster = self._postmaster = own.start(
            command, "postgres.log", self._environment(own), user=self._user
        )
        deadline = time.monotonic() + START_DEADLINE
        while True:
            try:
                cluster, self.version = ask(self.url())
                if cluster != own.directory.name:
                    raise psycopg.OperationalError(f"port {self.port} is already in use by another server")
            except psycopg.OperationalError as error:
                status = postmaster.poll()
                if status is not None or time.monotonic() > deadline:
                    what = "is not ready in time" if status is None else f"ended with status {status}"
                    words = own.last_words("postgres.log")
                    raise ServerError(f"The PostgreSQL server {what} ({error}).\n{words}") from error
            else:
                return
            time.sleep(POLL_INTERVAL)

    def _forget_memory(self) -> None:
        """Remove the shared memory that a killed server leaves: a machine that loses power has none left."""
        with contextlib.suppress(OSError, IndexError):
            lines = (self.directory / "data" / "postmaster.pid").read_text().splitlines()
            _key, identifier = lines[6].split()
            subprocess.run(["ipcrm", "-m", identifier], check=False, capture_output=True)

    def _environment(self, own: Processes) -> dict[str, str]:
        settings = {"HOME": str(own.directory), "LC_ALL": "C"}
        return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | settings


class External:
    """A server that somebody else runs: a database of our own can be used, and the server not be stopped."""

    private = False

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        if self._parts.scheme not in {"postgresql", "postgres"}:
            raise ServerError(f"{URL_VARIABLE} is to be a postgresql:// URL.")
        self._given = url
        self._database: str | None = None
        self.version = ""

    def start(self) -> None:
        """See that the server is there and of which version it is, and create a database for this session.

        Raises:
            ServerError: It does not answer, or lets us create no database.
        """
        name = f"saga_test_{ULID()}".lower()
        try:
            _, self.version = ask(self._given)
            create_database(self._given, name)
        except psycopg.Error as error:
            raise ServerError(
                f"No database can be had at {self._where()} ({URL_VARIABLE}): {str(error).strip()}"
            ) from error
        self._database = name

    def url(self, database: str | None = None) -> str:
        """Return the URL of a database, by default of the one that is this session's."""
        name = database or self._database
        if name is None:
            raise ServerError("The server was not asked for a database: call start() first.")
        return self._parts._replace(path=f"/{quote(name, safe='')}").geturl()

    def describe(self) -> str:
        """Return what this is, for the report of a session; without its password."""
        return f"PostgreSQL {self.version} at {self._where()} (from {URL_VARIABLE})"

    def stop(self) -> None:
        """Drop this session's database and leave the server as it is. May be called twice."""
        if self._database is not None:
            drop_database(self._given, self._database)
        self._database = None

    def create_database(self, name: str) -> None:
        """Create an empty database."""
        create_database(self._given, name)

    def drop_database(self, name: str) -> None:
        """Drop a database; who is connected to it loses the connection."""
        drop_database(self._given, name)

    @property
    def pid(self) -> int:
        """Not to be had."""
        raise self._not_ours("its process be looked at")

    def kill(self) -> None:
        """Refuse to: the server is not ours."""
        raise self._not_ours("be killed")

    def restart(self) -> None:
        """Refuse to: the server is not ours."""
        raise self._not_ours("be restarted")

    def _where(self) -> str:
        return f"{self._parts.hostname or 'localhost'}:{self._parts.port or 5432}"

    def _not_ours(self, what: str) -> ServerError:
        return ServerError(
            f"The server of {URL_VARIABLE} cannot {what}. Unset the variable to run this on a private server."
        )


@contextlib.contextmanager
def database_server() -> Iterator[PostgreSQL | External]:
    """Give the server to use: that of SAGA_TEST_POSTGRES_URL, else a private one for as long as the context lasts."""
    url = os.environ.get(URL_VARIABLE)
    server = External(url) if url else PostgreSQL()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def ensure_postgres() -> Path:
    """Return the directory of PostgreSQL's programs; install the Debian package if that is needed and possible.

    Raises:
        ServerError: PostgreSQL is missing and cannot be installed here.
    """
    return find_or_install(
        find_postgres,
        product="PostgreSQL",
        package=PACKAGE,
        variable=URL_VARIABLE,
        install=install_without_main_cluster,
    )


def find_postgres() -> Path | None:
    """Return the directory of PostgreSQL's programs, of the latest version if there are several."""
    installed = [path.parent for path in LIBRARY.glob("*/bin/initdb") if path.parent.parent.name.isdecimal()]
    if installed:
        return max(installed, key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).parent if found else None


def install_without_main_cluster(package: str) -> None:
    """Install PostgreSQL, and no server of the system with it.

    Raises:
        ServerError: It fails, or takes too long.
    """
    NO_MAIN_CLUSTER.parent.mkdir(parents=True, exist_ok=True)
    NO_MAIN_CLUSTER.write_text("create_main_cluster = false\n")
    try:
        install_package(package)
    finally:
        NO_MAIN_CLUSTER.unlink()


def unprivileged_user() -> str | None:
    """Return the user to run PostgreSQL as where we are root, which it refuses; else None, for ourselves.

    Raises:
        ServerError: We are root and there is no such user.
    """
    if os.geteuid() != 0:
        return None
    for user in USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(user).pw_name
    raise ServerError(f"PostgreSQL does not run as root, and there is no user named {' or '.join(USERS)}.")


def ask(url: str) -> tuple[str, str]:
    """Connect to a server and return its cluster's name and its version.

    Raises:
        psycopg.OperationalError: It does not take connections, now or at all.
    """
    with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
        row = connection.execute("SELECT current_setting('cluster_name'), current_setting('server_version')")
        cluster, version = row.fetchone() or ("", "")
    return cluster, version.split()[0]


def create_database(url: str, name: str) -> None:
    """Create an empty database on the server that has the one at `url`."""
    with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))


def drop_database(url: str, name: str) -> None:
    """Drop a database; who is connected to it loses the connection."""
    with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
