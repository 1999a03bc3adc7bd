"""A Sentinel set-up starts settled, fails over on request and by itself, and keeps its state."""

import asyncio

import pytest

from resilient_io.testing import SentinelSetup, find_embedded_redis, find_redis


@pytest.fixture(params=[find_redis, find_embedded_redis])
async def setup(request):
    async with SentinelSetup(down_after=0.3, binary=request.param()) as setup:
        yield setup


async def test_planned_failover_ends_with_another_settled_master(setup):
    first = await setup.master()
    assert first is setup.nodes[0]
    second = await setup.fail_over()
    assert second in setup.nodes[1:]
    assert (await second.query("ROLE"))[0] == b"master"


async def test_killed_master_is_replaced_and_returns_as_a_master(setup):
    first, address = await setup.master(), await setup.master_address()
    first.kill()
    second = await setup.until_switched(address)
    await first.restart()
    assert (await first.query("ROLE"))[0] == b"master"  # until a Sentinel demotes it
    sentinel = setup.sentinels[0]
    await sentinel.restart()
    assert await setup.master() is second


async def test_sentinels_and_servers_can_have_passwords():
    async with SentinelSetup(
        replicas=1, password="a b", sentinel_password='c"d', sentinel_options={"maxclients": 100}
    ) as setup:
        assert await setup.master() is setup.nodes[0]
        assert await setup.sentinels[0].query("PING") == b"PONG"
        setup.kill()
        await asyncio.sleep(0)
        assert not any(server.running for server in [*setup.nodes, *setup.sentinels])
