"""What a saga says of itself to people, in words, numbers and pictures."""

import pytest

from saga_core import (
    TABLE,
    Event,
    Options,
    RetryPolicy,
    Saga,
    Step,
    completed_steps,
    explain,
    failed_steps,
    machine_diagram,
    machine_table,
    new_saga,
    next_steps,
    progress,
    saga_diagram,
)
from saga_core.options import NO_OPTIONS

from .notation import BORN, ID, play, saga_of

RETRY = {"retry": RetryPolicy(max_attempts=3, initial_delay=10, jitter=0)}
MANY = " ".join(f"s{n}<" for n in range(8))


def at(events: str, steps: str = "a b c", options: Options = NO_OPTIONS, **more: dict[str, object]) -> Saga:
    return play(saga_of(steps, options=options, **more), events).saga


SAID = {
    "a step runs": (at(""), "is on its way, and waits for the result of step 'a'."),
    "steps run": (at("", "a< b<"), "is on its way, and waits for the result of steps 'a', 'b'."),
    "many run": (at("", MANY), "waits for the result of steps 's0', 's1', 's2', 's3', 's4' and 3 more."),
    "a callback": (at("a ok, b later"), "is on its way, and waits for a callback for step 'b'."),
    "a callback and a result": (
        at("a later", "a< b<"),
        "the result of step 'b' and a callback for step 'a'.",
    ),
    "another attempt": (
        at("a busy", a=RETRY),
        f"waits for attempt 2 of 'a' at {BORN + 11}, after 'do_a is broken'.",
    ),
    "a late start": (at("", options=Options(start_at=BORN + 60)), f"waits for its start at {BORN + 60}."),
    "suspended": (
        at("suspend"),
        "waits for the result of step 'a' and somebody to resume it, for it is suspended.",
    ),
    "suspended, and nothing runs": (
        at("suspend, a ok"),
        "is on its way, and waits for somebody to resume it, for it is suspended.",
    ),
    "suspended, and a clock runs": (
        at("suspend, a ok", options=Options(timeout=99)),
        "is on its way, and waits for somebody to resume it, for it is suspended.",
    ),
    "suspended before its start": (
        at("suspend", options=Options(start_at=BORN + 60)),
        "is on its way, and waits for somebody to resume it, for it is suspended.",
    ),
    "turned round": (
        at("a fails", "a< b<"),
        "is being undone, because step 'a' failed: do_a is broken, and waits for the result of step 'b'.",
    ),
    "cancelled": (at("cancel"), "is being undone, and waits for the result of step 'a'."),
    "undoing": (
        at("a ok, b fails"),
        "is being undone, because step 'b' failed: do_b is broken, and waits for the compensation of step 'a'.",
    ),
    "undoing once more": (
        at("a ok, b fails, undo a busy"),
        f"and waits for attempt 2 of 'a' at {BORN + 3 + 0.9961669445037842}, after 'undo_a is broken'.",
    ),
    "undoing later": (at("a ok, b fails, undo a later"), "and waits for a callback for step 'a'."),
    "completed": (at("a ok, b ok, c ok"), "has completed."),
    "undoing what may have had its effect": (
        at("a lost, undo a busy", a={"compensation_retry": RetryPolicy(jitter=0)}),
        "is being undone, because step 'a' failed: do_a is broken, and waits for attempt 2 of 'a' at "
        f"{BORN + 3}, after 'undo_a is broken'.",
    ),
    "undone after all": (
        at("a lost, undo a busy, retry, undo a#2 ok"),
        "is undone, because step 'a' failed: do_a is broken.",
    ),
    "undone": (at("a fails"), "is undone, because step 'a' failed: do_a is broken."),
    "undone as asked": (at("compensate, a ok, undo a ok"), "is undone."),
    "stuck": (
        at("a ok, b fails, undo a fails"),
        "has failed and needs a person: the compensation of step 'a' failed for good (undo_a is broken).",
    ),
    "stuck behind the pivot": (
        at("a ok, b fails", "a! b"),
        "has failed and needs a person: step 'b' failed for good (do_b is broken).",
    ),
}


@pytest.mark.parametrize(("saga", "sentence"), SAID.values(), ids=SAID)
def test_a_saga_explains_itself_in_a_sentence(saga: Saga, sentence: str) -> None:
    said = explain(saga)
    assert said.startswith(f"Saga {ID} (trip) ")
    assert said.endswith(sentence)


def test_a_saga_that_needs_a_person_in_many_steps_names_the_first_ones() -> None:
    events = [f"s{n} ok" for n in range(8)] + ["compensate"] + [f"undo s{n} fails" for n in range(8)]
    said = explain(at(", ".join(events), MANY))
    assert said.count("the compensation of step") == 5
    assert "'s4'" in said
    assert "'s5'" not in said


