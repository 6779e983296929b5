"""How much is taken from each queue of RabbitMQ at once, and that none of the queues waits for another."""

from tests.engine.test_flow import compensate_while_all_hands_for_steps_are_busy, work_with_a_slow_store

from .world import RabbitWorld


async def test_compensations_are_handled_while_all_hands_for_steps_are_busy(rabbit: RabbitWorld) -> None:
    await compensate_while_all_hands_for_steps_are_busy(rabbit)
    await rabbit.until_ready()


async def test_a_slow_store_leaves_the_messages_with_the_broker(rabbit: RabbitWorld) -> None:
    await work_with_a_slow_store(rabbit)
    await rabbit.until_ready()
