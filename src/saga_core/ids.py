"""ULIDs and tokens. All but a saga's own id is derived from that: nothing to store, and the same on every machine."""

import re
from hashlib import blake2b

from msgspec import Struct

from saga_core.states import Operation

CANONICAL_ULID = re.compile("[0-7][0-9A-HJKMNP-TV-Z]{25}")

_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _LETTERS for second in _LETTERS]
"""Crockford's base 32, ten bits at a time."""


class Origin(Struct, frozen=True, gc=False):
    """What a step's id and its token are made of, once somebody asks for them.

    `secret` is that of the saga. Where it is not known, far from the store, `token` came with the command.
    """

    saga: str
    position: int
    secret: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"Origin({self.saga!r}, {self.position})"


def step_id(saga_id: str, name: str) -> str:
    """Derive a step's ULID from its saga's and its name.

    Counting up from the saga's id would not do: ULIDs made within one millisecond count up too, and the steps of
    two sagas would share their ids, and so their idempotency keys.
    """
    return _derived_id(saga_id, name.encode())


def child_id(saga_id: str, position: int, attempt: int) -> str:
    """Derive the ULID of the child saga that an attempt of a step starts. No name has the zeros that begin this one."""
    return _derived_id(saga_id, position.to_bytes(4, "big") + attempt.to_bytes(4, "big"))


def token_of(origin: Origin, operation: Operation, attempt: int) -> str:
    """Return the token of an attempt. Its end is what nobody can guess who does not know the saga's secret."""
    what = f"{origin.saga}/{origin.position}/{operation}/{attempt}".encode()
    digest = blake2b(what, key=origin.secret.encode()[:64], digest_size=16).hexdigest()
    return f"{origin.saga}.{origin.position}.{operation}.{attempt}.{digest}"


def _derived_id(saga_id: str, what: bytes) -> str:
    """Return a ULID with the time of the saga's, its first ten letters, and a digest in the place of chance."""
    chance = int.from_bytes(blake2b(saga_id.encode() + what, digest_size=10).digest(), "big")
    return saga_id[:10] + "".join([_PAIRS[chance >> shift & 1023] for shift in range(70, -1, -10)])
