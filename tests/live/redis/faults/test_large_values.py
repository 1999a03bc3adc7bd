"""Large values, and those that make the server close the connection: only their callers notice."""

import asyncio
import contextlib

import pytest

from resilient_io.redis import RedisUnavailable, ResilientRedis
from resilient_io.testing import FaultProxy, cancel_everywhere

MIB = 1024 * 1024


class SmallCalls:
    """Calls every 5 ms, in tasks of their own: INCR and GET, which must not notice the others."""

    def __init__(self, redis):
        self._redis = redis
        self._calls = []
        self.times = []

    async def __aenter__(self):
        self._task = asyncio.create_task(self._run())
        await asyncio.sleep(0.05)
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(*self._calls)

    async def _run(self):
        while True:
            self._calls.append(asyncio.create_task(self._call()))
            await asyncio.sleep(0.005)

    async def _call(self):
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(self._redis.incr("counter"), self._redis.get("small"))
        self.times.append(loop.time() - began)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.002)


async def test_several_large_requests_at_once_delay_no_other_call(
    redis_server, connect, patient, slack
):
    """Four of 8 MiB at 16 MiB/s on each connection."""
    async with FaultProxy(redis_server.port, protocol=None) as proxy:
        # Several MiB of a request may be in the proxy's receive buffer.
        redis = await connect(proxy, policy=patient.replace(response_timeout=2.0))
        proxy.bandwidth(requests=16 * MIB)
        async with SmallCalls(redis) as small:
            value = b"x" * (8 * MIB)
            assert all(await asyncio.gather(*(redis.set(f"big{n}", value) for n in range(4))))
        assert max(small.times) < 0.25 + slack(0.1)
        assert redis.stats().retries == 0
        assert await redis.strlen("big3") == 8 * MIB
        assert redis.stats().exclusive == 4, "the connections are used again"
        pipe = redis.pipeline(transaction=True).set("big", value).strlen("big")
        assert await pipe.execute() == [True, 8 * MIB]
        assert redis.stats().exclusive == 4
        await redis.aclose()


async def test_large_requests_that_a_server_must_accept_share_one_connection(redis_server, connect):
    redis = await connect(redis_server)
    used = [each.bytes_sent for each in redis._runtime.multiplexer.connections]
    value = b"x" * MIB
    assert all(await asyncio.gather(*(redis.set(f"big{n}", value) for n in range(8))))
    sent = [each.bytes_sent for each in redis._runtime.multiplexer.connections]
    assert redis.stats().exclusive == 0
    assert sorted(after - before > MIB for before, after in zip(used, sent, strict=True)) == [
        False,
        True,
    ]


async def test_several_huge_replies_at_once_leave_a_connection_for_other_calls(
    redis_server, fault_proxy, connect, patient, slack
):
    await redis_server.query("SETRANGE", "big", 16 * MIB - 1, "x")
    redis = await connect(fault_proxy, policy=patient)
    connections = redis._runtime.multiplexer.connections
    fault_proxy.bandwidth(replies=16 * MIB)
    big = []
    for count in (1, 2):
        big.append(asyncio.create_task(redis.get("big")))
        await until(lambda count=count: sum(each.busy for each in connections) == count)
    await until(lambda: redis._runtime.multiplexer.connections != connections)
    async with SmallCalls(redis) as small:
        assert [len(await call) for call in big] == [16 * MIB] * 2
    assert len(small.times) > 20
    assert max(small.times) < 0.25 + slack(0.1)
    assert redis.stats().retries == 0


async def test_a_read_that_kills_its_connection_is_not_repeated_on_a_shared_one(
    redis_server, connect, watch
):
    await redis_server.query("CONFIG", "SET", "client-output-buffer-limit", "normal 2mb 0 0")
    await redis_server.query("SETRANGE", "big", 8 * MIB - 1, "x")
    redis = await connect(redis_server)
    seen = watch(redis)
    multiplexer = redis._runtime.multiplexer
    first = multiplexer.current
    # GETRANGE copies the value. Valkey 9 sends the reply to GET without a copy that would count.
    whole = ("big", 0, -1)
    pipeline = redis.pipeline(transaction=False)
    for read in (redis.getrange(*whole), pipeline.getrange(*whole).execute()):
        await until(lambda: multiplexer.current is not None)
        current, survivors = multiplexer.current, multiplexer.connections
        call = asyncio.ensure_future(read)
        await until(lambda current=current: current.lost is not None)
        survivors = [each for each in survivors if each is not current]
        async with SmallCalls(redis):
            with pytest.raises(RedisUnavailable, match="above client-output-buffer-limit"):
                await call
            await until(lambda: None not in multiplexer._slots)
        assert all(each.lost is None for each in survivors)
    assert first.lost is not None
    assert redis.stats().exclusive == 0
    assert redis.stats().ended == {"DependencyUnavailable": 2}
    assert not seen.changes


async def test_a_read_lost_with_a_restarted_server_is_repeated_on_a_shared_connection(
    redis_server, connect, patient
):
    redis = await connect(redis_server, policy=patient.replace(while_down="wait"))
    await redis.ping()
    calls = [asyncio.ensure_future(redis.get("small")) for _ in range(100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    redis_server.kill()
    await redis_server.start()
    assert await asyncio.gather(*calls) == [None] * 100
    assert redis.stats().exclusive == 0


@pytest.mark.parametrize("size", [2 * MIB, 8 * MIB])
async def test_a_value_that_the_server_refuses_closes_no_shared_connection(
    size, redis_server, connect, watch
):
    await redis_server.query("CONFIG", "SET", "proto-max-bulk-len", MIB)
    redis = await connect(redis_server)
    seen = watch(redis)
    connections = redis._runtime.multiplexer.connections
    async with SmallCalls(redis):
        results = await asyncio.gather(
            *(redis.set("big", b"x" * size) for _ in range(3)), return_exceptions=True
        )
    for error in results:
        # The server may reset the connection before its error reply is read.
        assert "Protocol error" in str(error) or "above proto-max-bulk-len" in str(error)
    assert redis._runtime.multiplexer.connections == connections
    assert redis.stats().exclusive == 0
    assert not seen.changes


async def test_a_call_with_its_own_connection_is_cancelled_anywhere(redis_server):
    @contextlib.asynccontextmanager
    async def client():
        async with ResilientRedis(port=redis_server.port) as redis:
            await redis.ping()
            yield redis

    report = await cancel_everywhere(
        lambda redis: redis.set("big", b"x" * (2 * MIB)), setup=client, settle=3.0
    )
    report.assert_clean()
