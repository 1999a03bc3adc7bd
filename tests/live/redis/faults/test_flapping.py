"""A server that is 1 s on, 1 s off: the transitions are damped.

After each fall within 60 s a dependency needs twice as many good probes to be up again: 1, 2, 4, 8,
at most 16, 0.1 s apart. With 1 s of life it can rise after the first three falls, perhaps after the
fourth (8 probes: 0.7 s and the knock), and never after the fifth (16 probes: 1.5 s). So in any
minute there are at most `MOST_FALLS` transitions to DOWN, and as many to UP between them.
"""

import asyncio

import pytest

from resilient_io import State

MOST_FALLS = 5


@pytest.mark.soak(seconds=25)
async def test_flapping_for_20_s_causes_no_more_than_the_documented_transitions(
    redis_server, connect, watch
):
    redis = await connect(redis_server)
    seen = watch(redis)
    for _ in range(10):
        await asyncio.sleep(1.0)
        redis_server.kill()
        await asyncio.sleep(1.0)
        await redis_server.start()

    assert 3 <= seen.count(State.DOWN) <= MOST_FALLS
    assert seen.count(State.UP) <= MOST_FALLS
    await redis.health.until_up(5)
    assert await redis.incr("counter") == 1


async def test_a_server_that_flaps_needs_twice_as_long_to_rise_after_each_fall(
    redis_server, connect, watch, accepting, slack
):
    redis = await connect(redis_server)
    seen = watch(redis)
    rises = []
    for _ in range(4):
        redis_server.kill()
        await seen.until(State.DOWN, within=5)
        knock = asyncio.create_task(accepting(redis_server.port))
        start = asyncio.create_task(redis_server.start())
        up = await seen.until(State.UP, within=15)
        rises.append(up - await knock)
        await start

    assert rises[0] <= 0.25 + slack(0.1)
    assert rises[1] >= 0.1 - 0.03
    assert rises[2] >= 0.3 - 0.03
    assert 0.7 - 0.03 <= rises[3] <= 1.25 + slack()
    assert seen.states == [State.DOWN, State.UP] * 4
