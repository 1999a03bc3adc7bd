"""Each address of a server of another kind raises one clear error that says what to use."""

import asyncio
import pickle

import pytest
import pytest_asyncio
import redis as driver
from redis.exceptions import ClusterDownError, MovedError

from resilient_io import ConfigurationError, State
from resilient_io.health import Cause
from resilient_io.redis import RedisUnavailable, ResilientRedis
from resilient_io.testing import RedisSentinel, RedisServer

NAME = "mymaster"


@pytest_asyncio.fixture
async def sentinel(redis_server):
    async with RedisSentinel(redis_server) as sentinel:
        yield sentinel


async def _error_of(redis, *command, kind=RedisUnavailable):
    """Return the error of the first call, which must come long before the deadline of 5 s."""
    async with redis, asyncio.timeout(2.5):
        with pytest.raises(kind) as caught:
            await redis.execute_command(*(command or ("GET", "key")))
        if kind is RedisUnavailable:
            assert redis.health.state is State.DOWN
            assert redis.health.cause is Cause.WRONG_SERVER
            assert redis.health.cause.permanent
    return str(caught.value)


async def test_wrong_name_of_the_master(sentinel):
    for url in (f"127.0.0.1:{sentinel.port}/cache", f"127.0.0.1:{sentinel.port}/cache/2"):
        said = await _error_of(ResilientRedis.from_url(f"redis+sentinel://{url}"))
        assert "no Sentinel knows a master 'cache': use 'mymaster'" in said


async def test_wrong_name_for_replicas(sentinel):
    manager = driver.asyncio.Sentinel([("127.0.0.1", sentinel.port)])
    said = await _error_of(manager.slave_for("cache", redis_class=ResilientRedis))
    assert "no Sentinel knows a master 'cache': use 'mymaster'" in said


async def test_no_reachable_sentinel(quick):
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:2/{NAME}"
    async with ResilientRedis.from_url(url, policy=quick) as redis:
        with pytest.raises(RedisUnavailable) as caught:
            await redis.get("key")
    said = str(caught.value)
    assert "no Sentinel answers: 127.0.0.1:1: connection refused; 127.0.0.1:2: conn" in said
    assert "a Sentinel listens on port 26379 by default" in said


async def test_wrong_password_of_the_sentinels(redis_server, quick):
    async with RedisSentinel(redis_server, password="secret") as sentinel:
        for query in ("", "?sentinel_password=wrong"):
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{NAME}{query}"
            async with ResilientRedis.from_url(url, policy=quick) as redis:
                with pytest.raises(driver.AuthenticationError) as caught:
                    await redis.get("key")
            said = str(caught.value)
            assert f"the Sentinel 127.0.0.1:{sentinel.port} refuses the login" in said
            assert "sentinel_kwargs={'password': …}, or ?sentinel_password=…" in said


@pytest.mark.parametrize("db", [0, 1])
async def test_sentinel_given_as_the_server(sentinel, db):
    said = await _error_of(ResilientRedis(port=sentinel.port, db=db))
    assert f"127.0.0.1:{sentinel.port}" in said or f"localhost:{sentinel.port}" in said
    assert "is a Sentinel, which holds no data: use ResilientRedis.from_sentinel([(" in said


async def test_sentinel_given_as_the_server_with_resp2(sentinel):
    redis = ResilientRedis(port=sentinel.port, protocol=2)
    said = await _error_of(redis, kind=driver.ResponseError)
    assert f"is localhost:{sentinel.port} a Sentinel, a proxy or an older server?" in said


async def test_server_given_as_a_sentinel(redis_server):
    url = f"redis+sentinel://127.0.0.1:{redis_server.port}/{NAME}"
    said = await _error_of(ResilientRedis.from_url(url))
    assert f"127.0.0.1:{redis_server.port} is not a Sentinel but a server with data" in said
    assert f"use ResilientRedis(host='127.0.0.1', port={redis_server.port})" in said


async def test_one_server_among_sentinels_is_ignored(redis_server, sentinel):
    sentinels = [("127.0.0.1", redis_server.port), ("127.0.0.1", sentinel.port)]
    async with ResilientRedis.from_sentinel(sentinels, NAME) as redis:
        assert await redis.ping()


@pytest_asyncio.fixture
async def node():
    """Return a node of a cluster that has one slot."""
    async with RedisServer(options={"cluster-enabled": "yes"}) as node:
        await node.query("CLUSTER", "ADDSLOTS", 12182)  # the slot of "foo"
        yield node


async def test_node_of_a_cluster_given_as_the_server(node):
    await node.query("CONFIG", "SET", "cluster-require-full-coverage", "no")
    async with ResilientRedis(port=node.port) as redis:
        with pytest.raises(ClusterDownError):
            await redis.with_policy(attempts=1).get("bar")
        with pytest.raises(driver.ResponseError, match="all keys need the same slot: give them"):
            await redis.mget("foo", "bar")


