"""No password or token reaches an error, a log, health, the recorder, the statistics or a repr.

Canaries are placed in every option and every part of a URL, and every kind of failure is provoked.
"""

import asyncio
import contextlib
import gc
import logging
import pickle
import traceback

import pytest
import redis.asyncio as driver
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider

from resilient_io import ConfigurationError, Dependency, HealthMonitor, RetryPolicy
from resilient_io.redis import ResilientRedis
from resilient_io.redis.connect import RedisTarget
from resilient_io.redis.options import RedisOptions
from resilient_io.testing import free_port

CANARY = "Canary7Sekret"
URL_CANARY = "p@ss/Canary7Sekret"
QUICK = RetryPolicy(response_timeout=0.2, connect_timeout=0.2, deadline=0.3, attempts=2)


def error(text: str) -> bytes:
    return f"-{text}\r\n".encode()


def quoting(words: list[bytes]) -> bytes:
    """Reply to each command as a server that does not know it: quote the arguments."""
    quoted = " ".join(f"'{word.decode(errors='replace')}'" for word in words[1:])
    return error(f"ERR unknown command '{words[0].decode()}', with args beginning with: {quoted}")


def redis_5(words: list[bytes]) -> bytes:
    """Reply as a server without HELLO, which serves the other commands."""
    name = words[0].upper()
    if name in (b"HELLO", b"AUTH"):
        return quoting(words)
    if name == b"CLIENT" and words[1].upper() == b"ID":
        return b":7\r\n"
    return b"+PONG\r\n" if name == b"PING" else b"+OK\r\n"


def texts_of(failure):
    """Yield every form in which an application may show an exception."""
    seen = failure
    while seen is not None:
        yield str(seen)
        yield repr(seen)
        yield repr(seen.args)
        yield from getattr(seen, "__notes__", [])
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    yield "".join(traceback.format_exception(failure))
    with contextlib.suppress(Exception):
        yield repr(pickle.loads(pickle.dumps(failure)))  # noqa: S301


async def failure_of(use):
    try:
        async with asyncio.timeout(5):
            await use()
    except Exception as failure:  # noqa: BLE001
        return failure


async def outputs_of(client, caplog):
    """Use a client in every way, and return every text that it produces."""
    caplog.set_level(logging.DEBUG, logger="resilient_io")
    # redis-py's pub/sub and monitor use these settings, whose defaults would take long.
    client.connection_pool.connection_kwargs |= {
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": 0.2,
        "socket_timeout": 0.2,
    }
    monitor = HealthMonitor(client.health)
    shown = [repr(client), str(client)]
    pubsub = client.pubsub()
    alone = client.client()

    async def watched():
        async with client.pipeline() as pipe:
            await pipe.watch("k")

    uses = {
        "get": lambda: client.get("k"),
        "set": lambda: client.set("k", "v"),
        "blpop": lambda: client.blpop("k", timeout=0.1),
        "pipeline": lambda: client.pipeline().get("k").execute(),
        "transaction": lambda: client.pipeline(transaction=True).set("k", 1).execute(),
        "watch": watched,
        "lock": lambda: client.lock("l", timeout=1).acquire(blocking=False),
        "alone": lambda: alone.execute_command("SELECT", 1),
        "auth": lambda: alone.execute_command("AUTH", "app", CANARY),
        "pubsub": lambda: pubsub.subscribe("channel"),
        "monitor": lambda: client.monitor().connect(),
        "again": lambda: client.with_policy(attempts=1).get("k"),
    }
    # Pub/sub comes later: by then, the secrets of a provider are known.
    later = [uses.pop("pubsub"), uses.pop("monitor")]
    failures = await asyncio.gather(*map(failure_of, uses.values()))
    failures += await asyncio.gather(*map(failure_of, later))
    for failure in failures:
        # An exception of the application's own credential provider reaches pub/sub as it is.
        if failure is not None and not isinstance(failure, ProviderFailed):
            shown += texts_of(failure)
    await asyncio.sleep(0.05)
    shown += [repr(client), str(client.stats()), repr(client.health), client.name]
    shown += [str(client.health.snapshot()), str(client.health.history), str(monitor.snapshot())]
    shown += (
        [str(event) for event in monitor.recorder.events()] if hasattr(monitor, "recorder") else []
    )
    with contextlib.suppress(Exception):
        await pubsub.aclose()
    await alone.aclose()
    await client.aclose()
    await monitor.aclose()
    gc.collect()
    shown += [caplog.text]
    for record in caplog.records:
        shown += [record.getMessage(), str(vars(record))]
    return shown


