"""`aclose()`: every call ends promptly as closed, nothing is reported, and reopening works."""

import asyncio

import pytest

from resilient_io import Progress, RetryPolicy, State
from resilient_io.redis import RedisClosed, ResilientRedis

LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"

ENDLESS = RetryPolicy(deadline=None)


def sets(value):
    return lambda request: request.name == "SET" and value in request.arguments


async def ends_of(tasks, *, within):
    """Return what each task raised. All of them must end in time."""
    done, late = await asyncio.wait(tasks, timeout=within)
    for task in late:
        task.cancel()
    assert not late, f"{len(late)} of {len(tasks)} calls still wait"
    return [task.exception() for task in done]


async def test_calls_that_were_not_written_end_promptly(shared_redis, slack):
    client = ResilientRedis(port=shared_redis.port, policy=ENDLESS)
    await client.ping()
    client._runtime.multiplexer.current.pause_writing()  # as a full socket does
    pipe = client.pipeline(transaction=False)
    for _ in range(3):
        pipe.get("key")
    calls = [asyncio.create_task(client.get("key")) for _ in range(50)]
    calls.append(asyncio.create_task(pipe.execute()))
    await asyncio.sleep(0)
    await client.aclose()
    for error in await ends_of(calls, within=0.1 + slack()):
        assert isinstance(error, RedisClosed)
        assert error.progress is Progress.NOT_SENT


async def test_waiting_calls_do_not_wait_for_recoveries_during_a_close(
    redis_server, fault_proxy, slack
):
    client = ResilientRedis(port=fault_proxy.port, policy=ENDLESS)
    await client.ping()
    fault_proxy.hold("CLIENT UNBLOCK")  # for a second, until the recovery gives up
    popping = asyncio.create_task(client.blpop("nothing", 10))
    await asyncio.sleep(0.1)
    popping.cancel()
    await asyncio.sleep(0.05)
    client._runtime.multiplexer.current.pause_writing()
    client._runtime.multiplexer.current.full = True
    client._runtime.multiplexer.refresh()
    waiting = asyncio.create_task(client.get("key"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(client.aclose())
    (error,) = await ends_of([waiting], within=0.3 + slack())
    assert isinstance(error, RedisClosed)
    await closing
    fault_proxy.restore()


async def test_a_call_that_waits_before_a_retry_ends_at_once(fault_proxy, slack):
    policy = RetryPolicy(attempts=9, backoff=30.0, backoff_cap=30.0, deadline=300.0)
    client = ResilientRedis(port=fault_proxy.port, policy=policy)
    await client.ping()
    busy = b"-BUSY Redis is busy running a script.\r\n"
    fault_proxy.answer("GET", busy, times=None)
    calls = [asyncio.create_task(client.get("key")) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert not any(call.done() for call in calls)
    await client.aclose()
    for error in await ends_of(calls, within=0.1 + slack()):
        assert isinstance(error, RedisClosed)
        assert error.progress is Progress.REFUSED


async def test_closing_with_exclusive_calls_in_flight_reports_no_failure(fault_proxy, slack):
    client = ResilientRedis(port=fault_proxy.port)
    await client.ping()
    stuck = fault_proxy.hold(lambda request: b"watched" in request.arguments, times=None)

    async def watch():
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            await pipe.get("watched")

    calls = [asyncio.create_task(client.blpop("nothing", 30)) for _ in range(3)]
    calls += [asyncio.create_task(watch()) for _ in range(3)]
    async with asyncio.timeout(5):
        await stuck.happened()
    await asyncio.sleep(0.1)
    await client.aclose()
    errors = await ends_of(calls, within=0.1 + slack())
    assert {type(error) for error in errors} == {RedisClosed}
    assert State.DOWN not in [change.state for change in client.health.history]
    assert client.health.state is State.UNKNOWN
    async with client:
        assert await client.ping()
        assert client.health.available
    assert State.DOWN not in [change.state for change in client.health.history]


async def test_closing_one_client_with_exclusive_calls_leaves_a_shared_health_alone(shared_redis):
    async with ResilientRedis(port=shared_redis.port) as other:
        await other.ping()
        client = ResilientRedis(port=shared_redis.port, health=other.health)
        calls = [asyncio.create_task(client.blpop("nothing", 30)) for _ in range(3)]
        await asyncio.sleep(0.1)
        before = other.health.snapshot()["failures"]
        await client.aclose()
        await asyncio.wait(calls)
        assert other.health.snapshot()["failures"] == before


async def test_a_write_in_flight_at_the_close_is_fenced_by_the_reopened_client(
    redis_server, fault_proxy
):
    client = ResilientRedis(port=fault_proxy.port, policy=RetryPolicy(repeat="read"))
    await client.ping()
    held = fault_proxy.hold(sets(b"first"))
    first = asyncio.create_task(client.set("key", "first"))
    async with asyncio.timeout(5):
        await held.happened()
    await client.aclose()
    with pytest.raises(RedisClosed) as closed:
        await first
    assert closed.value.progress is Progress.MAYBE_APPLIED
    async with client:
        assert await client.set("key", "later") is True
        held.release()
        await asyncio.sleep(0.1)
        assert await redis_server.query("GET", "key") == b"later"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_fence_waits_until_a_reopened_client_can_connect(redis_server, fault_proxy):
    client = ResilientRedis(port=fault_proxy.port, policy=RetryPolicy(repeat="read"))
    await client.ping()
    held = fault_proxy.hold(sets(b"first"))
    first = asyncio.create_task(client.set("key", "first"))
    async with asyncio.timeout(5):
        await held.happened()
    await client.aclose()
    await asyncio.wait([first])
    kills = fault_proxy.hold("CLIENT LIST")
    await client.initialize()
    async with asyncio.timeout(5):
        await kills.happened()
    await client.aclose()  # again, before the first connection was fenced
    kills.remove()
    async with client:
        assert await client.set("key", "later") is True
        held.release()
        await asyncio.sleep(0.1)
        assert await redis_server.query("GET", "key") == b"later"


async def test_a_close_counts_more_than_an_earlier_start_that_still_waits(shared_redis):
    client = ResilientRedis(port=shared_redis.port, reopen=False)
    await client.ping()
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    opening = asyncio.create_task(client.initialize())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await client.aclose()
        await closing
        with pytest.raises(RedisClosed, match="closed again"):
            await opening
    with pytest.raises(RedisClosed):
        await client.ping()
    async with client:
        assert await client.ping()
