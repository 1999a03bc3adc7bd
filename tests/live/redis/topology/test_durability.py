"""Durable writes: a call returns when replicas have its write, or says how many have it."""

import asyncio
import contextlib
import pickle

import pytest
import pytest_asyncio
import redis as driver

from resilient_io import (
    ConfigurationError,
    NotReplicated,
    OutcomeUnknown,
    Progress,
    RetryPolicy,
    deadline,
)
from resilient_io.redis import Durability, RedisClosed, RedisNotReplicated, ResilientRedis
from resilient_io.testing import NoServerError, RedisServer, cancel_everywhere, find_embedded_redis

SHORT = Durability(replicas=1, timeout=0.15)
SHORTFALL = "applied, replicated to 0 of 1"


@pytest_asyncio.fixture
async def replica(redis_server):
    # Otherwise the replica counts only after its first report, up to a second later.
    await redis_server.query("CONFIG", "SET", "repl-diskless-sync", "no")
    async with RedisServer(replica_of=redis_server) as replica:
        yield replica


async def _until_acknowledged(server, count=1):
    async with asyncio.timeout(5):
        while await server.query("WAIT", count, 100) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_write_returns_when_the_replica_has_it(redis_server, replica):
    async with ResilientRedis(port=redis_server.port, durability=1) as redis:
        for number in range(20):
            assert await redis.set("key", number)
            assert await replica.query("GET", "key") == b"%d" % number
        assert await redis.incr("n") == 1
        assert await redis.get("key") == b"19"
        assert await redis.publish("channel", "message") == 0
    assert b"cmdstat_wait:calls=21," in await redis_server.query("INFO", "commandstats")


async def test_shortfall_says_how_many_replicas_have_the_write(redis_server):
    async with ResilientRedis(port=redis_server.port, durability=SHORT) as redis:
        with pytest.raises(RedisNotReplicated, match=SHORTFALL) as caught:
            await redis.incr("n")
        error = caught.value
        assert error.reply == 1
        assert error.replicas == 0
        assert error.progress is Progress.APPLIED
        assert isinstance(error, NotReplicated)
        assert isinstance(error, driver.RedisError)
        assert not isinstance(error, driver.ConnectionError | driver.TimeoutError)
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
        assert (str(copy), copy.reply) == (str(error), 1)
        assert redis.stats().ended == {"NotReplicated": 1}
        assert await redis.get("n") == b"1"  # it was not repeated


@pytest.mark.parametrize("transaction", [True, False])
async def test_pipeline_waits_once(redis_server, replica, transaction):
    async with ResilientRedis(port=redis_server.port).with_durability(1) as redis:
        pipeline = redis.pipeline(transaction=transaction).set("a", 1).incr("a").get("a")
        assert await pipeline.execute() == [True, 2, b"2"]
        assert await replica.query("GET", "a") == b"2"
        assert await redis.pipeline(transaction=transaction).get("a").execute() == [b"2"]
        await redis._origin.aclose()
    assert b"cmdstat_wait:calls=1," in await redis_server.query("INFO", "commandstats")


@pytest.mark.parametrize("transaction", [True, False])
async def test_shortfall_of_a_pipeline_has_all_replies(redis_server, transaction):
    async with ResilientRedis(port=redis_server.port, durability=SHORT) as redis:
        pipeline = redis.pipeline(transaction=transaction).set("a", 1).lpush("a", 1).incr("a")
        with pytest.raises(RedisNotReplicated, match=SHORTFALL) as caught:
            await pipeline.execute()
        done, error, counted = caught.value.reply
        assert (done, counted) == (True, 2)
        assert isinstance(error, driver.ResponseError)


async def test_transaction_after_watch(redis_server, replica):
    async with ResilientRedis(port=redis_server.port, durability=SHORT) as redis:
        async with redis.pipeline() as pipeline:
            await pipeline.watch("a")
            pipeline.multi()
            assert await pipeline.set("a", 1).execute() == [True]
        assert await replica.query("GET", "a") == b"1"
        replica.freeze()
        async with redis.pipeline() as pipeline:
            await pipeline.watch("a")
            pipeline.multi()
            with pytest.raises(RedisNotReplicated, match=SHORTFALL) as caught:
                await pipeline.incr("a").execute()
        assert caught.value.reply == [2]
        replica.thaw()


