"""Connections without a real transport, such as those of fakeredis, serve as a server for tests."""

import asyncio
from types import SimpleNamespace

import pytest
import redis.asyncio as driver
from fakeredis import FakeAsyncRedis, FakeServer
from fakeredis.aioredis import FakeAsyncRedisConnection

from resilient_io.redis import ResilientRedis
from resilient_io.redis.driver_connection import abort, is_lost, is_multiplexable


def fake_connection():
    """Return a connection like fakeredis 2.41's, whose transport cannot be taken over."""
    closed = []
    transport = SimpleNamespace(get_extra_info=lambda name: None)
    writer = SimpleNamespace(transport=transport, close=lambda: closed.append(True))
    return SimpleNamespace(_writer=writer, _reader=object(), is_connected=True), closed


def test_a_connection_without_a_transport_is_not_multiplexable_and_can_be_closed():
    connection, closed = fake_connection()
    assert not is_multiplexable(connection)
    assert not is_lost(connection)
    abort(connection)
    assert closed == [True]
    assert connection._writer is connection._reader is None
    abort(connection)
    assert closed == [True]


async def test_fakeredis_serves_all_kinds_of_calls():
    pool = driver.ConnectionPool(
        connection_class=FakeAsyncRedisConnection,
        server=FakeServer(),
        decode_responses=True,
    )
    async with asyncio.timeout(10), ResilientRedis.from_pool(pool) as client:
        await client.health.until_up(5)
        assert await client.set("key", "value")
        assert await client.get("key") == "value"
        assert await client.pipeline().incr("n").incr("n").execute() == [1, 2]
        assert await client.blpop("list", timeout=0.01) is None
        async with client.pipeline() as pipe:
            await pipe.watch("n")
            pipe.multi()
            assert await pipe.incr("n").execute() == [3]
        assert await client.lock("lock", timeout=5).acquire(blocking=False)
        with pytest.raises(driver.ResponseError, match="WRONGTYPE"):
            await client.lpush("key", 1)
        assert client.liveness_failure() is None


async def test_the_pool_of_a_fake_client_is_served_without_a_name_lookup():
    fake = FakeAsyncRedis()  # its host is a random name
    async with asyncio.timeout(3), ResilientRedis.from_pool(fake.connection_pool) as client:
        assert await client.set("key", "value")
        assert await client.blpop("list", timeout=0.01) is None
    assert await fake.get("key") == b"value"
    await fake.aclose()
