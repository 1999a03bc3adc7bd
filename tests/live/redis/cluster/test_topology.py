"""What a cluster client shows of its nodes: on the status page, in metrics, and in the log."""

import asyncio
import logging

from resilient_io import HealthMonitor
from resilient_io.redis import ResilientRedisCluster
from resilient_io.serve.status import build_status
from resilient_io.telemetry.readings import Readings


async def until(topology, fact):
    async with asyncio.timeout(10):
        while not fact(topology()):  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.02)
    return topology()


async def test_topology_shows_slots_replicas_and_a_failover(cluster, caplog):
    caplog.set_level(logging.INFO, "resilient_io.redis")
    async with ResilientRedisCluster.from_url(cluster.url) as redis:
        for number in range(30):
            await redis.set(f"key:{number}", number)
        first = await until(lambda: redis.health.topology, lambda known: len(known.replicas) == 3)
        assert (first.slots, first.slots_served, first.failovers) == (16384, 16384, 0)
        assert sum(each.slots for each in first.masters) == 16384
        assert {each.state for each in first.masters} == {"up"}
        assert {each.master for each in first.replicas} == {each.address for each in first.masters}
        assert first.describe() == "16,384 of 16,384 slots, 3 masters, 3 replicas"

        shard = (await cluster.shards())[0]
        replica = shard.replicas[0]
        await cluster.failover(replica)
        for number in range(30):
            await redis.set(f"key:{number}", number)
        after = await until(lambda: redis.health.topology, lambda known: known.failovers == 1)
        address = f"{replica.host}:{replica.port}"
        assert after.latest.master == address
        assert address in [each.address for each in after.masters if each.slots]
        (record,) = [each for each in caplog.records if each.event == "failed_over"]
        assert record.master == address


async def test_resharding_is_not_a_failover(cluster):
    async with ResilientRedisCluster.from_url(cluster.url) as redis:
        await redis.set("a", 1)  # slot 15495
        source = (await cluster.shard_of(15495)).master
        target = next(each for each in await cluster.masters() if each is not source)
        before = {each.address: each.slots for each in redis.health.topology.masters}
        await cluster.migrate(15495, target)
        try:
            assert await redis.get("a") == b"1"
            await asyncio.sleep(0.3)
            topology = redis.health.topology
            assert topology.failovers == 0
            address = f"{target.host}:{target.port}"
            (shown,) = [each for each in topology.masters if each.address == address]
            assert shown.slots == before[address] + 1
        finally:
            await cluster.migrate(15495, source)


async def test_counters_of_all_nodes_are_added_up(shared_redis_cluster):
    async with ResilientRedisCluster.from_url(shared_redis_cluster.url) as redis:
        for number in range(30):
            await redis.set(f"key:{number}", number)
        stats = redis.stats()
        assert stats.replies >= 30
        assert stats.connections >= 3
        assert stats.bytes_sent > 0 < stats.latency_total
        assert sum(count for _, count in stats.latency_counts) >= 30
        assert 0 < stats.latency["p50"] < 1
        async with HealthMonitor(redis.health, liveness=[redis]) as monitor:
            status = build_status(monitor, {"cluster": redis})
            assert status["clients"][0]["stats"]["replies"] >= 30
            assert status["dependencies"][0]["topology"]["slots_served"] == 16384
            found = {
                (reading.metric.name, *reading.labels): reading.value
                for reading in Readings(monitor, {"cluster": redis}).collect()
            }
        own = (redis.health.name, "critical")
        assert found["resilient_io.topology.slots", *own, "served"] == 16384
        assert found["resilient_io.topology.servers", *own, "master", "up"] == 3
        assert found["resilient_io.redis.calls", "cluster", redis.health.name, "replied"] >= 30