async def test_moved_reply_names_the_client_for_a_cluster(fake_server):
    redis = await fake_server(b"-MOVED 866 10.0.0.2:7002\r\n")
    with pytest.raises(MovedError) as caught:
        await redis.get("key")
    error = caught.value
    assert str(error).startswith("866 10.0.0.2:7002: ")
    assert "is a node of a Redis Cluster: use ResilientRedisCluster(host='127.0.0.1', po" in str(
        error
    )
    assert (error.slot_id, error.host, error.port) == (866, "10.0.0.2", 7002)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
    assert str(copy) == str(error)
    (again,) = await redis.pipeline(transaction=False).get("key").execute(raise_on_error=False)
    assert str(again) == str(error)


async def test_database_of_a_cluster(node):
    async with ResilientRedis(port=node.port, db=1) as redis, asyncio.timeout(2.5):
        with pytest.raises(RedisUnavailable, match="db=1: a Redis Cluster has only database 0"):
            await redis.get("foo")
        assert redis.health.cause is Cause.WRONG_DATABASE


async def test_push_messages_with_resp2(redis_server):
    wanted = "needs push messages, which RESP2 does not have: omit protocol=2, or use protocol=3"
    async with ResilientRedis(port=redis_server.port, protocol=2) as redis:
        with pytest.raises(ConfigurationError, match=wanted):
            redis.pubsub(push_handler_func=print)
        async with redis.client() as own:
            for command in (("CLIENT TRACKING", "ON"), ("CLIENT", b"tracking", "on", "BCAST")):
                with pytest.raises(ConfigurationError, match=wanted):
                    await own.execute_command(*command)
            number = await own.client_id()
            redirected = ("CLIENT TRACKING", "ON", "REDIRECT", number)
            assert await own.execute_command(*redirected) == b"OK"
            assert await own.execute_command("CLIENT TRACKING", "OFF") == b"OK"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+sentinel://s1", r"no name of a master after s1:26379: use redis\+sentinel://"),
        ("redis+sentinel://s1:1/m/zero", "the part after the name of the master is not the number"),
        ("redis+sentinel:///m", "invalid Sentinel URL 'redis\\+sentinel:///m': it has no host"),
        ("redis+sentinel://s1:99999/m", "its port is not a number from 1 to 65535"),
        ("redis+sentinel://s1,s2:x/m", "a host cannot be parsed, or its port"),
        ("redis+sentinel://s1/m?sentinel_ssl=maybe", "sentinel_ssl= must be yes or no"),
        ("redis+sentinel://s1/m?min_other_sentinels=x", "min_other_sentinels= must be a number"),
        (
            "redis+sentinel://s1/m?sentinel_paswort=x",
            r"unknown option of the Sentinels: 'paswort'; sentinel_kwargs=",
        ),
        ("redis+sentinel://s1/m?socket_timeout=x", "invalid value for 'socket_timeout'"),
        ("redis-sentinel://s1/m", "unknown scheme"),
    ],
)
def test_invalid_urls(url, message):
    with pytest.raises(ConfigurationError, match=message):
        ResilientRedis.from_url(url)


@pytest.mark.parametrize(
    ("sentinels", "name", "options", "message"),
    [
        ([], NAME, {}, r"sentinels=\[\] is not a list of \(host, port\) with at least one"),
        ("s1:26379", NAME, {}, r"sentinels='s1:26379' is not a list of \(host, port\)"),
        (["s1:26379"], NAME, {}, r"'s1:26379' in sentinels is not \(host, port\): use \[\('sent"),
        ([("s1", 0)], NAME, {}, r"\('s1', 0\) in sentinels is not \(host, port\)"),
        ([("s1", 1)], "", {}, "service_name='' must be a non-empty string"),
        ([("s1", 1)], NAME, {"host": "h"}, "host= and Sentinels contradict each other"),
        ([("s1", 1)], NAME, {"address_map": 3}, "address_map=3 is invalid: use"),
        ([("s1", 1)], NAME, {"address_map": {"a": "b"}}, r"does not map \(host, port\)"),
        ([("s1", 1)], NAME, {"min_other_sentinels": -1}, "min_other_sentinels=-1 must be"),
        ([("s1", 1)], NAME, {"passwort": "x"}, r"unknown option 'passwort' \(did you mean 'pass"),
    ],
)
def test_invalid_arguments(sentinels, name, options, message):
    with pytest.raises(ConfigurationError, match=message):
        ResilientRedis.from_sentinel(sentinels, name, **options)


def test_error_about_a_url_does_not_quote_the_password():
    with pytest.raises(ConfigurationError) as caught:
        ResilientRedis.from_url("redis+sentinel://user:pa,ss:word@s1:26379,s2:26379/m/x")
    assert "ss:word" not in str(caught.value)
