"""Slots move to another node, key by key or at once, while calls use them."""

import asyncio

import pytest
from redis.crc import key_slot

from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import RedisServerCluster, find_embedded_redis

from .ledger import Ledger

TAG = "{a}"
SLOT = key_slot(b"a")


async def test_call_follows_ask_and_moved_and_the_table_changes_only_by_moved(
    client, shared_redis_cluster
):
    first, _, third = shared_redis_cluster.nodes
    await client.mset({f"{TAG}{number}": number for number in range(20)})
    router = client._router
    migration = await shared_redis_cluster.begin_migration(SLOT, first)
    assert await migration.move(10) == 10
    values = [await client.get(f"{TAG}{number}") for number in range(20)]
    assert values == [str(number).encode() for number in range(20)]
    assert await client.get(f"{TAG}new") is None
    assert await client.incr(f"{TAG}counter") == 1
    assert router.owners[SLOT].address[1] == third.port
    await migration.finish()
    assert await client.get(f"{TAG}0") == b"0"
    assert router.owners[SLOT].address[1] == first.port
    assert await client.incr(f"{TAG}counter") == 2
    await shared_redis_cluster.migrate(SLOT, third)
    await shared_redis_cluster.wait_until_ok()
    assert await client.get(f"{TAG}1") == b"1"


async def test_script_and_blocking_pop_follow_ask(client, shared_redis_cluster):
    first, _, third = shared_redis_cluster.nodes
    script = client.register_script("return redis.call('incr', KEYS[1])")
    migration = await shared_redis_cluster.begin_migration(SLOT, first)
    try:
        assert await script(keys=[f"{TAG}script"]) == 1
        assert await script(keys=[f"{TAG}script"]) == 2
        await client.rpush(f"{TAG}list", "element")
        assert await client.blpop([f"{TAG}list"], timeout=1) == (f"{TAG}list".encode(), b"element")
    finally:
        await migration.finish()
        await shared_redis_cluster.migrate(SLOT, third)
        await shared_redis_cluster.wait_until_ok()


async def test_keys_of_which_some_have_moved_are_waited_for(client, shared_redis_cluster):
    first, _, third = shared_redis_cluster.nodes
    keys = [f"{TAG}{number}" for number in range(10)]
    await client.mset(dict.fromkeys(keys, "value"))
    migration = await shared_redis_cluster.begin_migration(SLOT, first)
    await migration.move(5)
    reading = asyncio.create_task(client.mget(keys))
    await asyncio.sleep(0.1)
    assert not reading.done()  # TRYAGAIN
    await migration.finish()
    assert await reading == [b"value"] * 10
    await shared_redis_cluster.migrate(SLOT, third)
    await shared_redis_cluster.wait_until_ok()


async def migrate_under_load(
    client: ResilientRedisCluster, cluster: RedisServerCluster, *, rounds: int, keys: int
) -> None:
    """Move a slot back and forth while it is read, pushed to, and used by pipelines."""
    ledger = Ledger(client, callers=6, pause=0.001)
    names = [f"{TAG}{number}" for number in range(keys)]
    await client.mset(dict.fromkeys(names, "value"))
    wrong: list[object] = []
    stop = False

    async def read() -> None:
        while not stop:
            for name in names[:50]:
                wrong.extend(value for value in [await client.get(name)] if value != b"value")

    async def read_several() -> None:
        while not stop:
            values = await client.mget(names[:3])
            wrong.extend(value for value in values if value != b"value")

    async def pipeline() -> None:
        number = 0
        while not stop:
            number += 1
            async with client.pipeline() as pipe:
                pipe.get(names[0]).rpush(f"{TAG}list", number).set(f"other{number % 7}", number)
                value, length, done = await pipe.execute()
            wrong.extend(
                each for each in [(value, length, done)] if each != (b"value", number, True)
            )

    ledger.start()
    async with asyncio.TaskGroup() as group:
        for work in (read, read, read_several, pipeline):
            group.create_task(work())
        for _ in range(rounds):
            owner = (await cluster.shard_of(SLOT)).master
            others = [node for node in await cluster.masters() if node is not owner]
            await cluster.migrate(SLOT, others[0], pause=0.002)
        stop = True
    await ledger.stop()
    assert not wrong
    assert not ledger.errors
    result = await ledger.compare(cluster)
    assert not result.lost
    assert not result.duplicates


async def test_slot_moves_under_load_without_errors_or_wrong_replies(client, shared_redis_cluster):
    owner = (await shared_redis_cluster.shard_of(SLOT)).master
    await migrate_under_load(client, shared_redis_cluster, rounds=2, keys=100)
    await shared_redis_cluster.migrate(SLOT, owner)
    await shared_redis_cluster.wait_until_ok()


async def test_atomic_migration_fails_no_call():
    async with (
        RedisServerCluster(binary=find_embedded_redis()) as cluster,
        ResilientRedisCluster.from_url(cluster.url) as client,
    ):
        ledger = Ledger(client, callers=6, pause=0.001)
        ledger.start()
        await asyncio.sleep(0.1)
        await cluster.migrate_atomically(12000, 16383, cluster.nodes[0])
        await asyncio.sleep(0.2)
        await ledger.stop()
        assert not ledger.errors
        result = await ledger.compare(cluster)
        assert not result.lost
        assert not result.duplicates


@pytest.mark.soak
async def test_slot_moves_to_a_master_without_slots():
    async with (
        RedisServerCluster(replicas=1) as cluster,
        ResilientRedisCluster.from_url(cluster.url) as client,
    ):
        node = await cluster.add_node()
        await cluster.migrate(SLOT, node)
        await client.set("a", 1)
        await cluster.migrate(SLOT, cluster.nodes[0])
        await migrate_under_load(client, cluster, rounds=10, keys=2000)
