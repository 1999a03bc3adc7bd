"""Subscribers of a cluster: plain and shard channels, and how they follow failovers and slots."""

import asyncio
import contextlib

import pytest
import redis.asyncio as driver
from redis.crc import key_slot

from resilient_io import Cause
from resilient_io.redis import RedisClosed, ResilientRedisCluster
from resilient_io.testing import cancel_everywhere
from tests.live.redis.subscribers import KINDS, SERVES_AGAIN, Listener, Publisher, now

SLOT = key_slot(b"c")


def subscriber_of(client, kind):
    """Return a subscriber to the channel of the test, and to others in the same and other slots."""
    return Listener(client.pubsub(), kind, channels=("c", "b", "{c}d"))


async def served(cluster):
    """Wait until the cluster serves the slot again. Return the time."""
    while True:
        for node in cluster.nodes:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(0.1):
                    await node.query("SET", "c", "x")
                    return now()
        await asyncio.sleep(0.005)


async def test_pubsub_is_redis_pys_and_receives_both_kinds(client):
    async with client.pubsub() as pubsub:
        assert isinstance(pubsub, driver.cluster.ClusterPubSub)
        await pubsub.subscribe("plain")
        await pubsub.psubscribe("p*")
        await pubsub.ssubscribe("a", "b", "c")
        kinds = [(await pubsub.get_message(timeout=5))["type"] for _ in range(2)]
        assert kinds == ["subscribe", "psubscribe"]
        kinds = [(await pubsub.get_sharded_message(timeout=5))["type"] for _ in range(3)]
        assert kinds == ["ssubscribe"] * 3
        await client.publish("plain", 1)
        kinds = [(await pubsub.get_message(timeout=5))["type"] for _ in range(2)]
        assert kinds == ["message", "pmessage"]
        assert await pubsub.get_message(timeout=0.05) is None
        for channel in "abc":
            assert await client.spublish(channel, channel) == 1
        data = [(await pubsub.get_sharded_message(timeout=5))["data"] for _ in range(3)]
        assert sorted(data) == [b"a", b"b", b"c"]
        assert pubsub.get_pubsub_node() in client.get_nodes()
        await pubsub.sunsubscribe("a")
        assert (await pubsub.get_sharded_message(timeout=5))["type"] == "sunsubscribe"
        assert await client.spublish("a", 1) == 0
        await pubsub.sunsubscribe()
        await pubsub.unsubscribe()
        await pubsub.punsubscribe()
        for _ in range(2):
            assert (await pubsub.get_sharded_message(timeout=5))["type"] == "sunsubscribe"
        assert [message["type"] async for message in pubsub.listen()] == [
            "unsubscribe",
            "punsubscribe",
        ]
        assert not pubsub.subscribed


async def test_subscriber_stays_on_the_node_that_was_chosen(client):
    node = client.get_primaries()[1]
    async with client.pubsub(host=node.host, port=node.port) as pubsub:
        await pubsub.subscribe("c")
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        assert pubsub.get_pubsub_node() is node
        assert (await client.execute_command("PUBSUB NUMSUB", "c", target_nodes=[node]))[0][1] == 1


@pytest.mark.parametrize("closed", ["subscriber", "client"])
async def test_closing_ends_the_readers_of_a_cluster(shared_redis_cluster, closed):
    tasks = asyncio.all_tasks()
    client = ResilientRedisCluster.from_url(shared_redis_cluster.url)
    pubsub = client.pubsub()
    await pubsub.ssubscribe("c")
    reading = asyncio.ensure_future(pubsub.get_sharded_message(timeout=None))
    await asyncio.sleep(0.02)
    await asyncio.wait([reading])
    assert reading.result()["type"] == "ssubscribe"
    reading = asyncio.ensure_future(pubsub.get_sharded_message(timeout=None))
    await asyncio.sleep(0.02)
    await (pubsub if closed == "subscriber" else client).aclose()
    with pytest.raises(RedisClosed, match=f"the {closed} was closed"):
        await reading
    if closed == "client":  # a reader opens it again, as any call does
        assert (await pubsub.get_sharded_message(timeout=5))["data"].cause is Cause.CLOSED
        assert (await pubsub.get_sharded_message(timeout=5))["type"] == "ssubscribe"
        await client.spublish("c", "again")
        assert (await pubsub.get_sharded_message(timeout=5))["data"] == b"again"
        await pubsub.aclose()
    await client.aclose()
    assert asyncio.all_tasks() <= tasks


