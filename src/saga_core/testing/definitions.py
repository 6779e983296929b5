"""Definitions of sagas as text, as they open a transcript, written and read.

    saga order: timeout 3600
    context {"vip": true, "total": 120}
    step reserve / release
    step charge / refund: after reserve, retry 3 delay 10, timeout 30
    step gift: after reserve, when vip
    step deliver: after charge + gift, child
      saga delivery
      step pick / put_back

A step has its name, after a slash its compensation, and after a colon what else there is to say: `first` (it waits
for nothing), `after a + b`, `when …`, `action …` if it is not its name, `retry …`, `undo retry …`, `timeout 30`,
`total timeout 90`, `undo timeout 30`, `pivot`, `child`, with the child's definition below, further in. A saga can
say `start at 10`, `timeout 60` and `sequential`. A name in quotes is a JSON string.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec
from msgspec import Struct

from saga_core.conditions import Condition, Test
from saga_core.errors import SagaError
from saga_core.options import NO_OPTIONS, Options
from saga_core.payload import EMPTY
from saga_core.plan import ChildPlan, ChildSaga, Plan, Step, StepPlan
from saga_core.retry import RetryPolicy

_PLAIN = re.compile(r"[\w.-]+")
_TOKEN = re.compile(
    r"""\s*("(?:\\.|[^"\\])*"|\[(?:"(?:\\.|[^"\\])*"|[^]"])*]|[,:/+]|[^\s,:/+\["]+)""", re.VERBOSE
)
_DEFAULT = RetryPolicy()
_DELAYS = {"delay": "initial_delay", "multiplier": "multiplier", "max_delay": "max_delay"}


class TranscriptError(SagaError):
    """A transcript cannot be read; the message names the line."""


class Definition(Struct, frozen=True):
    """What a definition says, ready for `new_saga`."""

    name: str
    steps: list[Step[Any]]
    context: Mapping[str, object] | None
    options: Options


def write_definition(plan: Plan) -> list[str]:
    """Return the lines that define a saga like this one. Inputs and jitter are left out."""
    return list(
        _saga_lines(plan.name, plan.steps, None if plan.context == EMPTY else plan.context, plan.options)
    )


def read_definition(lines: Sequence[tuple[int, str]]) -> Definition:
    """Read the numbered lines of one definition.

    Raises: TranscriptError.
    """
    name, context, options = "", None, NO_OPTIONS
    steps: list[Step[Any]] = []
    places = list(lines)
    while places:
        number, line = places.pop(0)
        block: list[tuple[int, str]] = []
        while places and places[0][1].startswith(" "):
            below, text = places.pop(0)
            block.append((below, text[2:]))
        try:
            if line.startswith("context "):
                context = msgspec.json.decode(line[8:], type=dict[str, object])
                continue
            tokens = tokens_of(line)
            if tokens[0] == "saga":
                name, options = name_of(tokens[1]), _options(tokens[2:])
            elif tokens[0] == "step":
                steps.append(_step(tokens[1:], block))
            else:
                raise TranscriptError(f"a definition has no line that begins with {tokens[0]!r}")
        except (SagaError, msgspec.DecodeError, IndexError, ValueError) as error:
            if isinstance(error, TranscriptError) and str(error).startswith("Line "):
                raise
            raise TranscriptError(f"Line {number}: {error}: {line}") from error
    return Definition(name, steps, context, options)


def tokens_of(text: str) -> list[str]:
    """Part a line into words, JSON strings and lists, and punctuation.

    Raises: TranscriptError.
    """
    found: list[str] = []
    place = 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:
            raise TranscriptError(f"cannot be read from {text[place:]!r} on")
        found.append(match[1])
        place = match.end()
    return found


def quoted(name: str) -> str:
    """Return a name as it is written: in quotes where it would be read otherwise."""
    return name if _PLAIN.fullmatch(name) else msgspec.json.encode(name).decode()


def name_of(token: str) -> str:
    """Return the name that a token stands for."""
    return msgspec.json.decode(token, type=str) if token.startswith('"') else token


def number_text(number: float) -> str:
    """Return a number as people write it."""
    return str(int(number)) if number == int(number) else repr(round(number, 6))


# Writing


def _saga_lines(name: str, steps: Sequence[StepPlan], context: object, options: Options) -> Iterator[str]:
    said: list[str] = []
    if options.start_at is not None:
        said.append(f"start at {number_text(options.start_at)}")
    if options.timeout is not None:
        said.append(f"timeout {number_text(options.timeout)}")
    if options.compensation_order == "sequential":
        said.append("sequential")
    yield _line(f"saga {quoted(name)}", said)
    if context is not None:
        yield f"context {msgspec.json.encode(context).decode()}"
    for position, step in enumerate(steps):
        undo = f" / {quoted(step.compensation)}" if step.compensation is not None else ""
        yield _line(f"step {quoted(step.name)}{undo}", list(_said(step, position)))
        if step.child is not None:
            yield from (f"  {line}" for line in _child_lines(step.child))


def _child_lines(child: ChildPlan) -> Iterator[str]:
    return _saga_lines(child.name, child.steps, None if child.inherits else child.context, child.options)


def _said(step: StepPlan, position: int) -> Iterator[str]:
    if step.depends_on:
        yield f"after {' + '.join(map(quoted, step.depends_on))}"
    elif step.depends_on is not None and position:
        yield "first"
    if step.when is not None:
        yield f"when {_condition_text(step.when)}"
    if step.child is not None:
        yield "child"
    elif step.action != step.name:
        yield f"action {quoted(step.action)}"
    if step.retry is not None:
        yield f"retry {_policy_text(step.retry)}"
    if step.compensation_retry is not None:
        yield f"undo retry {_policy_text(step.compensation_retry)}"
    for words, value in (
        ("timeout", step.timeout),
        ("total timeout", step.total_timeout),
        ("undo timeout", step.compensation_timeout),
    ):
        if value is not None:
            yield f"{words} {number_text(value)}"
    if step.pivot:
        yield "pivot"


def _line(opening: str, said: list[str]) -> str:
    return f"{opening}: {', '.join(said)}" if said else opening


def _condition_text(condition: Condition) -> str:
    words = ["not"] if condition.negated else []
    words.append(".".join(map(quoted, condition.path)))
    if condition.test == "exists":
        words.append("exists")
    elif condition.test != "is true":
        words += [condition.test, msgspec.json.encode(condition.value).decode()]
    return " ".join(words)


def _policy_text(policy: RetryPolicy) -> str:
    words = ["forever" if policy.max_attempts is None else str(policy.max_attempts)]
    for word, name in _DELAYS.items():
        value = getattr(policy, name)
        if value != getattr(_DEFAULT, name):
            words += [word, number_text(value)]
    if policy.retry_on is not None:
        words += ["on", " + ".join(map(quoted, policy.retry_on))]
    return " ".join(words)


# Reading


def _options(tokens: list[str]) -> Options:
    given: dict[str, Any] = {}
    for clause in _clauses(tokens):
        match clause:
            case ["start", "at", value]:
                given["start_at"] = float(value)
            case ["timeout", value]:
                given["timeout"] = float(value)
            case ["sequential"]:
                given["compensation_order"] = "sequential"
            case _:
                raise TranscriptError(f"a saga cannot say {' '.join(clause)!r}")
    return Options(**given)


def _step(tokens: list[str], block: Sequence[tuple[int, str]]) -> Step[Any]:
    given: dict[str, Any] = {"name": name_of(tokens.pop(0))}
    if tokens and tokens[0] == "/":
        given["compensation"] = name_of(tokens[1])
        del tokens[:2]
    for clause in _clauses(tokens):
        words, rest = _opening(clause)
        field, read = _CLAUSES[words]
        given[field] = read(rest)
    if given.pop("child", False):
        child = read_definition(block)
        given["child"] = ChildSaga(child.name, child.steps, child.context, child.options)
    else:
        given.setdefault("action", given["name"])
    return Step(**given)


def _opening(clause: list[str]) -> tuple[str, list[str]]:
    for length in (2, 1):
        words = " ".join(clause[:length])
        if words in _CLAUSES:
            return words, clause[length:]
    raise TranscriptError(f"a step cannot say {' '.join(clause)!r}")


def _clauses(tokens: list[str]) -> Iterator[list[str]]:
    if not tokens:
        return
    if tokens[0] != ":":
        raise TranscriptError(f"there should be a colon before {tokens[0]!r}")
    clause: list[str] = []
    for token in [*tokens[1:], ","]:
        if token == ",":
            yield clause
            clause = []
        else:
            clause.append(token)


def _names(tokens: list[str]) -> tuple[str, ...]:
    return tuple(name_of(token) for token in tokens if token != "+")


def _condition(tokens: list[str]) -> Condition:
    negated = tokens[0] == "not"
    path, *test = tokens[1:] if negated else tokens
    words = cast("Test", test[0] if test else "is true")
    value: Any = msgspec.json.decode(test[1]) if len(test) > 1 else None
    if isinstance(value, list):
        value = tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return Condition(tuple(name_of(path).split(".")), words, value, negated)


def _policy(tokens: list[str]) -> RetryPolicy:
    given: dict[str, Any] = {
        "max_attempts": None if tokens[0] == "forever" else int(tokens[0]),
        "jitter": 0.0,
    }
    rest = tokens[1:]
    while rest:
        word = rest.pop(0)
        if word == "on":
            given["retry_on"] = _names(rest)
            break
        if word not in _DELAYS:
            raise TranscriptError(f"a retry policy cannot say {word!r}")
        given[_DELAYS[word]] = float(rest.pop(0))
    return RetryPolicy(**given)


def _number(tokens: list[str]) -> float:
    return float(tokens[0])


def _yes(tokens: list[str]) -> bool:
    return True


_CLAUSES: dict[str, tuple[str, Callable[[list[str]], object]]] = {
    "first": ("depends_on", lambda tokens: ()),
    "after": ("depends_on", _names),
    "when": ("when", _condition),
    "action": ("action", lambda tokens: name_of(tokens[0])),
    "retry": ("retry", _policy),
    "undo retry": ("compensation_retry", _policy),
    "timeout": ("timeout", _number),
    "total timeout": ("total_timeout", _number),
    "undo timeout": ("compensation_timeout", _number),
    "pivot": ("pivot", _yes),
    "child": ("child", _yes),
}
