"""`python -m saga_amqp` is the command `saga`."""

import sys

from saga_amqp.cli import main

if __name__ == "__main__":
    sys.exit(main())
