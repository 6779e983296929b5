"""Ports for servers of a session's own."""

import contextlib
import random
import socket

HOST = "127.0.0.1"

# Below the ports that systems hand out by themselves, so that a server that was killed finds its port free.
PORTS = range(20_000, 30_000)


def free_ports(count: int) -> tuple[int, ...]:
    """Return ports that nobody listens on at this moment."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = random.SystemRandom().choice(PORTS)
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                ports.append(port)
    return tuple(ports)
