"""What is run in processes of its own: rivals, and one cell of the question that needs most."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.children import Servers, orders_side_by_side
from benchmarks.orders.load import check
from benchmarks.relays.course import Outcome
from benchmarks.report import Report
from saga_amqp.stores.sqlite.schema import upgrade
from tests.servers import URL_VARIABLE

ROOT = Path(__file__).parents[2]
HOPS = ["--hops", "300", "--in-flight", "10"]


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("relay", "loop"),
    [("durable-memory", "uvloop"), ("durable-sqlite", "trio"), ("durable-postgres", "asyncio")],
)
def test_a_durable_hop_is_measured(relay: str, loop: str, amqp_url: str, postgres_url: str) -> None:
    printed = run("benchmarks.relays", relay, loop, "--url", amqp_url, "--database", postgres_url, *HOPS)
    assert msgspec.json.decode(printed, type=Outcome).rate > 0


@pytest.mark.parametrize("only", ["3,ready", "publish", "delivery,saga", "event,json"])
def test_questions_that_need_no_server_are_answered(only: str) -> None:
    printed = run("benchmarks", "core", "codec", "--quick", "--json", "--only", only)
    reports = msgspec.json.decode(printed, type=list[Report])
    assert sum(len(report.lines) for report in reports) > 0


def test_one_cell_is_measured_alone(amqp_url: str, postgres_url: str) -> None:
    servers = {URL_VARIABLE: amqp_url, "SAGA_TEST_POSTGRES_URL": postgres_url}
    only = "memory,asyncio,1,completed"
    printed = run("benchmarks", "engine", "--quick", "--json", "--only", only, **servers)
    (report,) = msgspec.json.decode(printed, type=list[Report])
    (line,) = report.lines
    assert line.name == "engine, memory, asyncio, 1 at once, completed"
    assert line.rate.median > 0
    assert line.p50 is not None


def test_a_profile_says_what_a_step_costs(amqp_url: str, tmp_path: Path) -> None:
    stacks = tmp_path / "stacks"
    run(
        *("benchmarks.orders", "memory", "trio", "--url", amqp_url),
        *("--at-once", "20", "--seconds", "0.5", "--profile", str(stacks)),
    )
    assert "Manager.start" in stacks.read_text()


def test_processes_that_share_a_store_begin_together(
    amqp_url: str, postgres_url: str, tmp_path: Path, unique: str
) -> None:
    servers = Servers(amqp_url, postgres_url, (), {}, ())
    place = str(tmp_path / "sagas.db")
    upgrade(place)
    more = ["--place", place, "--queues", unique, "--at-once", "5", "--wait", "1", "--seconds", "0.3"]
    outcomes = orders_side_by_side(2, "sqlite", "asyncio", servers, more)
    assert len(outcomes) == 2
    check(outcomes)
