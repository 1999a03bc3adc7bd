"""A client object per call on one pool: the clients share everything behind it."""

import asyncio
import gc

import pytest
import redis.asyncio as driver

from resilient_io import RetryPolicy
from resilient_io.redis import ConnectionSettings, RedisClosed, ResilientRedis


@pytest.fixture
async def pool(redis_server):
    async with driver.ConnectionPool(port=redis_server.port) as pool:
        yield pool


async def received(server):
    text = (await server.query("INFO", "stats")).decode()
    return int(text.partition("total_connections_received:")[2].split()[0])


async def test_a_client_per_call_opens_no_connection(redis_server, pool, until_complete):
    first = ResilientRedis(connection_pool=pool)
    await first.set("k", "v")
    await first.blpop("nothing", timeout=0.01)
    await until_complete(first)
    before = await received(redis_server)

    async def call(number):
        async with ResilientRedis(connection_pool=pool) as client:
            assert client.health is first.health
            assert await client.get("k") == b"v"
        assert await ResilientRedis(connection_pool=pool).get("k") == b"v"
        if number % 10 == 0:
            await ResilientRedis(connection_pool=pool).blpop("nothing", timeout=0.01)
            pipe = ResilientRedis(connection_pool=pool).pipeline()
            assert await pipe.get("k").execute() == [b"v"]

    for number in range(50):
        await call(number)
    await asyncio.gather(*(call(1) for _ in range(50)))
    opened = await received(redis_server) - before
    assert opened <= 2  # those of this test's own queries
    assert await first.get("k") == b"v"


async def test_a_pool_without_clients_keeps_its_connections_for_the_next_one(
    redis_server, pool, until_complete
):
    async with ResilientRedis(connection_pool=pool) as client:
        await client.ping()
        await until_complete(client)
    del client
    gc.collect()
    before = await received(redis_server)
    async with ResilientRedis(connection_pool=pool) as client:
        await client.ping()
    assert await received(redis_server) - before <= 1


async def test_closing_the_pool_closes_the_connections(redis_server):
    tasks = len(asyncio.all_tasks())
    pool = driver.ConnectionPool(port=redis_server.port)
    client = ResilientRedis(connection_pool=pool)
    waiting = asyncio.create_task(client.blpop("nothing", 30))
    await client.ping()
    await asyncio.sleep(0.05)
    await pool.aclose()
    with pytest.raises(RedisClosed):
        await waiting
    assert len(asyncio.all_tasks()) == tasks
    assert await client.ping()  # as with redis-py
    await asyncio.gather(pool.aclose(), client.aclose(close_connection_pool=True))
    assert len(asyncio.all_tasks()) == tasks


async def test_the_owner_of_a_pool_closes_it_for_the_others(redis_server):
    owner = ResilientRedis.from_url(redis_server.url)
    other = ResilientRedis(connection_pool=owner.connection_pool)
    await asyncio.gather(owner.ping(), other.ping())
    assert owner._runtime is other._runtime
    await owner.aclose()
    assert other.stats().connections == 0
    assert await other.ping()
    await owner.aclose()


async def test_clients_with_other_options_have_connections_of_their_own(pool):
    client = ResilientRedis(connection_pool=pool)
    same = ResilientRedis(connection_pool=pool, policy=None)
    assert same._runtime is client._runtime
    for options in (
        {"policy": RetryPolicy(attempts=1)},
        {"connections": ConnectionSettings(count=1)},
        {"name": "jobs"},
        {"single_connection_client": True},
    ):
        other = ResilientRedis(connection_pool=pool, **options)
        assert other._runtime is not client._runtime
        again = ResilientRedis(connection_pool=pool, **options)
        assert (again._runtime is other._runtime) == (not other.single_connection_client)


async def test_a_close_does_not_end_the_calls_of_other_clients(pool):
    client, other = (ResilientRedis(connection_pool=pool) for _ in range(2))
    waiting = asyncio.create_task(client.blpop("list", 5))
    await other.ping()
    await other.aclose()
    async with ResilientRedis(connection_pool=pool) as third:
        await third.rpush("list", "x")
    assert await waiting == (b"list", b"x")


def test_a_pool_in_two_running_loops_has_connections_in_each(_server_of_session):
    pool = driver.ConnectionPool(port=_server_of_session.port)

    async def main():
        client = ResilientRedis(connection_pool=pool)
        assert await client.ping()

        async def other():
            async with ResilientRedis(connection_pool=pool) as client:
                assert await client.ping()
                await client.aclose(close_connection_pool=True)

        await asyncio.to_thread(asyncio.run, other())
        assert await client.ping()
        await client.aclose(close_connection_pool=True)

    asyncio.run(main())
    asyncio.run(main())
