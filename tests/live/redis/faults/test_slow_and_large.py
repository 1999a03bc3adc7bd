"""A script that takes 1.5 s, a reply of 200 MiB on a slow link: only their own callers wait."""

import asyncio

import pytest

from resilient_io import DeadlineExceeded, OutcomeUnknown, RetryPolicy, deadline
from resilient_io.testing import FaultProxy

MIB = 1024 * 1024


async def coming(redis) -> None:
    """Wait until a large reply is arriving: earlier calls may still be sent after it."""
    async with asyncio.timeout(10):
        while not any(each.busy for each in redis._runtime.multiplexer.connections):  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.005)


async def test_only_the_caller_of_a_script_that_runs_for_1500_ms_may_time_out(
    redis_server, slow_script, connect, watch, slack
):
    redis = await connect(redis_server)
    seen = watch(redis)
    connections = redis._runtime.multiplexer.connections
    loop = asyncio.get_running_loop()

    async def impatient():
        with deadline(0.5):
            await redis.eval(slow_script.text, 0)

    began = loop.time()
    script = asyncio.create_task(impatient())
    await asyncio.sleep(0.05)
    others = [asyncio.create_task(redis.incr("counter")) for _ in range(50)]
    others += [asyncio.create_task(redis.get("absent")) for _ in range(50)]
    await asyncio.wait([script])

    assert isinstance(script.exception(), OutcomeUnknown)
    assert 0.45 <= loop.time() - began <= 0.5 + slack(0.15)
    await asyncio.gather(*others, return_exceptions=True)
    await slow_script.check_duration(redis)
    results = await asyncio.gather(*others)
    assert loop.time() - began >= 1.4, "the script did not take as long as it should"
    assert sorted(results[:50]) == list(range(1, 51))
    assert results[50:] == [None] * 50
    assert redis._runtime.multiplexer.connections == connections
    assert redis.stats().retries == 0
    await asyncio.sleep(1.2)
    assert not seen.changes


@pytest.mark.parametrize(
    ("size", "rate", "response_timeout"),
    [
        pytest.param(16 * MIB, 8 * MIB, 0.5, id="16 MiB in 2 s"),
        # The server itself may be busy for a second with the first copy of the value.
        pytest.param(
            200 * MIB, 16 * MIB, 2.0, id="200 MiB in 12.5 s", marks=pytest.mark.soak(seconds=30)
        ),
    ],
)
async def test_other_calls_continue_while_a_huge_reply_arrives_slowly(
    size, rate, response_timeout, redis_server, fault_proxy, connect, watch, patient, slack
):
    """The reply takes far longer than the response timeout, but never stops arriving."""
    await redis_server.query("SETRANGE", "big", size - 1, "x")
    redis = await connect(fault_proxy, policy=patient.replace(response_timeout=response_timeout))
    seen = watch(redis)
    connections = redis._runtime.multiplexer.connections
    fault_proxy.bandwidth(replies=rate)
    loop = asyncio.get_running_loop()
    big = asyncio.create_task(redis.with_policy(deadline=60.0).get("big"))
    await coming(redis)

    times = []
    count = 0
    while not big.done():
        began = loop.time()
        count += 1
        assert await redis.incr("counter") == count
        times.append(loop.time() - began)
        await asyncio.sleep(0.02)

    assert len(await big) == size
    assert count > 20
    assert max(times) <= response_timeout + slack(0)
    assert redis._runtime.multiplexer.connections == connections
    assert redis.stats().retries == 0
    assert not seen.changes


