"""Conditions that the core can evaluate: data about a saga's context, decided when a step would start.

A condition never raises. What is not there, or is of another type than what it is compared with, does not fulfil it.
"""

from collections.abc import Callable
from math import isfinite
from operator import eq, ge, gt, le, lt
from typing import Any, Literal, TypeGuard

from msgspec import Struct

from saga_core.errors import DefinitionError

Test = Literal["is true", "exists", "==", "!=", "<", "<=", ">", ">=", "in"]
Value = bool | int | float | str | None


class Condition(Struct, frozen=True, omit_defaults=True):
    """A test of one value in the context; see `when`."""

    path: tuple[str, ...]
    test: Test = "is true"
    value: Value | tuple[Value, ...] = None
    negated: bool = False

    def __post_init__(self) -> None:
        """Raise DefinitionError for a condition that cannot be decided, or not be kept."""
        path = ".".join(self.path)
        if not self.path or not all(self.path):
            raise DefinitionError(f"A condition's path must be names joined by dots, not {path!r}")
        if self.test not in _TESTS:
            raise DefinitionError(f"A condition cannot test {self.test!r}; it can: {', '.join(_TESTS)}")
        what = f"{path} {self.test}"
        if (self.test == "in") != isinstance(self.value, tuple):
            raise DefinitionError(
                f"The test 'in' takes a tuple of values, and no other does: {what} {self.value!r}"
            )
        for one in self.value if isinstance(self.value, tuple) else (self.value,):
            if isinstance(one, float) and not isfinite(one):
                raise DefinitionError(
                    f"A condition cannot compare with a number that JSON lacks: {what} {one}"
                )

    def __invert__(self) -> "Condition":
        """Return the opposite: `~when("express")`."""
        return Condition(self.path, self.test, self.value, not self.negated)

    def __str__(self) -> str:
        value = "" if self.test in ("is true", "exists") else f" {self.value!r}"
        return f"{'not ' if self.negated else ''}{'.'.join(self.path)} {self.test}{value}"


def when(path: str, test: Test = "is true", value: Value | tuple[Value, ...] = None) -> Condition:
    """Make a condition on the context: `when("customer.vip")`, `when("total", ">", 100)`, `when("land", "in", (…))`.

    `path` leads through nested objects, its parts joined by dots.

    Raises: DefinitionError.
    """
    return Condition(tuple(path.split(".")), test, value)


def holds(condition: Condition, context: dict[str, object]) -> bool:
    """Whether a context fulfils a condition."""
    found: object = context
    for name in condition.path:
        if not _is_object(found) or name not in found:
            return condition.negated
        found = found[name]
    return _TESTS[condition.test](found, condition.value) is not condition.negated


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[object, object], bool]:
    def test(found: object, value: object) -> bool:
        # Python has an order of truths, as if they were numbers.
        if isinstance(found, bool) or isinstance(value, bool):
            return False
        try:
            return compare(found, value)
        except TypeError:
            return False

    return test


def _equal(found: object, value: object) -> bool:
    # In JSON true is not 1, as it is in Python.
    return eq(found, value) and isinstance(found, bool) == isinstance(value, bool)


_TESTS: dict[str, Callable[[object, Any], bool]] = {
    "is true": lambda found, _: found is True,
    "exists": lambda _found, _: True,
    "==": _equal,
    "!=": lambda found, value: not _equal(found, value),
    "<": _ordered(lt),
    "<=": _ordered(le),
    ">": _ordered(gt),
    ">=": _ordered(ge),
    "in": lambda found, values: any(_equal(found, value) for value in values),
}
