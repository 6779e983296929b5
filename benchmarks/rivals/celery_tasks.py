"""The order as three tasks of Celery, over the broker that the environment names.

There is no result backend, which would only add messages: the last task tells the client's socket that it has run.
"""

import os
import socket

from celery import Celery
from kombu import Queue

BROKER, QUEUE, PORT = (os.environ.get(f"BENCH_CELERY_{name}", "") for name in ("BROKER", "QUEUE", "PORT"))

app = Celery("bench", broker=BROKER or "memory://")
app.conf.update(
    task_default_queue=QUEUE or "bench",
    task_queues=[
        Queue(QUEUE or "bench", durable=True, queue_arguments={"x-queue-type": "quorum", "x-expires": 60_000})
    ],
    task_default_delivery_mode="persistent",
    task_ignore_result=True,
    task_acks_late=True,
    worker_detect_quorum_queues=True,
    worker_prefetch_multiplier=16,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)
told = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


@app.task
def create(product: str) -> dict[str, str]:
    return {"order_id": product}


@app.task
def reserve(order: dict[str, str], quantity: int) -> dict[str, object]:
    return {**order, "reserved": quantity}


@app.task
def charge(order: dict[str, object], amount: float, saga: str) -> dict[str, object]:
    told.sendto(saga.encode(), ("127.0.0.1", int(PORT)))
    return {**order, "charged": amount}