@pytest.mark.parametrize(
    ("events", "steps", "part"),
    [
        ("", "a b c", 0),
        ("a ok", "a b c d", 0.25),
        ("a ok, b skips", "a b c d", 0.5),
        ("a ok, b ok", "a b", 1),
        ("a ok, b ok, c fails", "a b c", 0),
        ("a ok, b ok, c fails, undo b ok", "a b c", 0.5),
        ("a ok, b ok, c fails, undo b ok, undo a ok", "a b c", 1),
        ("a ok, b ok, c fails", "a b- c", 0),
        ("a ok, b ok, c fails, undo a ok", "a b- c", 1),
        ("a ok, b ok, c fails, undo b ok, undo a fails", "a b c", 0.5),
        ("a fails", "a b c", 1),
        ("a ok, b fails", "a- b", 1),
        ("child a completed, b fails", "a* b", 0),
        ("a ok, b ok, c fails", "a b! c d", 0.5),
        ("a ok, b ok, c fails", "a- b-! c d", 0.5),
    ],
)
def test_progress_is_the_part_done_on_the_way_it_goes(events: str, steps: str, part: float) -> None:
    assert progress(at(events, steps)) == part


def names(steps: tuple[object, ...]) -> str:
    return "".join(step.name for step in steps)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("events", "steps", "completed", "failed", "following"),
    [
        ("", "a b c", "", "", "b"),
        ("a ok", "a b c", "a", "", "c"),
        ("a ok", "a b<a c<a d<b+c e<d", "a", "", "d"),
        ("a skips", "a b c", "", "", "c"),
        ("a ok, b ok, c ok", "a b c", "abc", "", ""),
        ("a ok, b fails", "a b c", "", "b", ""),
        ("a ok, b fails, undo a fails", "a b c", "", "ab", ""),
        ("a ok, b fails", "a! b c", "a", "b", ""),
        ("a fails", "a b", "", "a", ""),
    ],
)
def test_steps_can_be_asked_for_by_what_has_become_of_them(
    events: str, steps: str, completed: str, failed: str, following: str
) -> None:
    saga = at(events, steps)
    assert names(completed_steps(saga)) == completed
    assert names(failed_steps(saga)) == failed
    assert names(next_steps(saga)) == following


def test_a_saga_draws_itself_with_its_present_state() -> None:
    assert saga_diagram(at("a ok, b ok", "a b<a c*<a d!<b+c")) == (
        "flowchart LR\n"
        '    s0["a<br/>completed"]:::completed\n'
        '    s1["b<br/>completed"]:::completed\n'
        '    s2[["c<br/>started"]]:::started\n'
        '    s3{{"d<br/>pending"}}:::pending\n'
        "    s0 --> s1\n"
        "    s0 --> s2\n"
        "    s1 --> s3\n"
        "    s2 --> s3\n"
        "    classDef pending fill:#f4f4f4,stroke:#999,color:#333\n"
        "    classDef started fill:#cfe4ff,stroke:#1d6fdc,color:#000\n"
        "    classDef completed fill:#d3f2d9,stroke:#1b8a3a,color:#000\n"
    )


def test_a_name_cannot_break_out_of_a_picture() -> None:
    saga = new_saga("trip", [Step(name='<b>"x"&', action="do")], id=ID, at=BORN)
    assert '"#lt;b#gt;#quot;x#quot;#amp;<br/>started"' in saga_diagram(saga)


def test_the_machine_is_drawn_from_its_table() -> None:
    drawn = machine_diagram()
    assert drawn.startswith(
        "stateDiagram-v2\n    [*] --> started\n    started --> completed: StepSucceeded, "
    )
    assert "    completed --> compensating: CompensationRequested\n" in drawn
    assert "started --> started" not in drawn
    assert drawn.endswith("    completed --> [*]\n    failed --> [*]\n    compensated --> [*]\n")


def test_the_table_of_the_machine_has_a_row_for_each_event() -> None:
    head, rule, *rows = machine_table().splitlines()
    assert head == "| event | started | completed | failed | compensating | compensated |"
    assert rule == "| --- | --- | --- | --- | --- | --- |"
    assert {row.split("`")[1] for row in rows} == {event.__name__ for event in Event.__args__}  # type: ignore[attr-defined]
    assert set(TABLE) == set(Event.__args__)  # type: ignore[attr-defined]
    cancel = next(row for row in rows if "CancelRequested" in row)
    no = "ignored: it cannot be cancelled any more"
    assert (
        cancel == f"| `CancelRequested` | **compensating** or **compensated** | {no} | {no} | {no} | {no} |"
    )
