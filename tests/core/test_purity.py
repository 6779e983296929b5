"""The core leaves no trace: no reference cycles for the collector, no state between calls."""

import gc

from saga_core import (
    Saga,
    consequences,
    decode_event,
    decode_saga,
    encode_event,
    encode_saga,
    fold,
    outstanding,
)

from .notation import events_of, play, saga_of

COURSE = "a ok, b ok, c fails, undo b fails, compensate, undo b#2 ok, undo a ok"


def use_everything() -> bytes:
    """Lead a saga to its end by way of storage, and look at all of it on the way."""
    origin = saga_of("a b c d-")
    saga: Saga = play(origin, COURSE).saga
    history = [decode_event(encode_event(event)) for event in events_of(COURSE)]
    for length in range(len(history)):
        part = decode_saga(encode_saga(fold(origin, history[:length])))
        for command in outstanding(part):
            consequences(origin, history, command)
        assert len(part.steps) == 4
        assert part.step("a").name == "a"
        assert part.plan.position("b") == 1
        assert part.context
    assert fold(origin, history) == saga
    return encode_saga(saga)


def test_driving_sagas_leaves_nothing_for_the_garbage_collector() -> None:
    use_everything()  # what is made once, is made now
    enabled = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        for _ in range(20):
            use_everything()
        assert gc.collect() == 0
    finally:
        if enabled:
            gc.enable()


def test_the_garbage_collector_changes_nothing() -> None:
    before, enabled = gc.get_threshold(), gc.isenabled()
    try:
        gc.disable()
        without = use_everything()
        gc.enable()
        gc.set_threshold(1, 1, 1)
        with_it = use_everything()
    finally:
        gc.set_threshold(*before)
        if enabled:
            gc.enable()
        else:
            gc.disable()
    assert with_it == without


def test_sagas_that_run_side_by_side_know_nothing_of_each_other() -> None:
    one, other = saga_of("a b"), saga_of("a b")
    play(other, "a ok, b fails, undo a ok")
    assert one == saga_of("a b")
    assert encode_saga(one) == encode_saga(other)
