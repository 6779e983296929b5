"""Every shipped store passes the suite that users have for their own."""

import pytest

from saga_amqp import MemoryStore
from saga_amqp.testing.stores import CASES, Case, run_case

STORES = {"memory": MemoryStore}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("store", STORES)
async def test_store(store: str, case: Case) -> None:
    await run_case(case, STORES[store]())
