"""What a definition may be, and what a saga shows of itself."""

from dataclasses import dataclass

import msgspec
import pytest
from msgspec import Struct
from ulid import ULID

from saga_core import (
    DefinitionError,
    Failure,
    PayloadError,
    Saga,
    SagaError,
    Step,
    StepError,
    StepState,
    UnknownStepError,
    decode_saga,
    encode_saga,
    new_saga,
    outstanding,
    when,
)

from .notation import BORN, ID, play, saga_of, step_of


class Order(Struct):
    amount: int
    currency: str = "EUR"


@dataclass
class Address:
    street: str
    number: int


def define(*steps: Step, name: str = "trip", context: object = None, id: str = ID) -> Saga:
    return new_saga(name, steps, context, id=id, at=BORN)


def with_input(value: object) -> Step:
    return Step(name="pay", action="do_pay", input=value)


SURROGATE = "\ud800"  # half a character: UTF-8 cannot hold it

BAD_STEPS = {
    "no steps": ([], "Saga 'trip' has no steps"),
    "the same name twice": (
        [step_of("a"), step_of("b"), step_of("a")], "Saga 'trip' has two steps named 'a'"),
    "a step without name": ([step_of("a"), Step(name="", action="do_b")], "Saga 'trip': step 2 needs a name"),
    "a step without action": (
        [Step(name="pay", action="")], "Saga 'trip': step 1 needs a name and an action .* 'pay' and ''"),
    "an empty compensation": (
        [Step(name="pay", action="do_pay", compensation="")], "Saga 'trip': step 'pay' .*compensation ''"),
    "a name that cannot be hashed": ([Step(name=["a"], action="do_a")], r"Saga 'trip': step 1 .*\['a'\] and"),  # type: ignore
    "a name that is no text": ([Step(name=5, action="do_b")], "Saga 'trip': step 1 .* 5 and"),  # type: ignore
    "an action that is no text": (
        [Step(name="a", action=None)], "Saga 'trip': step 1 .*None"),  # type: ignore
    "a compensation that is no text": (
        [Step(name="a", action="do_a", compensation=0)],  # type: ignore
        "Saga 'trip': step 'a' .*compensation 0"),
    "a name that cannot be sent": ([Step(name=SURROGATE, action="do_a")], r"Saga 'trip': step 1 .*\\ud800"),
    "an action that cannot be sent": ([Step(name="a", action=SURROGATE)], r"Saga 'trip': step 1 .*\\ud800"),
    "a compensation that cannot be sent": (
        [Step(name="a", action="do_a", compensation=SURROGATE)], r"Saga 'trip': step 'a' .*\\ud800"),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "message"), BAD_STEPS.values(), ids=BAD_STEPS)
