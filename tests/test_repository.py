"""Rules of this repository that no tool knows: who may import what, and how large a file may get."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
MOST_LINES = 400

CORE_MAY_IMPORT = {"msgspec", "saga_core", "ulid"}
# What reaches the world: sockets, files, clocks, chance, other threads and processes, handlers of logs.
CORE_MAY_NOT_IMPORT = {
    "asyncio", "builtins", "concurrent", "contextvars", "ctypes", "faulthandler", "fcntl", "fileinput", "ftplib",
    "getpass", "glob", "http", "imaplib", "importlib", "io", "locale", "logging", "mmap", "multiprocessing", "os",
    "pathlib", "platform", "poplib", "posix", "pty", "queue", "random", "readline", "resource", "sched", "secrets",
    "select", "selectors", "shelve", "shutil", "signal", "site", "smtplib", "socket", "socketserver", "sqlite3",
    "ssl", "subprocess", "sys", "syslog", "tempfile", "termios", "threading", "time", "tty", "urllib", "uuid",
    "webbrowser", "xmlrpc", "_thread",
}  # fmt: skip


def modules(package: str) -> list[Path]:
    return sorted((SOURCE / package).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every import anywhere in a module, with its line; those that only type checkers see are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for line, name in imports(ast.Module(node.body, [])):
                if name.partition(".")[0] != "typing_extensions":
                    yield line, name
            yield from imports(ast.Module(node.orelse, []))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "__import__",
            "importlib.import_module",
        }:
            yield node.lineno, ast.unparse(node)
        else:
            yield from imports(node)


def forbidden(source: str) -> list[str]:
    """What a module of the core imports and may not."""
    found: list[str] = []
    for line, name in imports(ast.parse(source)):
        top = name.partition(".")[0]
        inside = not top  # a relative import, which cannot leave the package
        allowed = top in CORE_MAY_IMPORT or (top in sys.stdlib_module_names - CORE_MAY_NOT_IMPORT)
        if not inside and not allowed:
            found.append(f"line {line} imports {name}")
    return found


def test_the_core_imports_nothing_that_reaches_the_world() -> None:
    wrong = {
        str(path.relative_to(SOURCE)): found
        for path in modules("saga_core")
        if (found := forbidden(path.read_text()))
    }
    # Only pytest loads its plugin, and the rest of the core does not know it.
    (line,) = wrong.pop("saga_core/testing/plugin.py")
    assert line.endswith("imports pytest")
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from asyncio import sleep",
        "import anyio",
        "from saga_amqp import Manager",
        "def later():\n    import socket",
        "try:\n    import uuid\nexcept ImportError:\n    pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import aiormq",
        "from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import typing_extensions",
        "module = __import__('socket')",
    ],
)
def test_the_rule_sees_imports_wherever_they_are(source: str) -> None:
    assert len(forbidden(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import msgspec.json",
        "from ulid import ULID",
        "from . import model",
        "from saga_core.model import Saga",
        "from collections.abc import Sequence",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from typing_extensions import Sentinel",
    ],
)
def test_the_rule_lets_the_core_import_what_decides(source: str) -> None:
    assert not forbidden(source)


def test_init_files_only_hand_names_on() -> None:
    wrong: list[str] = []
    for path in SOURCE.rglob("__init__.py"):
        tree = ast.parse(path.read_text())
        for number, node in enumerate(tree.body):
            is_docstring = number == 0 and ast.get_docstring(tree) is not None
            is_names = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [
                "__all__"
            ]
            if not (is_docstring or is_names or isinstance(node, ast.Import | ast.ImportFrom)):
                wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno} {ast.unparse(node)[:60]}")
    assert not wrong


def test_no_file_outgrows_its_name() -> None:
    lengths = {
        str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")
    }
    too_long = {name: length for name, length in lengths.items() if length > MOST_LINES}
    assert not too_long, f"above {MOST_LINES} lines, so each of these wants to be two files: {too_long}"
