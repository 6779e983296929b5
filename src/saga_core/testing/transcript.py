"""Transcripts: what happens to a saga, and what it answers, as text that people can read and `play` can compute anew.

A transcript opens with comments and a definition (see `definitions`). Then come inputs, lines that begin with `>`,
each followed by what it changes and by the commands that it brings about, further in:

    > fail charge declined
      saga: compensating
      charge: failed (declined)
      reserve: compensating #1
      -> undo reserve #1

Inputs are `start`, the outcomes of attempts (`succeed`, `skip`, `defer`, `fail … [retryable]`, `lose …`, each followed
by a step, or by `undo` and a step for its compensation), `time 12.5`, and what people ask for: `compensate`, `cancel`,
`retry`, `suspend`, `resume`, `resolve a completed`, `ask to skip a`, with `by …` and `because …` after it. `#2` after a
step names an attempt; else the latest is meant. `at 12.5 …` lets a message come at that moment, timers being late.
With children there are `start child a`, `compensate child a` and `report a`, for the commands about them being
carried out, and `in a: …`, for what happens to the child of step a.
"""

from collections.abc import Iterator

from saga_core.commands import Command, Compensate, CompensateChild, Execute, Report, StartChild
from saga_core.errors import SagaError
from saga_core.machine import new_saga, outstanding, wake_at
from saga_core.model import PENDING, Progress, Saga
from saga_core.states import StepState
from saga_core.testing.definitions import TranscriptError, number_text, quoted, read_definition
from saga_core.testing.inputs import read_happening
from saga_core.testing.world import SAGA_ID, Happening, World, happen, without_jitter


def play(text: str) -> str:
    """Return a transcript with its outputs computed anew: unchanged, if it tells the truth.

    Raises: TranscriptError for what cannot be read; DefinitionError; UnknownStepError.
    """
    lines = text.splitlines()
    inputs = [place for place, line in enumerate(lines) if line.startswith(">")]
    opening = lines[: inputs[0]] if inputs else lines
    definition = [
        (place, line) for place, line in enumerate(opening, 1) if line.strip() and not line.startswith("#")
    ]
    defined = read_definition(definition)
    played = list(opening)
    world: World | None = None
    for place in inputs:
        line = lines[place]
        words = line[1:].strip()
        played.append(line)
        if world is None:
            if words != "start":
                raise TranscriptError(f"Line {place + 1}: the first input must be “start”: {line}")
            saga = new_saga(
                defined.name,
                without_jitter(defined.steps),
                defined.context,
                id=SAGA_ID,
                at=0.0,
                options=defined.options,
            )
            world = World(0.0, (saga,))
            played += _begun(saga)
        else:
            try:
                happening = read_happening(world, words)
            except (SagaError, LookupError, ValueError) as error:
                raise TranscriptError(f"Line {place + 1}: {error}: {line}") from error
            world, outputs = _let_happen(world, happening)
            played += outputs
        played += _kept(lines[place + 1 :])
    return "\n".join(played) + "\n"


def _let_happen(world: World, happening: Happening) -> tuple[World, list[str]]:
    """Let something happen, and return the world after it with what there is to say."""
    result = happen(world, happening)
    if result.before is None or result.answer is None:
        child = next(saga for saga in result.world.sagas if saga.id == happening.what.child)  # type: ignore[union-attr]
        if world.saga(child.id) is not None:
            return world, ["  ignored: the child has been started"]
        return result.world, _within(child, _begun(child))
    before, answer = result.before, result.answer
    if answer.ignored is not None:
        why = answer.ignored.replace(f"saga {before.id}: ", "").replace(f"saga {before.id}", "the saga")
        outputs = [f"  ignored: {why}"]
    else:
        outputs = [*_changed(before, answer.saga), *(f"  -> {command_text(one)}" for one in answer.commands)]
    return result.world, outputs if before.id == happening.saga else _within(before, outputs)


def _within(child: Saga, outputs: list[str]) -> list[str]:
    """Say that it is a child which a command to its parent has changed."""
    assert child.plan.parent is not None
    return [f"  in {quoted(child.plan.parent.step)}:", *(f"  {line}" for line in outputs)]


def _begun(saga: Saga) -> list[str]:
    lines = [f"  saga: {saga_text(saga)}"]
    lines += [
        f"  {quoted(step.name)}: {step_text(record)}"
        for step, record in zip(saga.plan.steps, saga.records(), strict=True)
        if step_text(record) != step_text(PENDING)
    ]
    if (wake := wake_at(saga)) is not None:
        lines.append(f"  wakes at {number_text(wake)}")
    return [*lines, *(f"  -> {command_text(command)}" for command in outstanding(saga))]


def _changed(before: Saga, after: Saga) -> Iterator[str]:
    if saga_text(before) != saga_text(after):
        yield f"  saga: {saga_text(after)}"
    for step, old, new in zip(after.plan.steps, before.records(), after.records(), strict=True):
        if step_text(new) != step_text(old):
            yield f"  {quoted(step.name)}: {step_text(new)}"
    wake = wake_at(after)
    if wake is not None and wake != wake_at(before):
        yield f"  wakes at {number_text(wake)}"


def saga_text(saga: Saga) -> str:
    """Return how a saga stands, in a few words."""
    return f"{saga.state}, suspended" if saga.suspended else str(saga.state)


def step_text(record: Progress) -> str:
    """Return how a step stands, in a few words."""
    words: list[str] = [str(record.state)]
    number = record.attempt if record.state is StepState.STARTED else record.compensation_attempt
    if record.state in (StepState.STARTED, StepState.COMPENSATING):
        if record.waiting:
            assert record.until is not None
            words.append(f", waits until {number_text(record.until)} for attempt {number}")
        else:
            words.append(f" #{number}{', deferred' if record.deferred else ''}")
            if record.until is not None:
                words.append(f", times out at {number_text(record.until)}")
    elif record.state is StepState.FAILED:
        code = record.error.code if record.error is not None else "unknown"
        words.append(f"{' to be undone' if record.compensation_attempt else ''} ({code})")
    if record.unknown and record.state in (StepState.FAILED, StepState.SKIPPED):
        words.append(", outcome unknown")
    if record.skip:
        words.append(", to be skipped")
    return "".join(words)


def command_text(command: Command) -> str:
    """Return a command in a few words."""
    words = {
        Execute: "execute",
        Compensate: "undo",
        StartChild: "start child",
        CompensateChild: "compensate child",
        Report: "report",
    }[type(command)]
    state = f" {command.state}" if isinstance(command, Report) else ""
    return f"{words} {quoted(command.step)} #{command.attempt}{state}"


def _kept(following: list[str]) -> Iterator[str]:
    """Go through the comments and empty lines up to the next input."""
    for line in following:
        if line.startswith(">"):
            return
        if not line.startswith(" "):
            yield line
