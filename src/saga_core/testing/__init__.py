"""A kit for tests of sagas: run them offline, explore all that can happen to them, replay what has happened."""

from saga_core.testing.definitions import TranscriptError
from saga_core.testing.explore import Exploration, TooManyStates, Violation, explore
from saga_core.testing.replay import Replay, replay
from saga_core.testing.simulate import (
    Call,
    Later,
    Lost,
    Never,
    Simulation,
    SimulationError,
    simulate,
    simulate_async,
)
from saga_core.testing.transcript import play

__all__ = [
    "Call",
    "Exploration",
    "Later",
    "Lost",
    "Never",
    "Replay",
    "Simulation",
    "SimulationError",
    "TooManyStates",
    "TranscriptError",
    "Violation",
    "explore",
    "play",
    "replay",
    "simulate",
    "simulate_async",
]