async def test_cancelled_use_of_a_subscriber_leaks_nothing(client):
    async def use():
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("c")
            await pubsub.ssubscribe("a", "b")
            await pubsub.get_message(timeout=0.01)
            await pubsub.get_sharded_message(timeout=0.01)
            await pubsub.sunsubscribe()

    async def check():
        async with asyncio.timeout(5):
            while sum(dict(await client.pubsub_shardnumsub("a", "b", target_nodes="all")).values()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    await client.ping(target_nodes=client.ALL_NODES)
    async with asyncio.timeout(5):
        for member in client._router.members:
            while len(member.multiplexer.connections) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    report = await cancel_everywhere(use, check=check)
    report.assert_clean()


@pytest.mark.parametrize("kind", KINDS)
async def test_killed_master_is_one_gap(cluster, slack, kind):
    victim = (await cluster.shard_of(SLOT)).master
    async with (
        ResilientRedisCluster.from_url(cluster.url) as client,
        subscriber_of(client, kind) as subscriber,
        Publisher(*cluster.nodes, kind=kind),
    ):
        await subscriber.received(now())
        if kind == "plain":
            port = subscriber.pubsub.get_pubsub_node().port
            victim = next(node for node in cluster.nodes if node.port == port)
        victim.kill()
        again = await served(cluster)
        assert await subscriber.received(again) < SERVES_AGAIN + slack()
        await asyncio.sleep(0.3)
        assert len(subscriber.gaps) == 1
        assert subscriber.gaps[0].cause is Cause.RESET


@pytest.mark.parametrize("kind", KINDS)
async def test_frozen_master_is_one_gap(cluster, slack, kind):
    owner = (await cluster.shard_of(SLOT)).master
    async with (
        ResilientRedisCluster.from_url(cluster.url, health_check_interval=0.2) as client,
        subscriber_of(client, kind) as subscriber,
        Publisher(*cluster.nodes, kind=kind),
    ):
        await subscriber.received(now())
        victim = owner
        if kind == "plain":
            port = subscriber.pubsub.get_pubsub_node().port
            victim = next(node for node in cluster.nodes if node.port == port)
        began = now()
        victim.freeze()
        again = await served(cluster) if kind == "sharded" else began
        assert await subscriber.received(again + 0.1) < SERVES_AGAIN + slack()
        victim.thaw()
        await asyncio.sleep(0.5)
        assert len(subscriber.gaps) == 1
        await subscriber.received(now())


async def test_planned_failover_of_the_slots_node_is_one_gap(cluster, slack):
    async with (
        ResilientRedisCluster.from_url(cluster.url) as client,
        subscriber_of(client, "sharded") as subscriber,
        Publisher(*cluster.nodes, kind="sharded"),
    ):
        await subscriber.received(now())
        shard = await cluster.shard_of(SLOT)
        await cluster.failover(shard.replicas[0])
        assert await subscriber.received(now()) < SERVES_AGAIN + slack()
        await asyncio.sleep(0.5)
        assert len(subscriber.gaps) == 1
        await subscriber.received(now())


async def test_shard_channel_follows_its_slot(cluster, slack):
    async with (
        ResilientRedisCluster.from_url(cluster.url) as client,
        subscriber_of(client, "sharded") as subscriber,
        Publisher(*cluster.nodes, kind="sharded"),
    ):
        await subscriber.received(now())
        source = (await cluster.shard_of(SLOT)).master
        target = next(node for node in await cluster.masters() if node is not source)
        await cluster.migrate(SLOT, target)
        try:
            assert await subscriber.received(now()) < SERVES_AGAIN + slack()
            await asyncio.sleep(0.3)
            assert len(subscriber.gaps) == 1
            counts = await target.query("PUBSUB", "SHARDNUMSUB", "c", "{c}d")
            assert counts == [b"c", 1, b"{c}d", 1]
        finally:
            await cluster.migrate(SLOT, source)
