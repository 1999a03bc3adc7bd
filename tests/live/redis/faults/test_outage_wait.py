"""Calls wait through the beginning of an outage, but not for a server that never answered."""

import asyncio
import socket

import pytest

from resilient_io import DeadlineExceeded, DependencyUnavailable, RetryPolicy, State
from resilient_io.errors import Progress


async def get(redis):
    return await redis.get("key")


async def blocking_pop(redis):
    return await redis.blpop(["list"], timeout=0.05)


async def batch(redis):
    return await redis.pipeline(transaction=False).get("key").get("key").execute()


async def transaction(redis):
    return await redis.pipeline().get("key").get("key").execute()


async def watch_keys(redis):
    async with redis.pipeline() as pipeline:
        await pipeline.watch("key")


CALLS = [get, blocking_pop, batch, transaction, watch_keys]


@pytest.fixture
def refusing():
    """Return the URL of a port that refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{sock.getsockname()[1]}/0"


@pytest.mark.parametrize("call", CALLS)
async def test_the_first_call_fails_when_the_probe_has_run(call, refusing, connect, slack):
    redis = await connect(refusing, up=False)
    began = asyncio.get_running_loop().time()
    with pytest.raises(DependencyUnavailable, match="refused") as failure:
        await call(redis)
    assert asyncio.get_running_loop().time() - began <= 0.15 + slack()
    assert failure.value.progress is Progress.NOT_SENT


async def test_the_first_call_waits_if_the_policy_says_so(refusing, connect, quick):
    policy = quick.replace(while_down="wait", deadline=0.4)
    redis = await connect(refusing, up=False, policy=policy)
    began = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineExceeded):
        await redis.get("key")
    assert asyncio.get_running_loop().time() - began >= 0.39


async def test_calls_in_the_first_second_of_an_outage_wait_for_the_server(
    redis_server, connect, watch
):
    redis = await connect(redis_server)
    seen = watch(redis)
    early = [asyncio.create_task(call(redis)) for call in CALLS]
    redis_server.kill()
    await seen.until(State.DOWN, within=5)
    late = [asyncio.create_task(call(redis)) for call in CALLS]
    await asyncio.sleep(0.2)
    await redis_server.start()
    results = await asyncio.gather(*late)
    assert results == [None, None, [None, None], [None, None], None]
    await asyncio.gather(*early, return_exceptions=True)


@pytest.mark.parametrize("outage_wait", [0.0, 0.3])
async def test_calls_fail_when_the_outage_is_longer(
    outage_wait, redis_server, connect, watch, slack
):
    loop = asyncio.get_running_loop()
    policy = RetryPolicy(outage_wait=outage_wait)
    redis = await connect(redis_server, policy=policy)
    seen = watch(redis)
    redis_server.kill()
    await seen.until(State.DOWN, within=5)
    calls = [asyncio.create_task(call(redis)) for call in CALLS]
    results = await asyncio.gather(*calls, return_exceptions=True)
    waited = loop.time() - redis.health.since
    for result in results:
        assert isinstance(result, DependencyUnavailable), result
        assert "down" in str(result)
    assert outage_wait - 0.05 <= waited <= outage_wait + 0.15 + slack()

    began = loop.time()
    for call in CALLS:
        with pytest.raises(DependencyUnavailable, match="0 attempts"):
            await call(redis)
    assert loop.time() - began <= 0.1 + slack()
