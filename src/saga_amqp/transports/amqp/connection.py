"""One connection to one broker: a link, and aiormq's control over it, which begin and end together."""

import ssl
from collections.abc import Callable
from typing import Self

import anyio
from anyio.abc import ByteStream, TaskGroup

from saga_amqp.errors import (
    AuthenticationError,
    ConnectFailedError,
    TransportError,
    VirtualHostError,
)
from saga_amqp.transports.amqp.address import Address
from saga_amqp.transports.amqp.control import Channel, Control
from saga_amqp.transports.amqp.dialling import tls_failed
from saga_amqp.transports.amqp.lanes import PublishLane
from saga_amqp.transports.amqp.link import Link

# Seconds that goodbyes may take: to a consumer's channel, to the connection, to the portal thread.
GOODBYE = 5.0

ACCESS_REFUSED, NOT_ALLOWED = 403, 530


class Connection:
    """A connection that can be used once `open` has returned. `ended` is called when it ends, whatever the reason.

    `publishing` is the lane of the channel that messages are published on; it is dead when the broker has closed it.
    """

    def __init__(
        self,
        address: Address,
        stream: ByteStream,
        buffer: int,
        answer_timeout: float,
        ended: Callable[[TransportError], None],
    ) -> None:
        self.address = address
        self.link = Link(stream, address, buffer, answer_timeout)
        self.control = Control(address, self.link.send, self._gave_up)
        self.publishing: PublishLane
        self._ended = ended
        self._reopening = anyio.Lock()
        self._channel: Channel

    async def open(self, tasks: TaskGroup) -> Self:
        """Start the link in a task group, shake hands, and open the channel to publish on.

        Raises: ConnectFailedError, AuthenticationError, VirtualHostError.
        """
        link, control = self.link, self.control
        tasks.start_soon(link.run)
        link.on_lost = self._lost
        control.start()
        link.feed_control = control.feed
        try:
            link.decoder.frame_max = await control.open()
            link.open = True
            await self._open_publishing()
            link.unanswered = self._unanswered
        except TransportError as error:
            raise self._refused(error) from error
        return self

    async def reopen(self) -> None:
        """Open a channel to publish on, if the last one is dead. Raises: TransportError."""
        async with self._reopening:
            if self.publishing.dead:
                await self.control.leave(self._channel, None)
                await self._open_publishing()

    @property
    def is_used(self) -> bool:
        """Whether anything was published or consumed."""
        return self.publishing.is_used or len(self.link.lanes) > 1

    async def close(self) -> None:
        """Say goodbye where that is possible, and leave nothing running. Shielded, and bounded in time."""
        link, control = self.link, self.control
        try:
            link.closing = True
            link.wake_publishers()
            if link.open and link.lost is None:
                with anyio.move_on_after(GOODBYE, shield=True):
                    await control.close()
        finally:
            link.lose("")
            with anyio.move_on_after(GOODBYE, shield=True):
                await control.stop()

    async def _open_publishing(self) -> None:
        link = self.link
        channel = self._channel = await self.control.open_channel(confirms=True)
        lane = PublishLane(channel.number, link, link.decoder.frame_max)
        link.open_lane(channel.number, lane)
        self.publishing = lane

    def _unanswered(self) -> frozenset[object]:
        oldest = self.publishing.oldest
        published = () if oldest is None else ((self.publishing.channel, oldest),)
        return self.control.unanswered.union(published)

    def _refused(self, error: TransportError) -> ConnectFailedError:
        address = self.address
        code, text = self.link.refusal or (0, "")
        if isinstance(error, AuthenticationError):
            advice = "; enable its plugin rabbitmq_auth_mechanism_ssl, and EXTERNAL among its auth_mechanisms"
            return AuthenticationError(
                f"The broker at {address} lets nobody in by {'certificate' if address.external else 'password'}: "
                f"{error}{advice if address.external else ''}"
            )
        if code == ACCESS_REFUSED:
            what = "user of our certificate" if address.external else "user name or the password"
            return AuthenticationError(f"The broker at {address} refused the {what}: {text}")
        if code == NOT_ALLOWED:
            return VirtualHostError(
                f"The broker at {address} does not let this user into virtual host "
                f"{address.virtual_host!r}: {text}"
            )
        if self.link.lost is not None and isinstance(failure := self.link.lost.__cause__, ssl.SSLError):
            return tls_failed(address, failure)
        return ConnectFailedError(f"No connection to the broker at {address}: {error}")

    def _lost(self, error: TransportError) -> None:
        self.control.lose(error)
        self._ended(error)

    def _gave_up(self) -> None:
        if self.link.open:
            self.link.lose("aiormq has not heard of it for too long")
