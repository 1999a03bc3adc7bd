"""The server is frozen (SIGSTOP): connections stay, nothing answers."""

import asyncio

import pytest

from resilient_io import HealthSettings, OutcomeUnknown, ResilientIOError, RetryPolicy, State

CALLERS = 50
POLICY = RetryPolicy()
PROBE = HealthSettings().timeout


async def test_a_server_that_freezes_under_traffic_is_down_within_response_timeout_and_a_probe(
    redis_server, connect, watch, slack
):
    redis = await connect(redis_server)
    seen = watch(redis)
    loop = asyncio.get_running_loop()
    stop = False
    longest = 0.0
    acknowledged = unknown = 0

    for number in range(CALLERS):
        await redis_server.query("SET", f"key:{number}", str(number))

    async def call(number):
        nonlocal longest, acknowledged, unknown
        while not stop:
            began = loop.time()
            try:
                assert await redis.get(f"key:{number}") == b"%d" % number
                await redis.incr("counter")
                acknowledged += 1
            except OutcomeUnknown:
                unknown += 1
            except ResilientIOError:
                await asyncio.sleep(0.01)
            longest = max(longest, loop.time() - began)

    callers = [asyncio.create_task(call(number)) for number in range(CALLERS)]
    await asyncio.sleep(0.2)
    frozen = loop.time()
    redis_server.freeze()
    try:
        down = await seen.until(State.DOWN, within=10)
        assert down - frozen <= POLICY.response_timeout + PROBE + slack()
        await asyncio.sleep(0.2)
    finally:
        redis_server.thaw()
    await redis.health.until_up(5)
    await asyncio.sleep(0.3)
    stop = True
    await asyncio.gather(*callers)

    assert longest <= POLICY.deadline + slack()
    assert seen.states == [State.DOWN, State.UP]
    found = int(await redis_server.query("GET", "counter"))
    assert acknowledged <= found <= acknowledged + unknown


async def test_a_server_that_freezes_without_traffic_is_down_within_response_timeout_and_a_probe(
    redis_server, connect, watch, slack
):
    redis = await connect(redis_server)
    seen = watch(redis)
    await asyncio.sleep(0.1)
    frozen = asyncio.get_running_loop().time()
    redis_server.freeze()
    try:
        down = await seen.until(State.DOWN, within=10)
        assert down - frozen <= POLICY.response_timeout + PROBE + slack()
        await asyncio.sleep(0.3)
    finally:
        redis_server.thaw()

    await redis.health.until_up(5)
    results = await asyncio.gather(*[redis.incr("counter") for _ in range(CALLERS)])
    assert sorted(results) == list(range(1, CALLERS + 1))
    assert seen.states == [State.DOWN, State.UP]


@pytest.mark.parametrize("while_down", ["fail", "wait"])
async def test_no_call_outlives_its_deadline_while_the_server_is_frozen(
    while_down, redis_server, connect, quick, slack
):
    redis = await connect(redis_server, policy=quick.replace(while_down=while_down))
    loop = asyncio.get_running_loop()

    async def timed(call):
        began = loop.time()
        with pytest.raises(ResilientIOError):
            await call
        return loop.time() - began

    redis_server.freeze()
    try:
        for _ in range(2):
            pipeline = redis.pipeline().incr("c").incr("c")
            times = await asyncio.gather(
                *[timed(redis.get("key")) for _ in range(20)],
                *[timed(redis.set("key", "value")) for _ in range(20)],
                *[timed(redis.incr("counter")) for _ in range(20)],
                timed(pipeline.execute()),
            )
            assert max(times) <= quick.deadline + slack()
    finally:
        redis_server.thaw()


async def test_no_caller_receives_a_wrong_reply_after_thawing(redis_server, connect, quick):
    """Freezes are shorter and longer than the response timeout; each value names its key."""
    for number in range(CALLERS):
        await redis_server.query("SET", f"key:{number}", str(number))
    redis = await connect(redis_server, policy=quick)
    wrong = []
    answered = 0
    stop = False

    async def read(number):
        nonlocal answered
        while not stop:
            try:
                value = await redis.get(f"key:{number}")
            except ResilientIOError:
                await asyncio.sleep(0.01)
                continue
            answered += 1
            if value != b"%d" % number:
                wrong.append((number, value))

    readers = [asyncio.create_task(read(number)) for number in range(CALLERS)]
    for nap in (0.1, 0.7):
        await asyncio.sleep(0.1)
        redis_server.freeze()
        await asyncio.sleep(nap)
        redis_server.thaw()
    await redis.health.until_up(5)
    until = answered + 2 * CALLERS
    async with asyncio.timeout(10):
        while answered < until:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    stop = True
    await asyncio.gather(*readers)

    assert not wrong


async def test_a_blocking_pop_on_a_frozen_server_ends_when_it_goes_down(
    redis_server, connect, quick, watch
):
    """A BLPOP without a limit has no deadline: the transition to DOWN ends it."""
    redis = await connect(
        redis_server, policy=quick, health=HealthSettings(interval=0.25, timeout=0.25)
    )
    seen = watch(redis)
    pop = asyncio.create_task(redis.blpop(["queue"], timeout=0))
    await asyncio.sleep(0.1)
    redis_server.freeze()
    try:
        await seen.until(State.DOWN, within=10)
        async with asyncio.timeout(2):
            await asyncio.wait([pop])
        assert isinstance(pop.exception(), ResilientIOError)
    finally:
        redis_server.thaw()
