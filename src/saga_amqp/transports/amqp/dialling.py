"""From an address to a stream of bytes: TCP, and TLS in which everything is verified unless the user says otherwise."""

import os
import socket
import ssl
from typing import cast

import anyio
import anyio.to_thread
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from saga_amqp.errors import ConnectFailedError
from saga_amqp.transports.amqp.address import Address

UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""Those of OpenSSL's codes that say that a certificate, or its issuer, is none of those that are trusted."""

MEANINGS = {
    "WRONG_VERSION_NUMBER": "whoever listens there speaks no TLS",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the broker wants our certificate; name a certfile or give an ssl_context",
    "TLSV1_ALERT_UNKNOWN_CA": "the broker does not trust the authority of our certificate",
}
"""What OpenSSL's reasons mean to whoever connects."""


async def dial(address: Address, ssl_context: ssl.SSLContext | None) -> ByteStream:
    """Open a TCP or TLS stream. Raises: ConnectFailedError."""
    context = ssl_context
    if address.tls and context is None:
        # Read anew each time, for certificates are replaced; in a thread, for it takes a while.
        context = await anyio.to_thread.run_sync(make_context, address)
    try:
        stream = await anyio.connect_tcp(address.host, address.port)
    except (OSError, anyio.BrokenResourceError) as error:
        raise ConnectFailedError(f"Nobody answers at {address}: {_why(error)}") from error
    # Some event loops have set it, some have not. Without it every hop waits 40 ms for a delayed ACK.
    stream.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream if context is None else await _secure(stream, address, context)


def make_context(address: Address) -> ssl.SSLContext:
    """Return what trusts the system's authorities, or those in `cafile`. Reads files. Raises: ConnectFailedError."""
    try:
        context = ssl.create_default_context(cafile=address.cafile)
    except OSError as error:
        raise ConnectFailedError(f"The cafile {address.cafile!r} cannot be used: {_why(error)}") from error
    if address.certfile is not None:
        try:
            context.load_cert_chain(address.certfile, address.keyfile, _refuse_to_ask)
        except OSError as error:
            files = f"certfile {address.certfile!r}" + (
                f" and keyfile {address.keyfile!r}" if address.keyfile else ""
            )
            raise ConnectFailedError(f"The {files} cannot be used: {_why(error)}") from error
    return context


def _refuse_to_ask() -> str:
    """Stand in for OpenSSL's question at the terminal, for which a service would wait for ever."""
    raise ConnectFailedError(
        "The key of our certificate is encrypted: give an ssl_context that has loaded it"
    )


async def _secure(stream: SocketStream, address: Address, context: ssl.SSLContext) -> ByteStream:
    try:
        return await TLSStream.wrap(
            stream, hostname=address.host, ssl_context=context, standard_compatible=False
        )
    except BaseException as error:
        await anyio.aclose_forcefully(stream)
        if isinstance(error, ssl.SSLCertVerificationError):
            advice = (
                "; trust its authority with cafile or an ssl_context"
                if error.verify_code in UNKNOWN_AUTHORITY
                else ""
            )
            raise ConnectFailedError(
                f"The certificate of the broker at {address} is not accepted: "
                f"{error.verify_message.rstrip('.')}{advice}"
            ) from error
        if isinstance(error, OSError | anyio.BrokenResourceError | anyio.EndOfStream):
            raise tls_failed(address, error) from error
        raise


def tls_failed(address: Address, error: BaseException) -> ConnectFailedError:
    """Return the error of a connection whose TLS has ended; that may be some time after the broker was spoken to."""
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    return ConnectFailedError(f"TLS with {address} failed: {MEANINGS.get(reason or '') or _why(error)}")


def _why(error: BaseException) -> str:
    """Return what one can act on: the first of AnyIO's attempts, in the words of the system."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cast("BaseExceptionGroup[BaseException]", cause).exceptions[0]
    if isinstance(cause, OSError):
        error = cause
    if isinstance(error, anyio.EndOfStream):
        return "the broker closed the connection"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and (error.errno or 0) > 0:
        return os.strerror(cast(int, error.errno))
    return str(error) or type(error).__name__
