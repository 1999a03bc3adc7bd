"""Options of the client: types, names, mistakes and platforms."""

import inspect
import random
import subprocess
import sys

import pytest
import redis.asyncio as driver

from resilient_io import ConfigurationError, Dependency, RetryPolicy
from resilient_io.redis import ConnectionSettings, ResilientRedis, ResilientRedisCluster
from resilient_io.redis.options import PoolOptions, RedisOptions, UrlOptions

OWN = {
    "policy",
    "health",
    "connections",
    "name",
    "rng",
    "reopen",
    "read_from",
    "max_lag",
    "durability",
}


def test_the_typed_options_are_those_of_redis_py():
    parameters = set(inspect.signature(driver.Redis.__init__).parameters)
    parameters -= {"self", "connection_pool", "single_connection_client"}
    assert set(RedisOptions.__annotations__) == parameters - {"auto_close_connection_pool"}


def test_the_typed_options_of_each_constructor_include_the_clients_own():
    assert set(PoolOptions.__annotations__) == OWN | {"single_connection_client"}
    assert set(UrlOptions.__annotations__) >= OWN | set(RedisOptions.__annotations__)
    parameters = inspect.signature(ResilientRedis.__init__).parameters
    assert set(parameters) >= OWN


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("hots", " (did you mean 'host'?)"),
        ("pasword", " (did you mean 'password'?)"),
        ("conections", " (did you mean 'connections'?)"),
        ("zzz", ""),
        ("attempts", ": use policy=RetryPolicy(attempts=...)"),
        ("deadline", ": use policy=RetryPolicy(deadline=...)"),
    ],
)
def test_an_unknown_option_names_the_closest_one(option, hint):
    message = f"unknown option '{option}'{hint}; see redis.asyncio.Redis"
    for create in (ResilientRedis, lambda **given: ResilientRedis.from_url("redis://h", **given)):
        with pytest.raises(ConfigurationError) as failure:
            create(**{option: 1})
        assert str(failure.value) == message
        assert failure.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:6379", "'localhost:6379': no scheme. Did you mean redis://localhost:6379?"),
        ("cache", "invalid URL 'cache': no scheme. Did you mean redis://cache?"),
        ("[::1]:6379/0", "invalid URL '[::1]:6379/0': no scheme. Did you mean redis://[::1]"),
        ("user:secret@cache", "invalid Redis URL '…@cache': no scheme; URL-encode"),
        ("", "invalid Redis URL '': no scheme: use redis://[user[:password]@]host"),
        ("http://cache", "invalid Redis URL 'http://cache': unknown scheme"),
        ("redis://cache:port", "the port is not a number from 1 to 65535"),
        ("redis://cache:99999", "the port is not a number from 1 to 65535"),
        ("redis://cache:0", "'redis://cache:0': the port is not a number from 1 to 65535"),
        ("redis://cache?db=one", "'redis://cache?…': invalid value for 'db'"),
        ("redis://cache/shop", "'redis://cache/shop': the database, after the host, is not a num"),
        ("redis://cache/1/2", "the database, after the host, is not a number"),
        ("redis://s1:26379,s2/0", "it names several hosts, which only the URL of Sentinels may"),
        ("redis-sentinel://s1/mymaster", "'redis-sentinel://s1/mymaster': unknown scheme"),
        (
            "redis+sentinel://s1:x/m",
            "Sentinel URL 'redis+sentinel://s1:…': a host cannot be parsed",
        ),
        ("redis://u:p[x]@cache", "URL-encode special characters in user and password"),
    ],
)
def test_an_invalid_url_says_what_is_wrong_and_what_to_use(url, message):
    with pytest.raises(ConfigurationError) as failure:
        ResilientRedis.from_url(url)
    assert message in str(failure.value)


