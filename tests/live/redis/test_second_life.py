"""A client after its event loop was closed, after an interrupted close, and in races."""

import asyncio
import contextlib
import gc
import sys

import pytest

from resilient_io import ConfigurationError, RetryPolicy
from resilient_io.redis import ResilientRedis
from resilient_io.redis.attempt import Call, Limits, await_reply
from resilient_io.redis.commands import Effect
from resilient_io.redis.connection import PendingRequest
from resilient_io.testing import free_port


def in_a_loop_that_closes(work):
    """Run as asyncio.run() does, which cancels the remaining tasks at the end."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
            del task  # it refers to the frames in which it was cancelled
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        gc.collect()  # now asyncio issues its warnings


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("what", ["blocking", "pipeline", "transaction", "watch", "close"])
def test_any_kind_of_call_may_be_the_first_in_a_second_loop(_server_of_session, what):
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


@pytest.fixture
def ignored(monkeypatch):
    """Return the exceptions that Python could only print."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: found.append(repr(each.exc_value)))
    return found


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_attempts_to_connect_of_a_closed_loop_end_silently_when_they_are_collected(
    _server_of_session, ignored, caplog
):
    """They are collected by a task of the next loop, which their timeouts would cancel."""
    client = ResilientRedis.from_url(_server_of_session.url)

    async def first():
        await client.ping()
        calling = asyncio.create_task(client.ping())
        _server_of_session.freeze()
        await asyncio.sleep(2.2)  # the connections were given up, and are being opened again
        calling.cancel()

    async def second():
        await client.initialize()  # which forgets the connections of the first loop
        gc.collect()
        await asyncio.sleep(0.3)
        _server_of_session.thaw()
        await client.health.until_up(5)
        assert await client.ping()
        await client.aclose()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(first())
        loop.close()
        del loop
        caplog.clear()
        asyncio.run(second())
    finally:
        _server_of_session.thaw()
    gc.collect()
    assert ignored == []
    assert "unexpected exception" not in caplog.text


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("command", ["blpop", "brpoplpush"])
def test_calls_that_the_end_of_a_loop_cancelled_do_nothing_when_they_are_collected(
    _server_of_session, ignored, caplog, command
):
    client = ResilientRedis.from_url(_server_of_session.url)
    arguments = {"blpop": ("nothing", 0), "brpoplpush": ("nothing", "nowhere", 0)}[command]

    async def first():
        calling = asyncio.create_task(getattr(client, command)(*arguments))
        await asyncio.sleep(0.1)
        assert not calling.done()
        _server_of_session.freeze()

    async def second():
        assert await client.ping()
        gc.collect()
        await asyncio.sleep(0.1)
        await client.aclose()

    try:
        asyncio.run(first())
    finally:
        _server_of_session.thaw()
    asyncio.run(second())
    gc.collect()
    assert ignored == []
    assert "crashed" not in caplog.text


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_close_that_its_loop_interrupted_does_not_affect_the_next_loop(_server_of_session):
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


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_close_in_a_second_loop_does_not_depend_on_what_the_first_one_left_running():
    """The name of the server was still being looked up when the first loop was closed."""
    client = ResilientRedis(host="cache.example")

    async def look_up(*_address, **_options):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def first():
        asyncio.get_running_loop().getaddrinfo = look_up
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.ping()
        return [each for each in asyncio.all_tasks() if each.get_name().endswith("name lookup")]

    [lookup] = in_a_loop_that_closes(first())
    for _ in range(2):
        asyncio.run(client.aclose())
    assert not lookup.done()
    lookup._log_destroy_pending = False  # asyncio would log that its loop was closed too early
    lookup.get_coro().close()


def test_close_in_another_loop_than_the_one_in_use_raises(_server_of_session):
    client, loop = ResilientRedis(port=_server_of_session.port), asyncio.new_event_loop()
    try:
        loop.run_until_complete(client.ping())

        async def close():
            async with asyncio.timeout(5):
                with pytest.raises(RuntimeError, match="in use in another running event loop"):
                    await client.aclose()

        asyncio.run(close())
        assert loop.run_until_complete(client.ping())
        loop.run_until_complete(client.aclose())
    finally:
        loop.close()


async def test_reopening_waits_for_a_close_that_continues_in_the_background(shared_redis):
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


class Reading(Call):
    effect = Effect.READ


async def test_a_caller_that_checks_the_clock_still_receives_its_reply(shared_redis):
    """Before the woken caller runs, a connection may open, answer or die."""
    async with ResilientRedis(port=shared_redis.port) as client:
        await client.ping()
        multiplexer = client._runtime.multiplexer
        limits = Limits(None, None)

        waiting = PendingRequest(b"*1\r\n$4\r\nPING\r\n")
        multiplexer._waiting.append(waiting)
        caller = asyncio.create_task(
            await_reply(multiplexer, waiting, call=Reading(), limits=limits, timeout=9)
        )
        await asyncio.sleep(0)
        waiting.check_clock()
        multiplexer.refresh()  # sends waiting requests before the caller runs
        async with asyncio.timeout(2):
            assert await caller == b"PONG"

        waiting = PendingRequest(b"")
        caller = asyncio.create_task(
            await_reply(multiplexer, waiting, call=Reading(), limits=limits, timeout=9)
        )
        await asyncio.sleep(0)
        waiting.check_clock()
        waiting.set_result(b"the reply")
        async with asyncio.timeout(2):
            assert await caller == b"the reply"


@pytest.mark.parametrize("url", ["redis://:12a/cret@host:6379/0", "redis://user:12a#cret@host/0"])
def test_a_password_that_looks_like_a_port_is_not_quoted(url):
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
        connections = (await client.info("stats"))["total_connections_received"]
    assert connections < 60


async def test_a_bound_client_does_not_continue_elsewhere_when_its_server_refuses_writes(
    redis_server,
):
    async with (
        ResilientRedis(port=redis_server.port) as client,
        client.client() as alone,
    ):
        await alone.execute_command("SELECT", 3)
        await alone.set("z", 1)
        multiplexer = alone._runtime.multiplexer
        connection = multiplexer.current
        # One is in flight, one is not written yet when the connection is retired.
        sent = asyncio.create_task(alone.blpop("nothing", 0.5))
        held = asyncio.create_task(alone.set("astray", 1))
        await asyncio.sleep(0)
        multiplexer.retire(connection)
        results = await asyncio.gather(sent, held, return_exceptions=True)
        assert results[0] is None
        assert isinstance(results[1], Exception), results
        assert "held the caller's state" in str(results[1])
    assert await redis_server.query("GET", "astray") is None


async def test_a_stuck_call_ends_with_a_deadline_as_short_as_the_response_timeout(
    shared_redis, slack
):
    """Bytes for other calls keep the connection alive, but do not extend the call's deadline."""

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
