"""The transcripts under scenarios/ tell the truth. They read as documentation: each shows one rule of the design.

Where an answer changes on purpose, `SAGA_WRITE_SCENARIOS=1 pytest tests/core/test_scenarios.py` writes them anew.
"""

import os
import sys
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from saga_core.conditions import when
from saga_core.options import NO_OPTIONS, Options
from saga_core.plan import ChildSaga, Plan, Step, plan_saga
from saga_core.retry import RetryPolicy
from saga_core.testing import explore
from saga_core.testing.definitions import TranscriptError, read_definition, write_definition
from saga_core.testing.inputs import read_happening, write_happening
from saga_core.testing.transcript import play
from saga_core.testing.world import SAGA_ID, Happening, Result, World, without_jitter

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_scenario(path: Path) -> None:
    told = path.read_text()
    played = play(told)
    if os.environ.get("SAGA_WRITE_SCENARIOS"):
        path.write_text(played)
        return
    diff = unified_diff(
        told.splitlines(), played.splitlines(), path.name, "what the core answers", lineterm=""
    )
    assert told == played, "\n".join(diff)
    assert told.startswith("# "), "the first line must say which rule is shown"


# The notation.


def plan_of(name: str, steps: list[Step[Any]], context: object = None, options: Options = NO_OPTIONS) -> Plan:
    return plan_saga(name, without_jitter(steps), context, id=SAGA_ID, at=0.0, options=options)


def read(text: str) -> Plan:
    definition = read_definition(list(enumerate(text.splitlines(), 1)))
    return plan_of(definition.name, definition.steps, definition.context, definition.options)


ALL_THERE_IS_TO_SAY = """\
saga "odd, name": start at 5, timeout 60.5, sequential
context {"x":{"a+b":[1,null]}}
step a / "undo: a": when not x.y > -1.5, action "do a", retry 2, undo retry forever, timeout 1, pivot
step b: action do_b, retry 3 delay 0.5 multiplier 3 max_delay 7.25 on busy + "not there", total timeout 2
step "c/d": after a + b, when "a+b" in ["]",7,true,null], undo timeout 9
step e: first, when x exists
step f: when x.y, child
  saga "the child": timeout 7
  context {"own":1}
  step x / y
  step g: child
    saga grandchild
    step z
step h: after "c/d", when x == "5, 6"
"""


def test_a_definition_says_all_that_a_definition_can_say() -> None:
    steps = [
        Step(
            name="a",
            action="do a",
            compensation="undo: a",
            when=~when("x.y", ">", -1.5),
            retry=RetryPolicy(max_attempts=2),
            compensation_retry=RetryPolicy(max_attempts=None),
            timeout=1,
            pivot=True,
        ),
        Step(
            name="b",
            action="do_b",
            retry=RetryPolicy(
                initial_delay=0.5, multiplier=3, max_delay=7.25, retry_on=("busy", "not there")
            ),
            total_timeout=2,
        ),
        Step(
            name="c/d",
            action="c/d",
            depends_on=("a", "b"),
            when=when("a+b", "in", ("]", 7, True, None)),
            compensation_timeout=9,
        ),
        Step(name="e", action="e", depends_on=(), when=when("x", "exists")),
        Step(
            name="f",
            when=when("x.y"),
            child=ChildSaga(
                "the child",
                [
                    Step(name="x", action="x", compensation="y"),
                    Step(name="g", child=ChildSaga("grandchild", [Step(name="z", action="z")])),
                ],
                {"own": 1},
                Options(timeout=7),
            ),
        ),
        Step(name="h", action="h", depends_on=("c/d",), when=when("x", "==", "5, 6")),
    ]
    # A pivot has to have everything before or behind it.
    steps[0], steps[3] = replace(steps[0], pivot=False), steps[3]
    said = ALL_THERE_IS_TO_SAY.replace(", pivot", "")
    options = Options(start_at=5, timeout=60.5, compensation_order="sequential")
    plan = plan_saga("odd, name", steps, {"x": {"a+b": [1, None]}}, id=SAGA_ID, at=0.0, options=options)
    assert "\n".join(write_definition(plan)) + "\n" == said
    assert read(said) == plan_of("odd, name", steps, {"x": {"a+b": [1, None]}}, options)


