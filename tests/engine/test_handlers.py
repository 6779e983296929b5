"""How handlers are registered and checked, how they get typed inputs, and what their failures become."""

import functools
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import pytest
from msgspec import Meta, Struct

from saga_amqp import Config, HandlerError, Registry, Saga, SagaState, Step, StepError
from saga_core import failure_of

from . import postponed
from .world import World, nothing, steps


class Units(Struct):
    product: str
    quantity: Annotated[int, Meta(gt=0)]


@dataclass
class Amount:
    amount: float
    currency: str = "EUR"


def _config(handler: object, **more: Any) -> Config:
    return Config(step_handlers={"do": handler}, **more)  # type: ignore[dict-item]


def _input_type(handler: object) -> type | None:
    return _config(handler).actions["do"].input_type


# Typed inputs -----------------------------------------------------------------------------------------------------


async def test_a_struct_and_a_dataclass_are_read_from_the_input(world: World) -> None:
    seen: list[object] = []

    async def reserve(saga: Saga, step: Step[Units]) -> dict[str, object]:
        seen.append(step.input)
        return {"reserved": step.input.quantity}

    async def release(saga: Saga, step: Step[Units]) -> None:
        seen.append((step.input, step.output))

    async def charge(saga: Saga, step: Step[Amount]) -> Amount:
        seen.append(step.input)
        return Amount(step.input.amount * 2)

    async def untyped(saga: Saga, step: Step) -> None:
        seen.append(step.input)
        raise StepError("no", "no")

    config = {
        "step_handlers": {"reserve": reserve, "charge": charge, "untyped": untyped},
        "compensation_handlers": {"release": release},
    }
    plan: list[Step[Any]] = [
        Step(name="r", action="reserve", compensation="release", input=Units("p", 2)),
        Step(name="c", action="charge", input={"amount": 1.5}),
        Step(name="u", action="untyped", input=Amount(1)),
    ]
    async with world.running(**config) as manager:
        saga = await manager.wait((await manager.start("s", plan)).id)
    assert seen == [
        Units("p", 2),
        Amount(1.5),
        {"amount": 1, "currency": "EUR"},
        (Units("p", 2), {"reserved": 2}),
    ]
    assert saga.step("c").output == {"amount": 3.0, "currency": "EUR"}
    assert saga.step("c", Amount).input == Amount(1.5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"product": "p", "quantity": "two"}, "$.quantity"),
        ({"product": "p", "quantity": 0}, "$.quantity"),
        ({"product": "p"}, "`quantity`"),
    ],
    ids=["type", "constraint", "missing"],
)
@pytest.mark.parametrize("operation", ["execute", "compensate"])
async def test_an_input_that_does_not_fit_fails_the_step_and_names_the_field(
    world: World, given: dict[str, object], says: str, operation: str
) -> None:
    async def typed(saga: Saga, step: Step[Units]) -> None:
        raise AssertionError("must not be called")

    handlers = {"step_handlers": {"do.a": typed if operation == "execute" else nothing}}
    plan = [Step(name="a", action="do.a", compensation="undo.a", input=given)]
    async with world.running(**handlers, compensation_handlers={"undo.a": typed}) as manager:
        saga = await manager.wait((await manager.start("s", plan)).id)
        if operation == "compensate":
            await manager.compensate(saga.id)
            saga = await manager.wait(saga.id)
    assert saga.state is (SagaState.COMPENSATED if operation == "execute" else SagaState.FAILED)
    error = saga.step("a").error
    assert error is not None
    assert error.code == "invalid_payload"
    assert not error.retryable
    assert says in error.message
    assert "'a'" in error.message
    assert saga.id in error.message


@pytest.mark.parametrize(
    "handler",
    [
        postponed.by_struct,
        postponed.by_alias,
        postponed.by_partial,
        postponed.Service().by_method,
        postponed.Service(),
        Registry().action("x")(postponed.by_struct),
    ],
    ids=["function", "alias", "partial", "method", "object", "action"],
)
async def test_annotations_that_are_postponed_are_read_all_the_same(world: World, handler: Any) -> None:
    assert _input_type(handler) is postponed.Postponed
    async with world.running(step_handlers={"do": handler}) as manager:
        plan = [Step(name="a", action="do", input={"count": 3})]
        saga = await manager.wait((await manager.start("s", plan)).id)
    assert saga.step("a").output["count"] in (3, 6)


