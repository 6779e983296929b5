"""The properties of a message: bytes in, bytes out. Located only when somebody asks; tables are pamqp's."""

from collections.abc import Mapping
from typing import Any, cast

import pamqp.decode
import pamqp.encode

from saga_amqp.errors import FrameError

_SHORT, _TABLE, _OCTET = "short string", "table", "octet"
_PROPERTIES = (  # in the order of the wire, up to the last one that is looked for
    (0x8000, _SHORT),  # content type
    (0x4000, _SHORT),  # content encoding
    (0x2000, _TABLE),  # headers
    (0x1000, _OCTET),  # delivery mode
    (0x0800, _OCTET),  # priority
    (0x0400, _SHORT),  # correlation id
    (0x0200, _SHORT),  # reply to
    (0x0100, _SHORT),  # expiration
    (0x0080, _SHORT),  # message id
)
_HEADERS_FLAG, _MESSAGE_ID_FLAG = 0x2000, 0x0080
_LENGTHS = [bytes((length,)) for length in range(256)]
_PLAIN_FLAGS = 0x8000 | 0x1000 | 0x0080 | 0x0020  # content type, delivery mode, message id, type


def message_id(properties: bytes) -> str:
    """Return the message id, or an empty string. Raises: FrameError."""
    start, stop = _locate(properties, _MESSAGE_ID_FLAG)
    return properties[start + 1 : stop].decode(errors="replace")


def headers(properties: bytes) -> Mapping[str, object]:
    """Return the table of headers, empty where there is none. Raises: FrameError, when it cannot be decoded."""
    start, stop = _locate(properties, _HEADERS_FLAG)
    if start == stop:
        return {}
    try:
        return cast("Mapping[str, object]", pamqp.decode.field_table(properties[start:stop])[1])
    except Exception as error:  # whatever a foreign publisher's table does to pamqp; RecursionError is one
        raise FrameError(f"The headers of a message cannot be decoded: {error!r}") from error


def _locate(properties: bytes, wanted: int) -> tuple[int, int]:
    flags = int.from_bytes(properties[:2], "big")
    if not flags & wanted:
        return 0, 0
    at = 2
    if flags & 1:  # more words of flags follow
        while at < len(properties) - 1 and properties[at + 1] & 1:
            at += 2
        at += 2
    for flag, kind in _PROPERTIES:
        if not flags & flag:
            continue
        if at >= len(properties):
            break
        if kind is _SHORT:
            stop = at + 1 + properties[at]
        elif kind is _OCTET:
            stop = at + 1
        else:
            stop = at + 4 + int.from_bytes(properties[at : at + 4], "big")
        if stop > len(properties):
            break
        if flag == wanted:
            return at, stop
        at = stop
    raise FrameError("The properties of a message end too early")


def encode(message_id: str, kind: str, table: Mapping[str, str | int] | None) -> tuple[int, bytes]:
    """Return the flags and the properties of a persistent JSON message. Raises: ValueError."""
    ends = short_string(message_id) + short_string(kind)
    if not table:
        return _PLAIN_FLAGS, b"\x10application/json\x02" + ends
    return _PLAIN_FLAGS | _HEADERS_FLAG, b"\x10application/json" + _table(table) + b"\x02" + ends


def short_string(text: str) -> bytes:
    """Return a text of up to 255 bytes with its length before it. Raises: ValueError."""
    encoded = text.encode()
    if len(encoded) > 255:
        raise ValueError(f"{text[:40]!r}… has {len(encoded)} bytes of UTF-8, and 255 is the most")
    return _LENGTHS[len(encoded)] + encoded


def _table(table: Mapping[str, str | int]) -> bytes:
    for name in table:
        if len(name.encode()) > 128:  # pamqp would cut it off
            raise ValueError(f"the name of header {name[:40]!r}… is longer than 128 bytes of UTF-8")
    try:
        return pamqp.encode.field_table(cast("dict[str, Any]", dict(table)))
    except Exception as error:  # whatever pamqp says to what it cannot encode
        raise ValueError(f"its headers cannot be encoded: {error}") from error
