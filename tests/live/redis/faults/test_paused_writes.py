"""CLIENT PAUSE WRITE, as in planned switchovers: reads are answered, although writes wait."""

import asyncio

import pytest

from resilient_io import deadline

NOTICED = 0.2  # seconds of silence after which the other connection is asked


async def pause(server, seconds, mode="WRITE"):
    await server.query("CLIENT", "PAUSE", int(seconds * 1000), mode)


@pytest.fixture
async def redis(redis_server, connect):
    redis = await connect(redis_server)
    await redis.set("key", "value")
    return redis


async def timed(call):
    loop = asyncio.get_running_loop()
    began = loop.time()
    reply = await call
    return reply, loop.time() - began


async def test_reads_do_not_wait_behind_paused_writes(redis, redis_server, watch, slack):
    seen = watch(redis)
    connections = redis._runtime.multiplexer.connections
    await pause(redis_server, 1.2)
    writes = [asyncio.create_task(timed(redis.incr("counter"))) for _ in range(20)]
    await asyncio.sleep(0.01)
    first = [
        asyncio.create_task(timed(redis.get("key"))),
        asyncio.create_task(timed(redis.pipeline(transaction=False).get("key").execute())),
    ]
    with deadline(5.0):
        first.append(asyncio.create_task(timed(redis.strlen("key"))))
    for call, expected in zip(first, [b"value", [b"value"], 5], strict=True):
        reply, took = await call
        assert reply == expected
        assert took < NOTICED + slack(0.2)
    for _ in range(20):
        reply, took = await timed(redis.get("key"))
        assert reply == b"value"
        assert took < slack(0.1)
    assert await redis.pipeline(transaction=False).get("key").execute() == [b"value"]
    assert not any(call.done() for call in writes)

    replies = await asyncio.gather(*writes)
    assert [reply for reply, _ in replies] == list(range(1, 21))
    assert min(took for _, took in replies) > 0.8
    assert redis.stats().retries == 0
    assert redis._runtime.multiplexer.connections == connections
    assert not seen.changes
    async with asyncio.timeout(5):
        while redis._runtime.multiplexer.fast is None:  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.01)
    assert await redis.get("counter") == b"20"


async def test_reads_wait_while_the_server_answers_nothing(redis, redis_server, watch):
    seen = watch(redis)
    await pause(redis_server, 0.7, "ALL")
    calls = [asyncio.create_task(redis.incr("counter")), asyncio.create_task(redis.get("key"))]
    assert await asyncio.gather(*calls) == [1, b"value"]
    async with asyncio.timeout(2):  # the standby may be answered a moment before them
        while redis._runtime.multiplexer.delayed:  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.01)
    assert redis.stats().retries == 0
    assert not seen.changes


async def test_reads_use_another_connection_while_one_is_held_up(
    redis_server, fault_proxy, connect, slack
):
    """Also without a pause, if one connection alone is slow."""
    redis = await connect(fault_proxy)
    await redis.set("key", "value")
    held = fault_proxy.hold("INCRBY")
    write = asyncio.create_task(redis.incr("counter"))
    await held.happened()
    reply, took = await timed(redis.get("key"))
    assert reply == b"value"
    assert took < NOTICED + slack(0.2)
    held.release()
    assert await write == 1


async def test_a_read_that_moves_is_cancelled_like_any_other(redis, redis_server):
    await pause(redis_server, 0.6)
    write = asyncio.create_task(redis.incr("counter"))
    await asyncio.sleep(0.01)
    reads = [asyncio.create_task(redis.get("key")) for _ in range(40)]
    for read in reads:
        await asyncio.sleep(0.01)
        read.cancel()
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) or each == b"value" for each in results)
    assert await write == 1
    assert redis.stats().in_flight == 0
