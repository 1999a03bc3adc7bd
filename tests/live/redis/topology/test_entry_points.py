"""Every way to name Sentinels leads to the master: constructors, URLs, redis-py's own objects."""

import asyncio

import pytest
import pytest_asyncio
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)

from resilient_io import ConfigurationError
from resilient_io.redis import RedisUnavailable, ResilientRedis
from resilient_io.testing import RedisSentinel, RedisServer

NAME = "mymaster"


@pytest_asyncio.fixture
async def sentinel(redis_server):
    async with RedisSentinel(redis_server) as sentinel:
        yield sentinel


def _from_sentinel(port):
    return ResilientRedis.from_sentinel([("127.0.0.1", port)], NAME, db=1, decode_responses=True)


def _from_url(port):
    return ResilientRedis.from_url(
        f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/{NAME}/1", decode_responses=True
    )


def _from_url_options(port):
    return ResilientRedis.from_url(f"redis+sentinel://127.0.0.1:{port}/{NAME}?db=1&protocol=2")


def _master_for(port):
    return Sentinel([("127.0.0.1", port)]).master_for(NAME, redis_class=ResilientRedis, db=1)


def _pool(port):
    pool = SentinelConnectionPool(NAME, Sentinel([("127.0.0.1", port)]), db=1)
    return ResilientRedis.from_pool(pool)


def _slave_for(port):
    return Sentinel([("127.0.0.1", port)]).slave_for(NAME, redis_class=ResilientRedis, db=1)


@pytest.mark.parametrize(
    "make", [_from_sentinel, _from_url, _from_url_options, _master_for, _pool, _slave_for]
)
async def test_each_constructor_leads_to_the_same_server(redis_server, sentinel, make):
    async with make(sentinel.port) as redis:
        await redis.set("key", "value")
        assert await redis.get("key") in {"value", b"value"}
        assert (await redis.client_info())["db"] == 1
        assert await redis.blpop("list", 0.01) is None
        assert redis.health.name == f"redis {NAME}/1"
    assert await redis_server.query("DBSIZE") == 0  # it is in database 1


async def test_slave_for_reads_from_the_replica(sentinel_setup):
    sentinel = Sentinel(sentinel_setup.addresses)
    replica_ports = {node.port for node in sentinel_setup.nodes[1:]}
    client = sentinel.slave_for(sentinel_setup.name, redis_class=ResilientRedis)
    async with client as redis:
        address = (await redis.client_info())["laddr"]
    assert int(address.rpartition(":")[2]) in replica_ports


async def test_connection_class_of_the_application(redis_server, sentinel):
    class Own(SentinelManagedConnection):
        pass

    manager = Sentinel([("127.0.0.1", sentinel.port)])
    client = manager.master_for(NAME, redis_class=ResilientRedis, connection_class=Own)
    async with client as redis:
        assert (await redis.info("server"))["tcp_port"] == redis_server.port
    await manager.aclose()


async def test_options_of_the_client_in_master_for_say_where_they_belong():
    manager = Sentinel([("127.0.0.1", 1)])
    wanted = r"'policy' is an option of the client.*from_sentinel\(\.\.\., policy=\.\.\.\)"
    with pytest.raises(ConfigurationError, match=wanted):
        manager.master_for(NAME, redis_class=ResilientRedis, policy=None)


async def test_single_connection_and_views(redis_server, sentinel):
    sentinels = [("127.0.0.1", sentinel.port)]
    client = ResilientRedis.from_sentinel(sentinels, NAME, single_connection_client=True)
    async with client as redis:
        assert await redis.select(1)
        assert (await redis.info("server"))["tcp_port"] == redis_server.port
    async with ResilientRedis.from_sentinel(sentinels, NAME) as redis, redis.client() as own:
        assert await own.ping()


@pytest.mark.parametrize("hosts", ["[::1]:7,[::1]", "s1,[::1]:8", "S1:26379"])
def test_url_with_several_kinds_of_hosts(hosts):
    client = ResilientRedis.from_url(f"REDIS+SENTINEL://u:p%2C%40@{hosts}/my%20master/3?protocol=2")
    pool = client.connection_pool
    settings = pool.connection_kwargs
    assert (settings["username"], settings["password"]) == ("u", "p,@")
    assert (settings["db"], settings["protocol"]) == (3, 2)
    assert pool.service_name == "my master"
    addresses = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
    assert [(each["host"], each["port"]) for each in addresses] == {
        "[::1]:7,[::1]": [("::1", 7), ("::1", 26379)],
        "s1,[::1]:8": [("s1", 26379), ("::1", 8)],
        "S1:26379": [("S1", 26379)],
    }[hosts]
    assert addresses[0]["password"] is None


async def test_servers_and_sentinels_have_their_own_passwords():
    async with (
        RedisServer(password="of-server") as server,
        RedisSentinel(server, password="of-sentinel") as sentinel,
    ):
        login = f":of-server@127.0.0.1:{sentinel.port}/{NAME}?sentinel_password=of-sentinel"
        async with ResilientRedis.from_url(f"redis+sentinel://{login}") as redis:
            assert await redis.ping()
        client = ResilientRedis.from_sentinel(
            [("127.0.0.1", sentinel.port)],
            NAME,
            password="of-server",
            sentinel_kwargs={"password": "of-sentinel"},
        )
        async with client as redis:
            assert await redis.ping()


