"""Bytes for wire and storage: JSON, versioned. Fields unknown to this release are ignored, so that two share a queue.

A message on the wire is a command: its `operation` says which. A saga in storage is its plan, written once; its
events, one each; and, where a store wants to keep it, the state that they lead to.
"""

import re
from math import isfinite
from typing import TypeVar

import msgspec

from saga_core.commands import (
    Carried,
    Compensate,
    CompensateChild,
    Execute,
    StartChild,
    StateChanged,
)
from saga_core.errors import CodecError, SagaError
from saga_core.events import Event
from saga_core.graph import CHUNK
from saga_core.ids import CANONICAL_ULID
from saga_core.model import Progress, Saga, rebuild
from saga_core.plan import Plan
from saga_core.remote import Work
from saga_core.states import SagaState

WIRE_VERSION = 1

LOOKED_AT = 1_048_576
"""Bytes of a message that cannot be read in which its address is looked for; that takes a microsecond for each."""

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_command: msgspec.json.Decoder[Carried] = msgspec.json.Decoder(Carried)
_event: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class _Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is written of a saga: one list of records, and not what follows from the rest."""

    plan: Plan
    state: SagaState
    revision: int
    progress: tuple[Progress, ...]
    updated_at: float
    completed_at: float | None = None
    suspended: bool = False
    asked: int = 0


_saga = msgspec.json.Decoder(_Kept)


def encode_command(command: Carried | StateChanged, work: Work | None = None) -> bytes:
    """Return the body of the message that carries a command, and what a handler far from the store has to know."""
    body = _encode(command)
    return body if work is None else body[:-1] + b',"work":' + _encode(work) + b"}"


def decode_command(body: bytes) -> Carried:
    """Read a message's body.

    Raises: CodecError.
    """
    try:
        command = _decode(_command, body, "message")
    except CodecError:
        _check_version(body)
        raise
    if command.version > WIRE_VERSION:
        _check_version(body)
    return command


def decode_work(body: bytes) -> Work:
    """Read what a message tells a handler that is far from the store.

    Raises: CodecError.
    """
    return _decode(_carrier, body, "message with work for a participant").work


def addressed(body: bytes) -> Execute | Compensate | StartChild | CompensateChild | None:
    """Read which attempt a message is about, be the rest of it readable or not; None when not even that can be read.

    What is returned has no more than that. A reply and a report are about the command that they answer.
    """
    try:
        address = _address.decode(_outline(body[:LOOKED_AT]))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    about = (address.saga, address.step)
    match address.of or address.operation:
        case "execute":
            return Execute(*about, "", address.attempt)
        case "compensate":
            return Compensate(*about, "", address.attempt)
        case "start_child":
            return StartChild(*about, address.attempt, "")
        case "compensate_child":
            return CompensateChild(*about, address.attempt, "")
        case "report" if address.asked:
            return CompensateChild(*about, address.asked, "")
        case "report":
            return StartChild(*about, address.attempt, "")
        case _:
            return None


def encode_event(event: Event) -> bytes:
    """Return an event as a history keeps it.

    Raises: CodecError when its time is NaN or infinite. JSON would have null there, which nobody could read again.
    """
    if not isfinite(event.at):
        raise CodecError(
            f"{type(event).__name__} happened at {event.at}? Give its time in seconds since 1970"
        )
    return _encode(event)


def decode_event(data: bytes) -> Event:
    """Read an event from a history.

    Raises: CodecError.
    """
    return _decode(_event, data, "event")


def encode_saga(saga: Saga) -> bytes:
    """Return a whole saga, plan and progress. Its length grows with its steps: see `encode_event` for what does not."""
    return _encode(
        _Kept(
            saga.plan,
            saga.state,
            saga.revision,
            tuple(saga.records()),
            saga.updated_at,
            saga.completed_at,
            saga.suspended,
            saga.asked,
        )
    )


def decode_saga(data: bytes) -> Saga:
    """Read a whole saga.

    Raises: CodecError.
    """
    kept = _decode(_saga, data, "saga")
    if CANONICAL_ULID.fullmatch(kept.plan.id) is None:
        raise CodecError(f"This is no saga of this library: its id, {kept.plan.id[:40]!r}, is not a ULID")
    if len(kept.progress) != len(kept.plan.steps):
        raise CodecError(
            f"Saga {kept.plan.id} is kept with {len(kept.plan.steps)} steps, and records of {len(kept.progress)}"
        )
    try:
        return rebuild(
            kept.plan,
            kept.state,
            kept.revision,
            tuple(kept.progress[at : at + CHUNK] for at in range(0, len(kept.progress), CHUNK)),
            kept.updated_at,
            kept.completed_at,
            kept.suspended,
            kept.asked,
        )
    except (SagaError, LookupError) as error:
        raise CodecError(f"This is no saga of this library: {error}") from error


class _Versioned(msgspec.Struct):
    version: int
    saga: str = ""
    step: str = ""


class _Address(msgspec.Struct):
    operation: str
    saga: str
    step: str
    attempt: int
    of: str = ""
    asked: int = 0


class _Carrier(msgspec.Struct):
    work: Work


_address = msgspec.json.Decoder(_Address)
_ADDRESS = {b'"%b"' % field.encode() for field in _Address.__struct_fields__}
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
_TOKEN = re.compile(rb"(%b)(?:\s*:\s*(%b|\d+(?=\s*[,}])))?|[{}\[\]]" % (_TEXT, _TEXT), re.DOTALL)
_carrier = msgspec.json.Decoder(_Carrier)
_versioned = msgspec.json.Decoder(_Versioned)


def _outline(body: bytes) -> bytes:
    """Return the texts and whole numbers of a JSON object that make an address, whatever is in the rest of it.

    A reader of all of it would stop at NaN, at half a character, at what is nested too deep, and at an end too early.
    """
    depth = 0
    found: dict[bytes, bytes] = {}
    for token in _TOKEN.finditer(body):
        if token[0] in b"{[":
            depth += 1
        elif token[0] in b"}]":
            depth -= 1
        elif depth == 1 and token[2] is not None and token[1] in _ADDRESS:
            found[token[1]] = token[2]
    return b"{%b}" % b",".join(b"%b:%b" % field for field in found.items())


def _check_version(body: bytes) -> None:
    """Say so if a message comes from a newer release, whatever else is new in it."""
    try:
        newer = _versioned.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if newer.version > WIRE_VERSION:
        raise CodecError(
            f"This release reads messages up to version {WIRE_VERSION}, and this one has version {newer.version}; "
            f"upgrade this engine (saga {newer.saga}, step {newer.step!r})"
        )


def _decode(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, SagaError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"This is no {what} of this library: {error}") from error
