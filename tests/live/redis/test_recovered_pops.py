"""A cancelled blocking pop: its element is put back, or goes to the next caller."""

import asyncio
import logging

import pytest

from resilient_io import Cause
from resilient_io.redis import ConnectionSettings, ResilientRedis
from resilient_io.redis.errors import ConnectionFailure

POPS = {
    "BLPOP": (
        lambda c: c.blpop("k", timeout=5),
        lambda c: c.rpush("k", "a", "b", "c"),
        lambda c: c.lrange("k", 0, -1),
        [b"a", b"b", b"c"],
    ),
    "BRPOP": (
        lambda c: c.brpop("k", timeout=5),
        lambda c: c.rpush("k", "a", "b", "c"),
        lambda c: c.lrange("k", 0, -1),
        [b"a", b"b", b"c"],
    ),
    "BZPOPMIN": (
        lambda c: c.bzpopmin("k", timeout=5),
        lambda c: c.zadd("k", {"a": 1, "b": 2.5, "c": 3}),
        lambda c: c.zrange("k", 0, -1, withscores=True),
        [(b"a", 1.0), (b"b", 2.5), (b"c", 3.0)],
    ),
    "BZPOPMAX": (
        lambda c: c.bzpopmax("k", timeout=5),
        lambda c: c.zadd("k", {"a": 1, "b": 2.5, "c": 3}),
        lambda c: c.zrange("k", 0, -1, withscores=True),
        [(b"a", 1.0), (b"b", 2.5), (b"c", 3.0)],
    ),
    "BLMOVE": (
        lambda c: c.blmove("k", "other", 5),
        lambda c: c.rpush("k", "a", "b", "c"),
        None,
        [b"a", b"b", b"c"],
    ),
}


async def idle(client):
    """Wait until the recoveries of cancelled calls have ended."""
    async with asyncio.timeout(10):
        while client._runtime.pool._acquired:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("name", POPS)
