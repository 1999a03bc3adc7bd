"""The client on uvloop, whose transports are not instances of asyncio's classes."""

import asyncio

import pytest
import uvloop

from resilient_io import DependencyUnavailable, OutcomeUnknown, ResilientRedis, RetryPolicy, State

QUICK = RetryPolicy(response_timeout=0.5, connect_timeout=0.5, deadline=2.0)


@pytest.fixture
def on_uvloop():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run


def test_shared_connections_carry_calls_batches_and_large_values(on_uvloop, shared_redis):
    async def scene():
        async with ResilientRedis.from_url(shared_redis.url) as redis:
            assert await asyncio.gather(*(redis.incr("n") for _ in range(500))) == [*range(1, 501)]
            async with redis.pipeline() as pipe:
                assert await pipe.set("k", "v").get("k").execute() == [True, b"v"]
            large = b"x" * (5 * 1024 * 1024)
            assert await redis.set("large", large)
            assert await redis.get("large") == large
            assert await redis.blpop("none", timeout=0.05) is None
            assert redis.stats().connections == 2
        assert len(asyncio.all_tasks()) == 1

    on_uvloop(scene())


def test_a_lost_reply_and_a_dead_server_have_the_same_result_as_on_asyncio(on_uvloop, redis_server):
    async def scene():
        async with ResilientRedis.from_url(redis_server.url, policy=QUICK) as redis:
            await redis.set("k", "v")
            redis_server.freeze()
            with pytest.raises(OutcomeUnknown):
                await redis.incr("n")
            redis_server.thaw()
            await redis.health.until_up(5)
            redis_server.kill()
            async for change in redis.health.watch():
                if change.state is State.DOWN:
                    break
            with pytest.raises(DependencyUnavailable):
                await redis.get("k")
        assert len(asyncio.all_tasks()) == 1

    on_uvloop(scene())
