"""Acts: runs sagas on RabbitMQ, in the task groups of an asyncio or trio program."""

from saga_amqp.config import Config
from saga_amqp.contracts import Page, Query
from saga_amqp.errors import (
    AuthenticationError,
    ConflictError,
    ConnectFailedError,
    ConnectionLostError,
    ConsumerCancelledError,
    FrameError,
    ManagerError,
    PublishError,
    RefusedError,
    SagaExistsError,
    SagaNotFoundError,
    SchemaError,
    StoreError,
    StoreUnavailableError,
    TopologyError,
    TransportClosedError,
    TransportError,
    UnroutableError,
    VirtualHostError,
)
from saga_amqp.handlers import Action, CompensationHandler, Registry, StepHandler
from saga_amqp.manager import Manager
from saga_amqp.observer import Moment, Observer, Point
from saga_amqp.retention import purge, read_archived
from saga_amqp.stores.memory import MemoryStore
from saga_amqp.stores.reference import ReferenceStore
from saga_amqp.stores.sqlite import SQLiteStore
from saga_amqp.transports.amqp import AmqpTransport
from saga_amqp.transports.memory import MemoryBroker, MemoryTransport
from saga_core import (
    ChildSaga,
    Defer,
    HandlerError,
    Options,
    RetryPolicy,
    Saga,
    SagaError,
    SagaState,
    Skip,
    Step,
    StepError,
    StepState,
    when,
)

__all__ = [
    "Action",
    "AmqpTransport",
    "AuthenticationError",
    "ChildSaga",
    "CompensationHandler",
    "Config",
    "ConflictError",
    "ConnectFailedError",
    "ConnectionLostError",
    "ConsumerCancelledError",
    "Defer",
    "FrameError",
    "HandlerError",
    "Manager",
    "ManagerError",
    "MemoryBroker",
    "MemoryStore",
    "MemoryTransport",
    "Moment",
    "Observer",
    "Options",
    "Page",
    "Point",
    "PublishError",
    "Query",
    "ReferenceStore",
    "RefusedError",
    "Registry",
    "RetryPolicy",
    "SQLiteStore",
    "Saga",
    "SagaError",
    "SagaExistsError",
    "SagaNotFoundError",
    "SagaState",
    "SchemaError",
    "Skip",
    "Step",
    "StepError",
    "StepHandler",
    "StepState",
    "StoreError",
    "StoreUnavailableError",
    "TopologyError",
    "TransportClosedError",
    "TransportError",
    "UnroutableError",
    "VirtualHostError",
    "purge",
    "read_archived",
    "when",
]
