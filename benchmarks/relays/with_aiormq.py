"""aiormq on its own: as everybody uses it, and as fast as it could be made to go (asyncio only)."""

import asyncio

import aiormq
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic

from benchmarks.relays.course import BODY, LINGER, TYPE, Acknowledger, Course


async def _publish(channel: AbstractChannel, queue: str, message_id: str, body: bytes, *, wait: bool) -> None:
    assert isinstance(channel, Channel)  # whose `basic_publish` knows `wait`, other than the abstract one's
    properties = Basic.Properties(
        content_type="application/json", delivery_mode=2, message_id=message_id, message_type=TYPE
    )
    await channel.basic_publish(body, routing_key=queue, properties=properties, mandatory=True, wait=wait)


async def usual(url: str, queue: str, course: Course, prefetch: int) -> None:
    """Run the course the way of aiormq's documentation: wait for each publish, acknowledge each message."""
    finished = asyncio.Event()
    course.finished = finished.set
    async with aiormq.connect(url) as connection:
        channel = await connection.channel()
        await channel.basic_qos(prefetch_count=prefetch)

        async def on_message(message: DeliveredMessage) -> None:  # aiormq starts a task for it
            following = course.received(message.header.properties.message_id or "", message.body)
            if following is not None:
                await _publish(channel, queue, following, message.body, wait=True)
                course.confirmed()
            await channel.basic_ack(message.delivery_tag or 0)
            course.acknowledged()

        async def seed(message_id: str) -> None:
            await _publish(channel, queue, message_id, BODY, wait=True)
            course.seeded()

        await channel.basic_consume(queue, on_message)
        await asyncio.gather(*(seed(message_id) for message_id in course.seeds()))
        await finished.wait()
        await asyncio.sleep(LINGER)


class Tuned(aiormq.Connection):
    """A connection whose queue of outgoing frames hardly ever makes a publisher wait (the default is 10)."""

    FRAME_BUFFER_SIZE = 1000


async def best(url: str, queue: str, course: Course, prefetch: int) -> None:
    """Run the course with every knob turned that was found to help.

    Nothing waits for the socket to drain (`wait=False`), acknowledgements are sent together
    (`multiple=True`), the frame buffers are long, and publishing has a connection of its own. What was tried
    and did not help: 2, 4 and 16 publishing channels, buffers of 100 and of 10,000 frames.
    """
    finished = asyncio.Event()
    course.finished = finished.set
    async with Tuned(url) as incoming, Tuned(url) as outgoing:
        consumer = await incoming.channel(publisher_confirms=False, frame_buffer_size=1000)
        publisher = await outgoing.channel(frame_buffer_size=1000)
        await consumer.basic_qos(prefetch_count=prefetch)
        background: set[asyncio.Future[None]] = set()

        def send_ack(tag: int) -> None:
            task = asyncio.ensure_future(consumer.basic_ack(tag, multiple=True, wait=False))
            background.add(task)
            task.add_done_callback(background.discard)

        acknowledger = Acknowledger(send_ack, course)
        flushing = False

        def flush() -> None:
            nonlocal flushing
            flushing = False
            acknowledger.flush()

        def done(tag: int) -> None:
            nonlocal flushing
            acknowledger.add(tag)
            if not flushing:  # once per turn of the loop
                flushing = True
                asyncio.get_running_loop().call_soon(flush)

        async def on_message(message: DeliveredMessage) -> None:  # aiormq starts a task for it
            following = course.received(message.header.properties.message_id or "", message.body)
            if following is not None:
                await _publish(publisher, queue, following, message.body, wait=False)
                course.confirmed()
            done(message.delivery_tag or 0)

        async def seed(message_id: str) -> None:
            await _publish(publisher, queue, message_id, BODY, wait=False)
            course.seeded()

        await consumer.basic_consume(queue, on_message)
        await asyncio.gather(*(seed(message_id) for message_id in course.seeds()))
        await finished.wait()
        await asyncio.sleep(LINGER)