def test_a_definition_that_cannot_be_run_is_refused(steps: list[Step], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        define(*steps)


def test_sagas_of_a_kind_that_is_known_keep_what_they_differ_in() -> None:
    """One is like the other to Python, but not in JSON: 1 is not true."""
    for value, timeout in ((1, 5.0), (True, 5)):
        (step,) = define(
            Step(name="pay", action="do_pay", when=when("x", "==", value), timeout=timeout)
        ).plan.steps
        assert step.when is not None
        assert (type(step.when.value), type(step.timeout)) == (type(value), float)


@pytest.mark.parametrize("name", ["", None, 5, SURROGATE])
def test_a_saga_needs_a_name(name: object) -> None:
    with pytest.raises(DefinitionError, match="A saga needs a name"):
        define(step_of("a"), name=name)  # type: ignore


@pytest.mark.parametrize(
    "id",
    [
        "",
        "a",
        ID[:-1],
        ID + "0",
        "I" * 26,
        "U" * 26,
        "8" + "Z" * 25,
        ID[:-1] + "\n",
        "é" * 26,
        "٣" * 26,
        None,
        7,
    ],
)
def test_an_id_that_is_not_a_ulid_is_refused(id: object) -> None:
    with pytest.raises(DefinitionError, match=r"Saga 'trip': the id .* is not a ULID"):
        define(step_of("a"), id=id)  # type: ignore


def recursive() -> dict[str, object]:
    inner: dict[str, object] = {"null": None}
    inner["self"] = inner
    return inner


def nested(depth: int, leaf: object) -> dict[str, object]:
    value = leaf
    for _ in range(depth):
        value = {"in": value}
    return value  # type: ignore


BAD_PAYLOADS = {
    "a number": (5, "must be a JSON object .* not int"),
    "text": ("text", "must be a JSON object .* not str"),
    "bytes": (b"{}", "must be a JSON object .* not bytes"),
    "a list": ([{}], "must be a JSON object .* not list"),
    "a set": ({1}, "must be a JSON object .* not set"),
    "a float": (1.5, "must be a JSON object .* not float"),
    "NaN alone": (float("nan"), "must be a JSON object .* not float"),
    "a bool": (True, "must be a JSON object .* not bool"),
    "an object": (object(), "cannot be written as JSON: .*object"),
    "an object inside": ({"a": [object()]}, "cannot be written as JSON: .*object"),
    "a class": ({"a": int}, "cannot be written as JSON"),
    "a complex number": ({"a": 1j}, "cannot be written as JSON: .*complex"),
    "a generator": ({"a": iter([])}, "cannot be written as JSON"),
    "a tuple for a key": ({(1, 2): 3}, "cannot be written as JSON: .*keys"),
    "None for a key": ({None: 3}, "cannot be written as JSON: .*keys"),
    "NaN": ({"a": float("nan")}, "holds a number that JSON cannot"),
    "infinity": ({"a": float("inf")}, "holds a number that JSON cannot"),
    "minus infinity, deep": ({"a": [1, {"b": (None, float("-inf"))}]}, "holds a number that JSON cannot"),
    "NaN in a set": ({"a": {float("nan")}}, "holds a number that JSON cannot"),
    "NaN in a Struct": (Order(float("nan")), "holds a number that JSON cannot"),  # type: ignore
    "NaN in a dataclass": (Address("Elm", float("nan")), "holds a number that JSON cannot"),  # type: ignore
    "NaN beside a null": ({"a": None, "b": float("nan")}, "holds a number that JSON cannot"),
    "an integer of 5,000 digits": ({"a": 10**5000}, "cannot be written as JSON: .*digits"),
    "half a character": ({"a": SURROGATE}, "cannot be written as JSON: .*surrogates"),
    "half a character for a key": ({SURROGATE: 1}, "cannot be written as JSON: .*surrogates"),
    "a dict that holds itself": (recursive(), "cannot be written as JSON: .*recursion"),
    "a nesting without end": (nested(100_000, 1), "cannot be written as JSON: .*recursion"),
    "a deep nesting around a null": (nested(700, None), "cannot be written as JSON: .*recursion"),
}


@pytest.mark.parametrize(("value", "message"), BAD_PAYLOADS.values(), ids=BAD_PAYLOADS)
def test_an_input_that_json_cannot_hold_is_refused(value: object, message: str) -> None:
    with pytest.raises(PayloadError, match=f"^Saga 'trip': the input of step 'pay' {message}"):
        define(step_of("a"), with_input(value))


@pytest.mark.parametrize(("value", "message"), BAD_PAYLOADS.values(), ids=BAD_PAYLOADS)
def test_a_context_that_json_cannot_hold_is_refused(value: object, message: str) -> None:
    with pytest.raises(PayloadError, match=f"^Saga 'trip': the context {message}"):
        define(step_of("a"), context=value)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (None, {}),
        ({}, {}),
        ({"a": None, "b": [1, 2.5, "c", True]}, {"a": None, "b": [1, 2.5, "c", True]}),
        ({"null": "null"}, {"null": "null"}),
        ({"big": 10**1000, "small": -(2**70)}, {"big": 10**1000, "small": -(2**70)}),
        ({1: "one"}, {"1": "one"}),
        ({"a": {1}}, {"a": [1]}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({"a": msgspec.Raw(b'{"b": null}'), "c": None}, {"a": {"b": None}, "c": None}),
        (Order(5), {"amount": 5, "currency": "EUR"}),
        (Address("Elm", 7), {"street": "Elm", "number": 7}),
        (nested(99, {}), nested(99, {})),
    ],
)
def test_what_json_can_hold_is_read_back(value: object, read: dict[str, object]) -> None:
    saga = define(with_input(value), context=value)
    back = decode_saga(encode_saga(saga))
    assert saga.context == back.context == read
    assert saga.step("pay").input == back.step("pay").input == read


def test_changing_what_was_given_changes_nothing() -> None:
    given = {"items": ["book"], "to": {"city": "Bern"}}
    saga = define(with_input(given), context=given)
    given["items"].append("pen")  # type: ignore
    given["to"]["city"] = "Rome"  # type: ignore
    assert saga.context == saga.step("pay").input == {"items": ["book"], "to": {"city": "Bern"}}


