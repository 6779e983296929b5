"""Ids of sagas: ULIDs, made of a moment and of chance."""

import os

import pytest
from ulid import ULID

from saga_core.ids import CANONICAL_ULID, ulid


@pytest.mark.parametrize("milliseconds", [0, 1, 1023, 1024, 2**20 - 1, 2**20, 1_795_717_556_100, 2**48 - 1])
def test_an_id_tells_its_moment(milliseconds: int) -> None:
    made = ulid(milliseconds, os.urandom(16))
    assert CANONICAL_ULID.fullmatch(made)
    assert ULID.from_str(made).milliseconds == milliseconds


def test_every_letter_of_chance_is_as_likely_as_any_other() -> None:
    letters = "".join(ulid(0, bytes(range(first, first + 16)))[10:] for first in range(0, 256, 16))
    assert sorted(letters) == sorted("0123456789ABCDEFGHJKMNPQRSTVWXYZ" * 8)
