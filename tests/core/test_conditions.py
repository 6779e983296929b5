"""Conditions on a saga's context: what fulfils them, what does not, and that nothing makes them raise."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_core import Condition, DefinitionError, Step, decode_saga, encode_saga, new_saga, when
from saga_core.conditions import holds

from .notation import BORN, ID

CONTEXT: dict[str, object] = {
    "yes": True,
    "no": False,
    "none": None,
    "one": 1,
    "ten": 10.5,
    "text": "b",
    "list": [1],
    "object": {"deep": {"er": 3}},
    "": 0,
}

FULFILLED = {
    "is true: true": when("yes"),
    "exists: null": when("none", "exists"),
    "exists: false": when("no", "exists"),
    "exists: deep": when("object.deep.er", "exists"),
    "==: text": when("text", "==", "b"),
    "==: number": when("one", "==", 1),
    "==: whole float": when("one", "==", 1.0),
    "==: true": when("yes", "==", True),
    "==: null": when("none", "==", None),
    "!=: another": when("text", "!=", "a"),
    "!=: another type": when("text", "!=", 1),
    "!=: true is not 1": when("yes", "!=", 1),
    "!=: 1 is not true": when("one", "!=", True),
    "<: below": when("one", "<", 2),
    "<: text": when("text", "<", "c"),
    "<=: equal": when("one", "<=", 1),
    "<=: below": when("one", "<=", 1.5),
    ">: above": when("ten", ">", 10),
    ">=: equal": when("ten", ">=", 10.5),
    ">=: above": when("ten", ">=", 10),
    "in: one of them": when("text", "in", ("a", "b")),
    "in: number": when("one", "in", (1, "1")),
    "in: null": when("none", "in", (None,)),
    "deep: number": when("object.deep.er", "==", 3),
}
NOT_FULFILLED = {
    "is true: false": when("no"),
    "is true: 1": when("one"),
    "is true: text": when("text"),
    "is true: missing": when("missing"),
    "exists: missing": when("missing", "exists"),
    "exists: missing deep": when("object.deep.missing", "exists"),
    "exists: inside a number": when("one.more", "exists"),
    "exists: inside a list": when("list.0", "exists"),
    "exists: inside null": when("none.more", "exists"),
    "==: another": when("text", "==", "a"),
    "==: missing": when("missing", "==", None),
    "==: true is not 1": when("yes", "==", 1),
    "==: false is not 0": when("no", "==", 0),
    "==: 1 is not true": when("one", "==", True),
    "==: an object": when("object", "==", "object"),
    "!=: equal": when("text", "!=", "b"),
    "!=: missing": when("missing", "!=", "b"),
    "<: equal": when("one", "<", 1),
    "<: missing": when("missing", "<", 1),
    "<: text with number": when("text", "<", 1),
    "<: null": when("none", "<", 1),
    "<: a list": when("list", "<", 2),
    "<: true is no number": when("no", "<", 5),
    "<: a number is not before true": when("one", "<", True),
    "<: no order among truths": when("no", "<", True),
    "<=: above": when("ten", "<=", 10),
    "<=: true": when("yes", "<=", 1),
    ">: equal": when("ten", ">", 10.5),
    ">: true": when("yes", ">", 0),
    ">=: below": when("one", ">=", 2),
    ">=: true": when("yes", ">=", 1),
    "in: none of them": when("text", "in", ("a", "c")),
    "in: nothing": when("text", "in", ()),
    "in: true is not 1": when("yes", "in", (1,)),
    "in: missing": when("missing", "in", (None,)),
    "in: a list": when("list", "in", (1,)),
}


@pytest.mark.parametrize("condition", FULFILLED.values(), ids=FULFILLED)
def test_a_condition_is_fulfilled(condition: Condition) -> None:
    assert holds(condition, CONTEXT) is True
    assert holds(~condition, CONTEXT) is False


@pytest.mark.parametrize("condition", NOT_FULFILLED.values(), ids=NOT_FULFILLED)
def test_a_condition_is_not_fulfilled(condition: Condition) -> None:
    assert holds(condition, CONTEXT) is False
    assert holds(~condition, CONTEXT) is True


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None)
@given(values, st.sampled_from(["is true", "exists", "==", "!=", "<", "<=", ">", ">=", "in"]), scalars)
def test_no_condition_raises_and_its_opposite_is_the_opposite(
    found: object, test: str, value: object
) -> None:
    condition = when("a", test, (value,) if test == "in" else value)  # type: ignore[arg-type]
    answer = holds(condition, {"a": found})
    assert type(answer) is bool
    assert holds(~condition, {"a": found}) is not answer
    assert ~~condition == condition


@pytest.mark.parametrize(
    ("path", "test", "value", "message"),
    [
        ("", "is true", None, "path must be names joined by dots, not ''"),
        ("a..b", "is true", None, r"path must be names joined by dots, not 'a\.\.b'"),
        (".a", "exists", None, "path must be names"),
        ("a", "=", 1, r"cannot test '='; it can: is true, exists, ==, .*, in"),
        ("a", "in", 1, "'in' takes a tuple of values, and no other does: a in 1"),
        ("a", "in", [1], "'in' takes a tuple"),
        ("a", "==", (1,), "'in' takes a tuple .*: a == "),
        ("a", "<", float("inf"), "number that JSON lacks: a < inf"),
        ("a", "==", float("nan"), "number that JSON lacks: a == nan"),
        ("a", "in", (1, float("-inf")), "number that JSON lacks: a in -inf"),
    ],
)
def test_a_condition_that_cannot_be_is_refused(path: str, test: str, value: object, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        when(path, test, value)  # type: ignore[arg-type]


def test_a_condition_made_by_hand_is_checked_as_well() -> None:
    with pytest.raises(DefinitionError, match="cannot test 'like'"):
        Condition(("a",), "like", "b")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="path must be names"):
        Condition(("a", ""))
    with pytest.raises(DefinitionError, match="path must be names"):
        Condition(())


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (when("customer.vip"), "customer.vip is true"),
        (~when("a", "exists"), "not a exists"),
        (when("total", ">", 100), "total > 100"),
        (~when("land", "in", ("de", "ch")), "not land in ('de', 'ch')"),
    ],
)
def test_a_condition_reads_as_text(condition: Condition, text: str) -> None:
    assert str(condition) == text


@pytest.mark.parametrize("value", [1, 1.5, "b", True, None, (1, "b", None), -(2**70), ()])
def test_a_condition_comes_back_from_storage(value: object) -> None:
    condition = ~when("a", "in" if isinstance(value, tuple) else "==", value)  # type: ignore[arg-type]
    saga = new_saga("trip", [Step(name="s", action="do", when=condition)], id=ID, at=BORN)
    back = decode_saga(encode_saga(saga)).plan.steps[0].when
    assert back == condition
    assert repr(back) == repr(condition)
