"""Payloads: bytes of a JSON object, written once and read anew each time."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw, Struct

from saga_core import PayloadError, decode_payload, encode_payload


class Item(Struct):
    name: str
    prices: list[float] = []


@dataclass
class Basket:
    items: list[Item]


def test_nothing_is_an_empty_object() -> None:
    assert bytes(encode_payload(None, "The output")) == b"{}"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"a": 1, "b": None}, b'{"a":1,"b":null}'),
        (Item("pen", [1.5]), b'{"name":"pen","prices":[1.5]}'),
        (Basket([Item("pen")]), b'{"items":[{"name":"pen","prices":[]}]}'),
        ({"text": "null and NaN"}, b'{"text":"null and NaN"}'),
    ],
)
def test_a_payload_is_written_as_it_is(value: object, written: bytes) -> None:
    assert bytes(encode_payload(value, "The output")) == written


def test_a_payload_is_read_into_the_type_that_wrote_it() -> None:
    basket = Basket([Item("pen", [1.5])])
    assert decode_payload(encode_payload(basket, "The output"), Basket, "The output") == basket


def test_every_reading_gives_fresh_objects() -> None:
    raw = encode_payload({"items": [{"name": "pen", "prices": []}]}, "The output")
    decode_payload(raw, Basket, "The output").items.clear()
    assert len(decode_payload(raw, Basket, "The output").items) == 1


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            b'{"items":[{"name":5}]}',
            r"does not fit Basket: Expected `str`, got `int` - at `\$\.items\[0\]\.name`",
        ),
        (b"{}", "does not fit Basket: .*`items`"),
        (b'{"items":', "does not fit Basket: .*truncated"),
        (b'{"items":[{"name":"\xff"}]}', "does not fit Basket: .*utf-8"),
        (b'{"x":' + b"[" * 100_000, "does not fit Basket: .*recursion"),
    ],
    ids=["of another type", "a field missing", "cut off", "not UTF-8", "nested deeply"],
)
def test_what_does_not_fit_is_reported_with_what_it_is(raw: bytes, message: str) -> None:
    with pytest.raises(PayloadError, match=rf"^The output of 'pack' {message}"):
        decode_payload(Raw(raw), Basket, "The output of 'pack'")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def is_finite(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_a_payload_is_read_back_equal_or_refused_for_a_number_json_lacks(value: dict[str, object]) -> None:
    if is_finite(value):
        raw = encode_payload(value, "The output")
        assert json.loads(bytes(raw)) == json.loads(json.dumps(value))
    else:
        with pytest.raises(PayloadError, match=r"^The output holds a number that JSON cannot"):
            encode_payload(value, "The output")


@pytest.mark.parametrize("depth", [99, 100, 101])
@pytest.mark.parametrize("leaf", ['"{"', '"\\"[{"', "1", "{}"])
def test_a_payload_may_be_nested_so_deep_and_no_deeper(depth: int, leaf: str) -> None:
    value = json.loads(
        '{"a":[' * (depth // 2) + ('{"a":' * (depth % 2)) + leaf + "}" * (depth % 2) + "]}" * (depth // 2)
    )
    if depth + (leaf == "{}") <= 100:
        assert json.loads(bytes(encode_payload(value, "The output"))) == value
    else:
        with pytest.raises(PayloadError, match=r"^The output is nested deeper than 100 objects and lists"):
            encode_payload(value, "The output")


def test_many_objects_beside_each_other_are_not_deep() -> None:
    value = {"list": [{"n": [n]} for n in range(200)]}
    assert json.loads(bytes(encode_payload(value, "The output"))) == value


def test_an_empty_object_is_the_empty_payload() -> None:
    assert encode_payload({}, "") is encode_payload(None, "")
