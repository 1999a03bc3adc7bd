"""Replicas answer reads where the client asks for it, and the master where they cannot."""

import asyncio

import pytest
from redis.cluster import LoadBalancingStrategy

from resilient_io import ConfigurationError
from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import RedisServerCluster, find_embedded_redis

_KEYS = [f"key{number}" for number in range(60)]


async def _gets(cluster):
    """Return how many GETs each node has answered since the last time."""
    counts = {}
    for node in cluster.nodes:
        lines = (await node.query("INFO", "commandstats")).decode().splitlines()
        found = [line for line in lines if line.startswith("cmdstat_get:")]
        counts[node.port] = int(found[0].split("calls=")[1].split(",")[0]) if found else 0
        await node.query("CONFIG", "RESETSTAT")
    return counts


async def _ports(cluster):
    """Return the ports of the masters, and those of the replicas."""
    shards = await cluster.shards()
    return {shard.master.port for shard in shards}, {shard.replicas[0].port for shard in shards}


async def _fill(client, cluster):
    await client.mset_nonatomic(dict.fromkeys(_KEYS, "value"))
    for shard in await cluster.shards():
        await shard.master.query("WAIT", 1, 1000)


async def _read(client):
    replies = await asyncio.gather(*(client.get(key) for key in _KEYS))
    assert replies == [b"value"] * len(_KEYS)


async def _answering(client, cluster):
    """Return the ports of the nodes that answer reads now."""
    await _gets(cluster)
    await _read(client)
    return [port for port, count in (await _gets(cluster)).items() if count]


@pytest.mark.parametrize(
    ("options", "masters", "replicas"),
    [
        ({}, True, False),
        ({"read_from": "replica"}, False, True),
        ({"read_from": "any"}, True, True),
        ({"read_from": "replica", "max_lag": None}, False, True),
        ({"load_balancing_strategy": LoadBalancingStrategy.ROUND_ROBIN}, True, True),
        ({"load_balancing_strategy": LoadBalancingStrategy.RANDOM_REPLICA}, False, True),
    ],
)
async def test_reads_go_to_the_nodes_of_the_option(cluster, options, masters, replicas):
    async with ResilientRedisCluster("127.0.0.1", cluster.ports[0], **options) as client:
        await _fill(client, cluster)
        await _read(client)  # opens the connections
        if client._reads is not None and client._reads.lag is not None:
            async with asyncio.timeout(10):
                while len(client._reads.lag._current) != 3:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.01)
        await asyncio.sleep(0.15)
        await _gets(cluster)
        await _read(client)
        counts = await _gets(cluster)
        of_masters, of_replicas = await _ports(cluster)
        assert sum(counts.values()) == len(_KEYS)
        assert bool(sum(counts[port] for port in of_masters)) is masters
        assert bool(sum(counts[port] for port in of_replicas)) is replicas
        pipe = client.pipeline()
        for key in _KEYS:
            pipe.get(key)
        assert await pipe.execute() == [b"value"] * len(_KEYS)
        counts = await _gets(cluster)
        if not masters:
            assert sum(counts[port] for port in of_masters) == 0


async def test_writes_and_pipelines_with_writes_go_to_masters(cluster):
    async with ResilientRedisCluster("127.0.0.1", cluster.ports[0], read_from="replica") as client:
        for turn in range(20):
            pipe = client.pipeline()
            for key in _KEYS:
                pipe.set(key, turn).get(key)
            assert await pipe.execute() == [True, str(turn).encode()] * len(_KEYS)
        assert await client.incr("number") == 1
        assert await client.getex("number", ex=10) == b"1"


async def test_reads_go_to_the_master_while_a_replica_is_frozen_or_dead(cluster):
    async with ResilientRedisCluster("127.0.0.1", cluster.ports[0], read_from="replica") as client:
        await _fill(client, cluster)
        await _read(client)
        frozen, killed, _ = [shard.replicas[0] for shard in await cluster.shards()]
        frozen.freeze()
        killed.kill()
        await _read(client)
        await _read(client)


async def test_reads_stay_in_the_zone_that_nodes_report():
    """Valkey reports zones. The zone of a node may change while clients are connected."""
    async with RedisServerCluster(masters=1, replicas=1, binary=find_embedded_redis()) as cluster:
        (shard,) = await cluster.shards()
        zones = {shard.master.port: "a", shard.replicas[0].port: "b"}
        for node in cluster.nodes:
            await node.query("CONFIG", "SET", "availability-zone", zones[node.port])
        for zone in "ab":
            client = ResilientRedisCluster(
                "127.0.0.1",
                cluster.ports[0],
                read_from="nearest",
                zone=zone,
                refresh_interval=0.1,
            )
            async with client:
                await _fill(client, cluster)
                found = {}
                async with asyncio.timeout(10):
                    while found != {zone}:  # a replica must be known to qualify
                        found = {zones[port] for port in await _answering(client, cluster)}


def test_options_that_contradict_each_other_are_refused():
    for options, text in (
        ({"read_from": "slave"}, "read_from"),
        ({"read_from": "any", "max_lag": 0.01}, "max_lag"),
        ({"zone": "a"}, 'needs read_from="nearest"'),
        (
            {"read_from": "replica", "load_balancing_strategy": LoadBalancingStrategy.ROUND_ROBIN},
            "contradicts",
        ),
    ):
        with pytest.raises(ConfigurationError, match=text):
            ResilientRedisCluster("127.0.0.1", 1, **options)
