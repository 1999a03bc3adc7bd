"""Sentinels that are down, stale or wrong: the client continues with the master that it knows."""

import asyncio

import pytest
from redis.asyncio.sentinel import Sentinel

from resilient_io import Cause, DeadlineExceeded, State, deadline
from resilient_io.redis import ResilientRedis
from tests.live.redis.failover.fakes import FakeSentinel


async def until(condition, *, within=5.0):
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.01)


async def lose_connections(redis):
    """Reset the shared connections while nothing is in flight."""
    for connection in redis._runtime.multiplexer.connections:
        connection.transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.fixture
async def client_of(quick_setup):
    """Return a function that opens a client of any Sentinels."""
    opened = []

    async def client_of(*sentinels):
        sentinel = Sentinel([(each.host, each.port) for each in sentinels])
        redis = sentinel.master_for(quick_setup.name, redis_class=ResilientRedis)
        opened.extend((redis, sentinel))
        await redis.initialize()
        await redis.ping()
        return redis

    yield client_of
    for each in opened:
        await each.aclose()


@pytest.mark.parametrize("down", [1, 2, 3])
async def test_lost_sentinels_degrade_a_client_that_continues(quick_setup, follow, down):
    redis = (await follow()).redis
    gone = quick_setup.sentinels[:down]
    for sentinel in gone:
        sentinel.kill()
    many = "all 3" if down == 3 else f"{down} of 3"
    await until(lambda: f"{many} cannot be reached" in redis.health.detail)
    assert redis.health.state is State.DEGRADED
    assert redis.health.cause is Cause.REFUSED
    assert f"127.0.0.1:{gone[0].port}: connection refused" in redis.health.detail
    assert ("a failover would not be noticed" in redis.health.detail) is (down == 3)
    assert await redis.incr("counter") == 1
    await lose_connections(redis)
    assert await redis.incr("counter") == 2
    assert await redis.blpop("list", 0.01) is None
    for sentinel in gone:
        await sentinel.start()
    await until(lambda: redis.health.state is State.UP)


async def test_frozen_sentinel_degrades_the_client(quick_setup, follow):
    redis = (await follow()).redis
    quick_setup.sentinels[0].freeze()
    await until(lambda: "1 of 3 cannot be reached" in redis.health.detail)
    assert redis.health.cause is Cause.TIMED_OUT
    quick_setup.sentinels[0].thaw()
    await until(lambda: redis.health.state is State.UP)


@pytest.mark.parametrize("epoch", [0, 99])
@pytest.mark.parametrize("says", ["nothing", "replica", "other"])
async def test_sentinel_with_false_answers_is_outvoted(
    quick_setup, client_of, redis_server, monkeypatch, says, epoch
):
    """It gives a closed port, a replica, or the master of another service."""
    monkeypatch.setattr("resilient_io.redis.sentinel_monitor._CONTRADICTS_AFTER", 0.3)
    replica = quick_setup.nodes[1]
    port = {"nothing": 1, "replica": replica.port, "other": redis_server.port}[says]
    async with FakeSentinel(("127.0.0.1", port), epoch=epoch) as liar:
        redis = await client_of(liar, *quick_setup.sentinels[:2])
        assert await redis.incr("counter") == 1
        liar.publish("+switch-master", f"{quick_setup.name} 127.0.0.1 1 127.0.0.1 {port}")
        await until(lambda: "not all agree" in redis.health.detail)
        assert redis.health.state is State.DEGRADED
        assert f"127.0.0.1:{liar.port} says 127.0.0.1:{port}" in redis.health.detail
        await lose_connections(redis)
        assert await redis.incr("counter") == 2
    assert await quick_setup.nodes[0].query("GET", "counter") == b"2"
    assert await redis_server.query("EXISTS", "counter") == 0


async def test_stale_quorum_does_not_mislead(quick_setup, client_of):
    """Most Sentinels that the client knows still name the former master, which is writable."""
    old = quick_setup.nodes[0]
    known = tuple((node.host, node.port) for node in quick_setup.nodes)
    async with (
        FakeSentinel(known[0], replicas=known[1:]) as first,
        FakeSentinel(known[0], replicas=known[1:]) as second,
    ):
        fresh = quick_setup.sentinels[0]
        redis = await client_of(first, second, fresh)
        assert await redis.incr("counter") == 1
        new = await quick_setup.fail_over()
        assert await redis.incr("counter") == 2
        assert await new.query("GET", "counter") == b"2"
        assert await old.query("GET", "counter") == b"1"  # not demoted yet
        # A client that begins now, and one that cannot ask the fresh Sentinel any more.
        other = await client_of(first, second, fresh)
        assert await other.incr("counter") == 3
        fresh.kill()
        await lose_connections(redis)
        assert await redis.incr("counter") == 4
    assert await new.query("GET", "counter") == b"4"


async def test_aborted_failover_ends_the_wait_of_the_calls(quick_setup, client_of):
    master = quick_setup.nodes[0]
    async with FakeSentinel((master.host, master.port)) as fake:
        redis = await client_of(fake, *quick_setup.sentinels[:2])
        event = f"master {quick_setup.name} {master.host} {master.port}"
        fake.publish("+try-failover", event)
        await until(lambda: redis.health.cause is Cause.FAILOVER)
        waiting = [asyncio.create_task(redis.rpush("list", number)) for number in range(5)]
        popping = asyncio.create_task(redis.blpop("other", 0.01))
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in (*waiting, popping))
        fake.publish("-failover-abort-not-elected", event)
        assert await asyncio.gather(*waiting) == [1, 2, 3, 4, 5]
        assert await popping is None
        assert redis.health.state is State.UP
    assert await master.query("LRANGE", "list", 0, -1) == [b"0", b"1", b"2", b"3", b"4"]


async def test_failover_without_an_end_holds_calls_for_a_limited_time(
    quick_setup, client_of, monkeypatch
):
    monkeypatch.setattr("resilient_io.redis.failover.HOLD", 0.4)
    master = quick_setup.nodes[0]
    async with FakeSentinel((master.host, master.port)) as fake:
        redis = await client_of(fake, *quick_setup.sentinels[:2])
        fake.publish("+try-failover", f"master another {master.host} {master.port}")
        await asyncio.sleep(0.1)
        assert redis.health.state is State.UP
        fake.publish("+try-failover", f"master {quick_setup.name} {master.host} {master.port}")
        await until(lambda: redis.health.cause is Cause.FAILOVER)
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded, match="the end of a failover"), deadline(0.1):
            await redis.incr("counter")
        assert await redis.incr("counter") == 1
        assert 0.2 < asyncio.get_running_loop().time() - began < 1.5
        assert redis.health.state is State.UP


async def test_client_that_cannot_connect_follows_a_failover_whose_beginning_it_missed(
    quick_setup, client_of
):
    """The new master is named while the attempts to connect to the former one pause."""
    former, replica = quick_setup.nodes[:2]
    async with FakeSentinel(("127.0.0.1", former.port)) as sentinel:
        redis = await client_of(sentinel)
        former.kill()
        await until(lambda: redis.health.state is State.DOWN)
        await asyncio.sleep(0.1)  # each connection was refused
        await replica.query("REPLICAOF", "NO", "ONE")

        sentinel.address, sentinel.epoch = ("127.0.0.1", replica.port), 1
        sentinel.publish("+switch-master", quick_setup.name)

        await until(lambda: redis.health.state is State.UP)
        assert redis.liveness_failure() is None
        assert await redis.incr("counter") == 1
