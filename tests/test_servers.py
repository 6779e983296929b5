"""The servers that other tests rely on: they keep what is on disk, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aiormq
import anyio
import pytest
from pamqp.commands import Basic

from tests import servers
from tests.ports import HOST, free_ports
from tests.processes import ServerError
from tests.servers import External, RabbitMQ, ensure_rabbitmq, greet

DEADLINE = 30.0
ROOT = Path(__file__).parents[1]


def processes_of(directory: Path) -> list[int]:
    """Every process that was started for a node, by its environment or its arguments."""
    found: list[int] = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended, or is another user's
            if os.fsencode(directory) in text:
                found.append(int(process.name))
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


# aiormq itself runs on asyncio only.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_durable_message_survives_kill_9(private_rabbitmq: RabbitMQ, unique: str) -> None:
    url = private_rabbitmq.url()
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    await channel.queue_declare(unique, durable=True)
    await channel.basic_publish(b"kept", routing_key=unique, properties=Basic.Properties(delivery_mode=2))
    killed = private_rabbitmq.pid
    await anyio.to_thread.run_sync(private_rabbitmq.write_down)
    await anyio.to_thread.run_sync(private_rabbitmq.kill)
    with anyio.move_on_after(DEADLINE):
        await connection.close()
    with pytest.raises(ConnectionRefusedError):
        greet(HOST, private_rabbitmq.port)
    await anyio.to_thread.run_sync(private_rabbitmq.restart)
    assert private_rabbitmq.pid != killed
    assert private_rabbitmq.url() == url
    async with await aiormq.connect(url) as again:
        channel = await again.channel()
        message = await channel.basic_get(unique, no_ack=True)
        assert message.body == b"kept"
        await channel.queue_delete(unique)


# aiormq itself runs on asyncio only.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_vhost_can_be_used_once_created_and_no_more_once_deleted(
    private_rabbitmq: RabbitMQ, unique: str
) -> None:
    await anyio.to_thread.run_sync(private_rabbitmq.create_vhost, unique)
    async with await aiormq.connect(private_rabbitmq.url(unique)) as connection:
        await (await connection.channel()).queue_declare("in it", exclusive=True)
    await anyio.to_thread.run_sync(private_rabbitmq.delete_vhost, unique)
    assert unique not in await anyio.to_thread.run_sync(private_rabbitmq.ctl, "list_vhosts")


def test_stop_leaves_no_process_and_no_file() -> None:
    with RabbitMQ() as rabbit:
        directory = rabbit.directory
        assert rabbit.pid in processes_of(directory)
        port = rabbit.port
    wait_until(lambda: not processes_of(directory))
    assert not directory.exists()
    with pytest.raises(ConnectionRefusedError):
        greet(HOST, port)
    rabbit.stop()


def test_a_session_that_is_killed_leaves_no_process_and_no_file() -> None:
    program = "import time; from tests.servers import RabbitMQ as R; r = R(); r.start(); print(r.directory, flush=True)"
    command = [sys.executable, "-c", f"{program}; time.sleep(600)"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        directory = Path(session.stdout.readline().strip())
        assert len(processes_of(directory)) >= 3
        session.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_of(directory) and not directory.exists())


def test_a_node_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rabbitmq-server").write_text("#!/bin/sh\necho 'no room for rabbits'; exit 3\n")
    (tmp_path / "rabbitmq-server").chmod(0o755)
    monkeypatch.setattr(servers, "LIBRARY", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ServerError, match=r"(?s)ended with status 3.*no room for rabbits"):
        RabbitMQ().start()
    assert not list(tmp_path.glob("saga-*"))


def test_a_port_that_another_broker_took_meanwhile_is_not_mistaken_for_ours(
    private_rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = private_rabbitmq.port
    choices = iter([(taken, *free_ports(2)), free_ports(3)])
    monkeypatch.setattr(servers, "free_ports", lambda count: next(choices))
    with RabbitMQ() as rabbit:
        assert rabbit.port != taken


def test_without_rabbitmq_and_without_root_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "LIBRARY", Path("/nonexistent"))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ServerError, match=r"apt-get install rabbitmq-server.*SAGA_TEST_AMQP_URL"):
        ensure_rabbitmq()


def test_rabbitmq_is_installed_where_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$*" in *install*) : > {tmp_path}/rabbitmq-server;; esac\n'
    )
    apt.chmod(0o755)
    monkeypatch.setattr(servers, "LIBRARY", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert ensure_rabbitmq() == tmp_path / "rabbitmq-server"
    update, install = (tmp_path / "calls").read_text().splitlines()
    assert update.endswith("update")
    assert install.endswith("install -y --no-install-recommends rabbitmq-server")


def test_an_external_broker_is_used_and_left_alone(private_rabbitmq: RabbitMQ) -> None:
    url = private_rabbitmq.url().replace("guest:guest", "me:secret")
    external = External(url)
    external.start()
    assert external.url() == url
    assert external.url("a/b") == f"{url}a%2Fb"
    assert external.version == private_rabbitmq.version
    assert "secret" not in external.describe()
    for refused in (
        external.kill,
        external.restart,
        lambda: external.create_vhost("x"),
        lambda: external.ctl("stop"),
    ):
        with pytest.raises(ServerError, match="Unset the variable"):
            refused()
    external.stop()
    assert greet(HOST, private_rabbitmq.port)


def test_a_broker_that_does_not_answer_is_named() -> None:
    with pytest.raises(ServerError, match=r"No broker answers at 127\.0\.0\.1:1 "):
        External("amqp://127.0.0.1:1/").start()
