"""Handlers as the core sees them: what is accepted, and what their answers and failures become."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from types import ModuleType
from typing import Any, Generic, TypeVar

import pytest
from msgspec import Raw, Struct

from saga_core import (
    Compensate,
    CompensationDeferred,
    CompensationFailed,
    CompensationSucceeded,
    Defer,
    Execute,
    Failure,
    HandlerError,
    PayloadError,
    Saga,
    Skip,
    Step,
    StepDeferred,
    StepError,
    StepFailed,
    StepSkipped,
    StepSucceeded,
    answer_event,
    check_handler,
    encode_payload,
    failure_event,
    failure_of,
)

from .notation import ID

T = TypeVar("T")


class Order(Struct):
    amount: int


class Opening(Struct):
    hour: int


@dataclass
class Address:
    street: str


class Opaque:
    pass


async def typed(saga: Saga, step: Step[Order]) -> None: ...
async def of_a_dataclass(saga: Saga, step: Step[Address]) -> None: ...
async def of_a_dict(saga: Saga, step: Step[dict[str, int]]) -> None: ...
async def untyped(saga: Saga, step: Step) -> None: ...
async def bare(saga, step): ...  # type: ignore[no-untyped-def]
async def of_anything(saga: Saga, step: Step[Any]) -> None: ...
async def of_an_object(saga: Saga, step: Step[object]) -> None: ...
async def generic(saga: Saga, step: Step[T]) -> None: ...
async def by_name(saga: Saga, step: "Step[Order]") -> None: ...
async def by_unknown_name_alone(saga: Saga, step: "Nowhere") -> None: ...  # type: ignore[name-defined] # noqa: F821
async def with_default(saga: Saga, step: Step[Order], more: int = 0) -> None: ...
async def with_all(*args: object) -> None: ...
async def with_rest(saga: Saga, *args: object) -> None: ...


class Callable_(Generic[T]):
    async def __call__(self, saga: Saga, step: Step[Order]) -> None: ...
    async def method(self, saga: Saga, step: "Step[Order]") -> None: ...


@wraps(by_name)
async def wrapped(*args: object) -> None: ...


async def three(first: int, saga: Saga, step: "Step[Order]") -> None: ...


ACCEPTED: list[tuple[Callable[..., Any], type | None]] = [
    (typed, Order),
    (of_a_dataclass, Address),
    (of_a_dict, dict[str, int]),  # type: ignore[list-item]
    (untyped, None),
    (bare, None),
    (of_anything, None),
    (of_an_object, None),
    (generic, None),
    (by_name, Order),
    (by_unknown_name_alone, None),
    (with_default, Order),
    (with_all, None),
    (with_rest, None),
    (Callable_(), Order),
    (Callable_().method, Order),
    (wrapped, Order),
    (partial(three, 1), Order),
]


@pytest.mark.parametrize(("function", "wanted"), ACCEPTED, ids=lambda value: getattr(value, "__name__", None))
def test_a_handler_says_by_its_annotation_what_input_it_wants(function: Any, wanted: type | None) -> None:
    handler = check_handler(function, "The handler")
    assert handler.function is function
    assert handler.input_type == wanted


def not_async(saga: Saga, step: Step) -> None: ...
async def takes_one(saga: Saga) -> None: ...
async def takes_none() -> None: ...
async def takes_three(saga: Saga, step: Step, more: int) -> None: ...
async def by_keyword(saga: Saga, *, step: Step) -> None: ...
async def opaque(saga: Saga, step: Step[Opaque]) -> None: ...
async def of_two_structs(saga: Saga, step: Step[Order | Opening]) -> None: ...
async def by_unknown_name(saga: Saga, step: "Step[Nowhere]") -> None: ...  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (5, "^The handler of 'pay' is not a function, but 5"),
        (not_async, "is not async; write it as `async def`"),
        (lambda saga, step: None, "is not async"),
        (takes_one, r"must take \(saga, step\), but takes \(saga"),
        (takes_none, r"must take \(saga, step\), but takes \(\)"),
        (takes_three, r"must take \(saga, step\)"),
        (by_keyword, r"must take \(saga, step\)"),
        (opaque, "Opaque'>, which cannot be read from JSON; use a Struct or a dataclass"),
        (of_two_structs, r"Order \| .*Opening, which cannot be read from JSON: "),
        (
            by_unknown_name,
            r"'Step\[Nowhere\]', which cannot be read at run time .*Nowhere.*; import the names",
        ),
    ],
)
def test_what_cannot_serve_as_a_handler_is_refused(function: object, message: str) -> None:
    with pytest.raises(HandlerError, match=message):
        check_handler(function, "The handler of 'pay'")


def test_a_handler_of_a_module_that_is_gone_still_reads_its_own_names() -> None:
    """A function is what it was when it was made, wherever its module went."""
    module = ModuleType("gone_module")
    exec(  # a module as code that is loaded and thrown away leaves it
        "from __future__ import annotations\nfrom saga_core import Step\nasync def handle(saga, step: Step): ...\n",
        module.__dict__,
    )
    assert "gone_module" not in sys.modules
    assert check_handler(module.handle, "The handler").input_type is None


# Answers.

ACTION, UNDO = Execute(ID, "pay", "charge", 2), Compensate(ID, "pay", "refund", 3)


@pytest.mark.parametrize(
    ("command", "answer", "event"),
    [
        (ACTION, None, StepSucceeded("pay", 2, encode_payload(None, ""), 5.0)),
        (ACTION, {"id": 7}, StepSucceeded("pay", 2, Raw(b'{"id":7}'), 5.0)),
        (ACTION, Order(7), StepSucceeded("pay", 2, Raw(b'{"amount":7}'), 5.0)),
        (ACTION, Skip(), StepSkipped("pay", 2, "", 5.0)),
        (ACTION, Skip("paid already"), StepSkipped("pay", 2, "paid already", 5.0)),
        (ACTION, Defer(), StepDeferred("pay", 2, 5.0)),
        (UNDO, None, CompensationSucceeded("pay", 3, 5.0)),
        (UNDO, {"what": "ever"}, CompensationSucceeded("pay", 3, 5.0)),
        (UNDO, object(), CompensationSucceeded("pay", 3, 5.0)),
        (UNDO, Defer(), CompensationDeferred("pay", 3, 5.0)),
    ],
)
def test_an_answer_is_an_event(command: Execute | Compensate, answer: object, event: object) -> None:
    assert answer_event(command, answer, 5.0) == event


@pytest.mark.parametrize("answer", [5, "text", [1], object(), {"a": float("nan")}])
def test_an_output_that_cannot_be_kept_is_an_error_that_names_where_it_is_from(answer: object) -> None:
    with pytest.raises(PayloadError, match=f"^The output of 'charge' in step 'pay' of saga {ID} "):
        answer_event(ACTION, answer, 5.0)


def test_a_failure_is_an_event() -> None:
    error = Failure("no", "no")
    assert failure_event(ACTION, error, 5.0) == StepFailed("pay", 2, error, 5.0)
    assert failure_event(UNDO, error, 5.0) == CompensationFailed("pay", 3, error, 5.0)


# Failures.


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


NO_FUNDS = StepError("no_funds", "refused", details={"left": 3})


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (NO_FUNDS, Failure("no_funds", "refused", details=Raw(b'{"left":3}'))),
        (StepError("busy", "later", retryable=True), Failure("busy", "later", True)),
        (ValueError("bad"), Failure("ValueError", "bad", True)),
        (PayloadError("unfit"), Failure("invalid_payload", "unfit")),
        (ExceptionGroup("group", [NO_FUNDS]), Failure("no_funds", "refused", details=Raw(b'{"left":3}'))),
        (
            ExceptionGroup("group", [ExceptionGroup("inner", [KeyError("k")])]),
            Failure("KeyError", "'k'", True),
        ),
        (
            ExceptionGroup("group", [ValueError("one"), KeyError("two")]),
            Failure("ExceptionGroup", "ValueError: one; KeyError: 'two'", True),
        ),
        (Unprintable(), Failure("Unprintable", "<Unprintable that cannot be printed>", True)),
        (ValueError("half \ud800"), Failure("ValueError", "half ?", True)),
        (ValueError("x" * 5000), Failure("ValueError", "x" * 4000, True)),
        (StepError("c" * 5000, "m" * 5000), Failure("c" * 4000, "m" * 4000)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_handler_raises_becomes_data(error: Exception, failure: Failure) -> None:
    assert failure_of(error) == failure


def test_a_group_with_a_single_cancellation_is_the_group() -> None:
    group = BaseExceptionGroup("group", [KeyboardInterrupt()])
    assert failure_of(group) == Failure("BaseExceptionGroup", "group (1 sub-exception)", True)  # type: ignore[arg-type]


def test_details_that_cannot_be_kept_are_left_out_and_said_so() -> None:
    failure = failure_of(StepError("odd", "it broke", retryable=True, details={"a": object()}))
    assert (failure.code, failure.retryable, failure.details) == ("odd", True, Failure("", "").details)
    assert failure.message.startswith("it broke (The details of the error cannot be written as JSON: ")
