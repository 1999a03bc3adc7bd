"""Every constructor of redis.asyncio.Redis creates a ResilientRedis, with the same options."""

import asyncio
import contextlib
from unittest.mock import MagicMock

import pytest
import redis.asyncio as driver
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ConstantBackoff, ExponentialBackoff
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider
from redis.exceptions import AuthenticationError
from redis.exceptions import TimeoutError as DriverTimeoutError

from resilient_io import ConfigurationError, RetryPolicy
from resilient_io.redis import ResilientRedis
from resilient_io.testing import RedisSentinel, RedisServer


@pytest.fixture
async def guarded_redis(redis_server):
    """A server that requires a password, with a second user."""
    await redis_server.query("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all")
    await redis_server.query("CONFIG", "SET", "requirepass", "master")
    redis_server.password = "master"
    return redis_server


async def works(client):
    """Make calls on a shared and an exclusive connection and in batches; then close."""
    async with client:
        assert await client.set("k", "v")
        assert await client.get("k") in ("v", b"v")
        assert await client.pipeline().incr("n").incr("n").execute() == [1, 2]
        async with client.pipeline() as pipe:
            await pipe.watch("n")
            assert int(await pipe.get("n")) == 2
            pipe.multi()
            assert await pipe.delete("n").execute() == [1]
        await client.rpush("l", "x")
        assert (await client.blpop("l", timeout=1))[1] in ("x", b"x")
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("c")
            assert (await pubsub.get_message(timeout=1))["type"] == "subscribe"
    return client


async def test_the_constructor_and_from_url(shared_redis):
    await works(ResilientRedis(host=shared_redis.host, port=shared_redis.port))
    await works(ResilientRedis.from_url(shared_redis.url, decode_responses=True))
    client = await works(ResilientRedis.from_url(shared_redis.url + "?protocol=2&db=3"))
    assert client.connection_pool.connection_kwargs["db"] == 3


async def test_tls_with_a_certificate_of_a_private_authority():
    async with RedisServer(tls=True) as server:
        await works(ResilientRedis.from_url(server.tls_url))
        await works(
            ResilientRedis(
                host="localhost",
                port=server.tls_port,
                ssl=True,
                ssl_ca_certs=str(server.certificates.authority),
            )
        )


async def test_an_untrusted_certificate_raises_one_clear_error():
    async with (
        RedisServer(tls=True) as server,
        ResilientRedis(
            host="localhost", port=server.tls_port, ssl=True, socket_connect_timeout=4
        ) as client,
    ):
        with pytest.raises(driver.ConnectionError, match="certificate verify failed"):
            await client.get("k")


async def test_unix_sockets():
    async with RedisServer(unix_socket=True) as server:
        await works(ResilientRedis.from_url(server.unix_url))
        await works(ResilientRedis(unix_socket_path=str(server.unix_socket)))


@pytest.mark.parametrize("pool_class", [driver.ConnectionPool, driver.BlockingConnectionPool])
async def test_a_given_pool_is_read_and_not_changed(shared_redis, pool_class):
    pool = pool_class.from_url(shared_redis.url, decode_responses=True, health_check_interval=7)
    before = dict(pool.connection_kwargs)
    retry = before.get("retry")
    client = await works(ResilientRedis(connection_pool=pool))
    assert pool.connection_kwargs == before
    assert pool.connection_kwargs.get("retry") is retry
    # It belongs to the caller: another client continues to use it.
    async with driver.Redis(connection_pool=pool) as theirs:
        assert await theirs.get("k") == "v"
    assert client.connection_pool is pool
    await pool.aclose()


async def test_from_pool_owns_the_pool(shared_redis):
    pool = driver.ConnectionPool.from_url(shared_redis.url)
    client = await works(ResilientRedis.from_pool(pool))
    assert client.auto_close_connection_pool
    assert not any(connection.is_connected for connection in pool._available_connections)


