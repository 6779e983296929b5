"""A world in a seed: the shipped engine, a broker, a store and their users in one process, on virtual time."""

from saga_amqp.testing.world.faults import Fault
from saga_amqp.testing.world.run import Outcome, run_world
from saga_amqp.testing.world.world import Load, World

__all__ = ["Fault", "Load", "Outcome", "World", "run_world"]
