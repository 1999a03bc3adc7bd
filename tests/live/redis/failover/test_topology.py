"""What a client shows of the servers behind its Sentinels, before and after a failover."""

import asyncio
import logging

from resilient_io.redis import ResilientRedis
from tests.live.redis.failover.ledger import Callers


async def until(topology, fact):
    async with asyncio.timeout(10):
        while not fact(topology()):  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.02)
    return topology()


async def test_topology_shows_the_master_its_replicas_and_the_failover(quick_setup, follow, caplog):
    caplog.set_level(logging.INFO, "resilient_io.redis")
    following = await follow()
    health = following.redis.health
    first = await until(
        lambda: health.topology,
        lambda known: known.longest_lag is not None and known.sentinels_reached == 3,
    )
    addresses = [f"{node.host}:{node.port}" for node in quick_setup.nodes]
    assert [(each.role, each.state) for each in first.servers] == [
        ("master", "up"),
        ("replica", "up"),
        ("replica", "up"),
    ]
    assert first.servers[0].address == addresses[0]
    assert {each.address for each in first.replicas} == set(addresses[1:])
    assert all(each.lag is not None and each.lag <= 2.0 for each in first.replicas)
    assert (first.sentinels, first.failovers, first.latest) == (3, 0, None)
    assert first.describe().startswith(f"master {addresses[0]}, 2 replicas up to ")

    async with Callers(following.redis, quick_setup):
        await asyncio.sleep(0.1)
        new = await quick_setup.fail_over()
        after = await until(lambda: health.topology, lambda known: known.failovers == 1)
    address = f"{new.host}:{new.port}"
    assert after.servers[0].address == address
    assert after.master_since > first.master_since
    assert after.latest.master == address
    assert 0.0 < after.latest.duration == after.failover_seconds < 3.0
    assert after.latest.held == after.calls_held > 0
    assert not after.failing_over
    (record,) = [each for each in caplog.records if each.event == "failed_over"]
    assert (record.master, record.held) == (address, after.calls_held)
    assert f"continues on {address}" in record.getMessage()

    quick_setup.sentinels[0].kill()
    quick_setup.nodes[0].kill()
    lost = await until(
        lambda: health.topology,
        lambda known: (
            known.sentinels_reached == 2 and any(each.state == "down" for each in known.replicas)
        ),
    )
    assert [each.address for each in lost.servers if each.state == "down"] == addresses[:1]


async def test_client_of_one_server_shows_no_topology(quick_setup):
    async with ResilientRedis.from_url(quick_setup.nodes[0].url) as redis:
        await redis.ping()
        assert redis.health.topology is None
        assert redis.health.snapshot()["topology"] is None