@pytest.mark.parametrize("database", ["", "/", "/0", "/3", "/3/"])
def test_a_url_may_end_with_the_number_of_a_database(database):
    client = ResilientRedis.from_url(f"redis://cache{database}")
    number = database.strip("/") or "0"
    assert client.name == f"redis cache:6379/{number}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"host": "redis://cache:6379"},
            "host='redis://cache:6379' is not a host name: pass a URL",
        ),
        ({"host": "redis://me:s3cret@cache"}, "host='redis://…@cache' is not a host name"),
        ({"host": "me:s3cret@cache"}, "host='…@cache' is not a host name"),
        ({"host": "cache:6380"}, "contains a port: use host='cache', port=6380"),
        ({"port": "abc"}, "port='abc' is not a number from 1 to 65535"),
        ({"port": 0}, "port=0 is not a number from 1 to 65535"),
        ({"port": 70_000}, "port=70000 is not a number from 1 to 65535"),
        ({"db": "shop"}, "db='shop' is not the number of a database"),
        ({"db": -1}, "db=-1 is not the number of a database"),
    ],
)
def test_an_invalid_address_is_quoted_without_its_password(options, message):
    for create in (ResilientRedis, ResilientRedisCluster):
        if create is ResilientRedisCluster and "db" in options:
            continue
        with pytest.raises(ConfigurationError) as failure:
            create(**{"host": "cache", **options})
        assert message in str(failure.value)
        assert "s3cret" not in str(failure.value)


def test_addresses_that_redis_py_accepts_are_accepted():
    for options in ({"port": "6380"}, {"host": "::1"}, {"host": None}, {"db": "1"}, {"db": None}):
        ResilientRedis(**options)


def test_a_retry_of_another_type_raises_an_error():
    with pytest.raises(TypeError, match=r"retry must be a redis.asyncio.retry.Retry, not int: use"):
        ResilientRedis(retry=3)


@pytest.mark.parametrize("option", ["ssl", "ssl_ca_certs"])
def test_options_of_tls_need_a_url_with_tls(option):
    with pytest.raises(ConfigurationError, match=f"'{option}' needs TLS: use a URL with rediss://"):
        ResilientRedis.from_url("redis://cache", **{option: "/ca.pem"})


@pytest.mark.parametrize(
    ("sentinels", "message"),
    [
        ("redis://:s3cret@s1", "sentinels='redis://…@s1' is not a list"),
        (["redis://:s3cret@s1"], "'redis://…@s1' in sentinels is not"),
        ([("redis://:s3cret@s1", 26379)], "('redis://…@s1', 26379) in sentinels is not"),
    ],
)
def test_invalid_sentinels_are_quoted_without_their_password(sentinels, message):
    with pytest.raises(ConfigurationError) as failure:
        ResilientRedis.from_sentinel(sentinels, "mymaster")
    assert message in str(failure.value)
    assert "s3cret" not in str(failure.value)


@pytest.mark.parametrize(
    ("create", "error", "message"),
    [
        (
            ResilientRedisCluster,
            ConfigurationError,
            "no node given: use ResilientRedisCluster.from",
        ),
        (
            lambda: ResilientRedisCluster(startup_nodes="a:1"),
            TypeError,
            "startup_nodes must be a list, not str: use startup_nodes=",
        ),
        (
            lambda: ResilientRedisCluster(startup_nodes=["a:1"]),
            TypeError,
            "startup_nodes must contain ClusterNode objects, not str: use startup_nodes=",
        ),
        (
            lambda: ResilientRedisCluster.from_url("redis+sentinel://me:s3cret@s1/mymaster"),
            ConfigurationError,
            "'redis+sentinel://…@s1/mymaster' names Sentinels, which a cluster does not have",
        ),
    ],
)
def test_invalid_nodes_of_a_cluster_raise_an_error_that_says_what_to_use(create, error, message):
    with pytest.raises(error) as failure:
        create()
    assert message in str(failure.value)
    assert "s3cret" not in str(failure.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": "x"}, "timeout='x' is not a number"),
        ({"timeout": -1}, "timeout=-1 is out of range"),
        ({"sleep": "x"}, "sleep='x' is not a number"),
        ({"blocking_timeout": "x"}, "blocking_timeout='x' is not a number"),
    ],
)
def test_a_lock_refuses_invalid_times_before_it_is_acquired(options, message):
    with pytest.raises(ConfigurationError, match=message):
        ResilientRedis().lock("report", **options)


