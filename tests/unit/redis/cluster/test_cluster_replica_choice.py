"""The choice between the nodes of a shard: state, lag, availability zone, latency."""

import asyncio
import random
from types import SimpleNamespace

import pytest

from resilient_io.redis.cluster.replicas import ReadOptions, ReplicaReads
from resilient_io.redis.cluster.slots import Node, Shard, SlotTable


class _Member:
    """A node with a state that a test sets."""

    def __init__(self, latency=None):
        self.suspect = False
        self.opened = True
        self.health = SimpleNamespace(latency=latency)
        self.info = {}

    @property
    def connection(self):
        return self

    def ask(self, _data):
        reply = asyncio.get_running_loop().create_future()
        reply.set_result("".join(f"{name}:{value}\r\n" for name, value in self.info.items()))
        return reply


class _Members(dict):
    def find(self, address):
        return self.get(address)


@pytest.fixture
def cluster():
    nodes = [Node("h", port, zone=zone) for port, zone in ((1, "a"), (2, "b"), (3, "a"), (4, None))]
    shard = Shard(nodes[0], tuple(nodes[1:]))
    table = SlotTable([shard] * 16384, [shard])
    members = _Members({node.address: _Member() for node in nodes})
    return SimpleNamespace(table=table, members=members)


def _choices(cluster, read_from, avoid=(), **options):
    reads = ReplicaReads(
        cluster, ReadOptions(read_from, **{"max_lag": None, **options}), random.Random(1)
    )
    found = [reads.choose(7, avoid) for _ in range(200)]
    ports = {member: address[1] for address, member in cluster.members.items()}
    return {ports.get(member) for member in found}


async def test_each_option_uses_its_nodes(cluster):
    assert _choices(cluster, "replica") == {2, 3, 4}
    assert _choices(cluster, "any") == {1, 2, 3, 4}
    assert _choices(cluster, "nearest") == {1, 2, 3, 4}  # no latency is known yet


async def test_nodes_of_the_same_zone_are_the_nearest(cluster):
    assert _choices(cluster, "nearest", zone="a") == {1, 3}
    assert _choices(cluster, "nearest", zone="b") == {2}
    cluster.members["h", 2].suspect = True
    assert _choices(cluster, "nearest", zone="b") == {1, 3, 4}


async def test_nodes_that_answer_the_fastest_are_the_nearest(cluster):
    for port, latency in ((1, 0.010), (2, 0.002), (3, 0.0021), (4, 0.2)):
        cluster.members["h", port].health.latency = latency
    assert _choices(cluster, "nearest") == {2, 3}


async def test_suspected_nodes_get_no_reads(cluster):
    cluster.members["h", 2].suspect = True
    assert _choices(cluster, "replica") == {3, 4}
    assert _choices(cluster, "replica", avoid=[cluster.members["h", 3]]) == {4}
    for port in (3, 4):
        cluster.members["h", port].suspect = True
    assert _choices(cluster, "replica") == {None}  # the master
    cluster.members["h", 1].suspect = True
    assert _choices(cluster, "any") == {None}


async def test_a_replica_that_lags_behind_gets_no_reads(cluster):
    reads = ReplicaReads(cluster, ReadOptions("replica", max_lag=2.0), random.Random(1))
    cluster.members["h", 1].info = {"role": "master", "master_repl_offset": 1000}
    for port, offset in ((2, 1000), (3, 1000), (4, 10)):
        cluster.members["h", port].info = {"role": "slave", "slave_repl_offset": offset}
    assert reads.choose(7) is None  # nothing is known
    reads.lag.start()
    await asyncio.sleep(0.3)
    ports = {member: address[1] for address, member in cluster.members.items()}
    assert {ports[reads.choose(7)] for _ in range(100)} == {2, 3}
    cluster.members["h", 1].info["master_repl_offset"] = 2000
    cluster.members["h", 2].info["slave_repl_offset"] = 2000
    await asyncio.sleep(1.5)
    assert {ports[reads.choose(7)] for _ in range(100)} == {2, 3}  # 3 was up to date 1.5 s ago
    await asyncio.sleep(1.5)
    assert {ports[reads.choose(7)] for _ in range(100)} == {2}
    cluster.members["h", 2].info["role"] = "master"
    await asyncio.sleep(3)
    assert reads.choose(7) is None
    assert reads.lag.failure() is None
    await reads.lag.aclose()
    await reads.lag.aclose()
