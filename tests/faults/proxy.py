"""A way to the broker that can be slow, be cut, or fall silent without anybody being told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import anyio
from anyio.abc import ByteStream, SocketAttribute

Direction = Literal["to the broker", "to the client"]
BOTH: tuple[Direction, ...] = ("to the broker", "to the client")


class Way:
    """One client's connection: in the directions of `silent` everything is swallowed, also that one side has gone."""

    def __init__(self, proxy: "Proxy") -> None:
        self.silent: set[Direction] = set()
        self.scope = anyio.CancelScope()
        self._proxy = proxy

    async def carry(self, source: ByteStream, target: ByteStream, direction: Direction) -> None:
        """Carry one direction, until either side ends."""
        try:
            while True:
                piece = await source.receive()
                if self._proxy.delay:
                    await anyio.sleep(self._proxy.delay)
                if direction not in self.silent:
                    await target.send(piece)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            if direction not in self.silent:
                self.scope.cancel()


class Proxy:
    """Ways to the broker. `delay` is for how many seconds each piece is held up, in both directions."""

    def __init__(self, url: str, port: int) -> None:
        parts = urlsplit(url)
        self._broker = (parts.hostname or "localhost", parts.port or 5672)
        login, _, _ = parts.netloc.rpartition("@")
        self.url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}"))
        self.delay = 0.0
        self.accepted = 0
        self._ways: set[Way] = set()

    def cut(self) -> None:
        """Cut every connection there is, without a goodbye."""
        for way in self._ways:
            way.scope.cancel()

    def fall_silent(self, *directions: Direction) -> None:
        """Swallow what is sent over every connection there is, in these directions. New ones are as ever."""
        for way in self._ways:
            way.silent.update(directions)

    async def serve(self, client: ByteStream) -> None:
        """Be the way for one client."""
        way = Way(self)
        with way.scope:
            self._ways.add(way)
            self.accepted += 1
            try:
                async with (
                    client,
                    await anyio.connect_tcp(*self._broker) as broker,
                    anyio.create_task_group() as ways,
                ):
                    ways.start_soon(way.carry, client, broker, "to the broker")
                    ways.start_soon(way.carry, broker, client, "to the client")
            except OSError:
                pass  # the broker is away, and the client sees its connection closed
            finally:
                self._ways.discard(way)


@asynccontextmanager
async def proxy_to(url: str, port: int = 0) -> AsyncIterator[Proxy]:
    """Open ways to the broker, which end with the context; 0 is a port of the system's choice."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    async with listener, anyio.create_task_group() as tasks:
        proxy = Proxy(url, listener.extra(SocketAttribute.local_port))
        tasks.start_soon(listener.serve, proxy.serve)
        yield proxy
        tasks.cancel_scope.cancel()
