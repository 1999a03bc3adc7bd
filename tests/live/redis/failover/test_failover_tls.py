"""A Sentinel set-up with TLS and passwords, for servers and Sentinels, is followed as any other."""

import asyncio
from urllib.parse import quote

import pytest
from redis.exceptions import RedisError

from resilient_io import Cause, State
from resilient_io.redis import ResilientRedis
from resilient_io.testing import NoServerError, SentinelSetup
from tests.live.redis.failover.conftest import look_often
from tests.live.redis.failover.ledger import Callers
from tests.live.redis.subscribers import Listener, Publisher, now

PASSWORD, SENTINEL_PASSWORD = "of servers: %@", "of sentinels: /?"


@pytest.fixture
async def tls_setup():
    """Start a set-up in which all have a TLS port and a password."""
    setup = SentinelSetup(
        down_after=0.5, tls=True, password=PASSWORD, sentinel_password=SENTINEL_PASSWORD
    )
    try:
        async with setup:
            await look_often(setup)
            yield setup
    except NoServerError as error:
        pytest.skip(str(error))


def url_of(setup, *, password=PASSWORD, sentinel_password=SENTINEL_PASSWORD):
    sentinels = ",".join(f"{host}:{port}" for host, port in setup.tls_addresses)
    user = f":{quote(password, safe='')}@" if password else ""
    trust = quote(str(setup.nodes[0].certificates.authority))
    options = f"ssl_ca_certs={trust}"
    if sentinel_password:
        options += f"&sentinel_password={quote(sentinel_password, safe='')}"
    return f"rediss+sentinel://{user}{sentinels}/{setup.name}/0?{options}"


async def test_failover_is_followed_over_tls(tls_setup, slack):
    setup = tls_setup
    redis = ResilientRedis.from_url(url_of(setup), address_map=setup.tls_address)
    async with redis, Callers(redis, setup, count=5) as callers:
        await redis.health.until_up(5)
        publisher = Publisher(await setup.master())
        async with Listener(redis.pubsub()) as listener, publisher:
            await listener.received(now())
            publisher.servers = [await setup.fail_over()]
            await listener.received(now())
            (gap,) = listener.gaps
            assert gap.cause is Cause.FAILOVER
        assert {connection.peer[1] for connection in redis._runtime.multiplexer.connections} == {
            (await setup.master()).tls_port
        }
        audit = await callers.audit()
    assert callers.ledger.errors() == {}
    assert (audit.lost, audit.doubled) == ({}, [])
    assert callers.ledger.longest < 2.5 + slack()


async def test_missing_password_of_servers_or_sentinels_is_named(tls_setup):
    for missing in ("password", "sentinel_password"):
        url = url_of(tls_setup, **{missing: None})
        async with ResilientRedis.from_url(url, address_map=tls_setup.tls_address) as redis:
            with pytest.raises(RedisError, match="authenticat"):
                await redis.get("key")
            assert redis.stats().retries == 0
            await until_down(redis)
            assert redis.health.cause is Cause.AUTH


async def until_down(redis):
    async with asyncio.timeout(5):
        async for change in redis.health.watch():
            if change.state is State.DOWN:
                return