async def test_scripts_are_loaded_and_waited_for(redis_server, replica):
    async with ResilientRedis(port=redis_server.port, durability=1) as redis:
        script = redis.register_script("return redis.call('INCR', KEYS[1])")
        assert [await script(keys=["n"]), await script(keys=["n"])] == [1, 2]
        assert await replica.query("GET", "n") == b"2"


async def test_replica_that_is_gone_delays_only_durable_writes(redis_server, replica):
    async with ResilientRedis(port=redis_server.port) as redis:
        durable = redis.with_durability(Durability(replicas=1, timeout=0.4))
        await durable.set("key", 1)
        replica.freeze()
        loop = asyncio.get_running_loop()
        began = loop.time()
        writes = [asyncio.create_task(durable.set(f"key{n}", n)) for n in range(20)]
        await asyncio.sleep(0.02)
        for _ in range(20):
            await redis.get("key")
        assert loop.time() - began < 0.4
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(result, RedisNotReplicated) for result in results)
        assert loop.time() - began < 2  # not one after the other
        replica.thaw()
        await _until_acknowledged(redis_server)
        assert await durable.set("key", 2)


async def test_deadline_limits_the_wait(redis_server):
    async with ResilientRedis(port=redis_server.port, durability=1) as redis:
        await redis.ping()
        loop = asyncio.get_running_loop()
        began = loop.time()
        with deadline(0.3), pytest.raises(RedisNotReplicated, match=SHORTFALL):
            await redis.set("key", 1)
        assert loop.time() - began < 0.6


async def test_several_replicas(redis_server, replica):
    async with ResilientRedis(port=redis_server.port) as redis:
        with pytest.raises(RedisNotReplicated, match="applied, replicated to 1 of 2"):
            await redis.with_durability(Durability(replicas=2, timeout=0.1)).set("key", 1)
        del replica


async def _serve(replies):
    """Return a server with one reply per chunk of data, and what it received."""
    received = []

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if b"INCR" not in data:
                    names = data.count(b"\r\n*") + 1
                    number = b":1\r\n" if b"$2\r\nID\r\n" in data else b""
                    writer.write(b"+OK\r\n" * (names - bool(number)) + number)
                    continue
                received.append(data)
                reply = replies.pop(0)
                writer.write(reply)
                if not reply.endswith(b":1\r\n"):
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1], received


async def test_write_and_wait_leave_in_one_write():
    server, port, received = await _serve([b":5\r\n:1\r\n"])
    async with server, ResilientRedis(port=port, protocol=2, durability=1) as redis:
        assert await redis.execute_command("INCR", "n") == 5
    assert received == [
        b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$4\r\n1000\r\n"
    ]


async def test_connection_lost_after_the_reply_is_no_unknown_outcome():
    server, port, received = await _serve([b":5\r\n"])
    async with server, ResilientRedis(port=port, protocol=2, durability=1) as redis:
        wanted = "applied, replicated to an unknown number of 1: the server closed the connection"
        with pytest.raises(RedisNotReplicated, match=wanted) as caught:
            await redis.incr("n")
    assert caught.value.reply == 5
    assert caught.value.replicas is None
    assert len(received) == 1


async def test_connection_lost_before_the_reply_is_an_unknown_outcome():
    server, port, _ = await _serve([b""])
    policy = RetryPolicy(deadline=1.0, response_timeout=0.5, connect_timeout=0.5)
    client = ResilientRedis(port=port, protocol=2, durability=1, policy=policy)
    async with server, client as redis:
        with pytest.raises(driver.ConnectionError, match="the call may have been applied"):
            await redis.incr("n")


async def test_wait_that_is_not_permitted_is_named(redis_server):
    await redis_server.query("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-wait")
    client = ResilientRedis(port=redis_server.port, username="app", password="pw", durability=1)
    async with client as redis:
        wanted = "replicated to an unknown number of 1: .*no permissions to run the 'wait' command"
        with pytest.raises(RedisNotReplicated, match=wanted):
            await redis.set("key", 1)


