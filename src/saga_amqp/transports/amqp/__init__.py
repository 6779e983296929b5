"""RabbitMQ: AnyIO owns the socket, aiormq the conversation, `frames` the four frames that have to be fast."""

from saga_amqp.transports.amqp.transport import AmqpTransport

__all__ = ["AmqpTransport"]
