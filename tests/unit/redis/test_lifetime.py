"""Calls that open a client again while it closes, and just after it has closed."""

import asyncio

import pytest

from resilient_io.redis import RedisClosed
from resilient_io.redis.lifetime import Lifetime


async def test_calls_continue_in_order_after_a_close():
    lifetime, order, tasks = Lifetime("ResilientRedis", "redis"), [], []

    async def call(number):
        await lifetime.until_closed()
        order.append(number)

    async def close():
        await asyncio.sleep(0.1)
        lifetime.end()
        # It runs before the calls that have waited for the close.
        tasks.append(asyncio.create_task(call(3)))

    lifetime.begin()
    lifetime.close_with(close(), "test")
    tasks += [asyncio.create_task(call(number)) for number in range(3)]
    await asyncio.sleep(0.05)
    tasks[1].cancel()
    await asyncio.sleep(0.1)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]
    assert not lifetime.running


async def test_later_close_ends_calls_that_open_again():
    lifetime = Lifetime("ResilientRedis", "redis")
    lifetime.begin()
    lifetime.close_with(asyncio.sleep(0.1), "test")
    opening = asyncio.create_task(lifetime.until_closed())
    await asyncio.sleep(0)
    lifetime.note_close()
    with pytest.raises(RedisClosed, match="closed again before it was open"):
        await opening