async def test_a_bound_client_keeps_the_state_of_its_connection(shared_redis):
    async with ResilientRedis(port=shared_redis.port, single_connection_client=True) as client:
        await client.select(5)
        await client.set("there", 1)
        assert await client.execute_command("WATCH", "there")
        assert await client.execute_command("MULTI")
        await client.incr("there")
        assert await client.execute_command("EXEC") == [2]
        assert await client.client_id() == await client.client_id()
    async with ResilientRedis(port=shared_redis.port) as client:
        assert await client.get("there") is None
        async with client.client() as own:
            assert isinstance(own, ResilientRedis)
            await own.select(5)
            assert await own.get("there") == b"2"
            # The shared connections are unchanged.
            assert await client.get("there") is None
        assert await client.ping()


async def test_wait_on_a_bound_client_refers_to_its_own_writes(redis_server):
    async with ResilientRedis.from_url(redis_server.url) as client, client.client() as own:
        await own.set("k", 1)
        assert await own.wait(0, 100) == 0


async def test_the_database_and_the_name_of_the_connections(shared_redis):
    async with ResilientRedis(port=shared_redis.port, db=4, client_name="orders") as client:
        await client.set("k", "four")
        assert (await shared_redis.query("CLIENT", "LIST")).count(b"name=orders:") >= 1
        assert await client.client_getname() == "orders"
    async with ResilientRedis(port=shared_redis.port, db=4) as client:
        assert await client.get("k") == b"four"


async def test_users_and_passwords(guarded_redis):
    port = guarded_redis.port
    await works(ResilientRedis(port=port, password="master"))
    await works(ResilientRedis(port=port, username="app", password="secret"))
    await works(ResilientRedis.from_url(f"redis://app:secret@127.0.0.1:{port}/0"))
    provider = UsernamePasswordCredentialProvider("app", "secret")
    await works(ResilientRedis(port=port, credential_provider=provider))
    async with ResilientRedis(port=port, username="app", password="wrong") as client:
        with pytest.raises(AuthenticationError, match="invalid username-password pair") as caught:
            await client.get("k")
        assert "check username= and password=" in str(caught.value)
        assert "wrong" not in str(caught.value)
    async with ResilientRedis(port=port) as client:
        with pytest.raises(AuthenticationError, match="requires a password: use password="):
            await client.get("k")


async def test_credential_provider_is_asked_for_every_connection(guarded_redis):
    class Rotating(CredentialProvider):
        asked = 0
        password = "secret"

        async def get_credentials_async(self):
            self.asked += 1
            return "app", self.password

        def get_credentials(self):
            raise AssertionError("redis-py asks the other one")

    provider = Rotating()
    async with ResilientRedis(port=guarded_redis.port, credential_provider=provider) as client:
        await client.set("k", "v")
        await guarded_redis.query("ACL", "SETUSER", "app", "resetpass", ">rotated")
        provider.password = "rotated"
        before = provider.asked  # the client may reconnect before the next line has returned
        await guarded_redis.query("CLIENT", "KILL", "USER", "app")
        assert await client.get("k") == b"v"
        assert provider.asked > before


async def test_client_from_a_sentinel_connects_to_the_master(redis_server):
    async with RedisSentinel(redis_server) as server:
        sentinel = Sentinel([(server.host, server.port)])
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(driver.RedisError):
                    await sentinel.discover_master("mymaster")
                    break
                await asyncio.sleep(0.02)
        client = sentinel.master_for("mymaster", redis_class=ResilientRedis)
        assert isinstance(client, ResilientRedis)
        assert "mymaster" in repr(client)
        await works(client)
        for known in sentinel.sentinels:
            await known.aclose()