def test_changing_a_struct_that_was_given_changes_nothing() -> None:
    order = Order(5)
    saga = define(with_input(order))
    order.amount = 6
    assert saga.step("pay", Order).input == Order(5)


def test_changing_what_a_saga_returns_changes_nothing() -> None:
    saga = play(saga_of("a b"), "a ok").saga
    before = encode_saga(saga)
    step = saga.step("a")
    for payload in (saga.context, step.input, step.output, *(one.input for one in saga.steps)):
        payload["more"] = 1
    assert encode_saga(saga) == before
    assert saga.context == {"customer": 7}
    assert saga.step("a").input == {"for": "a"}
    assert saga.step("a").output == {"from": "a"}


def test_steps_that_were_defined_without_input_share_nothing() -> None:
    one, other = Step(name="a", action="do_a"), Step(name="b", action="do_b")
    one.input["more"] = 1
    one.output["more"] = 1
    assert other.input == other.output == {}


@pytest.mark.parametrize("field", ["state", "revision", "plan", "progress"])
def test_a_saga_cannot_be_assigned_to(field: str) -> None:
    with pytest.raises(AttributeError):
        setattr(saga_of("a"), field, None)


def test_a_saga_shows_what_it_was_defined_with() -> None:
    saga = saga_of("a b-")
    assert (saga.id, saga.name, saga.context, saga.created_at) == (ID, "trip", {"customer": 7}, BORN)
    a, b = saga.steps
    assert (a.name, a.action, a.compensation, a.input) == ("a", "do_a", "undo_a", {"for": "a"})
    assert (b.name, b.action, b.compensation, b.input) == ("b", "do_b", None, {"for": "b"})
    assert b == saga.step("b")
    assert (b.state, b.attempt, b.compensation_attempt) == (StepState.PENDING, 0, 0)
    assert (b.output, b.error, b.executed_at) == ({}, None, None)


def test_a_saga_takes_no_notice_of_what_a_definition_says_of_its_execution() -> None:
    """A step of an old saga can be given to a new one: it starts afresh."""
    old = play(saga_of("a b"), "a ok, b fails, undo a fails").saga
    new = define(*old.steps, context=old.context)
    assert new == saga_of("a b")


def test_a_step_is_found_by_its_name() -> None:
    saga = saga_of("a b c")
    assert [saga.plan.position(name) for name in "abc"] == [0, 1, 2]
    assert [saga.step(name).name for name in "abc"] == ["a", "b", "c"]
    assert saga.progress_of("a").state == "started"


def test_an_unknown_step_is_reported_with_the_steps_that_there_are() -> None:
    for look_up in (saga_of("a b").step, saga_of("a b").plan.position, saga_of("a b").progress_of):
        with pytest.raises(UnknownStepError, match=rf"^Saga {ID} \(trip\) has no step 'x'; it has: a, b$"):
            look_up("x")


# Typed inputs.


def test_an_input_is_read_into_a_struct() -> None:
    saga = define(with_input(Order(5)))
    step = saga.step("pay", Order)
    assert step.input == Order(5, "EUR")
    assert step.name == "pay"
    assert saga.step("pay").input == {"amount": 5, "currency": "EUR"}


def test_an_input_is_read_into_a_dataclass() -> None:
    assert define(with_input(Address("Elm", 7))).step("pay", Address).input == Address("Elm", 7)


def test_an_input_that_was_a_dict_is_read_into_a_type() -> None:
    assert define(with_input({"amount": 5, "unknown": 1})).step("pay", Order).input == Order(5)


@pytest.mark.parametrize(
    ("value", "type_", "message"),
    [
        ({"amount": "5"}, Order, r"does not fit Order: Expected `int`, got `str` - at `\$\.amount`"),
        ({}, Order, "does not fit Order: .*missing required field `amount`"),
        ({"street": "Elm"}, Address, "does not fit Address: .*missing required field `number`"),
        ({"a": {"b": 1}}, dict[str, dict[str, str]], "does not fit dict: Expected `str`, got `int`"),
        ({}, int, "does not fit int: Expected `int`, got `object`"),
        ({}, Order | None, r"does not fit .*Order \| None: .*`amount`"),
    ],
)
def test_an_input_that_does_not_fit_is_reported_with_its_field(
    value: object, type_: type, message: str
) -> None:
    with pytest.raises(PayloadError, match=f"^The input of step 'pay' of saga {ID} {message}"):
        define(with_input(value)).step("pay", type_)


# Identity.


