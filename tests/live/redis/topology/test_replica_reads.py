"""Reads from replicas: only reads, only replicas that do not lag too much, else the master."""

import asyncio

import pytest
import pytest_asyncio
import redis as driver

from resilient_io import ConfigurationError, State
from resilient_io.redis import ResilientRedis
from resilient_io.redis.replicas import ReplicaSet
from resilient_io.testing import RedisSentinel, RedisServer, cancel_everywhere


@pytest_asyncio.fixture
async def replica(redis_server):
    # Otherwise the replica counts only after its first report, up to a second later.
    await redis_server.query("CONFIG", "SET", "repl-diskless-sync", "no")
    async with RedisServer(replica_of=redis_server) as replica:
        yield replica


async def _calls(server, command="get"):
    """Return how many calls of a command a server has answered."""
    info = await server.query("INFO", "commandstats")
    for line in info.decode().splitlines():
        if line.startswith(f"cmdstat_{command}:calls="):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0


async def _until_answers(client, server, key="key"):
    """Read until another server than before answers."""
    before = await _calls(server)
    async with asyncio.timeout(5):
        while await _calls(server) == before:
            await client.get(key)
            await asyncio.sleep(0.005)


async def test_reads_go_to_the_replica_and_writes_to_the_master(redis_server, replica):
    async with ResilientRedis(port=redis_server.port, read_from="replica") as redis:
        await redis.set("key", "value")
        await _until_answers(redis, replica)
        before = await _calls(redis_server)
        for _ in range(20):
            assert await redis.get("key") == b"value"
        assert await redis.mget("key", "other") == [b"value", None]
        assert await _calls(replica, "mget") == 1
        assert await redis.incr("n") == 1
        assert await redis.pipeline().get("key").execute() == [b"value"]  # MULTI: on the master
        assert (await redis.scan(count=100))[0] == 0
        assert await redis.ping()
        assert await _calls(redis_server) == before + 1
        assert await _calls(replica, "scan") == 0
        assert (await redis.info("replication"))["role"] == "master"


async def test_pipelines_that_only_read_go_to_the_replica(redis_server, replica):
    async with ResilientRedis(port=redis_server.port) as redis:
        await redis.mset({"a": 1, "b": 2})
        view = redis.with_read_from("replica", max_lag=None)
        await _until_answers(view, replica, "a")
        before = await _calls(replica), await _calls(redis_server)
        assert await view.pipeline(transaction=False).get("a").get("b").execute() == [b"1", b"2"]
        assert (await _calls(replica), await _calls(redis_server)) == (before[0] + 2, before[1])
        script = view.register_script("return redis.call('GET', KEYS[1])")
        for pipe in (
            view.pipeline().get("a"),  # MULTI
            view.pipeline(transaction=False).get("a").incr("n"),
            view.pipeline(transaction=False).get("a").scan(),
            redis.pipeline(transaction=False).get("a"),
        ):
            assert (await pipe.execute())[0] == b"1"
        pipe = view.pipeline(transaction=False)
        await script(keys=["a"], client=pipe)
        assert await pipe.execute() == [b"1"]
        assert await _calls(replica) == before[0] + 2
        error = (await view.pipeline(transaction=False).get("a").llen("b").execute(False))[1]
        assert isinstance(error, driver.ResponseError)
        replica.kill()  # the master answers instead
        assert await view.pipeline(transaction=False).get("a").get("b").execute() == [b"1", b"2"]
        assert await _calls(redis_server) >= before[1] + 7


async def test_pipeline_of_reads_is_answered_while_the_master_is_down(redis_server, replica):
    async with ResilientRedis(port=redis_server.port) as redis:
        await redis.set("key", "value")
        view = redis.with_read_from("replica", max_lag=None)
        await _until_answers(view, replica)
        redis_server.kill()
        async with asyncio.timeout(5):
            for _ in range(50):
                pipe = view.pipeline(transaction=False)
                assert await pipe.get("key").exists("key").execute() == [b"value", 1]
                await asyncio.sleep(0.005)
        with pytest.raises(driver.ConnectionError):
            await redis.pipeline(transaction=False).get("key").execute()


async def test_cancelled_pipeline_of_reads_leaves_nothing(redis_server, replica):
    async with ResilientRedis(port=redis_server.port) as redis:
        await redis.set("key", "value")
        view = redis.with_read_from("replica", max_lag=None)
        await _until_answers(view, replica)
        report = await cancel_everywhere(
            lambda: view.pipeline(transaction=False).get("key").get("other").execute(),
            check=lambda: view.get("key"),
        )
        report.assert_clean()
        assert report.points