def test_an_annotation_that_says_no_type_leaves_the_input_a_dict() -> None:
    anything = TypeVar("anything")

    async def bare(saga, step): ...  # type: ignore[no-untyped-def]
    async def unparametrised(saga: Saga, step: Step) -> None: ...
    async def of_any(saga: Saga, step: Step[Any]) -> None: ...
    async def of_object(saga: Saga, step: Step[object]) -> None: ...
    async def generic(saga: Saga, step: Step[anything]) -> None: ...
    async def something_else(saga: Saga, step: list[int]) -> None: ...
    async def many(*arguments: Any) -> None: ...

    for handler in (bare, unparametrised, of_any, of_object, generic, something_else, many, postponed.plain):
        assert _input_type(handler) is None


def test_a_dict_can_be_asked_for_with_the_types_of_its_values() -> None:
    async def counts(saga: Saga, step: Step[dict[str, int]]) -> None: ...

    assert _input_type(counts) == dict[str, int]


# What is refused, and how ------------------------------------------------------------------------------------------


def _sync(saga: Saga, step: Step) -> None: ...


async def _one(saga: Saga) -> None: ...


async def _three(saga: Saga, step: Step, more: object) -> None: ...


async def _keyword(saga: Saga, step: Step, *, more: object) -> None: ...


async def _generator(saga: Saga, step: Step) -> Any:
    yield


class _Plain: ...


async def _plain_class(saga: Saga, step: Step[_Plain]) -> None: ...


async def _ambiguous(saga: Saga, step: Step[Units | postponed.Postponed]) -> None: ...


class _SyncObject:
    def __call__(self, saga: Saga, step: Step) -> None: ...


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (_sync, "is not async; write it as `async def`"),
        (_generator, "is not async; write it as `async def`"),
        (_SyncObject(), "is not async"),
        ("text", "is not a function, but 'text'"),
        (None, "is not a function, but None"),
        (_one, "must take (saga, step), but takes (saga: saga_core.model.Saga) -> None"),
        (_three, "missing a required argument: 'more'"),
        (_keyword, "missing a required"),
        (_plain_class, "_Plain'>, which cannot be read from JSON; use a Struct or a dataclass"),
        (_ambiguous, "which cannot be read from JSON"),
        (postponed.unreadable, "annotates its step as 'Step[Unseen]', which cannot be read at run time"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["action", "compensation"])
def test_a_handler_that_cannot_work_is_refused_when_it_is_registered(
    handler: Any, says: str, kind: str
) -> None:
    with pytest.raises(HandlerError) as by_config:
        Config(**{"step_handlers" if kind == "action" else "compensation_handlers": {"orders.x": handler}})
    registry = Registry()
    register = registry.action if kind == "action" else registry.action("orders.y")(nothing).compensation
    with pytest.raises(HandlerError) as by_decorator:
        register("orders.x")(handler)
    assert says in str(by_config.value)
    assert str(by_decorator.value) == str(by_config.value)
    assert f"The handler of {kind} 'orders.x'" in str(by_config.value)


def test_optional_further_arguments_are_no_obstacle() -> None:
    async def more(saga: Saga, step: Step, client: object = None, *, retries: int = 3) -> None: ...

    _config(more)
    _config(functools.partial(_three, more=1))


def test_two_handlers_for_one_name_are_refused_wherever_they_come_from() -> None:
    one, two = Registry(), Registry()
    for registry in (one, two):
        registry.action("do.a")(nothing).compensation("undo.a")(nothing)
    twice = "Two handlers are registered for action 'do.a'"
    with pytest.raises(HandlerError, match=twice):
        one.action("do.a")(nothing)
    with pytest.raises(HandlerError, match=twice):
        Config(registries=(one, two))
    with pytest.raises(HandlerError, match=twice):
        Config(registries=(one,), step_handlers={"do.a": nothing})
    with pytest.raises(HandlerError, match=r"Two handlers are registered for compensation 'undo\.a'"):
        Config(registries=(one,), compensation_handlers={"undo.a": nothing})
    with pytest.raises(HandlerError, match=r"Two handlers are registered for compensation 'undo\.a'"):
        one.action("do.b")(nothing).compensation("undo.a")(nothing)
    Config(registries=(one,), compensation_handlers={"do.a": nothing}, step_handlers={"undo.a": nothing})


