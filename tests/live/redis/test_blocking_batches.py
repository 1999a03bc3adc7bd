"""Blocking commands inside pipelines and on a client of its own: their times add up."""

import asyncio

import pytest

from resilient_io import DeadlineExceeded, OutcomeUnknown, RetryPolicy, deadline
from resilient_io.redis import ResilientRedis
from resilient_io.testing import cancel_everywhere

QUICK = RetryPolicy(response_timeout=0.2, connect_timeout=0.4, deadline=0.5, backoff=0.01)


@pytest.fixture
async def client(redis_server, fault_proxy):
    async with ResilientRedis.from_url(fault_proxy.url, policy=QUICK) as client:
        await client.ping()
        yield client


@pytest.mark.parametrize("transaction", [False, True])
async def test_the_block_times_of_a_batch_add_up(transaction, client):
    loop = asyncio.get_running_loop()
    pipe = client.pipeline(transaction=transaction).set("k", 1)
    pipe.blpop("none", timeout=0.4).brpop("none", timeout=0.4)
    pipe.xread({"s": "$"}, block=10).get("k")
    began = loop.time()
    replies = await pipe.execute()
    assert replies[:3] == [True, None, None]
    assert replies[4] == b"1"
    took = loop.time() - began
    assert took < 0.4 if transaction else took >= 0.8  # in MULTI nothing blocks


async def test_a_batch_may_block_without_a_limit(client):
    waiting = asyncio.create_task(
        client.pipeline(transaction=False).blpop("l", timeout=0).get("k").execute()
    )
    await asyncio.sleep(0.8)  # longer than the deadline
    await client.set("k", "v")
    await client.rpush("l", "x")
    async with asyncio.timeout(5):
        assert await waiting == [(b"l", b"x"), b"v"]
    assert client.health.available


async def test_an_enclosing_deadline_limits_a_batch_that_blocks(client, slack):
    loop = asyncio.get_running_loop()
    began = loop.time()
    with deadline(0.15), pytest.raises(DeadlineExceeded):
        await client.pipeline(transaction=False).xread({"s": "$"}, block=5000).execute()
    assert loop.time() - began < 0.15 + slack()


async def test_a_batch_that_blocks_keeps_the_replies_that_arrived(client, fault_proxy, slack):
    await client.rpush("l", "first", "second")
    fault_proxy.drop_reply("BRPOP")
    pipe = client.pipeline(transaction=False)
    pipe.blpop("l", timeout=0.1).brpop("l", timeout=0.1)
    with pytest.raises(OutcomeUnknown) as caught:
        async with asyncio.timeout(1 + slack()):
            await pipe.execute()
    assert caught.value.answered == ([b"l", b"first"],)
    assert caught.value.unanswered == (1,)


async def test_other_calls_continue_while_a_batch_blocks(client):
    waiting = asyncio.create_task(
        client.pipeline(transaction=False).blpop("l", timeout=0.6).execute()
    )
    for number in range(1, 20):
        assert await client.incr("n") == number
        await asyncio.sleep(0.02)
    assert await waiting == [None]
    pipe = client.pipeline(transaction=False).blpop("l", timeout=0.01)
    assert await pipe.execute() == [None]
    assert client.stats().exclusive == 1, "the connection is used again"


async def test_a_watched_pipeline_may_block_longer_than_the_deadline(client):
    async with client.pipeline() as pipe:
        await pipe.watch("k")
        assert await pipe.immediate_execute_command("BLPOP", "l", 0.8) is None


@pytest.mark.parametrize("own", [False, True])
async def test_wait_may_take_as_long_as_it_says(own, client):
    loop = asyncio.get_running_loop()
    async with client.client() as bound:
        began = loop.time()
        pipe = (bound if own else client).pipeline(transaction=False).set("k", 1)
        assert await pipe.execute_command("WAIT", 1, 800).execute() == [True, 0]
        assert loop.time() - began >= 0.8
        if own:
            began = loop.time()
            await bound.set("k", 2)
            assert await bound.wait(1, 800) == 0
            assert loop.time() - began >= 0.8


async def test_a_batch_that_blocks_is_cancelled_anywhere(redis_server):
    async def block(redis):
        await redis.pipeline(transaction=False).set("k", 1).blpop("l", timeout=0.02).execute()

    report = await cancel_everywhere(
        block, setup=lambda: ResilientRedis(port=redis_server.port), settle=3.0
    )
    report.assert_clean()