async def test_only_the_caller_of_a_huge_reply_times_out(
    redis_server, fault_proxy, connect, watch, quick, slack
):
    await redis_server.query("SETRANGE", "big", 16 * MIB - 1, "x")
    redis = await connect(fault_proxy, policy=quick)
    seen = watch(redis)
    connections = redis._runtime.multiplexer.connections
    fault_proxy.bandwidth(replies=8 * MIB)
    loop = asyncio.get_running_loop()

    began = loop.time()
    big = asyncio.create_task(redis.get("big"))
    results = []
    await coming(redis)
    while not big.done():
        results.append(await redis.incr("counter"))
        await asyncio.sleep(0.02)
    took = loop.time() - began

    with pytest.raises(DeadlineExceeded):
        await big
    assert took <= quick.deadline + slack()
    while loop.time() - began < 2.4:  # the rest of the reply still arrives, and is discarded
        results.append(await redis.incr("counter"))
        await asyncio.sleep(0.02)
    assert results == list(range(1, len(results) + 1))
    assert redis._runtime.multiplexer.connections == connections
    assert not seen.changes


async def test_calls_queued_after_a_huge_reply_are_not_treated_as_lost(
    redis_server, fault_proxy, connect, watch, quick
):
    """They were sent together with it and wait for it; reads may be repeated elsewhere."""
    await redis_server.query("SETRANGE", "big", 8 * MIB - 1, "x")
    await redis_server.query("SET", "key", "value")
    redis = await connect(fault_proxy, policy=quick.replace(deadline=5.0))
    seen = watch(redis)
    connections = redis._runtime.multiplexer.connections
    fault_proxy.bandwidth(replies=8 * MIB)

    big, *others = await asyncio.gather(
        redis.get("big"),
        *[redis.incr("counter") for _ in range(20)],
        *[redis.get("key") for _ in range(20)],
    )

    assert len(big) == 8 * MIB
    assert others == [*range(1, 21), *[b"value"] * 20]
    assert redis._runtime.multiplexer.connections == connections
    assert not seen.changes


async def test_other_calls_continue_while_a_huge_request_leaves_slowly(
    redis_server, connect, watch, quick, slack
):
    """40 MiB at 16 MiB/s, of which the last 6 MiB may be in the proxy's receive buffer.

    It looks into no bytes here, else it would take the whole request in at once.
    """
    patient = quick.replace(response_timeout=0.8)
    async with FaultProxy(redis_server.port, protocol=None) as proxy:
        redis = await connect(proxy, policy=patient)
        seen = watch(redis)
        connections = redis._runtime.multiplexer.connections
        proxy.bandwidth(requests=16 * MIB)
        loop = asyncio.get_running_loop()
        big = asyncio.create_task(redis.with_policy(deadline=60.0).set("big", b"x" * (40 * MIB)))
        await asyncio.sleep(0.1)

        began = loop.time()
        times = []
        while not big.done():
            called = loop.time()
            await redis.incr("counter")
            times.append(loop.time() - called)
            await asyncio.sleep(0.02)

        assert await big is True
        assert loop.time() - began > 2.5 * patient.response_timeout
        assert await redis_server.query("STRLEN", "big") == 40 * MIB
        assert max(times) <= patient.response_timeout + slack(0)
        assert int(await redis_server.query("GET", "counter")) == len(times)
        assert redis._runtime.multiplexer.connections == connections
        assert not seen.changes
        await redis.aclose()


async def test_a_call_ends_with_its_deadline_while_the_socket_takes_no_more(
    fault_proxy, connect, slack
):
    policy = RetryPolicy(response_timeout=0.4, connect_timeout=0.4, deadline=0.4)
    redis = await connect(fault_proxy, policy=policy)
    loop = asyncio.get_running_loop()
    fault_proxy.hold("INCRBY")
    first = asyncio.create_task(redis.with_policy(deadline=5.0).incr("counter"))
    await asyncio.sleep(0.01)  # it is sent
    connection = redis._runtime.multiplexer.current
    connection.pause_writing()  # as a full socket does
    second = asyncio.create_task(redis.get("key"))
    began = loop.time()
    await asyncio.sleep(0)
    assert connection._queue

    while not second.done() and loop.time() < began + 2.0:
        fault_proxy.inject(b">1\r\n+message\r\n")  # so that the connection is not silent
        await asyncio.sleep(0.05)

    assert loop.time() - began < 0.5 + slack()
    with pytest.raises(DeadlineExceeded):
        await second
    connection.resume_writing()
    first.cancel()