async def test_sentinels_have_their_own_user():
    async with (
        RedisServer() as server,
        RedisSentinel(
            server,
            options={"user": "app on >secret -@all +auth +client +hello +ping +sentinel"},
        ) as sentinel,
    ):
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{NAME}"
        login = "sentinel_username=app&sentinel_password=secret"
        async with ResilientRedis.from_url(f"{url}?{login}") as redis:
            assert await redis.ping()


async def _encrypted(server, sentinel, url, **options):
    def to_tls(address):
        return address[0], {server.port: server.tls_port}.get(address[1], address[1])

    async with ResilientRedis.from_url(url, address_map=to_tls, **options) as redis:
        return await redis.ping()


@pytest_asyncio.fixture
async def tls_servers():
    """Return a server and its Sentinel, which both have a TLS port."""
    async with (
        RedisServer(tls=True) as server,
        RedisServer(tls=True) as other,  # for its port and certificate
    ):
        files = {
            f"tls-{option}-file": str(file)
            for option, file in (
                ("ca-cert", server.certificates.authority),
                ("cert", server.certificates.certificate),
                ("key", server.certificates.key),
            )
        }
        port = other.tls_port
        await other.aclose()
        options = {"tls-port": port, "tls-auth-clients": "no", **files}
        async with RedisSentinel(server, options=options) as sentinel:
            sentinel.encrypted = port
            yield server, sentinel


async def test_tls_for_servers_and_sentinels(tls_servers):
    server, sentinel = tls_servers
    trust = f"ssl_ca_certs={server.certificates.authority}"
    url = f"rediss+sentinel://127.0.0.1:{sentinel.encrypted}/{NAME}?{trust}"
    assert await _encrypted(server, sentinel, url)


async def test_tls_only_for_servers(tls_servers):
    server, sentinel = tls_servers
    trust = f"ssl_ca_certs={server.certificates.authority}&sentinel_ssl=no"
    url = f"rediss+sentinel://127.0.0.1:{sentinel.port}/{NAME}?{trust}"
    assert await _encrypted(server, sentinel, url)


async def test_tls_only_for_sentinels(tls_servers):
    server, sentinel = tls_servers
    trust = f"sentinel_ssl=yes&sentinel_ssl_ca_certs={server.certificates.authority}"
    url = f"redis+sentinel://127.0.0.1:{sentinel.encrypted}/{NAME}?{trust}"
    async with ResilientRedis.from_url(url) as redis:
        assert await redis.ping()


async def test_hostnames_that_sentinels_announce(redis_server):
    lines = {"sentinel": ["resolve-hostnames yes", "announce-hostnames yes"]}
    sentinel = RedisSentinel(redis_server)
    configuration = sentinel._configuration()
    monitor = [line.replace("127.0.0.1", "localhost") for line in configuration["sentinel"]]
    sentinel._options = {"sentinel": lines["sentinel"] + monitor}
    async with sentinel:
        said = await sentinel.query("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        assert said[0] == b"localhost"
        async with _from_sentinel(sentinel.port) as redis:
            assert await redis.ping()


@pytest.mark.parametrize("form", ["mapping", "function"])
async def test_address_map_for_addresses_behind_a_nat(redis_server, form):
    """The Sentinel announces an address of another network, which leads nowhere from here."""
    outside = ("127.0.0.9", 1)
    sentinel = RedisSentinel(redis_server)
    monitor = f"monitor {NAME} {outside[0]} {outside[1]} 1"
    sentinel._options = {"sentinel": [monitor]}
    inside = ("127.0.0.1", redis_server.port)
    table = {outside: inside}
    address_map = table if form == "mapping" else lambda address: table.get(address, address)
    async with sentinel:
        client = ResilientRedis.from_sentinel(
            [("127.0.0.1", sentinel.port)], NAME, address_map=address_map
        )
        async with client as redis:
            assert await redis.ping()
            pool = client.connection_pool
            assert await pool.get_master_address() == inside  # connections of redis-py, too


async def test_address_map_that_raises_is_named(redis_server, quick):
    async with RedisSentinel(redis_server) as sentinel:
        client = ResilientRedis.from_sentinel(
            [("127.0.0.1", sentinel.port)],
            NAME,
            address_map=lambda _address: 1 / 0,
            policy=quick,
        )
        async with client as redis:
            with pytest.raises(RedisUnavailable) as caught:
                await redis.get("key")
        expected = f"address_map raised ZeroDivisionError for ('127.0.0.1', {redis_server.port})"
        assert expected in str(caught.value)


async def test_cancelled_call_of_a_new_client_leaves_nothing(redis_server, sentinel):
    async with _from_sentinel(sentinel.port) as redis:
        call = asyncio.create_task(redis.get("key"))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await redis.get("key") is None
