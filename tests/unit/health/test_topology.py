"""The servers behind a dependency, and the failovers, as a client tells its health."""

import asyncio
import json
import math

from resilient_io.health import Dependency, FailoverRecord, Topology, TopologyServer

MASTER = TopologyServer(address="10.0.0.1:6379", role="master", state="up")
REPLICAS = (
    TopologyServer(address="10.0.0.2:6379", role="replica", state="up", lag=0.5),
    TopologyServer(address="10.0.0.3:6379", role="replica", state="down"),
)


def test_sentinels_are_described_in_one_line():
    empty = Topology(sentinels=3, sentinels_reached=3)
    assert empty.describe() == "no master known, 0 replicas"
    topology = Topology(servers=(MASTER, *REPLICAS), sentinels=3, sentinels_reached=2)
    assert topology.describe() == (
        "master 10.0.0.1:6379, 2 replicas up to 0.5 s behind, 2 of 3 Sentinels reached"
    )
    assert topology.longest_lag == 0.5
    latest = FailoverRecord(5.0, 1.25, 20, "10.0.0.2:6379")
    after = Topology(servers=(MASTER, REPLICAS[0]), failovers=2, latest=latest)
    assert after.describe() == (
        "master 10.0.0.1:6379, 1 replica up to 0.5 s behind, 2 failovers (latest 1.2 s)"
    )
    assert Topology(servers=(MASTER,), failing_over=True).describe().endswith(", failing over")


def test_cluster_is_described_in_one_line():
    masters = [TopologyServer(address=f"n{each}:1", role="master", slots=5461) for each in "abc"]
    topology = Topology(servers=tuple(masters), slots=16384, slots_served=10922)
    assert topology.describe() == "10,922 of 16,384 slots, 3 masters, 0 replicas"
    assert len(topology.masters) == 3


def test_plain_data_has_ages_instead_of_times():
    latest = FailoverRecord(90.0, 1.5, 20, "10.0.0.1:6379")
    topology = Topology(servers=(MASTER, *REPLICAS), master_since=91.5, failovers=1, latest=latest)
    data = json.loads(json.dumps(topology.as_dict(100.0)))
    assert data["master_age"] == 8.5
    assert data["latest"] == {"ago": 10.0, "duration": 1.5, "held": 20, "master": "10.0.0.1:6379"}
    assert [each["address"] for each in data["servers"]] == [
        "10.0.0.1:6379",
        "10.0.0.2:6379",
        "10.0.0.3:6379",
    ]
    assert Topology().as_dict(100.0)["master_age"] is None


async def test_dependency_shows_the_topology_of_the_first_client_that_knows_one():
    async def answers(_suspicious):
        return 0.001

    dependency = Dependency("redis")
    assert dependency.topology is None
    assert dependency.snapshot()["topology"] is None
    single = dependency.start(answers, last_reply=lambda: -math.inf)
    assert dependency.topology is None
    since = asyncio.get_running_loop().time()
    known = Topology(servers=(MASTER,), master_since=since)
    other = dependency.start(answers, last_reply=lambda: -math.inf, topology=lambda: known)
    assert dependency.topology is known
    await asyncio.sleep(2.0)
    assert dependency.snapshot()["topology"]["master_age"] == 2.0
    await other.detach()
    assert dependency.topology is None
    await single.detach()
    await dependency.aclose()