def assert_no_chain(failure):
    assert failure.__cause__ is None


def assert_no_canary(shown, *canaries):
    for canary in canaries or (CANARY,):
        leaks = [text[:300] for text in shown if canary in text]
        assert not leaks, leaks


class Provider(CredentialProvider):
    def get_credentials(self):
        return ("app", CANARY)


class TokenProvider(CredentialProvider):
    def get_credentials(self):
        return (CANARY * 2, "another-" + CANARY)


class ProviderFailed(Exception):
    pass


class FailingProvider(CredentialProvider):
    def get_credentials(self):
        raise ProviderFailed(f"the token {CANARY} has expired")


CREDENTIALS = {
    "password": {"password": CANARY},
    "user": {"username": "app", "password": CANARY},
    "token as user": {"username": CANARY * 2, "password": "other-secret"},
    "provider": {"credential_provider": Provider()},
    "token provider": {"credential_provider": TokenProvider()},
    "failing provider": {"credential_provider": FailingProvider()},
}


def wrongpass(words):
    if words[0].upper() in (b"HELLO", b"AUTH"):
        quoted = words[-1].decode() if words[0].upper() == b"AUTH" else words[4].decode()
        return error(f"WRONGPASS invalid password '{quoted}' for this user")
    return redis_5(words)


def noperm(words):
    if words[0].upper() in (b"HELLO", b"AUTH", b"CLIENT"):
        return b"+OK\r\n"
    return error(f"NOPERM this user ({CANARY}) may not run {words[0].decode()}")


def noauth(words):
    return error(f"NOAUTH Authentication required, {CANARY} is not enough")


def loading(words):
    return error(f"LOADING {CANARY} is being loaded")


def garbage(words):
    return f"HTTP/1.1 400 {CANARY}\r\n\r\n".encode()


def wrong_database(words):
    if words[0].upper() == b"SELECT":
        return error(f"ERR DB index is out of range for {CANARY}")
    return redis_5(words) if words[0].upper() not in (b"HELLO", b"AUTH") else b"+OK\r\n"


SERVERS = {
    "quoting": quoting,
    "redis 5": redis_5,
    "wrongpass": wrongpass,
    "noperm": noperm,
    "noauth": noauth,
    "loading": loading,
    "garbage": garbage,
    "wrong database": wrong_database,
}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("server", SERVERS)
async def test_no_output_contains_the_password_that_a_server_quotes(stub, caplog, server, protocol):
    stub.reply = SERVERS[server]
    client = ResilientRedis(
        policy=QUICK, port=stub.port, protocol=protocol, db=1, username="app", password=CANARY
    )
    assert_no_canary(await outputs_of(client, caplog))


@pytest.mark.parametrize("server", ["quoting", "redis 5", "wrongpass"])
@pytest.mark.parametrize("credentials", CREDENTIALS)
async def test_no_output_contains_any_kind_of_credentials(stub, caplog, server, credentials):
    stub.reply = SERVERS[server]
    client = ResilientRedis(policy=QUICK, port=stub.port, **CREDENTIALS[credentials])
    assert_no_canary(await outputs_of(client, caplog))


@pytest.mark.parametrize("kind", ["refused", "dns", "tls", "reset"])
async def test_no_output_of_a_failed_connection_contains_the_password(stub, caplog, kind):
    options = {"host": "127.0.0.1", "port": stub.port, "username": "app", "password": CANARY}
    if kind == "refused":
        options["port"] = free_port()
    elif kind == "dns":
        options["host"] = "does-not-exist.invalid"
    elif kind == "tls":
        options |= {"ssl": True, "ssl_password": CANARY, "ssl_check_hostname": False}
    else:
        stub.reply = lambda words: (_ for _ in ()).throw(ConnectionResetError(CANARY))
    client = ResilientRedis(policy=QUICK, **options)
    assert_no_canary(await outputs_of(client, caplog))


