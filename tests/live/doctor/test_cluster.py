"""The doctor at real clusters, with and without faults."""

import asyncio
import contextlib

import pytest

from resilient_io.doctor import Status, exit_code
from resilient_io.testing import RedisServer, RedisServerCluster

NODE = {"cluster-enabled": "yes", "cluster-node-timeout": 1000}
STEPS = ["name", "TCP", "login", "reply", "link", "nodes", "slots", "agreement", "replicas"]


@contextlib.asynccontextmanager
async def one_node(first=0, last=16383, **options):
    """Start a cluster of one master, which owns some slots."""
    names = {name.replace("_", "-"): value for name, value in options.items()}
    async with RedisServer(options=NODE | names) as server:
        await server.query("CLUSTER", "ADDSLOTSRANGE", first, last)
        yield server


async def test_healthy_cluster_is_checked_from_any_node(examined, shared_redis_cluster):
    for node in shared_redis_cluster.nodes[:2]:
        seen = await examined(node.url)
        assert seen.names == STEPS
        assert exit_code(seen.steps) == 0, seen
        assert "use ResilientRedisCluster" in seen["reply"].found
        assert seen["nodes"].data["answered"] == len(shared_redis_cluster.nodes)
        assert seen["slots"].found == "all 16,384 slots are served, by 3 masters"
        assert seen["agreement"].status is Status.OK
        assert seen["agreement"].data["node_timeout"] > 0
        assert seen["replicas"].found.startswith("no replica: ")


async def test_slots_without_an_owner(examined):
    async with one_node(0, 16000) as server:
        seen = await examined(server.url)
    assert seen["slots"].status is Status.PROBLEM
    assert "383 of 16,384 slots have no owner: 16001-16383" in seen["slots"].found
    assert "cluster_state:fail" in seen["slots"].found
    assert "only 1 master" in seen["nodes"].found


async def test_announced_name_that_resolves_only_inside(examined):
    async with one_node(
        cluster_announce_hostname="node-1.invalid", cluster_preferred_endpoint_type="hostname"
    ) as server:
        seen = await examined(server.url)
    assert seen["nodes"].status is Status.PROBLEM
    assert "master node-1.invalid" in seen["nodes"].found
    assert "does not exist" in seen["nodes"].found
    assert "cluster-announce-hostname" in seen["nodes"].advice


@pytest.mark.parametrize("endpoint", ["unknown-endpoint", "ip"])
async def test_announced_endpoint_that_is_empty_is_the_host_of_the_url(examined, endpoint):
    async with one_node(cluster_preferred_endpoint_type=endpoint) as server:
        seen = await examined(f"redis://localhost:{server.port}")
    assert "1 of 1 node answer where announced" in seen["nodes"].found, seen


async def test_user_of_the_docs_can_check_a_cluster(examined, shared_redis_cluster, doctor_user):
    nodes = shared_redis_cluster.nodes
    try:
        for node in nodes:
            await node.query(*doctor_user)
            await node.query("ACL", "SETUSER", "shy", "on", ">hunter2", "+ping", "+hello")
        seen = await examined(f"redis://doctor:hunter2@127.0.0.1:{nodes[0].port}")
        assert exit_code(seen.steps) == 0, seen
        assert seen["agreement"].data["node_timeout"] > 0
        seen = await examined(f"redis://shy:hunter2@127.0.0.1:{nodes[0].port}")
    finally:
        for node in nodes:
            await node.query("ACL", "DELUSER", "doctor", "shy")
    assert seen.last.name == "nodes"
    assert seen.last.status is Status.UNKNOWN
    assert "no permission" in seen.last.found


async def test_failed_nodes_and_an_open_migration(examined):
    async with RedisServerCluster(masters=3, replicas=1, node_timeout=0.3) as cluster:
        first, second, third = await cluster.masters()
        await cluster.begin_migration(1, third)
        seen = await examined(first.url)
        assert seen["slots"].status is Status.NOTE
        assert "1 slot on the way to another node: 1" in seen["slots"].found
        assert seen["replicas"].status is Status.OK, seen
        replica = next(each for each in cluster.nodes if each not in (first, second, third))
        second.kill()
        replica.kill()
        async with asyncio.timeout(20):
            while True:
                seen = await examined(first.url)
                if seen["nodes"].found.count("has failed") == 2:
                    break
                await asyncio.sleep(0.1)
        for dead in (second, replica):
            assert f"127.0.0.1:{dead.port} has failed" in seen["nodes"].found