async def test_timeouts_and_retries_of_redis_py_become_the_policy(shared_redis):
    client = ResilientRedis(
        port=shared_redis.port,
        socket_timeout=0.7,
        socket_connect_timeout=0.3,
        retry=driver.retry.Retry(ExponentialBackoff(cap=0.5, base=0.02), 4),
        retry_on_error=[driver.ConnectionError, DriverTimeoutError],
        retry_on_timeout=True,
        health_check_interval=9,
    )
    policy = client._policy
    assert (policy.response_timeout, policy.connect_timeout) == (0.7, 0.3)
    assert (policy.attempts, policy.backoff, policy.backoff_cap) == (5, 0.02, 0.5)
    await works(client)
    url = f"{shared_redis.url}?socket_timeout=0.7&socket_connect_timeout=0.3"
    policy = ResilientRedis.from_url(url)._policy
    assert (policy.response_timeout, policy.connect_timeout) == (0.7, 0.3)
    constant = driver.retry.Retry(ConstantBackoff(0.2), 0)
    policy = ResilientRedis(retry=constant)._policy
    assert (policy.attempts, policy.backoff, policy.backoff_cap) == (1, 0.2, 0.2)
    assert ResilientRedis()._policy == RetryPolicy()
    assert ResilientRedis(socket_timeout=60)._policy.deadline == 60


async def test_a_socket_timeout_limits_the_wait_for_a_frozen_server(redis_server, slack):
    async with ResilientRedis(port=redis_server.port, socket_timeout=0.2) as client:
        await client.ping()
        redis_server.freeze()
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(driver.RedisError):
            await client.incr("k")
        assert loop.time() - began < 0.2 + slack()
        redis_server.thaw()


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"retry": driver.retry.Retry(ConstantBackoff(1), -1)}, r"attempts=10"),
        ({"retry_on_error": [ValueError]}, r"repeat="),
        ({"retry_on_error": "[TimeoutError]"}, r"'\[TimeoutError\]' is not a list of exception"),
        ({"socket_timeout": 0}, r"time out immediately.*socket_timeout=None"),
        ({"socket_connect_timeout": 0}, r"time out immediately.*socket_connect_timeout=None"),
        ({"health_check_interval": "often"}, r"health_check_interval='often'"),
        ({"socket_timeout": 1, "policy": RetryPolicy()}, r"response_timeout"),
        ({"socket_connect_timeout": 1, "policy": RetryPolicy()}, r"connect_timeout"),
        ({"retry_on_timeout": True, "policy": RetryPolicy()}, r"repeat"),
        ({"socket_timeout": -1}, r"socket_timeout=-1"),
        ({"socket_timeout": "soon"}, r"socket_timeout='soon'"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_an_unsupported_option_is_refused_by_name(options, advice):
    with pytest.raises(ConfigurationError, match=advice):
        ResilientRedis(**options)


def test_a_mock_in_the_place_of_a_pool_makes_a_client():
    # aiogram and others test their constructors with `ConnectionPool.from_url` patched.
    pool = MagicMock()
    client = ResilientRedis(connection_pool=pool)
    assert client.connection_pool is pool


@pytest.mark.parametrize(
    "options",
    [
        {"socket_timeout": None},
        {"socket_timeout": None, "socket_connect_timeout": None},
        {"retry_on_error": [Exception]},
        {"retry_on_error": [driver.RedisError, driver.ResponseError]},
        {"health_check_interval": -1},
        {"health_check_interval": 0},
    ],
    ids=str,
)
async def test_unusual_options_are_honoured(shared_redis, options):
    pool = driver.ConnectionPool.from_url(shared_redis.url, **options)
    for client in (
        ResilientRedis(port=shared_redis.port, **options),
        ResilientRedis.from_url(shared_redis.url, **options),
        ResilientRedis.from_pool(pool),
    ):
        async with client:
            assert await client.ping()
            assert client.health.settings.interval > 0


async def test_without_a_socket_timeout_a_slow_reply_is_awaited(redis_server, fault_proxy):
    async with ResilientRedis(port=fault_proxy.port, socket_timeout=None) as client:
        await client.delete("n")
        held = fault_proxy.hold("INCRBY")
        call = asyncio.create_task(client.incr("n"))
        async with asyncio.timeout(5):
            await held.happened()
        assert not (await asyncio.wait([call], timeout=2.3))[0]  # the default is 2 s
        held.release()
        assert await call == 1


async def test_set_retry_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="with_policy"):
        ResilientRedis().set_retry(None)
