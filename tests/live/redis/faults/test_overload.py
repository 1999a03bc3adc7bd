"""10,000 callers on a server slowed by 100 ms."""

import asyncio
import gc
import os
from pathlib import Path

import pytest

from resilient_io import (
    DeadlineExceeded,
    OutcomeUnknown,
    Overloaded,
    Progress,
    ResilientIOError,
    deadline,
)
from resilient_io.redis import ConnectionSettings

CALLERS = 10_000
MEMORY_PER_CALLER = 12 * 1024
"""Maximum bytes per waiting caller, including its task and coroutine (about 4 KiB)."""


def resident() -> int:
    """Return the bytes of memory that this process uses."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_10_000_callers_on_a_server_slowed_by_100_ms_are_all_served_within_bounds(
    slow_server, connect, watch, slack
):
    await slow_server.query("SET", "key", "value")
    redis = await connect(slow_server)
    seen = watch(redis)
    slow_server.slow_down(0.05)
    loop = asyncio.get_running_loop()
    longest = 0.0
    overloaded = 0
    peak = 0

    async def call(number):
        nonlocal longest, overloaded
        for _ in range(2):
            began = loop.time()
            try:
                if number % 2:
                    assert await redis.get("key") == b"value"
                else:
                    await redis.incr("counter")
            except Overloaded:
                overloaded += 1
            longest = max(longest, loop.time() - began)

    async def weigh():
        nonlocal peak
        while True:
            peak = max(peak, resident())
            await asyncio.sleep(0.02)

    gc.collect()
    before = resident()
    scale = asyncio.create_task(weigh())
    await asyncio.gather(*[call(number) for number in range(CALLERS)])
    scale.cancel()

    assert longest <= 5.0 + slack()  # the deadline
    assert int(await slow_server.query("GET", "counter")) + overloaded >= CALLERS
    assert not seen.changes
    assert peak - before <= CALLERS * MEMORY_PER_CALLER
    assert redis.stats().in_flight == redis.stats().waiting == 0


async def test_calls_above_the_limit_wait_and_then_raise_overloaded_without_being_sent(
    slow_server, connect, watch, quick, slack
):
    """16 calls fit at a time and take 100 ms: 5,000 cannot be served in 1.25 s."""
    callers = CALLERS // 2
    redis = await connect(
        slow_server, policy=quick, connections=ConnectionSettings(count=2, in_flight=64 * 1024)
    )
    seen = watch(redis)
    slow_server.slow_down(0.05)
    began = asyncio.get_running_loop().time()
    peak = 0

    async def look():
        nonlocal peak
        while True:
            peak = max(peak, redis.stats().in_flight)
            await asyncio.sleep(0.01)

    scale = asyncio.create_task(look())
    results = await asyncio.gather(
        *[redis.incr("counter") for _ in range(callers)], return_exceptions=True
    )
    took = asyncio.get_running_loop().time() - began
    scale.cancel()

    served = [result for result in results if isinstance(result, int)]
    overloaded = [result for result in results if isinstance(result, Overloaded)]
    sent_late = [result for result in results if isinstance(result, OutcomeUnknown)]
    others = [each for each in results if each not in (*served, *overloaded, *sent_late)]
    # If the machine was so busy that nothing was full for a second, they do not blame the limit.
    assert all(isinstance(each, DeadlineExceeded) for each in others), others[:3]
    assert all(each.progress is Progress.NOT_SENT for each in others)
    assert served
    assert len(overloaded) > callers / 2
    assert peak <= 64
    assert (
        took <= quick.deadline + slack()
    )  # starting the calls, and raising their errors, blocks the loop
    await asyncio.sleep(0.3)
    found = int(await slow_server.query("GET", "counter"))
    assert len(served) <= found <= len(served) + len(sent_late)
    assert not seen.changes


async def test_a_request_above_the_limit_is_admitted_alone(redis_server, connect):
    redis = await connect(redis_server, connections=ConnectionSettings(in_flight=64 * 1024))
    value = b"x" * (1024 * 1024)

    results = await asyncio.gather(
        *[redis.set(f"big:{n}", value) for n in range(5)], *[redis.incr("n") for _ in range(100)]
    )

    assert results[:5] == [True] * 5
    assert sorted(results[5:]) == list(range(1, 101))


async def test_memory_does_not_grow_with_the_number_of_abandoned_calls(
    redis_server, fault_proxy, connect, quick
):
    redis = await connect(
        fault_proxy,
        policy=quick.replace(deadline=0.5, response_timeout=0.5),
        connections=ConnectionSettings(count=1, in_flight=64 * 1024),
    )
    fault_proxy.latency(replies=0.1)

    async def call():
        try:
            await redis.pipeline().get("absent").execute()
        except ResilientIOError:
            return

    for _ in range(2):
        await asyncio.gather(*[call() for _ in range(1000)])
    await asyncio.sleep(0.3)

    assert redis.stats().waiting == redis.stats().in_flight == 0
    assert len(redis._runtime.multiplexer._waiting) == 0


async def test_the_limit_of_exclusive_connections_is_not_a_failure_of_the_server(
    redis_server, connect, watch
):
    redis = await connect(redis_server, max_connections=1)
    seen = watch(redis)
    first = asyncio.create_task(redis.blpop(["queue"], timeout=30))
    async with asyncio.timeout(5):
        while b"cmd=blpop" not in await redis_server.query("CLIENT", "LIST"):  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.01)

    with pytest.raises(Overloaded), deadline(0.3):
        await redis.blpop(["queue"], timeout=1)

    assert redis.health.snapshot()["failures"] == 0
    assert not seen.changes
    await redis.rpush("queue", "element")
    assert await first == (b"queue", b"element")
