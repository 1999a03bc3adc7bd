"""A call that needs an exclusive connection is written before the calls that were made after it."""

import asyncio

import pytest

from resilient_io.redis import ResilientRedis

ROUNDS = 10


async def read_new(client, stream):
    return await client.xread({stream: "$"}, block=300)


async def missed(client, stream):
    """Return whether an XREAD misses the entry that is added after it."""
    reading = asyncio.create_task(read_new(client, stream))
    await asyncio.sleep(0)
    await client.xadd(stream, {"f": "v"})
    return not await reading


@pytest.mark.parametrize(
    "opened", ["fresh", "shared connections open", "exclusive connection idle"]
)
async def test_an_ordinary_call_does_not_overtake_an_earlier_blocking_one(
    shared_redis, until_complete, opened
):
    for number in range(ROUNDS):
        async with ResilientRedis(port=shared_redis.port) as client:
            if opened != "fresh":
                await client.ping()
                await until_complete(client)
            if opened == "exclusive connection idle":
                await client.xread({"nothing": "0"}, block=1)
            assert not await missed(client, f"{opened} {number}")


@pytest.mark.parametrize("opened", [False, True])
async def test_a_blocking_call_does_not_overtake_earlier_ordinary_ones(shared_redis, opened):
    for number in range(ROUNDS):
        stream = f"group {opened} {number}"
        async with ResilientRedis(port=shared_redis.port) as client:
            if opened:
                await client.ping()
            making = asyncio.create_task(client.xgroup_create(stream, "g", mkstream=True))
            reading = asyncio.create_task(client.xreadgroup("g", "c", {stream: ">"}, block=1))
            assert await making is True
            assert await reading in ([], {}, None)  # otherwise NOGROUP


async def test_many_blocking_calls_at_once_do_not_wait_for_each_other(shared_redis, slack):
    async with ResilientRedis(port=shared_redis.port) as client:
        await client.set("k", "v")
        loop = asyncio.get_running_loop()
        began = loop.time()
        blocked = [asyncio.create_task(client.blpop(f"nothing {n}", 3)) for n in range(60)]
        await asyncio.sleep(0)
        assert await client.get("k") == b"v"
        assert loop.time() - began < 0.5 + slack()
        await asyncio.gather(*(client.rpush(f"nothing {n}", n) for n in range(60)))
        assert len(await asyncio.gather(*blocked)) == 60
        assert loop.time() - began < 2 + slack()


async def test_calls_behind_one_that_cannot_connect_wait_only_briefly(fault_proxy, slack):
    async with ResilientRedis(port=fault_proxy.port) as client:
        await client.set("k", "v")
        held = fault_proxy.hold("CLIENT SETNAME", times=None)
        blocking = asyncio.create_task(client.blpop("nothing", 1))
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        began = loop.time()
        assert await asyncio.gather(*(client.get("k") for _ in range(20))) == [b"v"] * 20
        assert 0.4 < loop.time() - began < 0.5 + slack()
        began = loop.time()
        assert await client.get("k") == b"v"
        assert loop.time() - began < slack()
        blocking.cancel()
        held.remove()


async def test_a_cancelled_blocking_call_does_not_hold_back_others(shared_redis, slack):
    async with ResilientRedis(port=shared_redis.port) as client:
        await client.set("k", "v")
        loop = asyncio.get_running_loop()
        for ticks in range(12):
            blocking = asyncio.create_task(client.blpop(f"nothing {ticks}", 1))
            for _ in range(ticks):
                await asyncio.sleep(0)
            blocking.cancel()
            began = loop.time()
            assert await client.get("k") == b"v"
            assert loop.time() - began < slack()
        assert len(client._runtime.multiplexer._waiting) == 0
