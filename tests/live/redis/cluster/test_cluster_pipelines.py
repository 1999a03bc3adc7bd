"""Pipelines of a cluster client: split by node, each command with its own outcome, transactions."""

import asyncio

import pytest
import redis
from redis.asyncio.cluster import ClusterPipeline

from resilient_io.redis import ResilientRedisCluster
from resilient_io.redis.cluster.pipeline import ResilientClusterPipeline
from resilient_io.redis.errors import CrossSlotKeys, RouteRefused
from resilient_io.testing import cancel_everywhere


async def test_replies_are_in_the_order_of_the_commands(client):
    pipe = client.pipeline()
    assert isinstance(pipe, ClusterPipeline)
    for number in range(50):
        pipe.set(f"key{number}", number)
    for number in range(50):
        pipe.incr(f"key{number}")
    assert len(pipe) == 100
    assert await pipe.execute() == [True] * 50 + list(range(1, 51))
    assert len(pipe) == 0
    assert await pipe.execute() == []
    nodes = {client.get_node_from_key(f"key{number}").name for number in range(50)}
    assert len(nodes) == 3


async def test_error_replies_are_outcomes_of_their_own_commands(client):
    pipe = client.pipeline().set("a", "x").incr("a").set("b", 1).incr("b")
    replies = await pipe.execute(raise_on_error=False)
    assert isinstance(replies.pop(1), redis.ResponseError)
    assert replies == [True, True, 2]
    pipe.get("a").incr("a")
    with pytest.raises(redis.ResponseError, match=r"Command # 2 \(INCRBY a 1\) of pipeline"):
        await pipe.execute()


async def test_multi_key_commands_are_split_only_where_redis_py_splits_them(client):
    pipe = client.pipeline().mset_nonatomic({"a": 1, "b": 2, "c": 3}).delete("a", "b", "c")
    assert await pipe.execute() == [True] * 3 + [1] * 3
    assert await client.pipeline().mset({"{x}a": 1, "{x}b": 2}).mget("{x}a", "{x}b").execute() == [
        True,
        [b"1", b"2"],
    ]
    with pytest.raises(
        CrossSlotKeys, match=r"'MGET' has keys of several slots: 'a' \(15495\), 'b'"
    ):
        await client.pipeline().set("a", 1).mget("a", "b").execute()
    assert await client.exists("a") == 0  # nothing was sent


async def test_commands_without_keys_and_for_one_node_may_be_queued(client):
    await client.ping()
    node = client.get_primaries()[1]
    pipe = client.pipeline().execute_command("PING").publish("channel", "x")
    pipe.execute_command("CONFIG GET", "port", target_nodes=node)
    ping, receivers, port = await pipe.execute()
    assert (ping, receivers) == (True, 0)
    assert port == {"port": str(node.port)}
    with pytest.raises(redis.exceptions.RedisClusterException, match="FLUSHALL goes to 3 nodes"):
        await client.pipeline().execute_command("FLUSHALL").execute()
    with pytest.raises(RouteRefused, match="SELECT"):
        await client.pipeline().execute_command("SELECT", 0).execute()


async def test_scripts_are_loaded_into_the_nodes_that_miss_them(client, shared_redis_cluster):
    script = client.register_script("return redis.call('INCR', KEYS[1])")
    assert [await script(keys=[key]) for key in ("a", "b", "c")] == [1, 1, 1]
    for node in shared_redis_cluster.nodes:
        await node.query("SCRIPT", "FLUSH")
    pipe = client.pipeline()
    for key in ("a", "b", "c"):
        pipe.set(f"{{{key}}}other", 1).evalsha(script.sha, 1, key)
    assert await pipe.execute() == [True, 2] * 3


async def test_blocking_commands_do_not_block_others(client):
    await client.rpush("list", "x", "y")
    pipe = client.pipeline().blpop("list", timeout=1).set("b", 1).blpop("nothing", timeout=0.1)
    assert await pipe.execute() == [(b"list", b"x"), True, None]


async def test_large_commands(client):
    value = b"x" * 3_000_000
    pipe = client.pipeline().set("a", value).set("b", value).get("a").strlen("b")
    assert await pipe.execute() == [True, True, value, len(value)]


async def test_transaction_of_one_slot(client):
    pipe = client.pipeline(transaction=True)
    pipe.set("{x}a", 1).incr("{x}a").mget("{x}a", "{x}b").sadd("{x}s", 1)
    assert await pipe.execute() == [True, 2, [b"2", None], 1]
    pipe.set("{x}a", "text").incr("{x}a")
    replies = await pipe.execute(raise_on_error=False)
    assert replies[0] is True
    assert isinstance(replies[1], redis.ResponseError)


