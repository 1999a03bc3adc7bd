"""Nodes restart one by one or all together, and come back at other addresses."""

import asyncio

import pytest

from resilient_io import State
from resilient_io.redis import ResilientRedisCluster
from resilient_io.redis import connect as connecting
from resilient_io.testing import FaultProxy, RedisClusterNode, RedisServerCluster

from .ledger import Ledger, keys_of_shard

KEYS = [keys_of_shard(shard, 1)[0] for shard in range(3)]


async def until_up(client: ResilientRedisCluster) -> None:
    """Wait until a client has all slots again."""
    async with asyncio.timeout(15):
        async for change in client.health.watch():
            if change.state is State.UP:
                return


async def connections_to(cluster: RedisServerCluster) -> int:
    """Return how many connections all nodes have accepted since they were started."""
    total = 0
    for node in cluster.nodes:
        info = await node.query("INFO", "stats")
        assert isinstance(info, bytes)
        line = next(line for line in info.split(b"\r\n") if line.startswith(b"total_conn"))
        total += int(line.partition(b":")[2])
    return total


async def test_client_recovers_when_the_whole_cluster_was_down(cluster):
    async with ResilientRedisCluster.from_url(cluster.url) as client:
        for key in KEYS:
            await client.set(key, "value")
        cluster.kill()
        async for change in client.health.watch():
            if change.state is State.DOWN:
                break
        await asyncio.sleep(0.5)
        await cluster.start()
        before = await connections_to(cluster)
        await until_up(client)
        for key in KEYS:
            await client.set(key, "value")
        await asyncio.sleep(0.2)
        # The probe, two shared connections and questions about the slots of each node.
        assert await connections_to(cluster) - before < 40
        assert len(client.node_health) <= 6


@pytest.fixture
def attempts(monkeypatch):
    """Return the list of the targets to which the library has tried to connect."""
    begun = []
    open_one = connecting._open

    async def record(target, *args, **options):
        begun.append(target)
        return await open_one(target, *args, **options)

    monkeypatch.setattr(connecting, "_open", record)
    return begun


async def test_client_finds_the_nodes_at_other_addresses(cluster, attempts, no_leaks):
    async with (
        FaultProxy(cluster.nodes[0].port, allow_unused_faults=True) as proxy,
        ResilientRedisCluster("127.0.0.1", proxy.port) as client,
    ):
        for key in KEYS:
            await client.set(key, "value")
        attempts.clear()
        began = asyncio.get_running_loop().time()
        await cluster.change_addresses()
        proxy.target = ("127.0.0.1", cluster.nodes[0].port)
        await until_up(client)
        for key in KEYS:
            await client.set(key, "value")
        seconds = asyncio.get_running_loop().time() - began
        assert len(attempts) < 50 * (1 + seconds)  # to six nodes
        assert {node.port for node in client.get_nodes()} <= set(cluster.ports)
        assert set(client.node_health) <= {f"127.0.0.1:{port}" for port in cluster.ports}


async def replica_of(
    cluster: RedisServerCluster, node: RedisClusterNode
) -> RedisClusterNode | None:
    """Return a replica of a master, which may still be joining; None for a replica."""
    async with asyncio.timeout(20):
        while True:
            shard = next((each for each in await cluster.shards() if each.master is node), None)
            if shard is None:
                return None
            if shard.replicas:
                return shard.replicas[0]
            await asyncio.sleep(0.1)


async def restart_each(cluster: RedisServerCluster) -> None:
    """Restart every node: a master after its replica has taken over, as an operator does."""
    for node in list(cluster.nodes):
        replica = await replica_of(cluster, node)
        if replica is not None:
            await cluster.failover(replica)
            await cluster.wait_until_ok()
        await node.terminate()
        await node.start()
        await cluster.wait_until_ok()


@pytest.mark.soak
async def test_rolling_restart_of_all_nodes_fails_no_call():
    async with (
        RedisServerCluster(replicas=1) as cluster,
        ResilientRedisCluster.from_url(cluster.url) as client,
    ):
        ledger = Ledger(client)
        ledger.start()
        await asyncio.sleep(0.5)
        await restart_each(cluster)
        await ledger.stop()
        assert not ledger.errors
        result = await ledger.compare(cluster)
        assert not result.lost
        assert not result.duplicates
