"""Every shipped store passes the suite that users have for their own."""

import pytest

from saga_amqp.contracts import Store
from saga_amqp.testing.stores import CASES, Case, run_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_store(store: Store, case: Case) -> None:
    await run_case(case, store)
