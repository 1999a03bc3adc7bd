"""A slot moves to another master, key by key or at once, while its keys are read and written.

Tests print how much slower GET was meanwhile; `-rP` shows it.
"""

import asyncio
import itertools
import statistics

import pytest
from redis import WatchError

from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import NoServerError, RedisServerCluster, ServerError, find_embedded_redis
from tests.live.redis.cluster.migration_load import SLOT, TAG, Load

_SLOWER = 4.0  # times the mean latency of GET before the migration


async def _another_master(cluster):
    owner = (await cluster.shard_of(SLOT)).master
    return owner, next(node for node in await cluster.masters() if node is not owner)


async def _move(load, migration):
    """Return how much slower GET was during a migration than before."""
    await asyncio.sleep(0.3)
    before = load.take_latency()
    await migration
    during = load.take_latency()
    await asyncio.sleep(0.1)
    figures = f"mean GET: {before * 1000:.2f} ms before, {during * 1000:.2f} ms during a migration"
    print(f"{figures}, {during / before:.2f}x")  # noqa: T201 (the figures, which `-rP` shows)
    return during / before


class Slowness:
    """How much slower GET was during each migration than before. Another process may delay one."""

    def __init__(self, tries):
        self._left = tries
        self._ratios = []

    def add(self, ratio):
        self._ratios.append(ratio)
        self._left -= 1

    @property
    def median(self):
        return statistics.median(self._ratios)

    @property
    def known(self):
        """Whether no further migration is needed."""
        return not self._left or self.median <= _SLOWER


async def test_slot_moves_key_by_key_to_a_master_with_slots(client, shared_redis_cluster):
    cluster = shared_redis_cluster
    load, slowness = Load(client), Slowness(6)
    await load.fill()
    load.start()
    first, second = await _another_master(cluster)
    try:
        for target in itertools.cycle((second, first)):
            slowness.add(await _move(load, cluster.migrate(SLOT, target, pause=0.01)))
            if target is first and slowness.known:  # so that the cluster is as it was
                break
    finally:
        await load.stop()
    await load.check(cluster)
    assert (await cluster.shard_of(SLOT)).master is first
    assert slowness.median <= _SLOWER


async def test_slot_moves_key_by_key_to_a_master_without_slots(cluster):
    source = (await cluster.shard_of(SLOT)).master
    target = await cluster.add_node()
    slowness = Slowness(5)
    async with ResilientRedisCluster("127.0.0.1", cluster.ports[0]) as client:
        load = Load(client)
        await load.fill()
        load.start()
        try:
            while True:
                slowness.add(await _move(load, cluster.migrate(SLOT, target, pause=0.01)))
                if slowness.known:
                    break
                await cluster.migrate(SLOT, source)
        finally:
            await load.stop()
        await load.check(cluster)
        assert await client.get(f"{TAG}1") == b"1"
        await cluster.migrate(SLOT, source)
        await cluster.remove_node(target)
        assert await client.get(f"{TAG}1") == b"1"
    assert slowness.median <= _SLOWER


async def test_slot_moves_at_once():
    try:
        binary = find_embedded_redis()
    except NoServerError as error:
        pytest.skip(str(error))
    async with (
        RedisServerCluster(masters=3, binary=binary) as cluster,
        ResilientRedisCluster("127.0.0.1", cluster.ports[0]) as client,
    ):
        load = Load(client)
        await load.fill()
        load.start()
        try:
            for _ in range(2):
                _, target = await _another_master(cluster)
                await _move(load, cluster.migrate_atomically(SLOT, SLOT, target))
        except ServerError as error:
            pytest.skip(f"only Valkey 9 and later: {error}")
        finally:
            await load.stop()
        await load.check(cluster)


async def test_pipeline_and_transaction_wait_for_keys_that_are_split(client, shared_redis_cluster):
    cluster = shared_redis_cluster
    await client.mset({f"{TAG}{number}": number for number in range(4)})
    source, target = await _another_master(cluster)
    migration = await cluster.begin_migration(SLOT, target)
    try:
        await migration.move(2)

        async def mget():
            return (
                await client.pipeline().get("other").mget(f"{TAG}0", f"{TAG}1", f"{TAG}2").execute()
            )

        async def transaction():
            pipe = client.pipeline(transaction=True)
            return await pipe.mget(f"{TAG}0", f"{TAG}1", f"{TAG}2", f"{TAG}3").execute()

        waiting = [asyncio.create_task(mget()), asyncio.create_task(transaction())]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in waiting)
        await migration.finish()
        assert await waiting[0] == [None, [b"0", b"1", b"2"]]
        assert await waiting[1] == [[b"0", b"1", b"2", b"3"]]
    finally:
        await cluster.migrate(SLOT, source)


async def test_watched_slot_that_moves_is_reported_as_a_change(client, shared_redis_cluster):
    cluster = shared_redis_cluster
    await client.set(f"{TAG}a", 1)
    source, target = await _another_master(cluster)
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch(f"{TAG}a")
        await cluster.migrate(SLOT, target)
        try:
            pipe.multi()
            pipe.set(f"{TAG}a", 2)
            with pytest.raises(WatchError):
                await pipe.execute()
            await pipe.watch(f"{TAG}a")  # the new owner
            assert await pipe.get(f"{TAG}a") == b"1"
            pipe.multi()
            pipe.set(f"{TAG}a", 3)
            assert await pipe.execute() == [True]
        finally:
            await cluster.migrate(SLOT, source)
    assert await client.get(f"{TAG}a") == b"3"
