"""Publishing for those who wait for the broker's confirmation themselves: the manager and the timers."""

from collections.abc import Sequence

import anyio

from saga_amqp.config import Config
from saga_amqp.contracts import Transport
from saga_amqp.errors import TransportError
from saga_core import Command


async def publish(transport: Transport, config: Config, commands: Sequence[Command]) -> None:
    """Publish commands and wait until the broker has confirmed them all.

    Raises: TransportError, the first of them, when every message is settled. Cancelled, some may have been sent.
    """
    if not commands:
        return
    done = anyio.Event()
    errors: list[TransportError] = []
    left = len(commands)

    def settled(error: TransportError | None) -> None:
        nonlocal left
        left -= 1
        if error is not None:
            errors.append(error)
        if left == 0:
            done.set()

    for command in commands:
        try:
            await transport.publish(config.message(command), settled)
        except TransportError as error:
            settled(error)
    await done.wait()
    if errors:
        raise errors[0]
