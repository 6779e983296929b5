"""Tokens of deferred steps, and what they bring."""

import pytest

from saga_core import (
    Callback,
    CompensationFailed,
    CompensationSucceeded,
    Saga,
    Step,
    StepFailed,
    StepSucceeded,
    TokenError,
    decode_saga,
    encode_saga,
    failed,
    new_saga,
    redeem,
    saga_of,
    succeeded,
    transition,
)

from .notation import BORN, ID, error_of, output_of, play


def deferred(secret: str = "s3cret") -> Saga:
    steps = [Step(name="a", action="do_a", compensation="undo_a"), Step(name="b", action="do_b")]
    return new_saga("trip", steps, id=ID, at=BORN, secret=secret)


def test_a_token_brings_the_result_of_a_deferred_step() -> None:
    saga = play(deferred(), "a later").saga
    token = saga.token("a", "execute")
    assert saga_of(token) == ID
    callback = redeem(saga, token)
    assert callback == Callback(ID, "a", "execute", 1)
    assert succeeded(callback, BORN + 5, output_of("a")) == StepSucceeded("a", 1, output_of("a"), BORN + 5)
    assert failed(callback, BORN + 5, error_of("do_a")) == StepFailed("a", 1, error_of("do_a"), BORN + 5)
    assert transition(saga, succeeded(callback, BORN + 5)).saga.step("a").output == {}


def test_a_token_brings_the_result_of_a_deferred_compensation() -> None:
    saga = play(deferred(), "a ok, b fails, undo a later").saga
    token = saga.token("a", "compensate")
    callback = redeem(saga, token)
    assert callback == Callback(ID, "a", "compensate", 1)
    assert succeeded(callback, BORN + 5) == CompensationSucceeded("a", 1, BORN + 5)
    assert failed(callback, BORN + 5, error_of("x")) == CompensationFailed("a", 1, error_of("x"), BORN + 5)
    assert transition(saga, succeeded(callback, BORN + 5)).saga.is_compensated


def test_a_step_of_no_saga_has_neither_id_nor_token() -> None:
    step = Step(name="a", action="do_a")
    assert (step.id, step.token) == ("", "")


def test_a_printed_step_gives_no_secret_away() -> None:
    assert "s3cret" not in repr(deferred().step("a"))


@pytest.mark.parametrize("zero", ["00", "+0", " 0", "-0", "0_0"])
def test_a_token_is_good_as_it_was_made_only(zero: str) -> None:
    saga = deferred()
    with pytest.raises(TokenError):
        redeem(saga, saga.token("a", "execute").replace(".0.", f".{zero}."))


def test_a_step_shows_the_token_of_what_it_does_at_present() -> None:
    saga = deferred()
    assert saga.step("a").token == saga.token("a", "execute")
    assert saga.step("b").token == saga.token("b", "execute")
    saga = play(saga, "a ok, b fails").saga
    assert saga.step("a").token == saga.token("a", "compensate")
    assert saga.step("a").token.startswith(f"{ID}.0.compensate.1.")


def test_a_callback_that_comes_twice_changes_nothing() -> None:
    saga = play(deferred(), "a later").saga
    event = succeeded(redeem(saga, saga.token("a", "execute")), BORN + 5)
    after = transition(saga, event).saga
    assert transition(after, succeeded(redeem(after, saga.token("a", "execute")), BORN + 6)).saga is after


def test_tokens_differ_between_steps_operations_attempts_sagas_and_secrets() -> None:
    saga, other = deferred(), deferred("another")
    later = play(saga, "a ok, b fails, undo a busy, wait 5").saga
    tokens = [saga.token("a", "execute"), saga.token("b", "execute"), saga.token("a", "compensate")]
    tokens += [later.token("a", "compensate"), other.token("a", "execute")]
    assert len(set(tokens)) == 5
    assert decode_saga(encode_saga(saga)).token("a", "execute") == saga.token("a", "execute")


@pytest.mark.parametrize("secret", ["", "x" * 200, "é"])
def test_a_secret_can_be_any_text(secret: str) -> None:
    saga = deferred(secret)
    assert redeem(saga, saga.token("b", "execute")).step == "b"


def good(saga: Saga) -> str:
    return saga.token("a", "execute")


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "x",
        "a.b",
        f"{ID}.0.execute.1",
        f"{ID}.0.execute.1.",
        f"{ID}.0.execute.1.00.00",
        f"{ID}.x.execute.1.00",
        f"{ID}.0.execute.x.00",
        f"{ID}.0.execute.1.ü",
        f"{ID}.0.execute.1.\ud800",
        f"{ID}.{'9' * 5_000}.execute.1.00",
    ],
)
def test_a_token_that_is_malformed_is_refused(token: str) -> None:
    with pytest.raises(TokenError, match=f"does not belong to a step of saga {ID}"):
        redeem(deferred(), token)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (0, ID[:-1] + "1"),
        (1, "1"),
        (1, "2"),
        (1, "-1"),
        (2, "compensate"),
        (2, "explode"),
        (3, "2"),
        (3, "-1"),
        (4, "0" * 32),
    ],
)
def test_a_token_that_was_changed_is_refused(part: int, value: str) -> None:
    parts = good(deferred()).split(".")
    parts[part] = value
    with pytest.raises(TokenError):
        redeem(deferred(), ".".join(parts))


def test_a_token_of_another_secret_is_refused() -> None:
    with pytest.raises(TokenError):
        redeem(deferred(), good(deferred("guess")))


@pytest.mark.parametrize(
    "token",
    ["", "x", ".x", "x.0.execute.1.00", "\ud800.x", "\0.x", f"{ID.lower()}.x", f" {ID}.x", f"{ID}\n.x"],
)
def test_what_names_no_saga_is_no_token(token: str) -> None:
    with pytest.raises(TokenError, match="no token of a deferred step"):
        saga_of(token)
