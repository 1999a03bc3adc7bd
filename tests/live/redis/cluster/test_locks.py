"""Locks, WATCH and scripts across the failover of the node that has their key."""

import asyncio

import pytest
from redis.exceptions import WatchError

from resilient_io import DeadlineExceeded, DependencyUnavailable, OutcomeUnknown
from resilient_io.redis import LockLost, ResilientRedisCluster

from .ledger import keys_of_shard

KEY = keys_of_shard(0, 1)[0]


async def fail_over(cluster):
    """Make the replica of the first shard its master, without loss of data."""
    await cluster.failover((await cluster.shards())[0].replicas[0])


async def test_lock_survives_a_planned_failover(cluster):
    async with (
        ResilientRedisCluster.from_url(cluster.url, protocol=3) as client,
        ResilientRedisCluster.from_url(cluster.url) as other,
    ):
        async with client.lock(KEY, timeout=10, renew=True) as lock:
            await asyncio.sleep(0.05)
            await fail_over(cluster)
            assert not await other.lock(KEY, timeout=10).acquire(blocking=False)
            assert not lock.lost.done()
            waiting = asyncio.create_task(other.lock(KEY, timeout=10).acquire())
            await asyncio.sleep(0.05)
        assert await asyncio.wait_for(waiting, 3)


async def test_holder_learns_that_its_lock_is_gone_on_the_new_master(cluster):
    async with ResilientRedisCluster.from_url(cluster.url, protocol=3) as client:
        with pytest.raises(LockLost):
            async with client.lock(KEY, timeout=60):
                await asyncio.sleep(0.05)
                await fail_over(cluster)
                await (await cluster.shards())[0].master.query("DEL", KEY)
                await asyncio.sleep(10)


async def test_holder_that_cannot_renew_its_lock_is_notified_in_time(cluster):
    async with ResilientRedisCluster.from_url(cluster.url, protocol=3) as client:
        shard = (await cluster.shards())[0]
        lock = client.lock(KEY, timeout=0.5, renew=True)
        await lock.acquire()
        lost = lock.lost
        for node in (shard.master, *shard.replicas):
            node.freeze()
        async with asyncio.timeout(2):
            assert isinstance(await lost, LockLost)


async def test_watch_ends_with_the_node_that_watched(cluster):
    async with ResilientRedisCluster.from_url(cluster.url) as client:
        await client.set(KEY, 1)
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch(KEY)
            assert await pipe.get(KEY) == b"1"
            await fail_over(cluster)
            pipe.multi()
            pipe.set(KEY, 2)
            # The old master may still be paused for the failover, and not answer.
            with pytest.raises((WatchError, OutcomeUnknown)):
                await pipe.execute()
        assert await client.get(KEY) == b"1"
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch(KEY)
            pipe.multi()
            pipe.set(KEY, 3)
            assert await pipe.execute() == [True]


async def test_script_that_was_sent_to_a_killed_master_has_an_unknown_outcome(cluster):
    async with ResilientRedisCluster.from_url(cluster.url) as client:
        script = client.register_script("return redis.call('incr', KEYS[1])")
        assert await script(keys=[KEY]) == 1
        master = (await cluster.shards())[0].master
        master.freeze()
        calling = asyncio.create_task(script(keys=[KEY]))
        await asyncio.sleep(0.05)
        master.kill()
        with pytest.raises(OutcomeUnknown):
            await calling
        async with asyncio.timeout(30):
            while True:
                try:
                    assert await script(keys=[KEY]) in (1, 2, 3)
                    break
                except (DependencyUnavailable, DeadlineExceeded):
                    await asyncio.sleep(0.1)
