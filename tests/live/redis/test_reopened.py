"""A call after `aclose()` opens the client again, as in redis-py, unless `reopen=False`."""

import asyncio

import pytest
import redis.asyncio as driver

from resilient_io import State
from resilient_io.redis import RedisClosed, ResilientRedis


async def watch(client):
    async with client.pipeline() as pipe:
        await pipe.watch("k")
        pipe.multi()
        return await pipe.set("k", 1).execute()


async def listen(client):
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("c")
        return await pubsub.get_message(timeout=1)


CALLS = {
    "get": lambda client: client.get("k"),
    "blpop": lambda client: client.blpop("nothing", timeout=0.01),
    "pipeline": lambda client: client.pipeline().set("k", 1).execute(),
    "watch": watch,
    "lock": lambda client: client.lock("lock", timeout=5).acquire(blocking=False),
    "view": lambda client: client.with_policy(attempts=1).get("k"),
    "pubsub": listen,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
async def test_any_kind_of_call_opens_a_closed_client(shared_redis, call):
    client = ResilientRedis(port=shared_redis.port)
    for _ in range(2):
        await client.ping()
        await client.aclose()
        await client.aclose()
    await call(client)
    await client.ping()
    assert client.health.state is State.UP
    assert client._hot
    await client.aclose()


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize("on_pool", [False, True])
async def test_reopen_false_refuses_every_call_until_it_is_entered(shared_redis, call, on_pool):
    client = ResilientRedis.from_url(shared_redis.url, reopen=False)
    other = None
    if on_pool:
        other, client = client, ResilientRedis(connection_pool=client.connection_pool, reopen=False)
        await other.ping()
    await client.ping()
    await client.aclose()
    with pytest.raises(RedisClosed, match="the client is closed"):
        await call(client)
    async with client:
        await call(client)
    if other is not None:
        await other.aclose()


async def test_calls_made_during_a_close_wait_for_it_and_open_the_client_again(shared_redis):
    client = ResilientRedis(port=shared_redis.port)
    await client.ping()
    earlier = asyncio.create_task(client.blpop("nothing", 30))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    calls = [asyncio.create_task(client.ping()) for _ in range(20)]
    with pytest.raises(RedisClosed):
        await earlier
    await closing
    assert await asyncio.gather(*calls) == [True] * 20
    assert client.stats().connections > 0
    await client.aclose()


async def test_a_second_close_counts_more_than_the_calls_that_wait_for_the_first(shared_redis):
    client = ResilientRedis(port=shared_redis.port)
    await client.ping()
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    calls = [asyncio.create_task(client.ping()) for _ in range(3)]
    await asyncio.sleep(0)
    await client.aclose()
    await closing
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in errors} == {RedisClosed}
    assert client.stats().connections == 0


async def test_a_call_made_after_the_close_of_a_pool_began_opens_the_client_again(shared_redis):
    pool = driver.ConnectionPool(port=shared_redis.port)
    client = ResilientRedis(connection_pool=pool)
    await client.ping()
    closing = asyncio.create_task(pool.aclose())
    later = [asyncio.create_task(client.incr("later")) for _ in range(3)]
    await closing
    assert await asyncio.gather(*later) == [1, 2, 3]
    await pool.aclose()


async def test_a_second_close_of_a_pool_waits_for_the_first(shared_redis):
    pool = driver.ConnectionPool(port=shared_redis.port)
    client = ResilientRedis(connection_pool=pool)
    await client.ping()
    first = asyncio.create_task(pool.aclose())
    await asyncio.sleep(0)
    calls = [asyncio.create_task(client.ping()) for _ in range(3)]
    await asyncio.sleep(0)
    await pool.aclose()
    assert client.stats().connections == 0
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in errors} == {RedisClosed}
    await first


async def test_owners_of_one_pool_are_closed_at_the_same_time(shared_redis):
    pool = driver.ConnectionPool(port=shared_redis.port)
    clients = [ResilientRedis.from_pool(pool), ResilientRedis.from_pool(pool)]
    assert clients[0].health is clients[1].health
    clients.append(ResilientRedis(connection_pool=pool, reopen=False))
    clients[2].auto_close_connection_pool = True  # as `from_pool` sets it
    await asyncio.gather(*[client.ping() for client in clients])
    async with asyncio.timeout(2):
        await asyncio.gather(pool.aclose(), *[client.aclose() for client in clients])
    assert [client.stats().connections for client in clients] == [0, 0, 0]


async def test_a_cancelled_start_does_not_open_a_client_that_is_being_closed(shared_redis):
    client = ResilientRedis(port=shared_redis.port, reopen=False)
    await client.ping()
    closing = asyncio.create_task(client.aclose())
    opening = asyncio.create_task(client.initialize())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([closing, opening])
    with pytest.raises(RedisClosed):
        await client.ping()


async def test_a_client_that_shares_its_health_is_reopened(shared_redis):
    owner = ResilientRedis(port=shared_redis.port)
    other = ResilientRedis(port=shared_redis.port, health=owner.health)
    await asyncio.gather(owner.ping(), other.ping())
    await asyncio.gather(owner.aclose(), other.aclose())
    assert await other.ping()
    assert owner.health.state is State.UP
    assert await owner.ping()
    await owner.aclose()
    assert await other.ping()
    await other.aclose()


async def test_a_reopened_client_in_use_does_not_lose_the_connections_of_its_pool(
    shared_redis, monkeypatch
):
    monkeypatch.setattr("resilient_io.redis.runtime._KEPT_UNUSED", 0.1)
    owner = ResilientRedis.from_url(shared_redis.url)
    client = ResilientRedis(connection_pool=owner.connection_pool)
    del owner
    await client.ping()
    await client.aclose()
    assert await client.blpop("nothing", timeout=0.3) is None
    assert client.stats().connections > 0
    await client.aclose(close_connection_pool=True)