def test_step_ids_are_ulids_of_their_own() -> None:
    saga = saga_of(" ".join(f"s{n}" for n in range(1000)))
    ids = [step.id for step in saga.steps]
    assert all(str(ULID.from_str(id)) == id for id in ids)
    assert len({ID, *ids}) == 1001


def test_step_ids_stay_the_same() -> None:
    saga = saga_of("a b")
    later = decode_saga(encode_saga(play(saga, "a ok, b fails, undo a fails, compensate").saga))
    assert [step.id for step in later.steps] == [step.id for step in saga.steps]
    # For ever: a service outside may have kept the key of a payment.
    assert [step.id for step in saga.steps] == ["01HZY3V9Q856T9HCJ57YV25XZ7", "01HZY3V9Q8MH5B7F7MYSA5GC8A"]


@pytest.mark.parametrize("id", ["0" * 26, "7" + "Z" * 25])
def test_the_first_and_the_last_ulid_there_is_have_steps(id: str) -> None:
    saga = saga_of("a b c", id=id)
    assert len({id, *(step.id for step in saga.steps)}) == 4


def test_steps_of_sagas_with_neighbouring_ids_have_keys_of_their_own() -> None:
    """ULIDs that are made within one millisecond count up by one."""
    first = int(ULID.from_str(ID))
    sagas = [saga_of("a b c", id=str(ULID.from_int(first + n))) for n in range(100)]
    keys = [step.idempotency_key() for saga in sagas for step in saga.steps]
    ids = [step.id for saga in sagas for step in saga.steps] + [saga.id for saga in sagas]
    assert len(keys) == len(set(keys))
    assert len(ids) == len(set(ids))


def test_a_key_is_stable_over_attempts_and_differs_between_operations_and_steps() -> None:
    courses = ["", "a ok, b fails", "a ok, b fails, undo a fails", "a ok, b fails, undo a fails, compensate"]
    sagas = [play(saga_of("a b"), events).saga for events in courses]
    assert len({saga.step("a").compensation_attempt for saga in sagas}) == 3
    keys = {
        (step.name, operation): step.idempotency_key(operation)
        for step in sagas[0].steps
        for operation in ("execute", "compensate")
    }
    assert len(set(keys.values())) == 4
    for saga in sagas:
        for (name, operation), key in keys.items():
            assert saga.step(name).idempotency_key(operation) == key  # type: ignore
    assert sagas[0].step("a").idempotency_key() == keys["a", "execute"]


# What a saga says of itself.


@pytest.mark.parametrize(
    ("events", "true"),
    [
        ("", set()),
        ("a ok", set()),
        ("a ok, b ok", {"is_completed", "at_rest"}),
        ("compensate", {"is_compensating"}),
        ("a ok, b fails", {"is_compensating"}),
        ("a ok, b fails, undo a ok", {"is_compensated", "at_rest"}),
        ("a ok, b fails, undo a fails", {"is_failed", "at_rest"}),
    ],
)
def test_a_saga_says_where_it_stands(events: str, true: set[str]) -> None:
    saga = play(saga_of("a b"), events).saga
    names = {"is_completed", "is_compensated", "is_compensating", "is_failed", "at_rest"}
    assert {name for name in names if getattr(saga, name)} == true
    assert saga.at_rest == (outstanding(saga) == ())


@pytest.mark.parametrize(
    ("events", "state"),
    [("", "started"), ("a ok", "completed"), ("a fails", "compensated"), ("compensate", "compensating")],
)
def test_states_are_the_strings_that_they_are_called(events: str, state: str) -> None:
    saga = play(saga_of("a"), events).saga
    assert saga.state == state
    assert f"{saga.state}" == state


def test_an_error_of_a_step_says_what_kind_it_is() -> None:
    error = StepError("no_funds", "the card was refused", retryable=True, details={"left": 3})
    assert isinstance(error, SagaError)
    assert str(error) == "no_funds: the card was refused"
    assert (error.code, error.message, error.retryable, error.details) == (
        "no_funds",
        "the card was refused",
        True,
        {"left": 3},
    )
    assert not StepError("no_funds", "the card was refused").retryable


def test_a_failure_without_details_has_an_empty_object() -> None:
    assert bytes(Failure("code", "message").details) == b"{}"


@pytest.mark.parametrize(("words", "position"), [("a b", "c"), ("a", "b")])
def test_every_exception_has_one_root(words: str, position: str) -> None:
    with pytest.raises(SagaError):
        saga_of(words).step(position)
