"""The client follows a failover, loses nothing, and repeats nothing."""

import asyncio

import pytest
from redis.asyncio.sentinel import Sentinel

from resilient_io import Cause, Closed, State
from resilient_io.redis import ResilientRedis
from resilient_io.testing import SentinelSetup
from tests.live.redis.failover.ledger import Callers


async def test_planned_failover_fails_and_loses_nothing(quick_setup, follow, slack):
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
    assert callers.ledger.longest < 2.5 + slack()
    assert [(each.state, each.cause) for each in following.changes[-2:]] == [
        (State.DEGRADED, Cause.FAILOVER),
        (State.UP, None),
    ]


async def test_killed_master_fails_only_the_calls_in_flight(quick_setup, follow, slack):
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
    assert ledger.first_success(began) < ledger.switches[0] - began + 0.5 + slack()
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


async def test_client_can_be_closed_during_a_failover(quick_setup, follow):
    following = await follow()
    await quick_setup.begin_failover()
    async with asyncio.timeout(2):
        while following.redis.health.cause is not Cause.FAILOVER:  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.005)
    waiting = asyncio.create_task(following.redis.incr("counter"))
    popping = asyncio.create_task(following.redis.blpop("list", timeout=0))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(1):
        await following.redis.aclose()
    for task in (waiting, popping):
        with pytest.raises(Closed):
            await task
    assert following.redis.health.state is State.UNKNOWN


async def test_passwords_and_the_old_protocol_do_not_keep_events_from_the_client(slack):
    async with SentinelSetup(down_after=0.5, password="secret", sentinel_password="other") as setup:
        sentinel = Sentinel(setup.addresses, sentinel_kwargs={"password": "other", "protocol": 2})
        redis = sentinel.master_for(
            setup.name, redis_class=ResilientRedis, password="secret", protocol=2
        )
        async with redis, Callers(redis, setup, count=3) as callers:
            await asyncio.sleep(0.2)
            assert redis.health.state is State.UP
            await setup.fail_over()
            await asyncio.sleep(0.2)
            audit = await callers.audit()
        await sentinel.aclose()
    assert callers.ledger.errors() == {}
    assert (audit.lost, audit.doubled) == ({}, [])
    assert callers.ledger.longest < 2.5 + slack()
