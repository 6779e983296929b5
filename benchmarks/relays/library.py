"""The transport of the library, used through its contract and nothing else."""

from functools import partial

import anyio

from benchmarks.relays.course import BODY, LINGER, TYPE, Course
from saga_amqp.contracts import Delivery, Message, Queue, Topology, Transport
from saga_amqp.errors import TransportError
from saga_amqp.transports.amqp.transport import AmqpTransport


async def relay(url: str, queue: str, course: Course, prefetch: int, *, task_per_message: bool) -> None:
    """Run the course with a task for each message, as the engine does, or with one task for all of them.

    `publish` has to be awaited, so a task there must be.
    """
    finished = anyio.Event()
    course.finished = finished.set
    transport: Transport
    async with AmqpTransport(url) as transport, anyio.create_task_group() as tasks:
        await transport.declare(Topology(exchanges=(), queues=(Queue(queue),)))
        arrived: list[Delivery] = []
        wake = anyio.Event()

        def settled(delivery: Delivery, error: TransportError | None) -> None:
            if error is not None:
                raise error
            course.confirmed()
            delivery.acknowledge()
            course.acknowledged()

        def seeded(error: TransportError | None) -> None:
            if error is not None:
                raise error
            course.seeded()

        async def hop(delivery: Delivery) -> None:
            body = delivery.body
            following = course.received(delivery.message_id, body)
            if following is None:
                delivery.acknowledge()
                course.acknowledged()
            else:
                await transport.publish(Message("", queue, body, following, TYPE), partial(settled, delivery))

        def start(delivery: Delivery) -> None:
            tasks.start_soon(hop, delivery)

        def collect(delivery: Delivery) -> None:
            if not arrived:
                wake.set()
            arrived.append(delivery)

        async def one_task() -> None:
            nonlocal arrived, wake
            while True:
                await wake.wait()
                deliveries, arrived, wake = arrived, [], anyio.Event()
                for delivery in deliveries:
                    await hop(delivery)

        if not task_per_message:
            tasks.start_soon(one_task)
        receive = start if task_per_message else collect
        async with transport.consume(queue, prefetch, receive):
            for seed in course.seeds():
                await transport.publish(Message("", queue, BODY, seed, TYPE), seeded)
            await finished.wait()
            await anyio.sleep(LINGER)
        tasks.cancel_scope.cancel()
