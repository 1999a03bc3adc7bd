"""Calls follow ASK and MOVED. Only MOVED changes the slot table."""

import asyncio

from redis.crc import key_slot

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


async def test_node_that_left_finishes_its_calls_and_is_not_opened_again(client):
    await client.set("a", 1)
    router = client._router
    member = router.owners[key_slot(b"a")]
    waiting = asyncio.create_task(client.blpop([f"{TAG}nothing"], timeout=0.3))
    await asyncio.sleep(0.1)
    router.members.keep([])
    assert member.left
    assert await waiting is None
    async with asyncio.timeout(5):
        while member.runtime.running:  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.01)
    await member.open()
    assert not member.runtime.running
    assert router.members.current(member) is not member
    assert await client.get("a") == b"1"
