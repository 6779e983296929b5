"""Values for statements, as bytes in PostgreSQL's binary format: a column of a batch is one array.

psycopg makes arrays too, value by value, which takes it several times as long.
"""

import struct
from collections.abc import Sequence

INT4, TEXT, FLOAT8, BYTEA = 23, 25, 701, 17  # as in pg_type

# Dimensions, whether there are NULLs, type, length, and the number of the first: array_recv in the server.
_array = struct.Struct(">iiIii").pack
_length = struct.Struct(">i").pack
_integer = struct.Struct(">ii").pack
_float = struct.Struct(">id").pack
_NULL = _length(-1)


def texts(values: Sequence[str | None]) -> bytes:
    """Return a `text[]`."""
    return blobs([None if value is None else value.encode() for value in values], TEXT)


def blobs(values: Sequence[bytes | None], kind: int = BYTEA) -> bytes:
    """Return a `bytea[]`, or an array of another type whose binary format is that of bytes."""
    parts = [_array(1, 1, kind, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_length(len(value)), value)
    return b"".join(parts)


def integers(values: Sequence[int | None]) -> bytes:
    """Return an `integer[]`."""
    return _array(1, 1, INT4, len(values), 1) + b"".join(
        [_NULL if value is None else _integer(4, value) for value in values]
    )


def floats(values: Sequence[float | None]) -> bytes:
    """Return a `float8[]`."""
    return _array(1, 1, FLOAT8, len(values), 1) + b"".join(
        [_NULL if value is None else _float(8, value) for value in values]
    )


def moment(value: float) -> bytes:
    """Return a `float8`."""
    return struct.pack(">d", value)


def count(value: int) -> bytes:
    """Return a `bigint`."""
    return struct.pack(">q", value)