def test_what_explore_lets_happen_can_be_written_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set[str]()

    def noting(world: World, happening: Happening) -> Result:
        line = write_happening(world, happening)
        assert line.startswith("> ")
        again = read_happening(world, line[2:])
        assert again == happening._replace(operation=0, may_be_ignored=False)
        seen.add(line[2:].split(": ")[-1].split()[0])
        return happen(world, happening)

    module = sys.modules["saga_core.testing.explore"]
    happen = module.happen
    monkeypatch.setattr(module, "happen", noting)
    retry = RetryPolicy(max_attempts=2)
    steps = [
        Step(name="a b", action="a", compensation="c", retry=retry, timeout=4),
        Step(
            name="kid", depends_on=(), child=ChildSaga("kid", [Step(name="x", action="x", compensation="y")])
        ),
    ]
    explore(steps[:1], operations=("compensate", "resolve", "skip"))
    explore(steps, failures=0)
    steps = [Step(name="pay", action="pay", pivot=True), replace(steps[1], depends_on=("pay",))]
    explore(steps, operations=("cancel", "retry", "suspend", "resume"))
    words = (
        "succeed fail lose skip defer time at start compensate report resolve ask cancel retry suspend resume"
    )
    assert seen == set(words.split())


HEAD = "saga s\nstep a / b\nstep c: child\n  saga t\n  step d\n\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("saga s\nstep a: often\n", "Line 2: a step cannot say 'often': step a: often"),
        ("saga s\nstep a after b\n", "Line 2: there should be a colon before 'after'"),
        ("saga s: soon\n", "Line 1: a saga cannot say 'soon'"),
        ("saga s\nstop a\n", "Line 2: a definition has no line that begins with 'stop'"),
        ("saga s\ncontext {\n", "Line 2: Input data was truncated"),
        ("saga s\nstep a: timeout soon\n", "Line 2: could not convert string to float: 'soon'"),
        ("saga s\nstep a: retry 2 wait 5\n", "Line 2: a retry policy cannot say 'wait'"),
        ('saga s\nstep "a\n', "Line 2: cannot be read from ' \"a' on"),
        (
            "saga s\nstep a: child\n  saga t\n  step x: often\n",
            "Line 4: a step cannot say 'often': step x: often",
        ),
        ("saga s\nstep a: retry 0\n", "Line 2: max_attempts must be at least 1"),
        (HEAD + "> succeed a\n", "Line 7: the first input must be “start”: > succeed a"),
        (HEAD + "> start\n> hope\n", "Line 8: there is no input 'hope'"),
        (HEAD + "> start\n> break a\n", "Line 8: a step cannot 'break'"),
        (HEAD + "> start\n> skip undo a\n", "Line 8: a compensation cannot 'skip'"),
        (HEAD + "> start\n> succeed x\n", "Line 8: Saga 01J00000000000000000000000 (s) has no step 'x'"),
        (HEAD + "> start\n> time soon\n", "Line 8: could not convert string to float: 'soon'"),
        (HEAD + "> start\n> in c: succeed d\n", "Line 8: step 'c' has started no child"),
        (HEAD + "> start\n> report c\n", "Line 8: step 'c' has started no child"),
        (HEAD + "> start\n> in c succeed d\n", "Line 8: there should be a colon after the step"),
        (HEAD + "> start\n> \n", "Line 8: there is no input ''"),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(TranscriptError) as raised:
        play(text)
    assert problem in str(raised.value)


def test_a_child_is_started_once() -> None:
    played = play(HEAD + "> start\n> succeed a\n> start child c\n> start child c\n")
    assert played.endswith("> start child c\n  ignored: the child has been started\n")


def test_a_wrong_output_is_replaced_and_comments_are_kept() -> None:
    told = "# A comment.\nsaga s\nstep a\n\n> start\n  saga: failed\n\n# Another.\n> succeed a\n\n"
    assert play(told) == (
        "# A comment.\nsaga s\nstep a\n\n"
        "> start\n  saga: started\n  a: started #1\n  -> execute a #1\n\n"
        "# Another.\n> succeed a\n  saga: completed\n  a: completed\n\n"
    )


def test_a_definition_alone_is_a_transcript() -> None:
    assert play("saga s\nstep a\n") == "saga s\nstep a\n"
