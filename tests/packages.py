"""Programs of the system that tests need, installed where that is possible."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ServerError, run


def find_or_install(
    find: Callable[[], Path | None],
    *,
    product: str,
    package: str,
    variable: str,
    install: Callable[[str], None] | None = None,
) -> Path:
    """Return what `find` finds; install the Debian package if it finds nothing and that is possible.

    Raises:
        ServerError: The product is missing and cannot be installed here. It says which variable names another.
    """
    if found := find():
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ServerError(
            f"{product} is not installed. Install it (on Debian and Ubuntu: apt-get install {package}), "
            f"or set {variable} to the URL of a server to use."
        )
    with _alone():
        if found := find():
            return found
        print(f"Installing {package}", flush=True)
        (install or install_package)(package)
        if found := find():
            return found
    raise ServerError(f"{package} was installed, but {product} is not where it is looked for.")


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for whoever installs something: apt-get does not wait for another one's update."""
    with (Path(tempfile.gettempdir()) / "saga-test-installing").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install_package(package: str) -> None:
    """Install a Debian package.

    Raises:
        ServerError: It fails, or takes too long.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    run([*apt, "update"], environment=environment, deadline=600)
    run([*apt, "install", "-y", "--no-install-recommends", package], environment=environment, deadline=1200)
