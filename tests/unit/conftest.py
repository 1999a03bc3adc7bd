"""What all unit tests share."""

import asyncio

import pytest


@pytest.fixture(autouse=True)
async def _asyncio_debug() -> None:
    # Here only: debugging costs time, which the tests against real servers measure.
    asyncio.get_running_loop().set_debug(True)