async def test_transaction_of_several_slots_is_refused_before_anything_is_sent(client):
    pipe = client.pipeline(transaction=True).set("{x}a", 1).set("{x}b", 1).set("b", 1)
    with pytest.raises(CrossSlotKeys, match=r"the transaction has .* '\{x\}a' \(16287\), 'b'"):
        await pipe.execute()
    with pytest.raises(redis.exceptions.CrossSlotTransactionError):
        await client.pipeline(transaction=True).mget("a", "b").execute()
    with pytest.raises(redis.exceptions.RedisClusterException, match="has no key"):
        await client.pipeline(transaction=True).execute_command("PING").execute()
    assert await client.exists("{x}a", "{x}b", "b") == 0


async def test_watch_uses_a_connection_to_the_node_of_its_slot(client):
    await client.set("{x}a", 1)
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch("{x}a")
        value = int(await pipe.get("{x}a"))
        pipe.multi()
        pipe.set("{x}a", value + 1).get("{x}a")
        assert await pipe.execute() == [True, b"2"]
        await pipe.watch("{x}a")
        await client.set("{x}a", 5)
        pipe.multi()
        pipe.set("{x}a", 0)
        with pytest.raises(redis.WatchError):
            await pipe.execute()
        await pipe.watch("{x}a")
        with pytest.raises(CrossSlotKeys, match=r"'\{x\}a' \(16287\), 'b' \(3300\)"):
            await pipe.get("b")
        pipe.multi()
        pipe.set("b", 1)
        with pytest.raises(CrossSlotKeys):
            await pipe.execute()
    assert await client.get("{x}a") == b"5"


async def test_transaction_function_runs_again_after_a_change(client):
    calls = []

    async def add(pipe):
        calls.append(1)
        value = int(await pipe.get("{x}a"))
        if len(calls) == 1:
            await client.set("{x}a", 10)
        pipe.multi()
        pipe.set("{x}a", value + 1)

    await client.set("{x}a", 1)
    assert await client.transaction(add, "{x}a") == [True]
    assert await client.get("{x}a") == b"11"
    assert len(calls) == 2


async def test_methods_for_transactions_name_the_option(client):
    pipe = client.pipeline()
    with pytest.raises(redis.exceptions.RedisClusterException, match="transaction=True"):
        pipe.multi()
    with pytest.raises(redis.exceptions.RedisClusterException, match="transaction=True"):
        await pipe.watch("a")


async def test_cancelling_a_pipeline_at_every_point_leaks_nothing(client):
    async def run():
        pipe = client.pipeline()
        for number in range(6):
            pipe.set(f"key{number}", number).get(f"key{number}")
        await pipe.execute()

    async def transaction():
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch("{x}a")
            await pipe.get("{x}a")
            pipe.multi()
            pipe.set("{x}a", 1)
            await pipe.execute()

    for operation in (run, transaction):
        await cancel_everywhere(operation)
    assert await client.mget_nonatomic("key1", "key2") == [b"1", b"2"]
    for member in client._router.members:
        if member.opened:
            assert member.pool.in_use == 0


async def test_keys_of_all_masters_are_iterated(client):
    await client.mset_nonatomic({f"key{number}": number for number in range(300)})
    found = [key async for key in client.scan_iter("key*", count=7)]
    assert sorted(set(found)) == sorted(f"key{number}".encode() for number in range(300))
    some = [key async for key in client.scan_iter(target_nodes=client.get_primaries()[0])]
    assert 0 < len(some) < 300


@pytest.mark.usefixtures("shared_redis_cluster")
async def test_pipelines_of_many_callers_keep_their_own_replies(client):
    async def caller(number):
        for turn in range(20):
            pipe = client.pipeline()
            for key in range(10):
                pipe.set(f"{number}:{key}", turn).get(f"{number}:{key}")
            assert await pipe.execute() == [True, str(turn).encode()] * 10

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(caller(number))


async def test_redis_py_has_the_same_results(client, shared_redis_cluster):
    port = shared_redis_cluster.nodes[0].port

    def fill(pipe):
        pipe.set("a", 1).incrby("b", 5).hset("c", mapping={"x": 1}).hgetall("c")
        pipe.zadd("d", {"m": 1.5}).zrange("d", 0, -1, withscores=True).lpush("e", 1, 2)
        return pipe.delete("a", "b", "c", "d", "e").mset_nonatomic({"f": 1, "g": 2})

    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=port) as theirs:
        expected = await fill(theirs.pipeline()).execute()
        await theirs.flushall()
    pipe = fill(client.pipeline())
    assert isinstance(pipe, ResilientClusterPipeline)
    assert await pipe.execute() == expected
    assert isinstance(client, ResilientRedisCluster)


async def test_another_slot_may_be_watched_after_unwatch(client):
    await client.mset_nonatomic({"a": 1, "b": 2})
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch("a")
        assert await pipe.get("a") == b"1"
        await pipe.unwatch()
        await pipe.watch("b")
        assert await pipe.get("b") == b"2"
        pipe.multi()
        pipe.set("b", 3)
        assert await pipe.execute() == [True]
