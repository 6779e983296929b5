"""Acts: runs sagas on RabbitMQ, in the task groups of an asyncio or trio program."""

from saga_amqp.config import Config
from saga_amqp.errors import (
    AuthenticationError,
    ConflictError,
    ConnectFailedError,
    ConnectionLostError,
    ConsumerCancelledError,
    FrameError,
    HandlerError,
    ManagerError,
    PublishError,
    SagaExistsError,
    SagaNotFoundError,
    StoreError,
    TopologyError,
    TransportClosedError,
    TransportError,
    UnroutableError,
    VirtualHostError,
)
from saga_amqp.handlers import Action, CompensationHandler, Registry, StepHandler
from saga_amqp.manager import Manager
from saga_amqp.observer import Moment, Observer, Point
from saga_amqp.stores.memory import MemoryStore
from saga_amqp.transports.amqp import AmqpTransport
from saga_amqp.transports.memory import MemoryBroker, MemoryTransport
from saga_core import Saga, SagaError, SagaState, Step, StepError, StepState

__all__ = [
    "Action",
    "AmqpTransport",
    "AuthenticationError",
    "CompensationHandler",
    "Config",
    "ConflictError",
    "ConnectFailedError",
    "ConnectionLostError",
    "ConsumerCancelledError",
    "FrameError",
    "HandlerError",
    "Manager",
    "ManagerError",
    "MemoryBroker",
    "MemoryStore",
    "MemoryTransport",
    "Moment",
    "Observer",
    "Point",
    "PublishError",
    "Registry",
    "Saga",
    "SagaError",
    "SagaExistsError",
    "SagaNotFoundError",
    "SagaState",
    "Step",
    "StepError",
    "StepHandler",
    "StepState",
    "StoreError",
    "TopologyError",
    "TransportClosedError",
    "TransportError",
    "UnroutableError",
    "VirtualHostError",
]
