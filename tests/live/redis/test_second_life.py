"""A client after its event loop was closed, after a closing that was cut short, and in races."""

import asyncio
import gc

import pytest

from resilient_io import ConfigurationError, RetryPolicy
from resilient_io.redis import ResilientRedis
from resilient_io.redis.attempt import Limits, follow
from resilient_io.redis.connection import Ticket
from resilient_io.testing import free_port


def in_a_loop_that_closes(work):
    """Run as asyncio.run() does, with what was left open cancelled at the end."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
            del task  # it holds what it was cancelled in
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        gc.collect()  # the warnings of asyncio are due here


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("what", ["blocking", "pipeline", "transaction", "watch", "close"])
def test_each_kind_of_call_may_be_the_first_in_a_second_loop(_server_of_session, what):
    client = ResilientRedis(port=_server_of_session.port)

    async def first():
        await client.delete("second-life")
        await client.rpush("second-life", "1", "2", "3")
        await client.blpop("second-life", timeout=1)

    async def second():
        try:
            async with asyncio.timeout(5):
                if what == "blocking":
                    assert await client.blpop("second-life", timeout=1) == (b"second-life", b"2")
                elif what == "watch":
                    async with client.pipeline() as pipe:
                        await pipe.watch("second-life")
                        pipe.multi()
                        assert await pipe.llen("second-life").execute() == [2]
                elif what != "close":
                    pipe = client.pipeline(transaction=what == "transaction")
                    assert await pipe.llen("second-life").execute() == [2]
        finally:
            await client.aclose()

    in_a_loop_that_closes(first())
    in_a_loop_that_closes(second())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_closing_that_its_loop_did_not_survive_does_not_spoil_the_next(_server_of_session):
    client = ResilientRedis(port=_server_of_session.port)

    async def begins_to_close():
        await client.ping()
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        closing.cancel()

    async def use():
        async with asyncio.timeout(5), client:
            return await client.ping()

    in_a_loop_that_closes(begins_to_close())
    assert in_a_loop_that_closes(use())
    assert in_a_loop_that_closes(use())


async def test_opening_again_waits_for_a_closing_that_goes_on_by_itself(shared_redis):
    client = ResilientRedis(port=shared_redis.port)
    await client.ping()
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    async with asyncio.timeout(5), client:
        assert await client.ping()
        await asyncio.sleep(0.1)
        assert await client.ping()


async def test_a_caller_who_looks_at_the_clock_is_not_taken_for_gone(shared_redis):
    """Between the tick and the caller's turn the lane may open, answer or die."""
    async with ResilientRedis(port=shared_redis.port) as client:
        await client.ping()
        lanes = client._engine.lanes
        limits = Limits(None, None)

        waiting = Ticket(b"*1\r\n$4\r\nPING\r\n")
        lanes._backlog.append(waiting)
        caller = asyncio.create_task(follow(lanes, waiting, limits=limits, patience=9, read=True))
        await asyncio.sleep(0)
        waiting.tick()
        lanes.refresh()  # drains the backlog before the caller has its turn
        async with asyncio.timeout(2):
            assert await caller == b"PONG"

        waiting = Ticket(b"")
        caller = asyncio.create_task(follow(lanes, waiting, limits=limits, patience=9, read=True))
        await asyncio.sleep(0)
        waiting.tick()
        waiting.set_result(b"the reply")
        async with asyncio.timeout(2):
            assert await caller == b"the reply"


@pytest.mark.parametrize("url", ["redis://:12a/cret@host:6379/0", "redis://user:12a#cret@host/0"])
def test_a_password_that_looks_like_a_port_is_not_shown(url):
    with pytest.raises(ConfigurationError) as caught:
        ResilientRedis.from_url(url)
    assert "12a" not in str(caught.value)
    assert caught.value.__context__ is None


async def test_a_replica_is_not_flooded_with_new_connections(redis_server):
    await redis_server.query("REPLICAOF", "127.0.0.1", free_port())
    async with ResilientRedis(port=redis_server.port) as client:
        end = asyncio.get_running_loop().time() + 1.0

        async def write(key):
            while asyncio.get_running_loop().time() < end:
                await asyncio.gather(client.set(key, 1), return_exceptions=True)

        await asyncio.gather(*(write(f"k{n}") for n in range(20)))
        lines = (await client.info("stats"))["total_connections_received"]
    assert lines < 60


async def test_a_session_does_not_go_on_elsewhere_when_its_server_refuses_writes(redis_server):
    async with (
        ResilientRedis(port=redis_server.port) as client,
        client.client() as alone,
    ):
        await alone.execute_command("SELECT", 3)
        await alone.set("z", 1)
        lanes = alone._engine.lanes
        lane = lanes.current
        # One is on its way, one is not written yet when the lane is left.
        sent = asyncio.create_task(alone.blpop("nothing", 0.5))
        held = asyncio.create_task(alone.set("astray", 1))
        await asyncio.sleep(0)
        lanes.retire(lane)
        results = await asyncio.gather(sent, held, return_exceptions=True)
        assert results[0] is None
        assert isinstance(results[1], Exception), results
        assert "held its state" in str(results[1])
    assert await redis_server.query("GET", "astray") is None


async def test_a_stuck_call_does_not_outlive_a_deadline_as_short_as_the_response_timeout(
    shared_redis, slack
):
    """Bytes that keep coming for others hold back the verdict on the lane, not on the call."""

    dripping = []

    async def drip(reader, writer):
        dripping.append(asyncio.current_task())
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", shared_redis.port)

        async def requests():
            while data := await reader.read(65536):
                up_writer.write(data)
            up_writer.transport.abort()

        asking = asyncio.create_task(requests())
        try:
            while data := await up_reader.read(65536):
                for start in range(0, len(data), 512):
                    writer.write(data[start : start + 512])
                    if start and not asking.done():
                        await asyncio.sleep(0.05)
        finally:
            asking.cancel()
            up_writer.transport.abort()
            writer.transport.abort()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await shared_redis.query("SET", "big", "x" * 60_000)
    loop = asyncio.get_running_loop()
    policy = RetryPolicy(deadline=0.6, response_timeout=0.6, connect_timeout=0.6)

    async def timed(work):
        began = loop.time()
        await asyncio.gather(work, return_exceptions=True)
        return loop.time() - began

    async with server, ResilientRedis(port=port, policy=policy) as client:
        await client.ping()
        late = [asyncio.create_task(timed(client.get("big")))]
        for number in range(8):
            await asyncio.sleep(0.04)
            late.append(asyncio.create_task(timed(client.set(f"k{number}", 1))))
        assert max(await asyncio.gather(*late)) < 0.6 + slack(0.1)
    await asyncio.wait(dripping)
