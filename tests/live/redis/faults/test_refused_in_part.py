"""A server that refuses some commands or connections, and accepts others."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from redis import exceptions as driver

from resilient_io import OutcomeUnknown, Progress, State
from resilient_io.errors import refused_by
from resilient_io.health import Cause, HealthSettings
from resilient_io.testing import RedisServer

SCRIPT = "return redis.call('SET', KEYS[1], 'value')"


@asynccontextmanager
async def watched(redis):
    """Return a pipeline between WATCH and MULTI, to be executed."""
    async with redis.pipeline() as pipe:
        await pipe.watch("guard")
        pipe.multi()
        yield pipe


async def watch_and_set(redis):
    async with watched(redis) as pipe:
        await pipe.set("key", "value").execute()


async def script(redis):
    await redis.eval(SCRIPT, 1, "key")


async def set_and_get(redis):
    await redis.pipeline(transaction=False).set("key", "value").get("key").execute()


# -- the state


@pytest.mark.parametrize("batch", [False, True], ids=["command", "pipeline"])
async def test_publish_does_not_end_a_period_of_refused_writes(batch, redis_server, connect, quick):
    redis = await connect(redis_server, policy=quick)
    await redis_server.query("CONFIG", "SET", "min-replicas-to-write", "1")
    with pytest.raises(driver.ResponseError, match="NOREPLICAS"):
        await redis.set("key", "value")

    if batch:
        await redis.pipeline(transaction=False).publish("channel", "text").get("key").execute()
    else:
        await redis.publish("channel", "text")

    assert redis.health.state is State.DEGRADED
    await redis_server.query("CONFIG", "SET", "min-replicas-to-write", "0")
    await redis.set("key", "value")
    assert redis.health.state is State.UP


async def test_a_refusal_between_watch_and_exec_is_noticed_and_keeps_the_connection(
    redis_server, connect, quick, connections_made
):
    redis = await connect(redis_server, policy=quick)
    await watch_and_set(redis)
    await redis_server.query("CONFIG", "SET", "min-replicas-to-write", "1")
    before = await connections_made(redis_server)

    for _ in range(10):
        with pytest.raises(driver.ResponseError, match="NOREPLICAS"):
            await watch_and_set(redis)

    assert await connections_made(redis_server) - before < 5
    assert redis.health.state is State.DEGRADED
    assert redis.health.cause is Cause.NO_REPLICAS
    await redis_server.query("CONFIG", "SET", "min-replicas-to-write", "0")
    await watch_and_set(redis)
    assert redis.health.state is State.UP


@pytest.mark.parametrize("call", [watch_and_set, script, set_and_get])
@pytest.mark.parametrize("setting", ["min-replicas-to-write", "maxmemory"])
async def test_a_refusal_that_is_not_repeated_is_marked_as_such(
    setting, call, redis_server, connect, quick
):
    """By this, `run` does not count the attempt of a record."""
    redis = await connect(redis_server, policy=quick)
    await redis_server.query("CONFIG", "SET", setting, "1")

    with pytest.raises(driver.ResponseError) as caught:
        await call(redis)

    assert refused_by(caught.value) == redis.health.name


async def test_refused_connections_do_not_change_the_state_each_time(
    connect, stranger, quick, watch
):
    """A worker blocks now and then, which needs a new connection. Other calls continue."""
    interval = 0.1
    async with RedisServer(options={"maxclients": 10}) as server:
        health = HealthSettings(interval=interval)
        redis = await connect(server, policy=quick, health=health)
        seen = watch(redis)
        await server.query("CONFIG", "SET", "maxclients", "3")
        reader, writer = await stranger(server.port)
        writer.write(b"PING\r\n")
        await reader.readline()

        for _ in range(4):
            with pytest.raises(driver.ConnectionError, match="max number of clients"):
                await redis.blpop(["absent"], timeout=0.1)
            for _ in range(10):
                await redis.set("key", "value")
                await asyncio.sleep(interval / 2)

        assert seen.states == [State.DEGRADED]
        assert redis.health.cause is Cause.MAX_CLIENTS
        writer.close()
        await seen.until(State.UP, within=5)


async def test_a_replica_stays_degraded_while_nothing_is_written(
    redis_server, connect, quick, watch
):
    health = HealthSettings(interval=0.1, refusal_hold=0.5)
    async with RedisServer(replica_of=redis_server) as replica:
        redis = await connect(replica, policy=quick, health=health)
        seen = watch(redis)
        with pytest.raises(driver.ReadOnlyError):
            await redis.set("key", "value")

        await asyncio.sleep(1.5)

        assert redis.health.state is State.DEGRADED
        assert redis.health.cause is Cause.READ_ONLY
        await replica.query("REPLICAOF", "NO", "ONE")
        await seen.until(State.UP, within=5)


# -- MULTI and EXEC


async def test_a_transaction_without_permission_for_multi_has_an_unknown_outcome(
    redis_server, connect, quick
):
    """The server executes its commands, one by one."""
    await redis_server.query("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-multi")
    redis = await connect(f"redis://app:pw@127.0.0.1:{redis_server.port}/0", policy=quick)

    with pytest.raises(OutcomeUnknown, match="the server refused MULTI") as caught:
        await redis.pipeline().incr("a").incr("b").execute()
    assert caught.value.progress is Progress.MAYBE_APPLIED
    assert (caught.value.answered, caught.value.unanswered) == ((1, 1), ())
    with pytest.raises(OutcomeUnknown, match="the server refused MULTI"):
        async with watched(redis) as pipe:
            await pipe.incr("a").incr("b").execute()

    assert await redis_server.query("MGET", "a", "b") == [b"2", b"2"]
    with pytest.raises(driver.NoPermissionError):  # nothing was applied
        await redis.pipeline().get("a").execute()


async def test_a_server_without_exec_does_not_keep_the_shared_connection_in_multi(connect, quick):
    async with RedisServer(options={"rename-command": 'EXEC ""'}) as server:
        redis = await connect(server, policy=quick)

        with pytest.raises(driver.ResponseError, match="EXEC"):
            await redis.pipeline().incr("a").execute()

        assert await redis.set("key", "value") is True
        assert await redis.get("key") == b"value"
        assert await server.query("EXISTS", "a") == 0
