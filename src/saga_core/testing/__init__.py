"""A kit for tests of sagas: run them offline, explore all that can happen to them, replay what has happened."""

from saga_core.testing.explore import Exploration, TooManyStates, Violation, explore
from saga_core.testing.replay import Replay, replay
from saga_core.testing.simulate import Simulation, simulate, simulate_async

__all__ = [
    "Exploration",
    "Replay",
    "Simulation",
    "TooManyStates",
    "Violation",
    "explore",
    "replay",
    "simulate",
    "simulate_async",
]
