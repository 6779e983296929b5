"""Rivals take turns, and are compared round by round."""

from collections.abc import Callable

import pytest

from benchmarks.runner import (
    Latency,
    Options,
    Rival,
    Sample,
    curve_of,
    lines,
    p50,
    ratio,
    repeatedly,
    take_turns,
)


def timed(milliseconds: float) -> Sample:
    return Sample(1.0, 1.0, Latency(milliseconds, milliseconds, milliseconds))


def test_rivals_take_turns_and_some_of_them_seldom() -> None:
    order: list[str] = []

    def run(name: str) -> Callable[[], Sample]:
        def measure() -> Sample:
            order.append(name)
            return Sample(1.0, 1.0)

        return measure

    rivals = [Rival("a", run("a")), Rival("seldom", run("seldom"), every=3), Rival("b", run("b"))]
    rounds = take_turns(rivals, Options(), 4)
    assert order == ["a", "seldom", "b", "a", "b", "a", "b", "a", "seldom", "b"]
    assert {name: len(samples) for name, samples in rounds.items()} == {"a": 4, "seldom": 2, "b": 4}


def test_a_rival_that_is_several_things_names_each_sample() -> None:
    both = {"one": Sample(1.0, 1.0), "two": Sample(2.0, 1.0)}
    rounds = take_turns([Rival("one two", lambda: both)], Options(rounds=2), 7)
    assert {name: [sample.rate for sample in samples] for name, samples in rounds.items()} == {
        "one": [1.0, 1.0],
        "two": [2.0, 2.0],
    }


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ((), True),
        ((("memory", "asyncio", "100"),), True),
        ((("memory", "1000"),), False),
        ((("postgres",), ("memory",)), True),
        ((("mem",),), False),
    ],
)
def test_only_what_has_all_the_words_is_wanted(only: tuple[tuple[str, ...], ...], wanted: bool) -> None:
    assert Options(only=only).wants("engine, memory, asyncio, 100 at once, completed") is wanted


def test_a_number_of_thousands_is_one_word() -> None:
    options = Options(only=(("1000",),))
    assert options.wants("engine, 1,000 at once")
    assert not options.wants("engine, 1 at once")


def test_a_ratio_compares_the_best_of_each_side_round_by_round() -> None:
    rounds = {
        "ours": [Sample(10.0, 1.0), Sample(30.0, 1.0), Sample(40.0, 1.0)],
        "slow": [Sample(1.0, 1.0), Sample(1.0, 1.0), Sample(1.0, 1.0)],
        "fast": [Sample(5.0, 1.0), Sample(10.0, 1.0), Sample(40.0, 1.0)],
    }
    (found,) = ratio("ours / theirs", rounds, ["ours", "not measured"], ["slow", "fast"], at_least=2.5)
    assert (found.value.low, found.value.median, found.value.high) == (1.0, 2.0, 3.0)
    assert found.missed_by == pytest.approx(0.2)


def test_of_times_the_shortest_is_the_best() -> None:
    rounds = {"ours": [timed(6.0)], "theirs": [timed(8.0)], "theirs, slower": [timed(12.0)]}
    (found,) = ratio("p50", rounds, ["ours"], ["theirs", "theirs, slower"], of=p50, best=min, at_most=0.5)
    assert found.value.median == 0.75
    assert found.missed_by == 0.5


def test_what_was_not_measured_is_not_compared() -> None:
    assert ratio("a / b", {"a": [Sample(1.0, 1.0)]}, ["a"], ["b"]) == []


def test_lines_of_one_rival_come_by_concurrency() -> None:
    names = ["a, 1 at once", "a, 1,000 at once", "b", "a, 10 at once"]
    found = lines({name: [timed(2.0), timed(4.0)] for name in names})
    assert [line.name for line in found] == ["a, 1 at once", "a, 10 at once", "a, 1,000 at once", "b"]
    assert found[0].p50 is not None
    assert found[0].p50.median == 3.0


def test_the_name_of_a_curve_is_that_of_its_points_without_the_concurrency() -> None:
    assert curve_of("engine, trio, 1,000 at once, undone") == ("engine, trio, undone", 1_000)
    assert curve_of("Node's amqplib") == ("Node's amqplib", 0)


def test_what_is_repeated_is_counted_in_operations() -> None:
    calls: list[None] = []

    def drive() -> int:
        calls.append(None)
        return 1_000_000

    sample = repeatedly(lambda: drive, 0.02)()
    assert sample.rate > len(calls) * 1_000_000
    assert sample.cpu > 0