def test_a_handler_needs_a_name() -> None:
    with pytest.raises(HandlerError, match="needs a name"):
        Registry().action("")(nothing)
    with pytest.raises(HandlerError, match="needs a name"):
        Config(step_handlers={"": nothing})


def test_an_action_has_one_compensation() -> None:
    action = Registry().action("do.a")(nothing)
    action.compensation("undo.a")(nothing)
    with pytest.raises(HandlerError, match=r"Action 'do.a' has a compensation already: 'undo.a'"):
        action.compensation("undo.b")


# The registry ------------------------------------------------------------------------------------------------------


async def test_a_step_is_made_from_its_action(world: World) -> None:
    shop = Registry()

    @shop.action("goods.reserve")
    async def reserve(saga: Saga, step: Step[Units]) -> dict[str, object]:
        """Put goods aside."""
        return {"of": step.input.product}

    @reserve.compensation("goods.release")
    async def release(saga: Saga, step: Step[Units]) -> None:
        world.calls.append(f"release {step.input.quantity} of {step.output['of']}")

    @shop.action("fail")
    async def fail(saga: Saga, step: Step) -> None:
        raise StepError("no", "no")

    plan: list[Step[Any]] = [
        reserve.step(Units("p", 1)),
        reserve.step(Units("q", 2), name="more"),
        fail.step(),
    ]
    assert [(step.name, step.action, step.compensation) for step in plan] == [
        ("reserve", "goods.reserve", "goods.release"),
        ("more", "goods.reserve", "goods.release"),
        ("fail", "fail", None),
    ]
    assert plan[0].input == Units("p", 1)
    assert plan[2].input == {}
    assert reserve.__doc__ == "Put goods aside."
    async with world.running(registries=(shop,)) as manager:
        saga = await manager.wait((await manager.start("s", plan)).id)
    assert saga.is_compensated
    assert world.calls == ["release 2 of q", "release 1 of p"]


async def test_an_action_can_be_called_as_the_function_that_it_is(world: World) -> None:
    @Registry().action("double")
    async def double(saga: Saga, step: Step[Amount]) -> dict[str, object]:
        return {"amount": step.input.amount * 2}

    async with world.running() as manager:
        saga = await manager.start("s", steps("a"))
    assert await double(saga, double.step(Amount(2))) == {"amount": 4}


def test_two_steps_of_one_action_do_not_share_their_inputs() -> None:
    action = Registry().action("do.a")(nothing)
    one, two = action.step(), action.step(name="two")
    one.input["changed"] = True
    assert two.input == {}


# Failures as data --------------------------------------------------------------------------------------------------


def test_a_step_error_says_what_it_is() -> None:
    failure = failure_of(StepError("declined", "no money", retryable=True, details={"limit": 10}))
    assert (failure.code, failure.message, failure.retryable) == ("declined", "no money", True)
    assert bytes(failure.details) == b'{"limit":10}'


def test_details_that_cannot_be_kept_do_not_hide_the_error() -> None:
    failure = failure_of(StepError("declined", "no money", details={"socket": object()}))
    assert failure.code == "declined"
    assert failure.message.startswith("no money (The details of the error cannot be written as JSON")
    assert bytes(failure.details) == b"{}"


def test_whatever_is_raised_becomes_bounded_valid_text() -> None:
    assert failure_of(ValueError("\ud800")).message == "?"
    assert len(failure_of(ValueError("x" * 100_000)).message) == 4_000
    assert failure_of(StepError(17, None)).code == "17"  # type: ignore[arg-type]
    assert failure_of(ValueError()).message == ""


def test_a_group_of_one_is_what_it_holds() -> None:
    group = ExceptionGroup("", [ExceptionGroup("", [StepError("declined", "no money")])])
    assert failure_of(group) == failure_of(StepError("declined", "no money"))


def test_a_group_of_several_tells_them_all() -> None:
    failure = failure_of(ExceptionGroup("both", [ValueError("one"), StepError("two", "2")]))
    assert (failure.code, failure.message) == ("ExceptionGroup", "ValueError: one; StepError: two: 2")
    assert failure.retryable
