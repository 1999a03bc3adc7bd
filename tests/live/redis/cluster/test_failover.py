"""Masters fail, are frozen, or hand over: other shards go on, and nothing is lost or doubled."""

import asyncio

import pytest
from redis.crc import key_slot

from resilient_io import DependencyUnavailable, HealthMonitor, OutcomeUnknown, State
from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import RedisServerCluster

from .ledger import Ledger, keys_of_shard


async def until_taken_over(cluster: RedisServerCluster, slot: int) -> float:
    """Wait until another master has a slot, and return the time."""
    before = (await cluster.shard_of(slot)).master
    while (await cluster.shard_of(slot)).master is before:  # noqa: ASYNC110 - nothing notifies of it
        await asyncio.sleep(0.02)
    return asyncio.get_running_loop().time()


async def test_killed_master_delays_only_its_shard(cluster):
    async with ResilientRedisCluster.from_url(cluster.url) as client:
        ledger = Ledger(client, callers=12, pause=0.002)
        ledger.start()
        await asyncio.sleep(0.3)
        shard = (await cluster.shards())[0]
        killed = asyncio.get_running_loop().time()
        shard.master.kill()
        over = await until_taken_over(cluster, 0)
        await asyncio.sleep(1.0)
        await ledger.stop()
        assert ledger.gap(0, killed) < over - killed + 2.0
        assert not ledger.failures(1)
        assert not ledger.failures(2)
        result = await ledger.compare(cluster, since=killed)
        assert not result.lost
        assert not result.duplicates
        assert set(result.failed) <= {"RedisUnavailable", "RedisOutcomeUnknown"}
        assert client.health.state is State.UP
        # The one that was killed comes back as a replica.
        await shard.master.start()
        await cluster.wait_until_ok()
        await client.rpush(ledger.keys[0][0], "more")


async def test_frozen_master_is_left_and_its_late_replies_do_not_count(cluster):
    async with ResilientRedisCluster.from_url(cluster.url, socket_timeout=0.6) as client:
        ledger = Ledger(client, callers=12, pause=0.002)
        ledger.start()
        await asyncio.sleep(0.3)
        master = (await cluster.shards())[1].master
        frozen = asyncio.get_running_loop().time()
        master.freeze()
        over = await until_taken_over(cluster, 5461)
        await asyncio.sleep(0.5)
        master.thaw()
        await cluster.wait_until_ok()
        await asyncio.sleep(0.3)
        await ledger.stop()
        assert ledger.gap(1, frozen) < over - frozen + 2.0
        assert not ledger.failures(0)
        assert not ledger.failures(2)
        result = await ledger.compare(cluster, since=frozen)
        assert not result.lost
        assert not result.duplicates


async def test_planned_failover_of_each_shard_fails_no_call(cluster):
    async with ResilientRedisCluster.from_url(cluster.url) as client:
        ledger = Ledger(client, callers=12, pause=0.002)
        ledger.start()
        began = asyncio.get_running_loop().time()
        for number in range(3):
            await cluster.failover((await cluster.shards())[number].replicas[0])
            await asyncio.sleep(0.1)
        await ledger.stop()
        assert not ledger.errors
        assert max(ledger.gap(shard, began) for shard in range(3)) < 2.0
        result = await ledger.compare(cluster)
        assert not result.lost
        assert not result.duplicates


async def test_health_names_the_lost_share_and_readiness_fails_when_all_is_lost(cluster):
    url = cluster.url
    async with (
        ResilientRedisCluster.from_url(url) as client,
        ResilientRedisCluster.from_url(url, down_share=0.3) as strict,
    ):
        keys = [keys_of_shard(shard, 1)[0] for shard in range(3)]
        for each in (client, strict):
            for key in keys:
                await each.set(key, "value")
        monitor, strict_monitor = HealthMonitor(client.health), HealthMonitor(strict.health)
        assert monitor.ready
        shards = await cluster.shards()
        for shard in shards:
            shard.replicas[0].kill()  # no replica takes over
        master = shards[0].master
        master.kill()
        async for change in client.health.watch():
            if change.state is State.DEGRADED:
                assert change.detail == f"5,461 of 16,384 slots, shard of 127.0.0.1:{master.port}"
                break
        assert monitor.ready
        async for change in strict.health.watch():
            if change.state is State.DOWN:
                break
        assert not strict_monitor.ready
        assert set(client.node_health) == {f"127.0.0.1:{shard.master.port}" for shard in shards}
        cluster.kill()
        async for change in client.health.watch():
            if change.state is State.DOWN:
                break
        assert not monitor.ready
        with pytest.raises((DependencyUnavailable, OutcomeUnknown)):
            await client.with_policy(outage_wait=0.0).get(keys[0])
        await cluster.start()
        async for change in client.health.watch():
            if change.state is State.UP:
                break
        assert await client.set(keys[0], "value")


async def test_blocking_pop_follows_its_slot(cluster):
    async with ResilientRedisCluster.from_url(cluster.url) as client:
        key = keys_of_shard(0, 1)[0]
        waiting = asyncio.create_task(client.blpop([key], timeout=10))
        await asyncio.sleep(0.1)
        await cluster.failover((await cluster.shards())[0].replicas[0])
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await client.rpush(key, "element")
        assert await waiting == (key.encode(), b"element")
        assert key_slot(key.encode()) <= 5460


async def execute_a_transaction(client, key):
    return await client.pipeline(transaction=True).set(key, "value").execute()


async def execute_a_watched_transaction(client, key):
    async with client.pipeline(transaction=True) as pipeline:
        await pipeline.watch(key)
        pipeline.multi()
        return await pipeline.set(key, "value").execute()


async def block(client, key):
    return await client.blpop(f"list{{{key}}}", timeout=0.1)


async def acquire_a_fenced_lock(client, key):
    """Its script is not on the replica, unless it was executed there."""
    return await client.lock(f"lock{{{key}}}", timeout=5, fencing=True).acquire()


async def set_a_large_value(client, key):
    return await client.set(key, b"x" * 2_000_000)


async def test_every_kind_of_call_that_waits_for_a_dead_master_continues_on_the_new_one(cluster):
    kinds = {
        execute_a_transaction: [True],
        execute_a_watched_transaction: [True],
        block: None,
        acquire_a_fenced_lock: True,
        set_a_large_value: True,
    }
    async with ResilientRedisCluster.from_url(cluster.url) as client:
        patient = client.with_policy(while_down="wait", deadline=10)
        keys = keys_of_shard(0, len(kinds))
        await client.mset_nonatomic(dict.fromkeys(keys, "value"))
        for master in await cluster.masters():
            await master.query("SCRIPT", "FLUSH")
        slot = key_slot(keys[0].encode())
        (await cluster.shard_of(slot)).master.kill()
        calls = [
            asyncio.create_task(kind(patient, key)) for kind, key in zip(kinds, keys, strict=True)
        ]

        await until_taken_over(cluster, slot)

        async with asyncio.timeout(3):
            assert await asyncio.gather(*calls) == list(kinds.values())
