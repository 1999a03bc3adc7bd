"""A cluster that is reached over TLS: nodes are found at their TLS ports, also after changes."""

import asyncio

import pytest
from redis.crc import key_slot

from resilient_io import Cause, State
from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import NoServerError, RedisServerCluster
from tests.live.redis.cluster.conftest import NODE_TIMEOUT
from tests.live.redis.cluster.ledger import keys_of_shard

KEYS = [keys_of_shard(shard, 1)[0] for shard in range(3)]


@pytest.fixture
async def tls_cluster():
    """Start a cluster with TLS and a password."""
    cluster = RedisServerCluster(
        replicas=1, node_timeout=NODE_TIMEOUT, tls=True, password="secret: %@"
    )
    try:
        async with cluster:
            yield cluster
    except NoServerError as error:
        pytest.skip(str(error))


async def test_all_nodes_are_used_over_tls_through_redirections_and_failovers(tls_cluster, slack):
    cluster = tls_cluster
    tls_ports = {f"127.0.0.1:{node.tls_port}" for node in cluster.nodes}
    async with ResilientRedisCluster.from_url(cluster.tls_url) as client:
        pubsub = client.pubsub()
        await pubsub.ssubscribe(*KEYS)
        for key in KEYS:
            assert await client.set(key, "1")
        replies = await client.pipeline().incr(KEYS[0]).incr(KEYS[1]).incr(KEYS[2]).execute()
        assert replies == [2, 2, 2]

        slot = key_slot(KEYS[0].encode())
        source = (await cluster.shard_of(slot)).master
        target = next(node for node in await cluster.masters() if node is not source)
        migration = await cluster.begin_migration(slot, target)
        await migration.move_all()
        assert await client.incr(KEYS[0]) == 3  # ASK
        await migration.finish()
        assert await client.incr(KEYS[0]) == 4  # MOVED

        await cluster.failover((await cluster.shards())[2].replicas[0])
        assert await client.incr(KEYS[2]) == 3
        victim = (await cluster.shard_of(key_slot(KEYS[1].encode()))).master
        victim.kill()
        async with asyncio.timeout(10 + slack()):
            assert await client.get(KEYS[1]) == b"2"
        assert set(client.node_health) <= tls_ports
        async with asyncio.timeout(10 + slack()):
            while not await client.spublish(KEYS[1], "published"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while (message := await pubsub.get_sharded_message(timeout=1)) is None or (
                message["type"] != "smessage"
            ):
                pass
        assert message["data"] == b"published"
        await pubsub.aclose()


async def test_missing_authority_is_named_with_the_node(tls_cluster):
    url = tls_cluster.tls_url.partition("?")[0]
    async with ResilientRedisCluster.from_url(url) as client:
        with pytest.raises(Exception, match="certificate") as caught:
            await client.get("key")
        assert f":{tls_cluster.nodes[0].tls_port}" in str(caught.value)
        async with asyncio.timeout(5):
            async for change in client.health.watch():
                if change.state is State.DOWN:
                    break
        assert client.health.cause is Cause.TLS
