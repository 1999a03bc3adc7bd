"""A failover behind a name or Sentinels, for clients that only use blocking commands."""

import asyncio
import socket

import pytest
import pytest_asyncio
import redis as driver
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from resilient_io.redis import ResilientRedis
from resilient_io.testing import RedisSentinel, RedisServer

NAME = "cache.example"


class OtherServer(RedisServer):
    """A server on another loopback address."""

    host = "127.0.0.2"


@pytest_asyncio.fixture
async def other_server(redis_server):
    async with OtherServer(port=redis_server.port) as server:
        yield server


@pytest_asyncio.fixture
async def addresses(monkeypatch):
    """Return the list of addresses of the name, to be changed by tests."""
    loop = asyncio.get_running_loop()
    real, addresses = loop.getaddrinfo, ["127.0.0.1"]

    async def look_up(host, port, **options):
        if host != NAME:
            return await real(host, port, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(loop, "getaddrinfo", look_up)
    return addresses


async def test_worker_that_only_pops_moves_to_the_new_master(
    addresses, redis_server, other_server, connect
):
    redis = await connect(f"redis://{NAME}:{redis_server.port}/0")
    assert await redis.blpop("list", 0.01) is None
    await redis_server.query("REPLICAOF", "127.0.0.2", other_server.port)
    addresses[:] = ["127.0.0.2"]
    await other_server.query("RPUSH", "list", "element")
    assert await redis.blpop("list", 1) == (b"list", b"element")
    assert await redis.blpop("list", 0.01) is None


async def test_one_of_two_addresses_that_is_demoted_is_left(
    addresses, redis_server, other_server, connect
):
    """The name keeps both addresses: the one that refuses writes is tried last."""
    addresses[:] = ["127.0.0.1", "127.0.0.2"]
    redis = await connect(f"redis://{NAME}:{redis_server.port}/0")
    assert await redis.blpop("list", 0.01) is None
    await redis_server.query("REPLICAOF", "127.0.0.2", other_server.port)
    await other_server.query("RPUSH", "list", "element")
    assert await redis.blpop("list", 1) == (b"list", b"element")
    assert await redis.incr("counter") == 1


async def test_search_for_another_master_backs_off(redis_server, connect, connections_made):
    """A worker on a server that stays read-only causes few connections, however often it calls."""
    redis = await connect(redis_server)
    await redis.blpop("list", 0.01)
    await redis_server.query("REPLICAOF", "127.0.0.1", 1)
    before = await connections_made(redis_server)
    until = asyncio.get_running_loop().time() + 2
    while asyncio.get_running_loop().time() < until:
        with pytest.raises(driver.RedisError):
            await redis.incr("counter")
    # Searches after 0, 0.1, 0.3, 0.7 and 1.5 s, jitter down to the half, on two connections.
    assert await connections_made(redis_server) - before <= 30


async def test_waiting_pop_continues_on_the_new_master(
    addresses, redis_server, other_server, connect, until_blocked
):
    redis = await connect(f"redis://{NAME}:{redis_server.port}/0")
    waiting = [asyncio.create_task(redis.blpop("list", 0)) for _ in range(5)]
    moving = asyncio.create_task(redis.blmove("from", "to", 0))
    await until_blocked(redis_server, 6)
    await redis_server.query("REPLICAOF", "127.0.0.2", other_server.port)
    # The name still leads to the old master for a while, longer than three attempts take.
    await asyncio.sleep(0.5)
    assert not any(task.done() for task in (*waiting, moving))
    addresses[:] = ["127.0.0.2"]
    await until_blocked(other_server, 6)
    await other_server.query("RPUSH", "list", *range(5))
    await other_server.query("RPUSH", "from", "moved")
    assert sorted(await asyncio.gather(*waiting)) == [(b"list", b"%d" % n) for n in range(5)]
    assert await moving == b"moved"


async def test_waiting_pop_fails_at_its_deadline_without_a_new_master(
    redis_server, connect, quick, until_blocked
):
    redis = await connect(redis_server, policy=quick)
    waiting = asyncio.create_task(redis.blpop("list", 0))
    await until_blocked(redis_server)
    await redis_server.query("REPLICAOF", "127.0.0.1", 1)
    began = asyncio.get_running_loop().time()
    with pytest.raises(driver.ReadOnlyError):
        await waiting
    assert asyncio.get_running_loop().time() - began > 0.4


async def test_unblock_by_an_operator_is_final(redis_server, connect, until_blocked):
    redis = await connect(redis_server)
    waiting = asyncio.create_task(redis.blpop("list", 0))
    await until_blocked(redis_server)
    listed = (await redis_server.query("CLIENT", "LIST")).decode()
    (blocked,) = [line for line in listed.splitlines() if " flags=b" in line]
    number = blocked.split()[0].removeprefix("id=")
    await redis_server.query("CLIENT", "UNBLOCK", number, "ERROR")
    with pytest.raises(driver.ResponseError, match="UNBLOCKED"):
        await waiting


@pytest.mark.parametrize("replica", [False, True], ids=["master", "replica"])
async def test_frozen_sentinel_delays_no_connection(redis_server, slack, replica):
    async with (
        RedisSentinel(redis_server) as frozen,
        RedisSentinel(redis_server) as second,
        RedisSentinel(redis_server) as third,
    ):
        frozen.freeze()
        sentinel = Sentinel([(each.host, each.port) for each in (frozen, second, third)])
        choose = sentinel.slave_for if replica else sentinel.master_for
        client = choose("mymaster", redis_class=ResilientRedis)
        began = asyncio.get_running_loop().time()
        async with client:
            assert await client.echo("hello") == b"hello"
            assert asyncio.get_running_loop().time() - began < 0.25 + slack()
            assert await client.blpop("list", 0.01) is None
        await sentinel.aclose()


async def test_unknown_master_and_dead_sentinels_are_named(redis_server, quick):
    async with RedisSentinel(redis_server) as known:
        sentinel = Sentinel([("127.0.0.1", 1), (known.host, known.port)])
        pool = SentinelConnectionPool("other", sentinel)
        client = ResilientRedis.from_pool(pool, policy=quick)
        async with client:
            with pytest.raises(driver.RedisError) as caught:
                await client.get("key")
            assert "no Sentinel knows a master 'other'" in str(caught.value)
            assert "127.0.0.1:1: connection refused" in str(caught.value)
        await sentinel.aclose()
