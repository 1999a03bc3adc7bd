"""Very many connections at the same time, and a process that can open no more."""

import asyncio
import contextlib
import os
import random
import resource

import pytest
import redis as driver

from resilient_io import State
from resilient_io.health import Cause
from resilient_io.redis import RedisOverloaded, ResilientRedis, multiplexer, turns
from resilient_io.redis import connect as connecting
from resilient_io.redis.turns import MOST_CONNECTING, ConnectTurn


@pytest.fixture
def at_once(monkeypatch):
    """Return a list whose last item is the largest number of simultaneous attempts to connect."""
    counts, real = [0, 0], connecting._shake_hands

    async def count(connection):
        counts[0] += 1
        counts[1] = max(counts)
        try:
            await real(connection)
        finally:
            counts[0] -= 1

    monkeypatch.setattr(connecting, "_shake_hands", count)
    return counts


async def test_blocking_callers_connect_in_turn(
    redis_server, connect, watch, at_once, until_blocked
):
    callers = 400
    redis = await connect(redis_server, max_connections=callers)
    seen = watch(redis)
    waiting = [asyncio.create_task(redis.blpop(f"list {n}", 0)) for n in range(callers)]
    await until_blocked(redis_server, callers)
    for n in range(callers):
        await redis_server.query("RPUSH", f"list {n}", n)
    assert await asyncio.gather(*waiting) == [(b"list %d" % n, b"%d" % n) for n in range(callers)]
    assert at_once[-1] <= MOST_CONNECTING + 2  # a probe, and the connections of the test
    assert State.DOWN not in seen.states


async def test_many_clients_at_the_same_time_open_one_connection_each_first(
    redis_server, at_once, connections_made
):
    before = await connections_made(redis_server)
    clients = [ResilientRedis(port=redis_server.port, name=f"client {n}") for n in range(100)]
    downs = []
    for client in clients:
        client.health.on_change(lambda change: downs.append(change.state is State.DOWN))
    async with contextlib.AsyncExitStack() as stack:
        for client in clients:
            await stack.enter_async_context(client)
        assert await asyncio.gather(*[client.ping() for client in clients]) == [True] * 100
        assert at_once[-1] <= MOST_CONNECTING
        assert not any(downs)
        # Two shared connections each, and none for the first probe; one for the query.
        assert await connections_made(redis_server) - before <= 2 * 100 + 1


