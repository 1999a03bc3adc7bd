"""Calls that block without a limit, on a link that dies silently while the server is healthy."""

import asyncio
import contextlib

import pytest

from resilient_io import FlightRecorder, OutcomeUnknown
from resilient_io.redis import ResilientRedis
from resilient_io.testing import cancel_everywhere

DETECTED = 5.0  # seconds
QUEUE = "queue"

CALLS = {
    "BLPOP": (lambda redis: redis.blpop(QUEUE, timeout=0), (b"queue", b"job")),
    "BLMOVE": (lambda redis: redis.blmove(QUEUE, "mine", 0), b"job"),
}


@pytest.fixture
def server(network):
    return network.start_redis()


@pytest.fixture
async def recorded(server):
    """Open a client, and record its events."""
    recorder = FlightRecorder()
    async with ResilientRedis.from_url(server.url) as redis:
        redis.health.add_recorder(recorder)
        await redis.ping()
        yield redis, recorder


async def _blocked(redis):
    """Wait until a call blocks on an exclusive connection. Return the connection, and its facts."""
    async with asyncio.timeout(5):
        while True:
            for connection, known in redis._runtime.pool.blocked._waiting.items():
                await asyncio.sleep(0.1)
                return connection, known
            await asyncio.sleep(0.01)


async def _port(redis):
    connection, _ = await _blocked(redis)
    return connection._writer.get_extra_info("socket").getsockname()[1]


async def _client_id(redis):
    _, known = await _blocked(redis)
    return known.client_id


async def _resumed(recorder):
    while not any(  # noqa: ASYNC110 - there is no event for it
        event["event"] == "blocking call resumed" for event in recorder.events()
    ):
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("command", "waited"), [("BLPOP", 6.0), ("BLMOVE", 0.0)])
async def test_a_wait_continues_on_a_new_connection(
    command, waited, network, server, recorded, slack
):
    """Also a wait that has lasted longer than the deadline for reaching the server."""
    redis, recorder = recorded
    call, expected = CALLS[command]
    waiting = asyncio.create_task(call(redis))
    port = await _port(redis)
    await asyncio.sleep(waited)
    network.forget(port)
    async with asyncio.timeout(DETECTED + slack()):
        await _resumed(recorder)
    await asyncio.sleep(0.2)
    server.run("RPUSH", QUEUE, "job")
    async with asyncio.timeout(2):
        reply = await waiting
    assert (tuple(reply) if isinstance(reply, list) else reply) == expected
    assert server.run("LLEN", QUEUE) == "0"
    assert redis.health.available


async def test_a_wait_of_a_group_continues_on_a_new_connection(network, server, recorded, slack):
    redis, recorder = recorded
    await redis.xgroup_create("stream", "group", mkstream=True)
    waiting = asyncio.create_task(redis.xreadgroup("group", "me", {"stream": ">"}, block=0))
    network.forget(await _port(redis))
    async with asyncio.timeout(DETECTED + slack()):
        await _resumed(recorder)
    await asyncio.sleep(0.2)
    server.run("XADD", "stream", "1-1", "field", "value")
    async with asyncio.timeout(2):
        reply = await waiting
    assert "1-1" in str(reply)


@pytest.mark.parametrize("command", CALLS)
async def test_an_element_that_the_dead_link_took_is_an_unknown_outcome(
    command, network, server, recorded, slack
):
    redis, _ = recorded
    call, _ = CALLS[command]
    waiting = asyncio.create_task(call(redis))
    network.forget(await _port(redis))
    server.run("RPUSH", QUEUE, "job")
    async with asyncio.timeout(DETECTED + slack()):
        with pytest.raises(OutcomeUnknown, match=r"no acknowledgement from the host for 3\.5 s"):
            await waiting
    assert server.run("LLEN", QUEUE) == "0"
    assert await redis.ping()
    assert redis.health.available


async def test_a_wait_survives_a_link_that_loses_packets(network, server, recorded):
    redis, _ = recorded
    network.lose(0.05)
    waiting = asyncio.create_task(redis.blpop(QUEUE, timeout=0))
    await asyncio.sleep(7)
    network.lose(0)
    server.run("RPUSH", QUEUE, "job")
    async with asyncio.timeout(2):
        assert await waiting == (b"queue", b"job")


class DeafProxy:
    """A proxy that does not tell its clients that the server has closed a connection."""

    def __init__(self, port):
        self._port = port
        self._tasks = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._tasks.append(asyncio.current_task())
        upstream, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await asyncio.gather(
                self._pump(reader, to_server), self._pump(upstream, writer), self._hold()
            )
        finally:
            writer.transport.abort()
            to_server.transport.abort()

    async def _hold(self):
        await asyncio.Event().wait()

    async def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)


async def test_a_proxy_that_hides_the_loss_of_a_blocked_connection_is_noticed(redis_server, slack):
    async with DeafProxy(redis_server.port) as proxy, ResilientRedis(port=proxy.port) as redis:
        await redis.ping()
        waiting = asyncio.create_task(redis.blpop(QUEUE, timeout=0))
        await redis_server.query("CLIENT", "KILL", "ID", await _client_id(redis))
        async with asyncio.timeout(DETECTED + slack()):
            with pytest.raises(OutcomeUnknown, match="the server no longer has this"):
                await waiting
        assert redis.health.available


async def test_a_read_behind_such_a_proxy_continues(redis_server, slack):
    async with DeafProxy(redis_server.port) as proxy, ResilientRedis(port=proxy.port) as redis:
        await redis.ping()
        waiting = asyncio.create_task(redis.xread({"stream": "0"}, block=0))
        first = await _client_id(redis)
        await redis_server.query("CLIENT", "KILL", "ID", first)
        async with asyncio.timeout(DETECTED + slack()):
            while await _client_id(redis) == first:
                pass
        await redis.xadd("stream", {"field": "value"})
        async with asyncio.timeout(2):
            assert "value" in str(await waiting)


async def test_without_a_proxy_the_server_is_asked_once(redis_server):
    async with ResilientRedis(port=redis_server.port) as redis:
        await redis.ping()
        await redis_server.query("CONFIG", "RESETSTAT")
        waiting = asyncio.create_task(redis.blpop(QUEUE, timeout=0))
        await asyncio.sleep(5)
        stats = await redis_server.query("INFO", "commandstats")
        assert b"cmdstat_client|list:calls=1," in stats
        await redis.rpush(QUEUE, "job")
        assert await waiting == (b"queue", b"job")
        pool = redis._runtime.pool
        await asyncio.sleep(0)
        assert pool.blocked._task.done(), "the task ends with the last blocked call"


async def test_a_lost_blocking_call_is_cancelled_anywhere(redis_server):
    """Also while the server is asked whether the call was still waiting."""

    async def lose(redis):
        connection, _ = await _blocked(redis)
        connection._writer.transport.abort()

    @contextlib.asynccontextmanager
    async def loss():
        async with ResilientRedis(port=redis_server.port) as redis:
            await redis.ping()
            losing = asyncio.create_task(lose(redis))
            yield redis
            losing.cancel()
            await asyncio.wait([losing])

    report = await cancel_everywhere(
        lambda redis: redis.blpop(QUEUE, timeout=0),
        setup=loss,
        raises=OutcomeUnknown,
        settle=3.0,
    )
    report.assert_clean()
    assert report.points >= 4
