"""Wrong password, wrong database, TLS to a plain port: one clear permanent error, no storm."""

import asyncio

import pytest
import redis as driver

from resilient_io import DependencyUnavailable, State
from resilient_io.health import Cause
from resilient_io.testing import RedisServer

WATCHED_FOR = 1.0
MOST_DIALS = 12
"""Connections per second: two shared connections and the probe, each a few times."""

CONFIRMED_WITHIN = 5.0

SECRET = "hunter2-is-wrong"


def now() -> float:
    return asyncio.get_running_loop().time()


async def errors_of_calls(redis):
    """Return the errors of calls before and after a probe has confirmed the state."""
    errors = []
    for _ in range(2):
        with pytest.raises(DependencyUnavailable) as caught:
            await redis.get("key")
        errors.append(caught.value)
        async with asyncio.timeout(CONFIRMED_WITHIN):
            async for change in redis.health.watch():
                if change.state is State.DOWN:
                    break
    return errors


async def connections_within(seconds, server, connections_made) -> int:
    """Return the number of connections to the server, without that of the query."""
    before = await connections_made(server)
    await asyncio.sleep(seconds)
    return await connections_made(server) - before - 1


@pytest.mark.parametrize(
    "url",
    ["redis://:{wrong}@127.0.0.1:{port}/0", "redis://127.0.0.1:{port}/0"],
    ids=["wrong password", "none"],
)
async def test_a_wrong_password_raises_one_clear_error_and_causes_no_storm(
    url, connect, connections_made, patient
):
    async with RedisServer(password="right") as server:
        before, began = await connections_made(server), now()
        redis = await connect(url.format(wrong=SECRET, port=server.port), up=False, policy=patient)

        first, second = await errors_of_calls(redis)

        assert isinstance(first, driver.AuthenticationError)
        assert isinstance(second, driver.AuthenticationError)
        assert SECRET not in f"{first} {second} {redis!r} {redis.health.snapshot()}"
        assert first.attempts <= 1
        await asyncio.sleep(WATCHED_FOR)
        assert redis.health.state is State.DOWN
        assert redis.health.cause is Cause.AUTH
        assert await connections_made(server) - before <= MOST_DIALS * (now() - began)
        assert redis.stats().retries == 0

        await server.query("CONFIG", "SET", "requirepass", "")
        server.password = None
        if SECRET not in url.format(wrong=SECRET, port=0):
            await redis.health.until_up(10)
            assert await redis.incr("counter") == 1


async def test_an_unknown_user_raises_one_clear_error(redis_server, connect, patient):
    url = f"redis://unknown:{SECRET}@127.0.0.1:{redis_server.port}/0"
    redis = await connect(url, up=False, policy=patient)

    first, second = await errors_of_calls(redis)

    assert isinstance(first, driver.AuthenticationError)
    assert isinstance(second, driver.AuthenticationError)
    assert redis.health.cause is Cause.AUTH


async def test_a_wrong_database_raises_one_clear_error_and_causes_no_storm(
    redis_server, connect, connections_made, patient
):
    before, began = await connections_made(redis_server), now()
    redis = await connect(f"redis://127.0.0.1:{redis_server.port}/99", up=False, policy=patient)

    first, second = await errors_of_calls(redis)

    assert "DB index" in str(first)
    assert "DB index" in str(second)
    await asyncio.sleep(WATCHED_FOR)
    assert redis.health.state is State.DOWN
    assert redis.health.cause is Cause.WRONG_DATABASE
    assert await connections_made(redis_server) - before <= MOST_DIALS * (now() - began)
    assert redis.stats().retries == 0


async def test_tls_to_a_plain_port_raises_one_clear_error_and_causes_no_storm(
    redis_server, connect, connections_made, patient
):
    before, began = await connections_made(redis_server), now()
    # The server does not answer TLS, so the connect attempt of a probe has to time out.
    policy = patient.replace(connect_timeout=0.5)
    redis = await connect(f"rediss://127.0.0.1:{redis_server.port}/0", up=False, policy=policy)

    first, second = await errors_of_calls(redis)

    for error in (first, second):
        assert "TLS port?" in str(error)
    await asyncio.sleep(WATCHED_FOR)
    assert redis.health.state is State.DOWN
    assert redis.health.cause is Cause.TLS
    assert await connections_made(redis_server) - before <= MOST_DIALS * (now() - began)
    assert redis.stats().retries == 0


async def test_a_plain_client_on_a_tls_port_raises_one_clear_error_and_causes_no_storm(
    tls_server, connect, connections_made, patient
):
    before, began = await connections_made(tls_server), now()
    redis = await connect(f"redis://127.0.0.1:{tls_server.tls_port}/0", up=False, policy=patient)

    first, second = await errors_of_calls(redis)

    for error in (first, second):
        assert "the port speaks TLS" in str(error)
    await asyncio.sleep(WATCHED_FOR)
    assert redis.health.state is State.DOWN
    assert redis.health.cause is Cause.TLS
    assert await connections_made(tls_server) - before <= MOST_DIALS * (now() - began)
    assert redis.stats().retries == 0


async def test_an_untrusted_certificate_raises_one_clear_error(tls_server, connect, patient):
    redis = await connect(f"rediss://127.0.0.1:{tls_server.tls_port}/0", up=False, policy=patient)

    first, second = await errors_of_calls(redis)

    assert "certificate" in str(first).lower()
    assert "certificate" in str(second).lower()
    assert redis.health.cause is Cause.TLS


async def test_a_trusted_tls_server_works(tls_server, connect):
    redis = await connect(tls_server.tls_url)
    assert await redis.incr("counter") == 1


@pytest.mark.soak
async def test_connect_attempts_become_rare_within_20_s_of_a_wrong_password(
    connect, connections_made
):
    async with RedisServer(password="right") as server:
        redis = await connect(f"redis://:{SECRET}@127.0.0.1:{server.port}/0", up=False)
        await asyncio.sleep(5)
        assert redis.health.cause is Cause.AUTH
        # At most one attempt every 2 s, jitter down to half of it.
        assert await connections_within(15, server, connections_made) <= 20
