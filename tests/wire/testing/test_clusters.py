"""Clusters start, fail over, and move slots, as a test asks them to."""

import asyncio

import pytest

from resilient_io.testing import (
    RedisServerCluster,
    ServerDidNotStartError,
    ServerError,
    find_embedded_redis,
)

SLOT_OF_A = 15495  # of the key "a"


async def test_cluster_shares_the_slots_among_its_masters(shared_redis_cluster):
    shards = await shared_redis_cluster.shards()
    assert [shard.slots for shard in shards] == [
        ((0, 5460),),
        ((5461, 10921),),
        ((10922, 16383),),
    ]
    assert [shard.master for shard in shards] == shared_redis_cluster.nodes
    with pytest.raises(ServerError, match=rf"MOVED {SLOT_OF_A} 127.0.0.1:{shards[2].master.port}"):
        await shards[0].master.query("SET", "a", 1)


async def test_slot_moves_key_by_key_and_back(shared_redis_cluster):
    first, _, third = shared_redis_cluster.nodes
    await third.query("MSET", *(word for n in range(25) for word in (f"{{a}}{n}", n)))
    migration = await shared_redis_cluster.begin_migration(SLOT_OF_A, first)
    assert await migration.move() == 10
    with pytest.raises(ServerError, match="TRYAGAIN"):
        await third.query("MGET", *(f"{{a}}{n}" for n in range(25)))
    with pytest.raises(ServerError, match=f"ASK {SLOT_OF_A}"):
        await third.query("GET", "{a}new")
    assert await migration.move_all() == 15
    await migration.finish()
    assert await first.query("GET", "{a}24") == b"24"
    assert await shared_redis_cluster.migrate(SLOT_OF_A, third) == 25
    await shared_redis_cluster.wait_until_ok()
    assert (await shared_redis_cluster.shard_of(SLOT_OF_A)).master is third


@pytest.mark.soak
async def test_cluster_survives_every_change():
    binary = find_embedded_redis()
    async with RedisServerCluster(replicas=1, binary=binary, node_timeout=0.5) as cluster:
        first, second, third = await cluster.shards()
        await cluster.failover(first.replicas[0])
        await cluster.wait_until_ok()
        assert (await cluster.shards())[0].master is first.replicas[0]
        await cluster.migrate_atomically(16000, 16010, second.master)
        assert (await cluster.shard_of(16005)).master is second.master
        node = await cluster.add_node()
        await cluster.migrate(16011, node)
        await cluster.migrate(16011, third.master)
        await cluster.remove_node(node)
        await cluster.wait_until_ok()
        ports = cluster.ports
        await cluster.change_addresses()
        assert not set(ports) & set(cluster.ports)
        third.master.kill()
        async with asyncio.timeout(20):
            while (await cluster.shard_of(SLOT_OF_A)).master is third.master:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await cluster.restart()
        third.master.freeze()
        with pytest.raises(ServerDidNotStartError):
            await cluster.wait_until_ok(timeout=1.0)
        third.master.thaw()
        await cluster.wait_until_ok()
