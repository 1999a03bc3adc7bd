"""What a client costs that does nothing: pings, and memory."""

import asyncio
import contextlib
import gc
import sys
import tracemalloc

import pytest
import redis.asyncio as driver

from resilient_io import RetryPolicy
from resilient_io.redis import ResilientRedis, ping_turns
from resilient_io.testing import FaultProxy

pytestmark = pytest.mark.versions


async def test_standby_connection_is_pinged_with_every_fifth_probe(shared_redis):
    async def count_pings():
        return int((await observer.info("commandstats"))["cmdstat_ping"]["calls"])

    async with (
        driver.Redis(port=shared_redis.port, decode_responses=True) as observer,
        ResilientRedis(port=shared_redis.port, health_check_interval=0.05) as client,
    ):
        await client.ping()
        while client.stats().connections < 2:  # noqa: ASYNC110 (the counter sets no event)
            await asyncio.sleep(0.01)
        replies = [each.replies for each in client._runtime.multiplexer.connections]
        probes, pings = client.health.snapshot()["probes"]["ok"], await count_pings()
        while client.health.snapshot()["probes"]["ok"] < probes + 15:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        probes = client.health.snapshot()["probes"]["ok"] - probes
        now = [each.replies for each in client._runtime.multiplexer.connections]
        current, standby = sorted((a - b for a, b in zip(now, replies, strict=True)), reverse=True)
        assert current >= probes - 1
        assert probes // 5 - 1 <= standby <= probes // 5 + 1
        assert await count_pings() - pings <= probes * 1.2 + 2


@pytest.fixture
async def few_pings(monkeypatch):
    """Make clients take turns from the third on, so that a test needs only a few."""
    monkeypatch.setattr(ping_turns, "MOST_PINGS", 2)
    monkeypatch.setattr(ping_turns, "LONGEST_PAUSE", 1.0)
    yield
    assert not ping_turns._servers.get(asyncio.get_running_loop())  # every client has left


@contextlib.asynccontextmanager
async def opened(count, **options):
    async with contextlib.AsyncExitStack() as stack:
        clients = [ResilientRedis(**options) for _ in range(count)]
        for client in clients:
            await stack.enter_async_context(client)
            await client.ping()
        yield clients


def probes_of(clients):
    return sum(client.health.snapshot()["probes"]["ok"] for client in clients)


@pytest.mark.parametrize("shared_health", [False, True])
async def test_many_idle_clients_of_a_server_take_turns(shared_redis, few_pings, shared_health):
    async with (
        opened(1, port=shared_redis.port, health_check_interval=0.1) as [first],
        opened(
            9,
            port=shared_redis.port,
            health_check_interval=0.1,
            health=first.health if shared_health else None,
        ) as others,
        driver.Redis(port=shared_redis.port, decode_responses=True) as observer,
    ):
        await asyncio.sleep(0.2)
        clients = [first, *others]
        before = (await observer.info("commandstats"))["cmdstat_ping"]["calls"]
        replies = [client.stats().replies for client in clients]
        await asyncio.sleep(1.5)
        pings = (await observer.info("commandstats"))["cmdstat_ping"]["calls"] - before
        # Without turns, there would be 150, and every fifth on two connections.
        assert 15 <= pings <= 70
        for client, had in zip(clients, replies, strict=True):
            assert client.stats().replies > had  # each has pinged over its own connection
            assert client.health.state == "up"


async def test_each_of_many_idle_clients_notices_a_silent_server(shared_redis, few_pings):
    policy = RetryPolicy(response_timeout=0.3, connect_timeout=0.3)
    async with (
        FaultProxy(shared_redis.port) as proxy,
        opened(8, port=proxy.port, health_check_interval=0.2, policy=policy) as clients,
    ):
        await asyncio.sleep(0.5)
        proxy.stall()
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(10):
            for client in clients:
                while client.health.available:  # noqa: ASYNC110 (the last one is measured)
                    await asyncio.sleep(0.01)
        # An interval, a probe of 1 s, and another one. The pause of a turn adds nothing.
        assert max(each.health.since for each in clients) - began < 2.9
        proxy.restore()
        for client in clients:
            await client.health.until_up(5)


async def test_one_of_many_idle_clients_notices_that_its_connection_is_forgotten(
    shared_redis, few_pings
):
    policy = RetryPolicy(response_timeout=0.4)
    async with (
        FaultProxy(shared_redis.port) as proxy,
        opened(8, port=proxy.port, health_check_interval=0.2, policy=policy) as clients,
    ):
        await asyncio.sleep(0.5)
        victim = clients[3]._runtime.multiplexer.preferred
        address = victim.socket.getsockname()
        [forgotten] = [each for each in proxy.connections if each.client_address == address]
        forgotten.stall()
        async with asyncio.timeout(5):
            await victim.closed
        assert all(client.health.state.answering for client in clients)


async def test_shared_connections_keep_no_streams(shared_redis, until_complete):
    def count(*kinds):
        gc.collect()
        return sum(isinstance(each, kinds) for each in gc.get_objects())

    readers = count(asyncio.StreamReader)
    before = count(asyncio.StreamReader, asyncio.StreamReaderProtocol)
    async with ResilientRedis(port=shared_redis.port) as client:
        await until_complete(client)
        assert client.stats().connections == 2
        # Contract with redis-py 8.1 and CPython 3.11 to 3.13: no other reference is left.
        assert count(asyncio.StreamReader, asyncio.StreamReaderProtocol) == before
        assert await client.ping()
        async with client.pipeline() as pipeline:  # an exclusive connection keeps them
            await pipeline.watch("key")
            assert count(asyncio.StreamReader) == readers + 1
    assert count(asyncio.StreamReader, asyncio.StreamReaderProtocol) <= before


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer allocates, too")
async def test_idle_client_with_two_connections_takes_hardly_more_than_redis_pys(shared_redis):
    async def size(kind):
        async def open_client():
            client = kind.from_url(f"redis://127.0.0.1:{shared_redis.port}")
            await client.ping()
            return client

        clients = [await open_client()]
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            clients += [await open_client() for _ in range(20)]
            await asyncio.sleep(0.1)
            gc.collect()
            return (tracemalloc.get_traced_memory()[0] - before) / 20
        finally:
            tracemalloc.stop()
            for client in clients:
                await client.aclose()

    theirs, ours = await size(driver.Redis), await size(ResilientRedis)
    assert ours < 1.4 * theirs, (ours, theirs)
