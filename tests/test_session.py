"""The rules of `conftest.py` are in force: what goes wrong in silence fails the session."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


CONFTEST = """
from tests import conftest
from tests.conftest import *

conftest.THREAD_DEADLINE = 0.1
"""


def run(tests: str, directory: Path, **environment: str) -> tuple[int, str]:
    """Run tests in a session of their own, with this repository's settings, and return its status and report."""
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(tests)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(directory),
         "-p", "no:cacheprovider", str(directory)],
        cwd=directory, text=True, capture_output=True, check=False,
        env={**{name: value for name, value in os.environ.items() if name != "SAGA_ALLOW_SKIPS"},
             "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    return done.returncode, done.stdout


FAULTS = {
    "a thread": (
        "import threading\n"
        "def test():\n"
        "    threading.Thread(target=threading.Event().wait, args=(8,), daemon=True, name='stray').start()\n",
        "The test left threads behind: ['stray']",
    ),
    "an open socket": (
        "import socket\ndef test():\n    socket.socket()\n",
        "unclosed <socket.socket",
    ),
    "an open file in a cycle": (
        "def test():\n    cycle = [open(__file__)]\n    cycle.append(cycle)\n",
        "unclosed file",
    ),
    "an error that nobody sees": (
        "class Silent:\n    def __del__(self): raise ValueError('unseen')\ndef test():\n    Silent()\n",
        "ValueError: unseen",
    ),
    "a coroutine never awaited": (
        "async def work(): pass\nasync def test():\n    work()\n",
        "coroutine 'work' was never awaited",
    ),
    "an error in a thread": (
        "import threading\n"
        "def fail(): raise ValueError('far away')\n"
        "def test():\n"
        "    thread = threading.Thread(target=fail); thread.start(); thread.join()\n",
        "ValueError: far away",
    ),
    "a warning": (
        "import warnings\ndef test():\n    warnings.warn('old')\n",
        "UserWarning: old",
    ),
    "a mark that nobody knows": (
        "import pytest\n@pytest.mark.unknown\ndef test(): pass\n",
        "'unknown' not found in `markers`",
    ),
}


@pytest.mark.parametrize(("tests", "says"), FAULTS.values(), ids=FAULTS)
def test_what_goes_wrong_in_silence_fails(tests: str, says: str, tmp_path: Path) -> None:
    status, report = run(tests, tmp_path)
    assert says in report
    assert status != 0


SKIPPED = """
import pytest

@pytest.mark.skip(reason="no time")
def test_skipped(): pass

def test_run(): pass
"""


def test_a_skipped_test_fails_the_session(tmp_path: Path) -> None:
    status, report = run(SKIPPED, tmp_path)
    assert "1 passed, 1 skipped" in report
    assert "a test that does not run proves nothing" in report
    assert status == 1


def test_skips_can_be_let_pass(tmp_path: Path) -> None:
    status, report = run(SKIPPED, tmp_path, SAGA_ALLOW_SKIPS="1")
    assert "1 passed, 1 skipped" in report
    assert status == 0


BOTH = """
import anyio, pytest, sniffio, sys

async def test_both(): pass

@pytest.mark.uvloop
async def test_all(anyio_backend_name):
    assert sniffio.current_async_library() == anyio_backend_name

@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_one(anyio_backend_name): assert anyio_backend_name == "trio"

async def test_threads_of_anyio_are_not_left_behind():
    await anyio.to_thread.run_sync(sys.getrefcount, None)

def test_none(): pass
"""


def test_async_tests_run_on_both_loops_and_are_counted(tmp_path: Path) -> None:
    status, report = run(BOTH, tmp_path)
    assert "asyncio (3 tests), asyncio+uvloop (1 tests), trio (4 tests)" in report
    assert "no server" in report
    assert "9 passed" in report
    assert status == 0
