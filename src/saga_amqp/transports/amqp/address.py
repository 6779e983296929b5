"""Where a broker is, read from its URL. Nothing here ever shows a password."""

from urllib.parse import SplitResult, parse_qs, unquote, urlencode, urlsplit

import msgspec
from yarl import URL

from saga_amqp.errors import ConnectFailedError

PORTS = {"amqp": 5672, "amqps": 5671}
DEFAULT_HEARTBEAT = 60


class Address(msgspec.Struct, frozen=True):
    """A broker's address. `heartbeat` is in seconds, 0 for none; `secret_url` has the password in it."""

    host: str
    port: int
    tls: bool
    virtual_host: str
    heartbeat: int
    secret_url: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"{'amqps' if self.tls else 'amqp'}://{self}/{self.virtual_host.removeprefix('/')}"


def parse(url: str, heartbeat: int | None = None) -> Address:
    """Read a URL like `amqps://user:password@host:port/vhost?heartbeat=10`.

    Raises: ConnectFailedError, which names the part that is wrong and never the password.
    """
    split = _split(url)
    if split is None:  # raised here and not there: the text of that ValueError may have the password in it
        raise ConnectFailedError(
            "The broker's URL cannot be read; it has to be amqp://user:password@host:port/vhost, and what is "
            "special in a URL has to be percent-encoded in the password"
        )
    parts, port, settings, host = split
    scheme = parts.scheme
    if scheme not in PORTS:
        raise ConnectFailedError(f"The broker's URL has to begin with amqp:// or amqps://, not {scheme!r}")
    if not host:
        raise ConnectFailedError("The broker's URL names no host")
    if "@" in parts.path or parts.fragment:
        raise ConnectFailedError(
            "The broker's URL has a user or a password with / or # in it: percent-encode them"
        )
    if heartbeat is None:
        text = settings.get("heartbeat", [str(DEFAULT_HEARTBEAT)])[-1]
        heartbeat = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not 0 <= heartbeat < 65535:
        raise ConnectFailedError("The heartbeat has to be a whole number of seconds from 0 to 65534")
    secret_url = parts._replace(
        query=urlencode(settings | {"heartbeat": [str(heartbeat)]}, doseq=True)
    ).geturl()
    virtual_host = unquote(parts.path[1:]) or "/"
    return Address(host, port or PORTS[scheme], scheme == "amqps", virtual_host, heartbeat, secret_url)


def _split(url: str) -> tuple[SplitResult, int | None, dict[str, list[str]], str | None] | None:
    try:
        parts = urlsplit(url)
        settings = parse_qs(parts.query, strict_parsing=bool(parts.query))
        urlencode(settings, doseq=True)  # which is not for every text
        # aiormq has it read by yarl, which refuses more, and makes ASCII of a host's name, as the system wants it.
        return parts, parts.port, settings, URL(url).raw_host
    except (ValueError, LookupError):  # the second is yarl's, over half of an IPv6 address
        return None
