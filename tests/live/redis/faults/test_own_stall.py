"""The event loop of this process is blocked: that does not count against the server."""

import asyncio
import signal
import sys
import time

import pytest

from resilient_io import State


@pytest.mark.parametrize("seconds", [2.5, pytest.param(5.0, marks=pytest.mark.soak)])
async def test_calls_whose_replies_are_waiting_do_not_fail_after_a_stall(
    seconds, redis_server, connect, watch
):
    redis = await connect(redis_server)
    seen = watch(redis)
    connections = redis._runtime.multiplexer.connections
    calls = [asyncio.create_task(redis.incr("counter")) for _ in range(100)]
    calls += [asyncio.create_task(redis.get("absent")) for _ in range(100)]
    await asyncio.sleep(0)  # they start
    await asyncio.sleep(0)  # they are written

    time.sleep(seconds)
    results = await asyncio.gather(*calls)
    await asyncio.sleep(1.2)  # a probe

    assert sorted(results[:100]) == list(range(1, 101))
    assert results[100:] == [None] * 100
    assert not seen.changes
    assert redis.stats().retries == 0
    assert redis._runtime.multiplexer.connections == connections


async def test_an_idle_client_keeps_its_state_and_connections_through_a_stall(
    redis_server, connect, watch
):
    redis = await connect(redis_server)
    seen = watch(redis)
    connections = redis._runtime.multiplexer.connections

    time.sleep(2.5)
    assert await redis.incr("counter") == 1
    await asyncio.sleep(0.3)

    assert not seen.changes
    assert redis._runtime.multiplexer.connections == connections
    assert redis.health.snapshot()["loop_lag"]["worst"] >= 2.3


async def test_a_stall_during_a_probe_does_not_count_toward_its_timeout(
    redis_server, fault_proxy, connect, watch
):
    redis = await connect(fault_proxy)
    seen = watch(redis)
    ping = fault_proxy.hold("PING")
    await ping.happened()
    ping.release()

    time.sleep(1.5)  # longer than a probe may take
    await asyncio.sleep(1.1)

    assert not seen.changes


async def test_short_stalls_under_load_change_nothing(redis_server, connect, watch, quick):
    redis = await connect(redis_server, policy=quick)
    seen = watch(redis)
    stop = False
    done = 0

    async def call():
        nonlocal done
        while not stop:
            await redis.incr("counter")
            done += 1

    callers = [asyncio.create_task(call()) for _ in range(50)]
    for _ in range(2):
        await asyncio.sleep(0.05)
        time.sleep(0.7)  # longer than the response timeout
    stop = True
    await asyncio.gather(*callers)

    assert int(await redis_server.query("GET", "counter")) == done
    assert not seen.changes
    assert redis.health.state is State.UP


@pytest.mark.parametrize("steps", [1, 3, 8])
async def test_a_stall_while_the_first_connection_is_opened_does_not_mark_the_server_down(
    steps, redis_server, connect, watch
):
    redis = await connect(redis_server, up=False)
    seen = watch(redis)
    for _ in range(steps):
        await asyncio.sleep(0)

    time.sleep(1.5)  # longer than the connect timeout
    assert await redis.incr("counter") == 1
    await asyncio.sleep(0.1)

    assert seen.states == [State.UP]


@pytest.mark.parametrize("steps", [2, 8])
async def test_a_stall_while_an_exclusive_connection_is_opened_does_not_fail_the_call(
    steps, redis_server, connect, watch
):
    redis = await connect(redis_server)
    seen = watch(redis)
    await redis.rpush("list", "element")
    call = asyncio.create_task(redis.blpop("list", timeout=1))
    for _ in range(steps):
        await asyncio.sleep(0)

    time.sleep(1.5)

    assert await call == (b"list", b"element")
    assert not seen.changes
    assert redis.stats().retries == 0


async def push_without_waiting(redis):
    """Push an element. Return the task, which has been written and has no reply yet."""
    pushed = asyncio.create_task(redis.rpush("list", "element"))
    await asyncio.sleep(0)  # it starts
    await asyncio.sleep(0)  # it is written
    return pushed


async def test_a_popped_element_that_waits_in_the_socket_survives_a_stall(
    redis_server, connect, watch
):
    redis = await connect(redis_server)
    call = asyncio.create_task(redis.blpop("list", timeout=0.2))
    await asyncio.sleep(0.1)
    pushed = await push_without_waiting(redis)

    time.sleep(2.5)  # longer than the block and the response timeout

    assert await call == (b"list", b"element")
    await pushed


_STOPPED = """
import asyncio
import sys
from resilient_io import RetryPolicy
from resilient_io.redis import ResilientRedis

async def main():
    policy = RetryPolicy(response_timeout=0.5, connect_timeout=0.5, deadline=1.0)
    async with ResilientRedis(port=int(sys.argv[1]), policy=policy) as redis:
        await redis.ping()
        batch = redis.pipeline(transaction=False).blpop("batch", timeout=0.4).execute()
        calls = [asyncio.ensure_future(each) for each in (redis.blpop("list", timeout=0.4), batch)]
        await asyncio.sleep(0.2)
        print("blocked", flush=True)
        print(await asyncio.gather(*calls, return_exceptions=True), flush=True)

asyncio.run(main())
"""


async def test_popped_elements_survive_a_stop_of_the_process(redis_server):
    """SIGSTOP, as a container that is paused or a machine that sleeps."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _STOPPED, str(redis_server.port), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert await child.stdout.readline() == b"blocked\n"
        child.send_signal(signal.SIGSTOP)
        await redis_server.query("RPUSH", "list", "element")
        await redis_server.query("RPUSH", "batch", "element")
        await asyncio.sleep(1.2)  # longer than the blocks and the response timeout
        child.send_signal(signal.SIGCONT)
        said = await child.stdout.readline()
        assert said == b"[(b'list', b'element'), [(b'batch', b'element')]]\n"
    finally:
        child.kill()
        await child.wait()


async def test_the_element_of_a_cancelled_pop_is_put_back_after_a_stall(
    redis_server, connect, watch
):
    redis = await connect(redis_server)
    call = asyncio.create_task(redis.blpop("list", timeout=5))
    await asyncio.sleep(0.1)
    pushed = await push_without_waiting(redis)
    call.cancel()
    for _ in range(3):  # the recovery begins
        await asyncio.sleep(0)

    time.sleep(1.2)  # longer than a recovery may take

    await asyncio.gather(call, return_exceptions=True)
    await pushed
    assert await redis.blpop("list", timeout=1) == (b"list", b"element")