async def test_a_cancelled_pop_loses_no_element_and_keeps_the_order(
    shared_redis, name, protocol, caplog
):
    pop, push, look, expected = POPS[name]
    async with ResilientRedis(port=shared_redis.port, protocol=protocol) as client:
        returned = 0
        for steps in range(25):
            await client.delete("k", "other")
            waiting = asyncio.ensure_future(pop(client))
            await asyncio.sleep(0.003)
            pushed = asyncio.ensure_future(push(client))
            for _ in range(steps):
                await asyncio.sleep(0)
            waiting.cancel()
            (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
            await pushed
            await idle(client)
            if look is None:
                left = await client.lrange("other", 0, -1) + await client.lrange("k", 0, -1)
            else:
                left = [tuple(e) if isinstance(e, list) else e for e in await look(client)]
            if isinstance(outcome, asyncio.CancelledError):
                assert left == expected, f"cancelled after {steps} steps"
            else:
                returned += 1
                assert len(left) == 3 if look is None else 2
        assert returned < 25
        assert await client.ping()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("errors", ["strict", "replace"])
async def test_an_element_that_cannot_be_decoded_is_put_back_unchanged(shared_redis, errors):
    async with ResilientRedis(
        port=shared_redis.port, decode_responses=True, encoding_errors=errors
    ) as client:
        cancelled = 0
        for steps in range(15):
            await client.delete("k")
            waiting = asyncio.ensure_future(client.blpop("k", timeout=5))
            await asyncio.sleep(0.003)
            pushed = asyncio.ensure_future(client.rpush("k", b"\xff\x00a"))
            for _ in range(steps):
                await asyncio.sleep(0)
            waiting.cancel()
            (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
            await pushed
            await idle(client)
            if isinstance(outcome, asyncio.CancelledError):
                cancelled += 1
                assert await shared_redis.query("LRANGE", "k", 0, -1) == [b"\xff\x00a"]
        assert cancelled


async def test_connections_of_cancelled_pops_are_reused(client):
    await client.blpop("k", timeout=0.01)
    ids = set()
    for _ in range(10):
        waiting = asyncio.ensure_future(client.blpop("k", timeout=20))
        blocked = []
        async with asyncio.timeout(10):
            while not blocked:
                blocked = [c for c in await client.client_list() if c["cmd"] == "blpop"]
        ids.update(c["id"] for c in blocked)
        waiting.cancel()
        await asyncio.wait([waiting])
        await idle(client)
    assert len(ids) == 1


async def test_pops_cancelled_in_an_outage_are_logged_once_and_then_counted(redis_server, caplog):
    async with ResilientRedis(port=redis_server.port) as client:
        await client.ping()

        async def cancelled_pops(count):
            waiting = [asyncio.ensure_future(client.blpop("k", timeout=0)) for _ in range(count)]
            async with asyncio.timeout(10):
                while (await client.info("clients"))["blocked_clients"] < count:  # noqa: ASYNC110 - its state
                    await asyncio.sleep(0.005)
            if count > 1:
                redis_server.freeze()
            for one in waiting:
                one.cancel()
            await asyncio.wait(waiting)
            await idle(client)
            redis_server.thaw()
            await client.health.until_up(5)

        def logged():
            return [r.getMessage() for r in caplog.records if r.name == "resilient_io.redis"]

        await cancelled_pops(5)
        assert len(logged()) == 1
        assert "a cancelled BLPOP could not be ended cleanly" in logged()[0]
        await cancelled_pops(1)
        assert len(logged()) == 2
        assert logged()[1].startswith("4 more cancelled pops")


async def test_a_client_closed_after_a_cancellation_leaves_nothing(shared_redis):
    for _ in range(5):
        client = ResilientRedis(port=shared_redis.port)
        waiting = [asyncio.ensure_future(client.blpop("k", timeout=5)) for _ in range(5)]
        await asyncio.sleep(0.02)
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        async with asyncio.timeout(5):
            await client.aclose()
    async with asyncio.timeout(5):
        while b"cmd=blpop" in await shared_redis.query("CLIENT", "LIST"):  # noqa: ASYNC110 - its state
            await asyncio.sleep(0.005)


async def test_a_cancelled_pop_loses_no_element_while_the_shared_connection_is_full(
    redis_server, fault_proxy
):
    one = ConnectionSettings(count=1)
    async with ResilientRedis(port=fault_proxy.port, connections=one) as client:
        await client.ping()
        connection = client._runtime.multiplexer.current
        fault_proxy.latency(replies=0.05)
        for number in range(5):
            waiting = asyncio.create_task(client.blpop("k", timeout=5))
            await asyncio.sleep(0.3)
            connection.limit = -1  # full with its first call, until the end of the round
            await client.ping()
            assert client._runtime.multiplexer.current is None
            await redis_server.query("RPUSH", "k", number)
            waiting.cancel()  # the element is on its way
            (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
            assert isinstance(outcome, asyncio.CancelledError)
            await idle(client)
            assert await redis_server.query("LRANGE", "k", 0, -1) == [b"%d" % number]
            await redis_server.query("DEL", "k")
            connection.limit = 2**24
            connection.full = False
            client._runtime.multiplexer.refresh()


async def test_a_cancelled_pop_loses_no_element_without_a_shared_connection(fault_proxy):
    """As during a reconnect: then the recovery opens a connection."""
    async with ResilientRedis(port=fault_proxy.port) as client:
        await client.ping()
        waiting = asyncio.create_task(client.blpop("k", timeout=5))
        await asyncio.sleep(0.1)
        multiplexer = client._runtime.multiplexer
        for connection in multiplexer.connections:
            connection.close(ConnectionFailure(Cause.RESET, "for the test"))
        assert multiplexer.connections == []
        waiting.cancel()
        await asyncio.wait([waiting])
        await idle(client)
        # The connection that blocked was returned clean, and the server no longer serves the pop.
        assert client.stats().exclusive > 0
        await client.rpush("k", "a")
        assert await client.llen("k") == 1


async def test_a_cancelled_pop_does_not_block_the_connection_of_a_bound_client(shared_redis):
    async with ResilientRedis(port=shared_redis.port, single_connection_client=True) as client:
        pop = asyncio.create_task(client.blpop("k", timeout=0))
        await asyncio.sleep(0.1)
        pop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pop
        async with asyncio.timeout(2):
            await client.rpush("k", "a")
            assert await client.lrange("k", 0, -1) == [b"a"]


async def test_a_pop_of_a_bound_client_waits_behind_another(shared_redis):
    async with ResilientRedis(
        port=shared_redis.port, single_connection_client=True, socket_timeout=0.2
    ) as client:
        first = asyncio.create_task(client.blpop("k", timeout=1))
        await asyncio.sleep(0.1)
        assert await client.blpop("other", timeout=0.1) is None
        assert await first is None
