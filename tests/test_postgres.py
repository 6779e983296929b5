"""The database server that other tests rely on: it keeps what was committed, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests import postgres
from tests.ports import HOST, free_ports
from tests.postgres import External, PostgreSQL, database_server, ensure_postgres
from tests.processes import ServerError
from tests.test_servers import ROOT, wait_until


def processes_in(directory: Path) -> list[int]:
    """Every process of a server: they all work in its directory."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append(int(process.name))
        except OSError:
            continue  # it has ended
    return found


def databases(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def shared_memory() -> set[str]:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    return {line.split()[1] for line in lines}


def test_what_was_committed_survives_kill_9_and_nothing_else(
    private_postgres: PostgreSQL, unique: str
) -> None:
    table = sql.Identifier(unique)
    url = private_postgres.url()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE TABLE {} (n int)").format(table))
        connection.execute(sql.SQL("INSERT INTO {} VALUES (1)").format(table))
    connection = psycopg.connect(url)
    connection.execute(sql.SQL("INSERT INTO {} VALUES (2)").format(table))
    backend = connection.info.backend_pid
    killed = processes_in(private_postgres.directory)
    assert {private_postgres.pid, backend} < set(killed)
    private_postgres.kill()
    assert not private_postgres.running
    assert not processes_in(private_postgres.directory)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url)
    private_postgres.restart()
    assert private_postgres.url() == url
    assert private_postgres.pid not in killed
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        assert connection.execute(sql.SQL("SELECT n FROM {}").format(table)).fetchall() == [(1,)]
        connection.execute(sql.SQL("DROP TABLE {}").format(table))


def test_a_busy_connection_does_not_survive_a_kill(private_postgres: PostgreSQL) -> None:
    program = (
        "import psycopg, sys; psycopg.connect(sys.argv[1], application_name='busy')"
        ".execute('SELECT count(*) FROM generate_series(1, 100000000000)')"
    )
    command = [sys.executable, "-c", program, private_postgres.url()]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as busy:
        with psycopg.connect(private_postgres.url(), autocommit=True) as connection:
            question = "SELECT pid FROM pg_stat_activity WHERE application_name = 'busy' AND state = 'active'"
            wait_until(lambda: connection.execute(question).fetchone() is not None)
        private_postgres.kill()
        assert not processes_in(private_postgres.directory)
        assert busy.wait(30) != 0


def test_a_fresh_database_is_empty(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        query = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(query).fetchone() == (0,)
        connection.execute("CREATE TABLE something (n int)")


earlier: set[str] = set()


@pytest.mark.parametrize("time", ["first", "second"])
def test_the_database_of_the_test_before_is_gone(time: str, postgres_url: str) -> None:
    mine = postgres_url.rpartition("/")[2].partition("?")[0]
    assert mine in databases(postgres_url)
    assert not earlier & databases(postgres_url)
    earlier.add(mine)


def test_stop_leaves_no_process_no_file_and_no_memory() -> None:
    with PostgreSQL() as server:
        directory = server.directory
        assert server.pid in processes_in(directory)
        memory = (directory / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert memory in shared_memory()
        port = server.port
    assert not processes_in(directory)
    assert not directory.exists()
    assert memory not in shared_memory()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(f"postgresql://postgres@{HOST}:{port}/postgres")
    server.stop()


def test_a_session_that_is_killed_leaves_no_process_and_no_file() -> None:
    program = "from tests.postgres import PostgreSQL as P; p = P(); p.start(); print(p.directory, flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as session:
        assert session.stdout is not None
        directory = Path(session.stdout.readline().strip())
        assert len(processes_in(directory)) >= 3
        session.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_in(directory) and not directory.exists())


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = ensure_postgres()
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    monkeypatch.setattr(postgres, "ensure_postgres", lambda: folder)
    (folder / "initdb").symlink_to(programs / "initdb")
    (folder / "postgres").write_text("#!/bin/sh\necho 'no room for elephants'; exit 3\n")
    (folder / "postgres").chmod(0o755)
    try:
        with pytest.raises(ServerError, match=r"(?s)ended with status 3.*no room for elephants"):
            PostgreSQL().start()
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_a_port_that_another_server_took_meanwhile_is_not_mistaken_for_ours(
    private_postgres: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = private_postgres.port
    choices = iter([(taken,), free_ports(1)])
    monkeypatch.setattr(postgres, "free_ports", lambda count: next(choices))
    with PostgreSQL() as server:
        assert server.port != taken


def test_without_postgres_and_without_root_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "LIBRARY", Path("/nonexistent"))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ServerError, match=r"apt-get install postgresql\).*SAGA_TEST_POSTGRES_URL"):
        ensure_postgres()


def test_postgres_is_installed_without_a_server_of_the_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = tmp_path / "etc" / "createcluster.d" / "saga-tests.conf"
    programs = tmp_path / "9" / "bin"
    apt = tmp_path / "apt-get"
    apt.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        f'case "$*" in *install*) cat {settings} >> {tmp_path}/calls; mkdir -p {programs}; '
        f": > {programs}/initdb;; esac\n"
    )
    apt.chmod(0o755)
    monkeypatch.setattr(postgres, "LIBRARY", tmp_path)
    monkeypatch.setattr(postgres, "NO_MAIN_CLUSTER", settings)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(postgres.shutil, "which", lambda name: str(apt) if name == "apt-get" else None)
    assert ensure_postgres() == programs
    update, install, read = (tmp_path / "calls").read_text().splitlines()
    assert update.endswith("update")
    assert install.endswith("install -y --no-install-recommends postgresql")
    assert read == "create_main_cluster = false"
    assert not settings.exists()


def test_the_latest_version_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for version in ("9", "15", "17"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "initdb").touch()
    (tmp_path / "17" / "bin" / "initdb").unlink()
    monkeypatch.setattr(postgres, "LIBRARY", tmp_path)
    assert ensure_postgres() == tmp_path / "15" / "bin"


def test_an_external_server_gives_a_database_for_the_session(
    private_postgres: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = private_postgres.url().replace("postgres@", "postgres:secret@") + "?application_name=tests"
    monkeypatch.setenv("SAGA_TEST_POSTGRES_URL", url)
    before = databases(private_postgres.url())
    with database_server() as server:
        assert isinstance(server, External)
        assert server.version == private_postgres.version
        assert "secret" not in server.describe()
        assert server.url("a/b") == url.replace("/postgres?", "/a%2Fb?")
        (mine,) = databases(server.url()) - before
        assert f"/{mine}?" in server.url()
        server.create_database(f"{mine}_more")
        server.drop_database(f"{mine}_more")
        for refused in (server.kill, server.restart, lambda: server.pid):
            with pytest.raises(ServerError, match="Unset the variable"):
                refused()
    assert databases(private_postgres.url()) == before
    server.stop()


def test_a_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(ServerError, match=r"No database can be had at 127\.0\.0\.1:1 "):
        External("postgresql://127.0.0.1:1/").start()


def test_another_kind_of_url_is_refused() -> None:
    with pytest.raises(ServerError, match="postgresql://"):
        External("mysql://localhost/")