async def test_first_read_does_not_wait_for_a_replica(redis_server):
    async with ResilientRedis(port=redis_server.port).with_read_from("replica") as redis:
        assert await redis.get("key") is None
        await asyncio.sleep(0.1)
        assert await redis.get("key") is None
        assert redis.health.state is State.UP
        await redis._origin.aclose()


async def test_views_read_from_different_servers(redis_server, replica):
    async with ResilientRedis(port=redis_server.port) as redis:
        view = redis.with_read_from("replica", max_lag=5.0)
        await _until_answers(view, replica)
        before = await _calls(replica)
        await redis.get("key")
        await view.with_read_from("master").get("key")
        assert await _calls(replica) == before
        await view.with_policy(attempts=1).get("key")
        assert await _calls(replica) == before + 1


async def test_replica_that_lags_is_not_read(redis_server, replica):
    async with ResilientRedis(port=redis_server.port) as redis:
        fresh = redis.with_read_from("replica", max_lag=0.2)
        await _until_answers(fresh, replica)
        replica.freeze()  # it cannot be asked for its offset, and so is taken to lag
        await asyncio.sleep(0.25)
        began = asyncio.get_running_loop().time()
        for number in range(10):
            await redis.set("key", number)
            assert await fresh.get("key") == b"%d" % number
        assert asyncio.get_running_loop().time() - began < 0.5
        replica.thaw()
        await _until_answers(fresh, replica)


async def test_replica_without_its_master_is_not_read_beyond_the_limit(redis_server, replica):
    async with ResilientRedis(port=redis_server.port) as redis:
        fresh = redis.with_read_from("replica", max_lag=0.2)
        await _until_answers(fresh, replica)
        await replica.query("REPLICAOF", "127.0.0.1", 1)  # it keeps its data, and serves it
        await redis.set("key", "new")
        await asyncio.sleep(0.25)
        assert await fresh.get("key") == b"new"
        assert await replica.query("GET", "key") is None


async def test_replica_is_read_while_the_master_is_down(redis_server, replica):
    async with ResilientRedis(port=redis_server.port) as redis:
        await redis.set("key", "value")
        view = redis.with_read_from("replica", max_lag=None)
        await _until_answers(view, replica)
        redis_server.kill()
        async with asyncio.timeout(5):
            for _ in range(50):
                assert await view.get("key") == b"value"
                await asyncio.sleep(0.005)
        with pytest.raises(driver.ConnectionError):
            await redis.get("key")


async def test_killed_replica_costs_no_read(redis_server, replica):
    async with ResilientRedis(port=redis_server.port, read_from="replica") as redis:
        await redis.set("key", "value")
        await _until_answers(redis, replica)
        reads = [asyncio.create_task(redis.get("key")) for _ in range(50)]
        await asyncio.sleep(0)
        replica.kill()
        assert set(await asyncio.gather(*reads)) == {b"value"}
        assert await redis.get("key") == b"value"
        assert redis.health.state is State.UP
        assert redis.stats().ended == {}


async def test_refusal_of_the_replica_is_no_failure_of_the_master(redis_server, replica):
    async with ResilientRedis(port=redis_server.port, read_from="replica") as redis:
        await redis.set("key", "value")
        await _until_answers(redis, replica)
        await replica.query("CONFIG", "SET", "replica-serve-stale-data", "no")
        await replica.query("REPLICAOF", "127.0.0.1", 1)  # MASTERDOWN from now on
        for _ in range(20):
            assert await redis.get("key") == b"value"
        assert redis.health.state is State.UP


async def test_any_uses_both_servers(redis_server, replica):
    async with ResilientRedis(port=redis_server.port, read_from="any") as redis:
        await _until_answers(redis, replica)
        before = [await _calls(redis_server), await _calls(replica)]
        for _ in range(20):
            await redis.get("key")
        await asyncio.gather(*(redis.get("key") for _ in range(20)))
        after = [await _calls(redis_server), await _calls(replica)]
        assert all(late - early >= 15 for late, early in zip(after, before, strict=True))


async def test_nearest_uses_the_replica_if_the_master_is_far(redis_server, replica, fault_proxy):
    fault_proxy.latency(replies=0.005)
    client = ResilientRedis(port=fault_proxy.port, read_from="nearest")
    async with client as redis:
        await _until_answers(redis, replica)
        before = await _calls(replica)
        for _ in range(10):
            await redis.get("key")
        assert await _calls(replica) == before + 10


