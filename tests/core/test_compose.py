"""Larger sagas from smaller lists of steps."""

from saga_core import Step, new_saga, outstanding, parallel, prefix, sequence

from .notation import BORN, ID, play, shown, step_of


def steps(text: str) -> list[Step]:
    return [step_of(word) for word in text.split()]


def graph(found: list[Step]) -> dict[str, tuple[str, ...]]:
    return {step.name: step.depends_on for step in found}  # type: ignore[misc]


def test_a_prefix_goes_before_every_name_and_dependency() -> None:
    assert graph(prefix("car", steps("a b c<a d<b+c"))) == {
        "car.a": (),
        "car.b": ("car.a",),
        "car.c": ("car.a",),
        "car.d": ("car.b", "car.c"),
    }


def test_a_prefix_leaves_names_of_others_alone() -> None:
    assert graph(prefix("car", steps("a b<a+pay"))) == {"car.a": (), "car.b": ("car.a", "pay")}


def test_a_sequence_begins_each_group_when_the_one_before_has_ended() -> None:
    found = sequence(steps("a b<a c<a"), [], steps("d e<"), steps("f"))
    assert graph(found) == {
        "a": (),
        "b": ("a",),
        "c": ("a",),
        "d": ("b", "c"),
        "e": ("b", "c"),
        "f": ("d", "e"),
    }


def test_a_sequence_of_nothing_is_nothing() -> None:
    assert sequence() == sequence([], []) == parallel() == prefix("a", []) == []


def test_groups_side_by_side_do_not_wait_for_each_other() -> None:
    found = parallel(steps("a b"), steps("c d"))
    assert graph(found) == {"a": (), "b": ("a",), "c": (), "d": ("c",)}


def test_what_is_composed_runs() -> None:
    legs = parallel(prefix("car", steps("a b")), prefix("hotel", steps("a b")))
    saga = new_saga("trip", sequence(steps("pay"), legs, steps("tell")), id=ID, at=BORN)
    assert shown(outstanding(saga)) == "pay#1"
    saga = play(saga, "pay ok").saga
    assert shown(outstanding(saga)) == "car.a#1, hotel.a#1"
