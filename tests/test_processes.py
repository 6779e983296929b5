"""Processes that a session starts end with all that they have started, however fast they start more."""

import sys

from tests.processes import Processes
from tests.test_postgres import processes_in
from tests.test_servers import wait_until

# Its memory makes each fork take its time, so that it is in the midst of one at almost any moment.
PARENT = """
import os, time
memory = bytearray(os.urandom(1 << 20)) * 300
for child in range(500):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    open("ready", "w").close()
time.sleep(60)
"""


def test_nothing_is_left_of_a_process_that_starts_more_of_them_all_the_time() -> None:
    own = Processes("saga-forks-")
    try:
        for _ in range(3):
            ready = own.directory / "ready"
            ready.unlink(missing_ok=True)
            process = own.start([sys.executable, "-c", PARENT], "log", {})
            wait_until(ready.exists)
            own.end(process)
            assert not processes_in(own.directory)
    finally:
        own.close()
