"""Large values, alone and among small ones: they come back as they were stored."""

import asyncio
import contextlib
import os
import tracemalloc

import pytest

from resilient_io.redis import ResilientRedis
from resilient_io.testing import RedisServer

pytestmark = pytest.mark.versions

SIZES = (0, 1000, 65_535, 65_536, 70_000, 300_000, 1_048_576, 3_000_000)


@pytest.mark.parametrize("tls", [False, True])
async def test_large_and_small_values_of_many_callers_come_back_unchanged(shared_redis, tls):
    async def caller(number):
        for size in SIZES:
            value = os.urandom(size)
            assert await client.set(f"large:{number}", value)
            assert await client.get(f"large:{number}") == value
            assert await client.incr(f"large:count:{number}") > 0
            assert await client.mget(f"large:{number}", "large:none") == [value, None]
        await client.delete(f"large:{number}", f"large:count:{number}")

    async with contextlib.AsyncExitStack() as stack:
        if tls:
            url = (await stack.enter_async_context(RedisServer(tls=True))).tls_url
        else:
            url = shared_redis.url
        client = await stack.enter_async_context(ResilientRedis.from_url(url))
        await asyncio.gather(*map(caller, range(4)))
        assert client.health.state == "up"
        assert client.stats().connections <= 2


async def test_values_of_every_type_are_packed_as_redis_py_packs_them(client):
    text = "é" * 100_000
    for value in (text, text.encode(), bytearray(text.encode()), memoryview(text.encode())):
        await client.set("large:typed", value, ex=60)
        assert await client.get("large:typed") == text.encode()
    await client.hset("large:hash", mapping={"a": text, "number": 7, "share": 0.5})
    assert await client.hgetall("large:hash") == {
        b"a": text.encode(),
        b"number": b"7",
        b"share": b"0.5",
    }
    await client.delete("large:typed", "large:hash")


@pytest.mark.parametrize("transaction", [False, True])
async def test_large_values_in_pipelines_come_back_in_their_places(shared_redis, transaction):
    text = "v" * 200_000
    async with ResilientRedis(port=shared_redis.port, decode_responses=True) as client:
        pipeline = client.pipeline(transaction=transaction)
        pipeline.set("large:piped", text).get("large:piped").strlen("large:piped")
        pipeline.get("large:none").get("large:piped").delete("large:piped")
        assert await pipeline.execute() == [True, text, 200_000, None, text, 1]


async def test_large_value_is_in_memory_once_while_it_is_read(client):
    size = 8_000_000
    value = os.urandom(size)
    await client.set("large:once", value)
    tracemalloc.start()
    assert await client.get("large:once") == value
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size <= peak < 1.2 * size
    await client.delete("large:once")


async def test_value_whose_caller_gives_up_is_read_to_its_end(client):
    value = os.urandom(3_000_000)
    await client.set("large:given up", value)
    for _ in range(5):
        reading = asyncio.create_task(client.get("large:given up"))
        await asyncio.sleep(0.001)
        reading.cancel()
        await asyncio.wait([reading])
        assert await client.get("large:given up") == value
    assert client.stats().connections <= 2
    await client.delete("large:given up")
