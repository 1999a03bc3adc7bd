"""The client follows a failover, loses nothing, and repeats nothing."""

import asyncio

from resilient_io import Cause, State
from tests.live.redis.failover.ledger import Callers


async def test_planned_failover_fails_and_loses_nothing(quick_setup, follow):
    following = await follow()
    async with Callers(following.redis, quick_setup) as callers:
        await asyncio.sleep(0.2)
        new = await quick_setup.fail_over()
        await asyncio.sleep(0.3)
        audit = await callers.audit()
        assert await following.redis.incr("counter") == 1
        assert await new.query("GET", "counter") == b"1"
    assert callers.ledger.errors() == {}
    assert (audit.lost, audit.doubled) == ({}, [])
    assert callers.ledger.longest < 2.5
    assert [(each.state, each.cause) for each in following.changes[-2:]] == [
        (State.DEGRADED, Cause.FAILOVER),
        (State.UP, None),
    ]


async def test_killed_master_fails_only_the_calls_in_flight(quick_setup, follow):
    following = await follow()
    async with Callers(following.redis, quick_setup) as callers:
        await asyncio.sleep(0.2)
        old, address = await quick_setup.master(), await quick_setup.master_address()
        began = asyncio.get_running_loop().time()
        old.kill()
        await quick_setup.until_switched(address)
        await asyncio.sleep(0.3)
        audit = await callers.audit()
    ledger = callers.ledger
    assert len(ledger.failed) == ledger.unknown <= 20
    assert ledger.first_success(began) < ledger.switches[0] - began + 0.5
    assert (audit.lost_after(began), audit.doubled) == (0, [])


async def test_frozen_master_that_returns_gets_no_write(quick_setup, follow):
    following = await follow()
    async with Callers(following.redis, quick_setup) as callers:
        await asyncio.sleep(0.2)
        old, address = await quick_setup.master(), await quick_setup.master_address()
        began = asyncio.get_running_loop().time()
        old.freeze()
        await quick_setup.until_switched(address)
        old.thaw()
        size = await old.query("DBSIZE")
        await asyncio.sleep(0.5)
        lengths = [await old.query("LLEN", f"list:{number}") for number in range(20)]
        await asyncio.sleep(0.3)
        assert (await old.query("ROLE"))[0] == b"master"  # it is still writable
        again = [await old.query("LLEN", f"list:{number}") for number in range(20)]
        audit = await callers.audit()
    ledger = callers.ledger
    assert size
    assert lengths == again
    assert len(ledger.failed) == ledger.unknown <= 20
    assert (audit.lost_after(began), audit.doubled) == (0, [])
