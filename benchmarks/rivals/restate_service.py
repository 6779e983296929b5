"""The order as a service of Restate, three durable steps: an ASGI app, which Hypercorn serves."""

import restate

orders = restate.Service("orders")


async def create() -> dict[str, object]:
    return {"order_id": "prod-123"}


async def reserve() -> dict[str, object]:
    return {"reserved": 2}


async def charge() -> dict[str, object]:
    return {"charged": 99.99}


@orders.handler()
async def place(context: restate.Context, order: dict[str, object]) -> dict[str, object]:
    await context.run_typed("create", create)
    await context.run_typed("reserve", reserve)
    return await context.run_typed("charge", charge)


app = restate.app([orders])