async def test_nearest_uses_the_master_if_the_replica_is_far(redis_server, fault_proxy):
    await redis_server.query("CONFIG", "SET", "repl-diskless-sync", "no")
    options = {"replica-announce-port": fault_proxy.port}  # leads to the master, through the proxy
    fault_proxy.latency(replies=0.02)
    async with (
        RedisServer(replica_of=redis_server, options=options),
        ResilientRedis(port=redis_server.port, read_from="nearest") as redis,
    ):
        replicas = ReplicaSet.of(redis._runtime)
        async with asyncio.timeout(5):
            while len(replicas._latencies) < 2:
                await redis.get("key")
                await asyncio.sleep(0.01)
        assert replicas.choose(redis._read_from) is None


async def test_reads_move_to_the_other_replica_when_one_lags(redis_server, replica):
    async with (
        RedisServer(replica_of=redis_server) as second,
        ResilientRedis(port=redis_server.port, read_from="replica", max_lag=0.4) as redis,
    ):
        counts = [0, 0]
        async with asyncio.timeout(5):
            while counts == [0, 0]:
                await redis.get("key")
                counts = [await _calls(replica), await _calls(second)]
                await asyncio.sleep(0.01)
        current, other = (replica, second) if counts[0] else (second, replica)
        current.freeze()
        await _until_answers(redis, other)
        current.thaw()


async def test_sentinels_and_their_replicas(sentinel_setup):
    client = ResilientRedis.from_sentinel(
        sentinel_setup.addresses, sentinel_setup.name, read_from="replica", max_lag=2.0
    )
    async with client as redis:
        await redis.set("key", "value")
        async with asyncio.timeout(5):
            while not sum([await _calls(node) for node in sentinel_setup.nodes[1:]]):
                await redis.get("key")
                await asyncio.sleep(0.01)
        assert await redis.get("key") == b"value"


async def test_address_map_applies_to_replicas(redis_server):
    await redis_server.query("CONFIG", "SET", "repl-diskless-sync", "no")
    options = {"replica-announce-ip": "10.255.255.1", "replica-announce-port": 1}
    async with (
        RedisServer(replica_of=redis_server, options=options) as replica,
        RedisSentinel(redis_server) as sentinel,
        ResilientRedis.from_sentinel(
            [("127.0.0.1", sentinel.port)],
            "mymaster",
            read_from="replica",
            address_map={("10.255.255.1", 1): ("127.0.0.1", replica.port)},
        ) as redis,
    ):
        await _until_answers(redis, replica)


async def test_server_without_replicas_is_not_asked_when_nothing_is_read(redis_server):
    async with ResilientRedis(port=redis_server.port, read_from="replica", max_lag=0.1) as redis:
        before = await _calls(redis_server, "info")
        await redis.set("key", "value")
        await asyncio.sleep(0.1)
        assert await _calls(redis_server, "info") == before + 1


async def test_locks_and_their_state_are_on_the_master(redis_server, replica):
    async with ResilientRedis(port=redis_server.port, read_from="replica") as redis:
        await _until_answers(redis, replica)
        before = await _calls(replica)
        async with redis.lock("lock", timeout=5) as lock:
            assert await lock.owned()
        assert await _calls(replica) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read_from": "slave"}, "read_from='slave' is unknown: use read_from=\"master\" or"),
        ({"read_from": None}, "read_from=None is unknown"),
        ({"max_lag": 0}, "max_lag=0 is out of range: use a finite number of at least 0.1"),
        ({"max_lag": "1"}, "max_lag='1' is not a number"),
        ({"read_from": "any", "single_connection_client": True}, "contradict each other"),
    ],
)
def test_invalid_values(options, message):
    with pytest.raises(ConfigurationError, match=message):
        ResilientRedis(**options)


async def test_cancellation_at_every_await_point(redis_server, replica):
    async with ResilientRedis(port=redis_server.port, read_from="replica") as redis:
        await redis.set("key", "value")
        await _until_answers(redis, replica)

        async def read():
            await redis.get("key")

        await cancel_everywhere(read)
        assert await redis.get("key") == b"value"


async def test_nothing_is_left_after_closing(redis_server, replica, no_leaks):
    async with ResilientRedis(port=redis_server.port, read_from="replica", max_lag=0.2) as redis:
        await _until_answers(redis, replica)
    async with redis:  # and opens again
        await _until_answers(redis, replica)
