"""What a client costs that does nothing: pings, and memory."""

import asyncio
import gc
import sys
import tracemalloc

import pytest
import redis.asyncio as driver

from resilient_io.redis import ResilientRedis

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


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer allocates, too")
async def test_idle_client_with_two_connections_takes_less_than_twice_redis_pys(shared_redis):
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
    assert ours < 2.0 * theirs, (ours, theirs)