@pytest.mark.parametrize("name", ["my app", "line\nbreak", "größe", "", 5, b"bytes"])
def test_an_invalid_client_name_raises_an_error(name):
    if name == "":
        ResilientRedis(client_name=name)  # redis-py's way to set none
        return
    with pytest.raises(ConfigurationError, match="client_name must be a str of printable ASCII"):
        ResilientRedis(client_name=name)
    with pytest.raises(ConfigurationError, match="client_name must be a str of printable ASCII"):
        ResilientRedis.from_url("redis://h", client_name=name)


def test_the_name_of_a_client_is_that_of_its_dependency_and_of_its_views():
    client = ResilientRedis(name="cache")
    assert client.name == client.health.name == "cache"
    assert client.with_policy(attempts=1).name == "cache"
    assert client.client().name == "cache"
    assert ResilientRedis.from_url("redis://h", name="cache").health.name == "cache"
    pool = driver.ConnectionPool()
    assert ResilientRedis.from_pool(pool, name="cache").health.name == "cache"
    assert ResilientRedis(port=7).name == "redis localhost:7/0"
    assert ResilientRedis(host="::1", db=2).name == "redis [::1]:6379/2"
    assert ResilientRedis(unix_socket_path="/run/redis").name == "redis unix:///run/redis"
    assert ResilientRedis(host="redis", password="redis").name == "redis redis:6379/0"
    assert ResilientRedis(health=Dependency("shared")).name == "shared"
    both = ResilientRedis(health=Dependency("shared"), name="reads")
    assert (both.name, both.health.name) == ("reads", "shared")
    for wrong in ("", 3):
        with pytest.raises(ConfigurationError, match=r"name=.* must be a non-empty string"):
            ResilientRedis(name=wrong)


async def test_the_name_of_a_client_is_in_its_errors():
    client = ResilientRedis(name="cache", reopen=False)
    await client.aclose()
    with pytest.raises(Exception, match=r"^cache: GET: the client is closed"):
        await client.get("k")


def test_options_of_the_wrong_type_raise_type_error():
    for option, wrong in (("policy", 3), ("health", "up"), ("connections", 2)):
        with pytest.raises(TypeError, match=rf"{option} must be a .*: use {option}="):
            ResilientRedis(**{option: wrong})


def test_client_names_cannot_be_guessed_unless_a_generator_was_passed():
    def names(**options):
        client = ResilientRedis(**options)
        return client._runtime.multiplexer.next_name()

    random.seed(1)
    first = names()
    random.seed(1)
    assert first != names()
    assert first.startswith("resilient-io:")
    assert names(rng=random.Random(1)) == names(rng=random.Random(1))
    assert names(client_name="orders").startswith("orders:")


@pytest.mark.parametrize("seeded", [False, True])
async def test_lock_tokens_cannot_be_guessed_unless_a_generator_was_passed(seeded):
    tokens = []

    async def token():
        client = ResilientRedis(rng=random.Random(1) if seeded else None)
        lock = client.lock("name", timeout=1)

        async def acquired(token):
            tokens.append(token)
            return True

        lock.do_acquire = acquired
        assert await lock.acquire()

    await token()
    await token()
    assert len(tokens[0]) == 32
    assert (tokens[0] == tokens[1]) is seeded


def test_a_shorter_deadline_of_a_view_shortens_its_timeouts():
    client = ResilientRedis(policy=RetryPolicy(response_timeout=2.0, connect_timeout=1.0))
    policy = client.with_policy(deadline=0.2)._policy
    assert (policy.deadline, policy.response_timeout, policy.connect_timeout) == (0.2, 0.2, 0.2)


def test_connection_settings_are_named_connections():
    client = ResilientRedis(connections=ConnectionSettings(count=3))
    assert len(client._runtime.multiplexer._slots) == 3


def test_the_client_can_be_imported_without_the_modules_of_unix():
    script = (
        "import sys; sys.modules['fcntl'] = sys.modules['termios'] = None\n"
        "from resilient_io.redis import ResilientRedis; ResilientRedis()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
