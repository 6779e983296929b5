"""Whether a soak would notice what it is for, on series that are made up, and a short one of an engine that is real."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest
from ulid import ULID

from benchmarks.runner import Latency
from tests.test_servers import ROOT

from .engine import Setting, Told
from .plot import FORMS, draw
from .samples import Sample, Soak, slope

SECONDS = 600.0
EVERY = 5.0
RATE = 50.0
MEMORY = 80_000
AT_REST = {
    "tasks": 20, "threads": 3, "files": 17, "connections": 1, "channels": 4, "messages": 0, "in flight": 0, "stored": 0,
}  # fmt: skip
LATENCY = Latency(10.0, 20.0, 30.0)


def soak(
    memory: Callable[[float], float] = lambda at: 0.0, more: dict[str, int] | None = None, **changes: object
) -> Soak:
    """Make up a run: memory wavers by 100 KB, and is more by what `memory` says; counts waver as the load does.

    `more` says by how much each count has grown at the end of the load.
    """
    chance = Random(7)
    samples: list[Sample] = []
    for number in range(1, int(SECONDS / EVERY) + 1):
        at = number * EVERY
        busy = chance.randrange(0, 20)
        counts = AT_REST | {"tasks": 24 + busy, "in flight": busy, "messages": busy, "stored": 500 + busy}
        if number % 12 == 0:
            counts |= {"objects": 50_000, "blocks": 400_000, "workers": 40}
        for name, count in (more or {}).items():
            if name in counts:
                counts[name] += round(count * at / SECONDS)
        used = MEMORY + memory(at) + chance.uniform(-100, 100)
        samples.append(Sample(at, round(used), at, counts, LATENCY))
    rest = Sample(0.0, MEMORY, 0.0, AT_REST)
    started = round(SECONDS * RATE)
    whole = Soak({"loop": "asyncio"}, SECONDS, RATE, samples, rest, rest, started, {"plain": started}, {})
    return msgspec.structs.replace(whole, **changes)


def after(**counts: int) -> Sample:
    return Sample(
        SECONDS, MEMORY, 0.0, AT_REST | {name.replace("_", " "): count for name, count in counts.items()}
    )


def test_what_wavers_and_does_not_grow_is_flat() -> None:
    assert soak().complaints() == []


def test_memory_that_becomes_less_is_flat() -> None:
    assert soak(lambda at: -at).complaints() == []


def test_memory_that_grows_while_it_warms_up_and_then_no_more_is_flat() -> None:
    assert soak(lambda at: min(at, 200.0) * 50).complaints() == []


def test_memory_that_grows_by_a_hundred_bytes_a_saga_is_not_flat() -> None:
    growing = soak(lambda at: at * RATE * 100 / 1024)
    assert growing.memory.per_minute == pytest.approx(60 * RATE * 100 / 1024, rel=0.1)
    (complaint,) = growing.complaints()
    assert complaint.startswith("memory grows by ")
    assert "at most 19 sagas in the first half, 19 in the second" in complaint


def test_a_slope_has_the_error_of_what_wavers_about_it() -> None:
    chance = Random(7)
    errors = [slope([(float(x), 5.0 * x + chance.gauss(0, 40)) for x in range(60)]) for _ in range(200)]
    assert sum(abs(one.per_minute - 5.0) <= 2 * one.error for one in errors) in range(180, 200)
    exact = slope([(float(x), 1_000.0 + 5.0 * x) for x in range(60)])
    assert exact.per_minute == pytest.approx(5.0)
    assert exact.error == pytest.approx(0.0, abs=1e-9)
    assert exact.percent == pytest.approx(100 * 5.0 / 1_147.5)


@pytest.mark.parametrize("name", ["threads", "files", "connections", "channels"])
def test_one_thing_more_of_what_does_not_depend_on_the_load_is_growth(name: str) -> None:
    (complaint,) = soak(more={name: 1}).complaints()
    assert complaint.startswith(f"{name} grew from ")


@pytest.mark.parametrize("name", ["tasks", "in flight", "messages", "stored"])
def test_what_one_saga_in_a_hundred_leaves_behind_is_growth(name: str) -> None:
    (complaint,) = soak(more={name: round(SECONDS * RATE / 100)}).complaints()
    assert complaint.startswith(f"{name} grew from ")


def test_what_each_saga_leaves_of_memory_is_seen_where_there_is_room_for_it() -> None:
    (complaint,) = soak(more={"blocks": round(SECONDS * RATE)}).complaints()
    assert complaint.startswith("blocks grew from ")


def test_objects_that_workers_need_are_no_growth_and_others_are() -> None:
    objects = 2_000
    (complaint,) = soak(more={"objects": objects}).complaints()
    assert complaint.startswith("objects grew from ")
    assert soak(more={"objects": objects, "workers": objects // 50}).complaints() == []


@pytest.mark.parametrize("name", ["tasks", "connections", "channels", "messages", "in_flight", "stored"])
def test_what_a_single_saga_leaves_behind_is_seen_at_rest(name: str) -> None:
    left = after(**{name: AT_REST[name.replace("_", " ")] + 1})
    (complaint,) = soak(after=left).complaints()
    assert complaint.startswith("at rest there were ")


def test_a_saga_that_ended_wrongly_and_a_rate_that_was_not_kept_are_told() -> None:
    assert len(soak(wrong={"undone": 1}).complaints()) == 1
    assert soak(started=20_000).complaints() == ["only 20000 sagas were started"]


def test_a_run_is_drawn(tmp_path: Path) -> None:
    files = draw(soak(), tmp_path / "soak")
    assert [file.suffix.removeprefix(".") for file in files] == list(FORMS)
    assert all(file.stat().st_size > 10_000 for file in files)


def test_an_engine_that_is_soaked_for_a_moment_ends_every_saga_as_it_must(amqp_url: str) -> None:
    setting = Setting(
        loop="trio",
        store="",
        amqp=amqp_url,
        unique=f"soak-{ULID()}".lower(),
        seconds=1.0,
        rate=20.0,
        every=0.25,
        crowd=10,
    )
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.soak.engine",
        msgspec.json.encode(setting).decode(),
    ]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT, check=True)
    told = [msgspec.json.decode(line, type=Told) for line in ran.stdout.splitlines()]
    assert [told[0].phase, told[1].phase, told[-1].phase] == ["before", "under load", "after"]
    last = told[-1]
    assert last.started == 20
    assert last.wrong == {}
    assert last.ended == {
        "plain": 15,
        "undone": 3,
        "deferred": 3,
        "retried": 3,
        "with a child": 3,
        "delayed": 3,
    }
    assert all(
        last.sample.counts[name] == told[0].sample.counts[name] for name in ("tasks", "stored", "in flight")
    )
    assert any(one.sample.latency for one in told)
