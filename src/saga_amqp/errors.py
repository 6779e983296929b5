"""What can go wrong outside the core: stores, transports, handlers, the manager's own life cycle."""

from saga_core.errors import SagaError, StepError


class StoreError(SagaError):
    """A store could not do what it was asked."""


class SagaNotFoundError(StoreError):
    """No saga with this id is in the store."""


class SagaExistsError(StoreError):
    """A saga with this id is in the store already."""


class ConflictError(StoreError):
    """Somebody else committed to this saga first: load it again and decide anew."""


class StoreUnavailableError(StoreError):
    """A store cannot be reached, or takes no writes now: locked, full, restarting. Trying again later may help."""


class SchemaError(StoreError):
    """The tables of a store are missing, or are those of another release: `saga db upgrade` makes them right."""


class TransportError(SagaError):
    """The broker, or the way to it, did not do what it was asked."""


class ConnectFailedError(TransportError):
    """No connection could be made: nobody answers at this address, or TLS failed."""


class AuthenticationError(ConnectFailedError):
    """The broker refused the user name or the password."""


class VirtualHostError(ConnectFailedError):
    """The virtual host does not exist, or this user may not use it."""


class ConnectionLostError(TransportError):
    """The connection to the broker ended. What was not acknowledged is delivered again."""


class ConsumerCancelledError(TransportError):
    """The broker ended a consumer. What was not acknowledged is delivered again."""


class QueueDeletedError(ConsumerCancelledError):
    """The broker ended a consumer because its queue was deleted, or went with its node. What was in it may be gone."""


class TopologyError(TransportError):
    """An exchange, queue or binding could not be declared as asked."""


class QueueNotFoundError(TransportError):
    """There is no queue of this name on the broker."""


class DeadLetterNotFoundError(TransportError):
    """There is no such dead letter: it is gone, or in somebody else's hands just now."""


class PublishError(TransportError):
    """A message was not taken by the broker."""


class UnroutableError(PublishError):
    """No queue is bound for a message's routing key."""


class FrameError(TransportError):
    """Bytes from the broker are not AMQP 0-9-1 as agreed."""


class TransportClosedError(TransportError):
    """The transport is not open: not entered yet, or closed already."""


class ManagerError(SagaError):
    """The manager is not in a state to do this: not open, running already, or closed."""


class RefusedError(SagaError):
    """A saga is in no state to do what was asked of it; the message says why."""


class UnsupportedConnectionError(SagaError):
    """This is no database connection that can be worked on: of an unknown driver, or to an unknown database."""


class NoTransactionError(SagaError):
    """A connection commits every statement by itself, and no transaction is open."""


class TransactionEndedError(SagaError):
    """Work under the barrier has ended the transaction that it was to be recorded in, so nobody knows what it did."""


class RefusedByBarrierError(StepError):
    """An action arrived after its compensation, and was not run."""
