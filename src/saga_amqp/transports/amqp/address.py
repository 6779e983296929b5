"""Where a broker is, and how to get in, read from its URL. Nothing here ever shows a password."""

from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlencode, urlsplit

import msgspec
from yarl import URL

from saga_amqp.errors import ConnectFailedError

PORTS = {"amqp": 5672, "amqps": 5671}
DEFAULT_HEARTBEAT = 60

FILES = ("cafile", "certfile", "keyfile")
# What else aiormq's URLs may say of TLS. To pass over it in silence would leave somebody in a wrong belief.
UNSUPPORTED = ("capath", "cadata", "no_verify_ssl")
FOR_AIORMQ = ("auth", "heartbeat", "name")


class Address(msgspec.Struct, frozen=True):
    """A broker's address.

    `heartbeat` is in seconds, 0 for none. With `external` it is the certificate in `certfile`, or in a context of the
    user's own, that says who we are. `secret_url`, for aiormq, has the password in it.
    """

    host: str
    port: int
    tls: bool
    virtual_host: str
    heartbeat: int
    external: bool
    cafile: str | None
    certfile: str | None
    keyfile: str | None
    secret_url: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"{'amqps' if self.tls else 'amqp'}://{self}/{self.virtual_host.removeprefix('/')}"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show no more than `repr` does."""
        return [("where", repr(self))]


def parse(url: str, heartbeat: int | None = None) -> Address:
    """Read a URL like `amqps://user:password@host:port/vhost?heartbeat=10&cafile=ca.pem`.

    Raises: ConnectFailedError, which names the part that is wrong and never the password.
    """
    split = _split(url)
    if split is None:  # raised here and not there: the text of that ValueError may have the password in it
        raise ConnectFailedError(
            "The broker's URL cannot be read; it has to be amqp://user:password@host:port/vhost, and what is "
            "special in a URL has to be percent-encoded in the password"
        )
    parts, port, host, settings = split
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
        text = settings.get("heartbeat", str(DEFAULT_HEARTBEAT))
        heartbeat = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not 0 <= heartbeat < 65535:
        raise ConnectFailedError("The heartbeat has to be a whole number of seconds from 0 to 65534")
    settings["heartbeat"] = str(heartbeat)
    external = _check_security(settings, tls=scheme == "amqps")
    query = urlencode({name: settings[name] for name in FOR_AIORMQ if name in settings})
    return Address(
        host,
        port or PORTS[scheme],
        scheme == "amqps",
        unquote(parts.path[1:]) or "/",
        heartbeat,
        external,
        settings.get("cafile"),
        settings.get("certfile"),
        settings.get("keyfile"),
        parts._replace(query=query).geturl(),
    )


def _check_security(settings: dict[str, str], *, tls: bool) -> bool:
    """Return whether to authenticate by certificate."""
    for name in UNSUPPORTED:
        if name in settings:
            raise ConnectFailedError(f"The broker's URL cannot say {name} here: give an ssl_context instead")
    auth = settings.get("auth", "plain").lower()
    if auth not in ("plain", "external"):
        raise ConnectFailedError(
            "The broker's URL can say auth=plain, which is the default, or auth=external"
        )
    for name in FILES:
        if name in settings and not tls:
            raise ConnectFailedError(f"The broker's URL says {name}, which is for TLS: write amqps://")
    if auth == "external" and not tls:
        raise ConnectFailedError("The broker's URL says auth=external, which needs TLS: write amqps://")
    if "keyfile" in settings and "certfile" not in settings:
        raise ConnectFailedError("The broker's URL names a keyfile, and no certfile that it belongs to")
    return auth == "external"


def _split(url: str) -> tuple[SplitResult, int | None, str | None, dict[str, str]] | None:
    try:
        url.encode()  # for the error of whoever tried it later would have the password in it
        parts = urlsplit(url)
        settings = {
            name: values[-1]
            for name, values in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()
        }
        urlencode(settings)  # which is not for every text
        # aiormq has it read by yarl, which refuses more; and which makes ASCII of a host, as the system wants it.
        return parts, parts.port, URL(url).raw_host, settings
    except (ValueError, LookupError):  # the second is yarl's, over half of an IPv6 address
        return None
