"""Subscribers of a Sentinel client follow a failover: one gap, then messages of the new master."""

import asyncio

import pytest

from resilient_io import Cause
from tests.live.redis.subscribers import KINDS, SERVES_AGAIN, Listener, Publisher, now


@pytest.mark.parametrize("kind", KINDS)
async def test_planned_failover_is_one_gap(quick_setup, follow, slack, kind):
    following = await follow()
    async with (
        Listener(following.redis.pubsub(), kind) as listener,
        Publisher(await quick_setup.master(), kind=kind) as publisher,
    ):
        await listener.received(now())
        publisher.servers = [await quick_setup.fail_over()]
        assert await listener.received(now()) < SERVES_AGAIN + slack()
        await asyncio.sleep(0.3)
        (gap,) = listener.gaps
        assert gap.cause is Cause.FAILOVER
        assert "the Sentinels made" in gap.detail
        assert gap.seconds < SERVES_AGAIN + slack()
        # The subscription has left the former master.
        numsub = "SHARDNUMSUB" if kind == "sharded" else "NUMSUB"
        counts = {
            node.port: (await node.query("PUBSUB", numsub, "c"))[1] for node in quick_setup.nodes
        }
        assert counts[publisher.servers[0].port] == 1
        assert sum(counts.values()) == 1


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("kill", "plain"),
        ("freeze", "sharded"),
        pytest.param("kill", "sharded", marks=pytest.mark.soak),
        pytest.param("freeze", "plain", marks=pytest.mark.soak),
    ],
)
async def test_lost_master_is_one_gap(quick_setup, follow, slack, how, kind):
    following = await follow(health_check_interval=0.2)
    old, address = await quick_setup.master(), await quick_setup.master_address()
    async with (
        Listener(following.redis.pubsub(), kind) as listener,
        Publisher(old, kind=kind) as publisher,
    ):
        await listener.received(now())
        getattr(old, how)()
        publisher.servers = [await quick_setup.until_switched(address)]
        assert await listener.received(now()) < SERVES_AGAIN + slack()
        if how == "freeze":
            old.thaw()
        await asyncio.sleep(0.3)
        assert len(listener.gaps) == 1
        await listener.received(now())