@pytest.mark.parametrize(
    "url",
    [
        "redis://app:{secret}@127.0.0.1:{port}/0",
        "redis://:{secret}@127.0.0.1:{port}",
        "redis://127.0.0.1:{port}/0?username=app&password={secret}",
        "rediss://app:{secret}@127.0.0.1:{port}/0?ssl_password={secret}&ssl_cert_reqs=none",
        "redis://app:{secret}@127.0.0.1:{port}/0?client_name=orders",
        "unix://app:{secret}@/does/not/exist",
    ],
)
async def test_no_output_contains_the_password_of_a_url(stub, caplog, url):
    stub.reply = quoting
    for secret, form in ((CANARY, CANARY), (URL_CANARY, "p%40ss%2FCanary7Sekret")):
        client = ResilientRedis.from_url(url.format(secret=form, port=stub.port), policy=QUICK)
        assert_no_canary(await outputs_of(client, caplog), secret, form)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:a[{secret}]b@h",
        "redis://u:a]{secret}[b@h:6379",
        "redis://u:{secret}\u2100x@h",
        "redis://u:{secret}\uff0f@h/0",
        "redis://h:{secret}",
        "redis://u:12a/{secret}@h",
        "redis://u:{secret}@h:port",
        "redis://u:{secret}@h?db=one",
        "redis://u:{secret}@h?foo=bar",
        "redis://u:pass&{secret}=1@h:x",
        "redis://h?password=a&{secret}=b",
        "http://u:{secret}@h",
        "u:{secret}@h:6379",
        "localhost:6379?password={secret}",
        "{secret}@h",
        "redis://u:{secret}@[::1",
        "redis:/u:{secret}@h",
    ],
)
def test_no_error_of_an_invalid_url_contains_a_part_of_the_password(url):
    try:
        client = ResilientRedis.from_url(url.format(secret=CANARY))
    except ConfigurationError as failure:
        assert_no_canary(texts_of(failure))
        assert_no_chain(failure)
    else:
        assert_no_canary([repr(client), client.name, repr(client.health)])


@pytest.mark.parametrize(
    "host",
    ["redis://u:{secret}@h", "u:{secret}@h", "rediss://:{secret}@h:1/0", "//u:{secret}@h"],
)
def test_no_error_contains_the_password_of_a_url_passed_as_the_host(host):
    with pytest.raises(ConfigurationError) as caught:
        ResilientRedis(host=host.format(secret=CANARY), policy=QUICK)
    assert_no_canary(texts_of(caught.value))
    assert_no_chain(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("option", sorted(RedisOptions.__annotations__))
def test_no_error_of_an_invalid_option_contains_the_password(option):
    wrong = object()
    try:
        client = ResilientRedis(**{"username": "app", "password": CANARY, option: wrong})
    except (ConfigurationError, TypeError, AttributeError) as failure:
        assert_no_canary(texts_of(failure))
    else:
        assert_no_canary([repr(client), repr(client.health)])


async def test_no_output_contains_the_passwords_of_sentinels(stub, caplog):
    stub.reply = quoting
    sentinel = Sentinel(
        [("127.0.0.1", stub.port)],
        sentinel_kwargs={"password": CANARY},
        password="master-" + CANARY,
    )
    client = sentinel.master_for("master", redis_class=ResilientRedis)
    assert_no_canary(await outputs_of(client, caplog))


async def test_the_secrets_of_a_pool_are_known_before_the_first_connection():
    pool = driver.ConnectionPool(
        password=b"bytes-secret", username="a" * 20, ssl_password=None, host="u:in-host@h"
    )
    assert set(RedisTarget(pool).secrets) >= {"bytes-secret", "a" * 20, "in-host"}


async def test_a_name_that_is_a_url_shows_no_password(caplog):
    client = ResilientRedis(name=f"redis://u:{CANARY}@h", port=free_port(), policy=QUICK)
    assert_no_canary(await outputs_of(client, caplog))
    health = Dependency(f"redis://u:{CANARY}@h")
    client = ResilientRedis(health=health, port=free_port(), policy=QUICK)
    assert_no_canary(await outputs_of(client, caplog))


async def test_texts_of_the_server_are_short_and_without_control_characters(stub, caplog):
    stub.reply = lambda words: error(f"LOADING \x1b[31m{'x' * 20_000}")
    client = ResilientRedis(port=stub.port, policy=QUICK)
    shown = await outputs_of(client, caplog)
    details = [text for text in shown if "LOADING" in text and "is down" not in text.lower()]
    assert "\x1b" not in str(client.health.snapshot())
    assert len(client.health.detail) <= 300
    assert details
