"""What users put into sagas: JSON objects, kept as the bytes that they were first written as.

The core never looks inside. That is why nothing mutable is ever shared between a saga and its user, why a payload
survives every store and message bit for bit, and why carrying one costs nothing.
"""

import math
import re
from collections.abc import Iterable
from typing import TypeVar, cast

import msgspec
from msgspec import Raw

from saga_core.errors import PayloadError

T = TypeVar("T")

EMPTY = Raw(b"{}")

DEEPEST = 100
"""How many objects and lists of a payload may lie within each other. Deeper ones could be written, but not read."""

_encode = msgspec.json.Encoder().encode
_object: msgspec.json.Decoder[dict[str, object]] = msgspec.json.Decoder(dict[str, object])


def encode_payload(value: object, what: str, *of: object) -> Raw:
    """Write a payload: a mapping, a msgspec Struct, a dataclass or None, which stands for an empty object.

    `what` names the payload in the error, with `of` put in by `%`. Raises: PayloadError.
    """
    if value is None:
        return EMPTY
    try:
        raw = _encode(value)
        # JSON has no NaN and msgspec writes null for it: the reader would see a value that nobody wrote.
        nonfinite = b"null" in raw and _has_nonfinite(msgspec.to_builtins(value, enc_hook=_nothing))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PayloadError(f"{_named(what, of)} cannot be written as JSON: {error}") from error
    if raw[:1] != b"{":
        raise PayloadError(
            f"{_named(what, of)} must be a JSON object (a dict, Struct or dataclass), not {type(value).__name__}"
        )
    if raw == b"{}":
        return EMPTY
    if len(raw) > 2 * DEEPEST and raw.count(b"{") + raw.count(b"[") > DEEPEST and _depth(raw) > DEEPEST:
        raise PayloadError(f"{_named(what, of)} is nested deeper than {DEEPEST} objects and lists")
    if nonfinite:
        raise PayloadError(f"{_named(what, of)} holds a number that JSON cannot (NaN or infinite)")
    return Raw(raw)


def decode_payload(raw: Raw, type_: type[T], what: str, *of: object) -> T:
    """Read a payload into a type, validating it; every call returns fresh objects.

    `what` names the payload in the error, with `of` put in by `%`. Raises: PayloadError, naming the field that does
    not fit.
    """
    try:
        return msgspec.json.decode(raw, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        name = getattr(type_, "__name__", str(type_))
        raise PayloadError(f"{_named(what, of)} does not fit {name}: {error}") from error


def decode_object(raw: Raw) -> dict[str, object]:
    """Read a payload that `encode_payload` wrote, without a schema."""
    return _object.decode(raw)


def _named(what: str, of: tuple[object, ...]) -> str:
    return what % of if of else what


def _nothing(raw: object) -> None:
    """Stand in for a Raw: it is JSON already, and holds no number that JSON cannot."""


def _depth(raw: bytes) -> int:
    """Count how deep JSON is nested, texts left out."""
    depth = deepest = 0
    for mark in re.findall(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]', raw):
        if mark in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in b"}]":
            depth -= 1
    return deepest


def _has_nonfinite(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_nonfinite, cast("dict[object, object]", value).values()))
    if isinstance(value, list | tuple):
        return any(map(_has_nonfinite, cast("Iterable[object]", value)))
    return False
