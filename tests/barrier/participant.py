"""A process that runs one handler of a bank, says `passed` when it is past the barrier, and waits to be told to commit.

Run as `python -m tests.barrier.participant URL KIND SAGA OPERATION`.
"""

import sys
from typing import cast

from msgspec import structs

from saga_core import Operation

from .banks import Bank, a_saga, a_step


def main() -> None:
    url, kind, saga_id, operation = sys.argv[1:]
    blank = a_saga()
    saga = structs.replace(blank, plan=structs.replace(blank.plan, id=saga_id))

    def wait() -> None:
        print("passed", flush=True)
        sys.stdin.readline()

    step = a_step(cast("Operation", operation))
    Bank(url, kind).handle(saga, step, {"by": "the process"}, before_commit=wait)
    print("committed", flush=True)


if __name__ == "__main__":
    main()
