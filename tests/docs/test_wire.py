"""The wire contract: its schemas are those of the code, its tables name every field, and what travels keeps to them."""

import json
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from msgspec import Struct

from saga_amqp import ChildSaga, MemoryTransport, Point, RetryPolicy, Saga, Skip, Step, StepError, StepState
from saga_amqp.contracts import Message, Settled
from saga_amqp.poison import ADDED, Reason
from saga_amqp.transports.amqp.topology import arguments
from saga_core import Compensate, Execute, Failure, Reply, StateChanged, Work
from tests.engine.elsewhere import TwoServices, far
from tests.engine.test_language import Later

from .test_code_blocks import blocks
from .test_generated import generate

FOLDER = Path(__file__).parents[2] / "docs"
PAGE = FOLDER / "wire.md"
FILES = sorted((FOLDER / "schemas").glob("*.json"))


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return generate()


@cache
def validator(name: str) -> Draft202012Validator:
    schema = json.loads((FOLDER / "schemas" / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def kind_of(message: Any) -> str:
    """Return the name of the schema of a message."""
    return str(message.get("operation", "state_changed"))


def test_the_schemas_are_not_stale(module: ModuleType) -> None:
    assert {file.name: file.read_text() for file in FILES} == module.schemas(), "run `make docs`"


# What really travels -------------------------------------------------------------------------------------------------


class Taped(MemoryTransport):
    """A transport that keeps what is published."""

    def __init__(self, broker: Any, tape: list[Message]) -> None:
        super().__init__(broker)
        self.tape = tape

    async def publish(self, message: Message, settled: Settled) -> None:
        self.tape.append(message)
        await super().publish(message, settled)


@pytest.fixture
async def tape() -> list[Message]:
    """All messages of some sagas that use what there is to be used."""
    two, messages, later = TwoServices(), list[Message](), Later()

    async def moody(saga: Saga, step: Step[Any]) -> object:
        if step.state is StepState.COMPENSATING and step.compensation_attempt == 1:
            raise ValueError("not now")
        if step.state is StepState.STARTED and step.attempt == 1:
            raise StepError("busy", "later", retryable=True, details={"seconds": 0.5})
        return {"text": "é\u0000", "number": 2**70, "list": [None, True, -1.5], "object": {"": {}}}

    async def skips(saga: Saga, step: Step[Any]) -> Skip:
        return Skip("nothing to do")

    async def fails(saga: Saga, step: Step[Any]) -> None:
        raise StepError("no", "it cannot be")

    two.replace_elsewhere("far.a", moody)
    two.replace_elsewhere("unfar.a", moody)
    two.replace_elsewhere("far.b", skips)
    two.replace_elsewhere("far.c", later)
    two.replace_elsewhere("far.e", fails)
    soon = RetryPolicy(max_attempts=None, initial_delay=0, jitter=0)
    plan = [
        far("a", retry=soon, compensation_retry=soon, timeout=30, input={"n": 1}),
        far("b"),
        far("c"),
        Step[Any](name="child", child=ChildSaga("inner", [far("d", timeout=30)])),
        far("e"),
    ]
    ours, theirs = (Taped(two.broker, messages) for _ in range(2))
    async with (
        two.participating(transport=theirs),
        two.running(transport=ours, lifecycle_events=True) as manager,
    ):
        saga = await manager.start("s", plan, {"customer": 7})
        await later.called.wait()
        await two.watch.until(Point.ACKNOWLEDGED, 4)
        await manager.complete(later.tokens[0], {"by": "a person"})
        assert (await manager.wait(saga.id)).is_compensated
    return messages


async def test_every_message_is_as_its_schema_says(tape: list[Message]) -> None:
    seen: dict[str, list[Message]] = {}
    for message in tape:
        seen.setdefault(kind_of(json.loads(message.body)), []).append(message)
    for kind in (file.stem for file in FILES):
        assert len(seen[kind]) >= 4, f"too few to tell: {kind}"
        for message in seen[kind]:
            validator(kind).validate(json.loads(message.body))
    replies = [json.loads(message.body) for message in seen["reply"]]
    assert {(reply["of"], reply["outcome"]) for reply in replies} == {
        ("execute", "succeeded"),
        ("execute", "failed"),
        ("execute", "skipped"),
        ("execute", "deferred"),
        ("compensate", "succeeded"),
        ("compensate", "failed"),
    }


async def test_every_message_is_addressed_as_the_page_says(tape: list[Message]) -> None:
    page = PAGE.read_text()
    for message in tape:
        body = json.loads(message.body)
        kind = kind_of(body)
        if kind == "state_changed":
            key, id = (
                f"saga.{body['name']}.{body['state']}",
                f"{body['saga']}.{body['state']}.{body['revision']}",
            )
            assert "`<saga>.<state>.<revision>`" in page
        elif kind == "reply":
            key = "reply"
            id = f"{body['saga']}.{body['step']}.{body['of']}.reply.{body['attempt']}"
            assert "`<saga>.<step>.<of>.reply.<attempt>`" in page
        elif kind in ("execute", "compensate"):
            key, id = f"{kind}.{body['action']}", f"{body['saga']}.{body['step']}.{kind}.{body['attempt']}"
            assert body["work"]["compensation" if kind == "compensate" else "action"] == body["action"]
        else:
            assert f"`{message.routing_key}`" in page
            continue
        assert (message.exchange, message.routing_key, message.id) == ("sagas", key, id)
        assert message.mandatory is (kind != "state_changed")
        assert message.headers is None
        assert message.type == ("saga.state" if kind == "state_changed" else f"saga.step.{kind}")


@pytest.mark.parametrize("kind", [file.stem for file in FILES])
async def test_a_schema_refuses_what_is_not_as_it_says(tape: list[Message], kind: str) -> None:
    body = next(one for message in tape if kind_of(one := json.loads(message.body)) == kind)
    struct = {"execute": Execute, "compensate": Compensate, "reply": Reply, "state_changed": StateChanged}[
        kind
    ]
    optional = {"deadline", "output", "error", "reason", "unknown", "version"}
    for field in struct.__struct_fields__:
        shorter = {name: value for name, value in body.items() if name != field}
        if field in optional:
            validator(kind).validate(shorter)
        else:
            with pytest.raises(ValidationError, match=f"'{field}' is a required property"):
                validator(kind).validate(shorter)
        with pytest.raises(ValidationError):
            validator(kind).validate(body | {field: [7]})
    validator(kind).validate(body | {"since_next": 1})


# The page ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [json.loads(block) for block in blocks(PAGE, "json")], ids=kind_of)
def test_an_example_on_the_page_is_as_its_schema_says(example: dict[str, Any]) -> None:
    validator(kind_of(example)).validate(example)


def table(heading: str) -> list[str]:
    """Return the first cells of the table with this heading, in order."""
    _, _, below = PAGE.read_text().partition(f"| {heading} |")
    rows = below.partition("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]


@pytest.mark.parametrize(
    ("heading", "struct", "more"),
    [
        ("field | JSON | what it says", Execute, ["work"]),
        ("field of `work` | JSON | what it says", Work, []),
        ("field of `error` | JSON | what it says", Failure, []),
    ],
    ids=["Execute", "Work", "Failure"],
)
def test_a_table_names_every_field(heading: str, struct: type[Struct], more: list[str]) -> None:
    tag = ["operation"] if struct is Execute else []
    assert table(heading) == [*tag, *struct.__struct_fields__, *more]


@pytest.mark.parametrize("struct", [Reply, StateChanged])
def test_so_do_those_of_what_is_sent_back(struct: type[Struct]) -> None:
    _, _, section = PAGE.read_text().partition(f"### {struct.__name__}\n")
    rows = [row.split("|")[1] for row in section.partition("\n##")[0].splitlines() if row.startswith("| `")]
    fields = re.findall(r"`(\w+)`", "".join(rows))
    error = ["code", "message", "retryable", "details"] if struct is Reply else []
    assert set(fields) - {"operation"} - set(error) == set(struct.__struct_fields__)


def test_the_page_names_the_arguments_of_a_participants_queues() -> None:
    queue = TwoServices().config_elsewhere().topology().queues[2]
    assert queue.name == "far.steps"
    _, _, below = PAGE.read_text().partition("| argument of a participant's queue |")
    cells = [row.split("|") for row in below.partition("\n\n")[0].splitlines()[2:]]
    told = {name.strip(" `"): value.strip(" `") for _, name, value, *_ in cells}
    given = {name: str(value) or "the empty string" for name, value in arguments(queue).items()}
    assert told == given


def test_the_page_names_every_reason_for_which_a_step_can_fail() -> None:
    untold = {"unknown_saga", "unknown_step", "unreadable_saga"}  # there is no step to be told
    assert {*Reason} - {*table("code | what happened | undone too")} == untold


def test_the_page_names_the_headers_of_a_dead_letter() -> None:
    assert all(f"`{header}`" in PAGE.read_text() for header in ADDED)
