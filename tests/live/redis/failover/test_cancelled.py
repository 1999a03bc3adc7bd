"""Calls and readers of a Sentinel client that are cancelled at random moments in every fault."""

import asyncio
import random

import pytest
from redis.exceptions import RedisError

from tests.live.redis.cancelling import cancelled_at_random
from tests.live.redis.failover.conftest import Blackhole, Following
from tests.live.redis.subscribers import KINDS, CancelledReader, Publisher

pytestmark = pytest.mark.soak


async def kill(setup):
    old = await setup.master()
    address = await setup.master_address()
    old.kill()
    await setup.until_switched(address)
    await asyncio.sleep(0.5)
    await old.start()


async def freeze(setup):
    old = await setup.master()
    address = await setup.master_address()
    old.freeze()
    await setup.until_switched(address)
    await asyncio.sleep(0.5)
    old.thaw()


async def fail_over(setup):
    for _ in range(2):
        await setup.fail_over()
        await asyncio.sleep(1)


async def kill_sentinels(setup):
    for sentinel in setup.sentinels:
        sentinel.kill()
        await asyncio.sleep(0.5)
    for sentinel in setup.sentinels:
        await sentinel.start()
    await asyncio.sleep(0.5)


async def restart_all(setup):
    setup.kill()
    await asyncio.sleep(0.5)
    await setup.start()


async def check_calls(redis):
    """Check that replies reach their own callers, and that nothing waits or is in flight."""
    async with asyncio.timeout(15):
        while True:
            try:
                await redis.set("served", "yes")
                break
            except (RedisError, OSError):
                await asyncio.sleep(0.1)
    numbers = [b"%d" % number for number in range(50)]
    assert await asyncio.gather(*map(redis.echo, numbers)) == numbers
    multiplexer = redis._runtime.multiplexer
    assert multiplexer.waiting == 0
    async with asyncio.timeout(5):
        while redis._runtime.pool._acquired:  # noqa: ASYNC110 - cancelled pops end in the background
            await asyncio.sleep(0.01)


async def cancel_during(fault, setup, redis):
    """Cancel calls and readers while a fault happens, and check what is left behind.

    The fault may return a server that did not learn that connections to it were closed.
    """
    rng = random.Random(1)
    readers = [CancelledReader(redis.pubsub(), kind) for kind in KINDS]
    for each in readers:
        await each.start()

    async def call():
        number, kind = rng.randrange(10), rng.randrange(5)
        if kind == 0:
            await redis.rpush("list", "value")
        elif kind == 1:
            await redis.blpop("nothing", timeout=0.2)
        elif kind == 2:
            await redis.set("other", "x" * 100_000)
        elif kind == 3:
            replies = await redis.pipeline().echo(f"{number}").get("missing").execute()
            assert replies == [b"%d" % number, None]
        else:
            assert await redis.echo(f"{number}") == b"%d" % number

    calls = [call] * 6 + [each for reader in readers for each in (reader.read, reader.use_others)]
    async with Publisher(*setup.nodes), Publisher(*setup.nodes, kind="sharded"):
        async with cancelled_at_random(*calls):
            await asyncio.sleep(0.2)
            unaware = await fault(setup)
        await check_calls(redis)
        await asyncio.gather(*(each.check(ordered=False) for each in readers))
    for each in readers:
        await each.pubsub.aclose()
    await asyncio.sleep(0.05)
    for node in [each for each in setup.nodes if each is not unaware]:
        assert await node.query("PUBSUB", "NUMSUB", "c") == [b"c", 0]
        assert await node.query("PUBSUB", "SHARDNUMSUB", "c") == [b"c", 0]


@pytest.mark.parametrize("fault", [kill, freeze, fail_over, kill_sentinels, restart_all])
async def test_cancelled_calls_and_readers_leave_nothing_behind(
    quick_setup, follow, no_leaks, fault
):
    following = await follow(health_check_interval=0.2)
    await cancel_during(fault, quick_setup, following.redis)


@pytest.mark.parametrize("everywhere", [True, False])
async def test_cancelled_calls_to_a_master_that_cannot_be_reached_leave_nothing_behind(
    network, far, no_leaks, everywhere
):
    async def blackhole(setup):
        address = await setup.master_address()
        hole = Blackhole(network, address[1], everywhere=everywhere)
        hole.begin()
        if everywhere:
            await setup.until_switched(address)
        await asyncio.sleep(2)
        hole.end()
        return setup.node(address)

    following = Following(far)
    await following.redis.initialize()
    await following.redis.ping()
    await cancel_during(blackhole, far, following.redis)
    await following.aclose()