async def test_fsync_waits_for_the_disk():
    try:
        binary = find_embedded_redis()
    except NoServerError as error:
        pytest.skip(str(error))
    wanted = Durability(replicas=0, fsync=True)
    async with RedisServer(binary=binary, persist=True) as server:
        async with ResilientRedis(port=server.port, durability=wanted) as redis:
            assert await redis.set("key", 1)
            more = redis.with_durability(Durability(replicas=1, fsync=True, timeout=0.1))
            with pytest.raises(RedisNotReplicated, match="replicated to 0 of 1 on disk"):
                await more.set("key", 1)
        assert b"cmdstat_waitaof:calls=2," in await server.query("INFO", "commandstats")


async def test_locks_and_blocking_pops_do_not_wait(redis_server):
    async with ResilientRedis(port=redis_server.port, durability=1) as redis:
        async with redis.lock("lock", timeout=5):
            assert await redis.with_durability(None).lpush("list", 1) == 1
        assert await redis.blpop("list", 1) == (b"list", b"1")
    assert b"cmdstat_wait" not in await redis_server.query("INFO", "commandstats")


async def test_closing_a_view_leaves_the_client_open(redis_server):
    async with ResilientRedis(port=redis_server.port) as redis:
        await redis.with_durability(1).aclose()
        assert await redis.ping()
        assert await redis.with_durability(SHORT).with_policy(attempts=1).get("key") is None


@pytest.mark.parametrize("value", [-1, True, "1", 1.5])
async def test_invalid_values(value):
    with pytest.raises(ConfigurationError, match="is invalid: use the number of replicas"):
        ResilientRedis(durability=value)
    with pytest.raises(ConfigurationError, match="durability= and single_connection_client=True"):
        ResilientRedis(durability=1, single_connection_client=True)


async def test_cancellation_at_every_await_point(redis_server, replica):
    del replica
    async with ResilientRedis(port=redis_server.port, durability=1) as redis:
        await redis.ping()

        async def write():
            await redis.set("key", "value")
            await redis.pipeline().incr("n").execute()

        await cancel_everywhere(write)
        assert await redis.get("key") == b"value"


async def test_concurrent_writes_are_followed_by_one_wait(redis_server, replica):
    del replica
    async with ResilientRedis(port=redis_server.port, durability=1) as redis:
        await redis.set("key", "value")
        replies = await asyncio.gather(*(redis.incr("n") for _ in range(50)))
        assert replies == list(range(1, 51))  # in the order of the calls
        error, value = await asyncio.gather(
            redis.lpush("key", 1), redis.set("other", b"\xff"), return_exceptions=True
        )
        assert isinstance(error, driver.ResponseError)
        assert value is True
    info = (await redis_server.query("INFO", "commandstats")).decode()
    assert "cmdstat_wait:calls=3," in info


async def test_each_write_of_a_group_has_its_own_outcome():
    server, port, received = await _serve([b":5\r\n"])
    async with server, ResilientRedis(port=port, protocol=2, durability=1) as redis:
        await redis.ping()
        answered, unanswered = await asyncio.gather(
            redis.incr("a"), redis.incr("b"), return_exceptions=True
        )
    assert isinstance(answered, RedisNotReplicated)
    assert answered.reply == 5
    assert isinstance(unanswered, OutcomeUnknown)
    assert len(received) == 1


async def test_cancelled_write_is_not_sent_with_its_group(redis_server, replica):
    del replica
    async with ResilientRedis(port=redis_server.port, durability=1) as redis:
        await redis.set("key", "value")
        calls = [asyncio.create_task(redis.incr("n")) for _ in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        assert await calls[0] == 1
        assert await calls[2] == 2
        with pytest.raises(asyncio.CancelledError):
            await calls[1]


async def test_closing_ends_a_wait_for_replicas(redis_server, replica, no_leaks):
    async with ResilientRedis(port=redis_server.port, durability=1) as redis:
        await redis.set("key", "value")
        replica.freeze()
        calls = [asyncio.create_task(redis.incr("n")) for _ in range(3)]
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(redis.incr("n"))
        await asyncio.sleep(0.05)
    results = await asyncio.gather(*calls, waiting, return_exceptions=True)
    assert all(isinstance(result, RedisClosed | RedisNotReplicated) for result in results)
    assert await redis_server.query("GET", "n") in {b"3", b"4"}
    replica.thaw()
