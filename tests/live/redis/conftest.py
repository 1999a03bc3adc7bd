"""The client that most tests use, and waiting for its connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from resilient_io.redis import ResilientRedis
from resilient_io.testing import RedisServer


@pytest.fixture
async def client(shared_redis: RedisServer) -> AsyncIterator[ResilientRedis]:
    """Open a client of the shared server, with the default options."""
    async with ResilientRedis(port=shared_redis.port) as client:
        await client.ping()
        yield client


async def _until_complete(*clients: ResilientRedis) -> None:
    async with asyncio.timeout(10):
        for client in clients:
            while None in client._runtime.multiplexer._slots:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.005)


@pytest.fixture
def until_complete() -> Callable[..., Awaitable[None]]:
    """Return a function that waits until clients have opened all shared connections."""
    return _until_complete