async def test_attempt_that_waits_for_its_turn_does_not_fail(redis_server, quick):
    """All turns are taken for longer than the time limits of connecting and of the probe."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MOST_CONNECTING):
            await stack.enter_async_context(ConnectTurn())
        async with ResilientRedis(
            port=redis_server.port, policy=quick.replace(deadline=5.0)
        ) as redis:
            pop = asyncio.create_task(redis.blpop("list", 1))
            call = asyncio.create_task(redis.incr("counter"))
            await asyncio.sleep(1.3)
            assert redis.health.state is State.UNKNOWN
            await stack.aclose()
            assert await call == 1
            await redis.rpush("list", "element")
            assert await pop == (b"list", b"element")


async def test_cancelled_caller_leaves_the_queue(redis_server, quick):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MOST_CONNECTING):
            await stack.enter_async_context(ConnectTurn())
        async with ResilientRedis(port=redis_server.port, policy=quick) as redis:
            pop = asyncio.create_task(redis.blpop("list", 0))
            await asyncio.sleep(0)
            pop.cancel()
            await asyncio.wait([pop])
        await stack.aclose()
        for _ in range(MOST_CONNECTING):
            async with asyncio.timeout(1):
                await stack.enter_async_context(ConnectTurn())


async def test_connections_that_are_lost_right_after_they_open_are_reopened_with_a_backoff(
    redis_server, connect, connections_made
):
    """As behind a proxy that accepts, and then finds that its server is gone."""
    redis = await connect(redis_server)
    loop = asyncio.get_running_loop()
    before, until, kills = await connections_made(redis_server), loop.time() + 2.0, 0
    while loop.time() < until:
        await redis_server.query("CLIENT", "KILL", "TYPE", "normal")
        kills += 1
        await asyncio.sleep(0.01)
    own = kills + 1  # those of the queries
    # Without a backoff, more than 100. The two shared connections, and the probes.
    assert await connections_made(redis_server) - before - own <= 50
    await asyncio.sleep(1.1)
    assert await redis.ping()
    assert redis.health.state is State.UP


class LongestPauses(random.Random):
    """Draws the longest pause that is possible."""

    def uniform(self, a, b):
        return max(a, b)


@pytest.fixture
def long_pauses(monkeypatch):
    """Return a source of pauses between attempts to connect that take 3 s."""
    monkeypatch.setattr(turns, "_BACKOFF", 3.0)
    monkeypatch.setattr(turns, "_BACKOFF_CAP", 3.0)
    return LongestPauses()


async def kill_connections(server, redis):
    """Close the connections of a client, and wait until it has noticed."""
    lost = redis._runtime.multiplexer.connections
    await server.query("CLIENT", "KILL", "TYPE", "normal")
    await asyncio.wait([connection.closed for connection in lost])


async def test_connection_that_is_lost_early_once_is_reopened_immediately(
    redis_server, connect, long_pauses
):
    redis = await connect(redis_server, rng=long_pauses)
    await kill_connections(redis_server, redis)
    async with asyncio.timeout(2.5):
        assert await redis.incr("counter") == 1


async def test_cancelled_blocking_calls_of_a_client_with_one_connection_cause_no_pauses(
    redis_server, connect, long_pauses
):
    redis = await connect(redis_server, rng=long_pauses, single_connection_client=True)
    async with asyncio.timeout(2.5):
        for _ in range(5):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await redis.blpop("list", 0)
            assert await redis.ping()


async def test_only_probes_contact_a_server_that_goes_down_during_the_pause_after_a_loss(
    redis_server, connect, long_pauses, until_complete, monkeypatch
):
    monkeypatch.setattr(turns, "_BACKOFF", 0.5)
    redis = await connect(redis_server, rng=long_pauses)
    await kill_connections(redis_server, redis)
    await until_complete(redis)
    attempts, real = [], multiplexer.connect

    def count(*args, **options):
        attempts.append(redis.health.state)
        return real(*args, **options)

    monkeypatch.setattr(multiplexer, "connect", count)
    await kill_connections(redis_server, redis)
    redis_server.kill()
    await asyncio.sleep(1.5)
    assert (redis.health.state, attempts) == (State.DOWN, [])
    await redis_server.start()
    await redis.health.until_up(5)
    assert await redis.ping()
    assert set(attempts) == {State.UP}


async def test_limit_of_connections_is_named(redis_server, connect, quick):
    redis = await connect(redis_server, policy=quick, max_connections=2)
    waiting = [asyncio.create_task(redis.blpop("list", 0)) for _ in range(3)]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    error = done.pop().exception()
    assert isinstance(error, RedisOverloaded)
    assert "all 2 are in use (raise max_connections)" in str(error)
    await redis.rpush("list", 1, 2)
    await asyncio.wait(waiting)


@pytest.fixture
def exhausted():
    """Return a context in which this process cannot open another file."""

    @contextlib.contextmanager
    def limit():
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return limit


async def test_process_without_file_descriptors_does_not_blame_the_server(
    redis_server, connect, watch, quick, exhausted
):
    redis = await connect(redis_server, policy=quick)
    seen = watch(redis)
    with exhausted():
        with pytest.raises(driver.ConnectionError, match=r"no file descriptor left.*ulimit -n"):
            await redis.blpop("list", 1)
        async with asyncio.timeout(5):
            async for change in redis.health.watch():
                if change.state is State.DEGRADED:
                    break
        assert await redis.incr("counter") == 1
        assert State.DOWN not in seen.states
        assert redis.health.cause is Cause.PROCESS_LIMIT
    await redis.rpush("list", "element")
    assert await redis.blpop("list", 1) == (b"list", b"element")


async def test_new_client_without_file_descriptors_names_the_limit(redis_server, quick, exhausted):
    client = ResilientRedis(host="localhost", port=redis_server.port, policy=quick)
    with exhausted():
        async with client:
            with pytest.raises(driver.RedisError, match=r"no file descriptor left.*ulimit -n"):
                await client.get("key")
            assert client.health.cause is Cause.PROCESS_LIMIT
