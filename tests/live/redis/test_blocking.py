"""Blocking commands use exclusive connections, so other calls continue meanwhile."""

import asyncio
import time

import pytest
import redis.asyncio as driver

from resilient_io import DeadlineExceeded, OutcomeUnknown, RetryPolicy, deadline
from resilient_io.redis import RedisOutcomeUnknown, RedisUnavailable, ResilientRedis
from resilient_io.testing import free_port

QUICK = RetryPolicy(response_timeout=0.3, connect_timeout=0.5, deadline=0.7, backoff=0.01)


@pytest.fixture
async def client(fault_proxy, redis_server):
    await redis_server.query("CONFIG", "SET", "hz", 500)
    async with ResilientRedis.from_url(fault_proxy.url, policy=QUICK) as client:
        await client.ping()
        yield client


async def elapsed(awaitable):
    loop = asyncio.get_running_loop()
    began = loop.time()
    outcome = (await asyncio.gather(awaitable, return_exceptions=True))[0]
    return outcome, loop.time() - began


async def test_a_block_may_be_longer_than_the_response_timeout_and_the_deadline(client):
    outcome, took = await elapsed(client.blpop("l", timeout=0.9))
    assert outcome is None
    assert took >= 0.9
    assert client.health.state.value == "up"


async def test_a_block_on_a_single_connection_is_no_failure(shared_redis):
    policy = QUICK.replace(deadline=5.0)
    client = ResilientRedis(port=shared_redis.port, policy=policy, single_connection_client=True)
    async with client:
        assert await client.blpop("nothing", timeout=1.2) is None
        assert client.health.snapshot()["failures"] == 0


@pytest.mark.parametrize(
    ("wait", "push", "expected"),
    [
        (
            lambda c: c.blpop("l", timeout=5),
            lambda c: c.rpush("l", "x"),
            (b"l", b"x"),
        ),
        (lambda c: c.brpop("l", timeout=0), lambda c: c.rpush("l", "x"), (b"l", b"x")),
        (lambda c: c.blmove("l", "m", 5), lambda c: c.rpush("l", "x"), b"x"),
        (lambda c: c.brpoplpush("l", "m", timeout=5), lambda c: c.rpush("l", "x"), b"x"),
        (
            lambda c: c.blmpop(5, 1, "l", direction="LEFT"),
            lambda c: c.rpush("l", "x"),
            [b"l", [b"x"]],
        ),
        (
            lambda c: c.bzpopmin("z", timeout=5),
            lambda c: c.zadd("z", {"x": 1}),
            (b"z", b"x", 1.0),
        ),
        (
            lambda c: c.xread({"s": "$"}, block=5000),
            lambda c: c.xadd("s", {"f": "v"}, id="1-1"),
            [[b"s", [(b"1-1", {b"f": b"v"})]]],
        ),
        (
            lambda c: c.xread({"s": "$"}, block=0),
            lambda c: c.xadd("s", {"f": "v"}, id="1-1"),
            [[b"s", [(b"1-1", {b"f": b"v"})]]],
        ),
        (
            lambda c: c.xreadgroup("g", "me", {"q": ">"}, block=5000),
            lambda c: c.xadd("q", {"f": "v"}, id="1-1"),
            [[b"q", [(b"1-1", {b"f": b"v"})]]],
        ),
    ],
    ids=[
        "blpop",
        "brpop",
        "blmove",
        "brpoplpush",
        "blmpop",
        "bzpopmin",
        "xread",
        "xread-0",
        "xreadgroup",
    ],
)
async def test_a_blocked_call_receives_its_element_while_other_calls_continue(
    client, wait, push, expected
):
    await client.xgroup_create("q", "g", id="0", mkstream=True)
    waiting = asyncio.ensure_future(wait(client))
    for number in range(35):
        await client.set("k", number)
        await asyncio.sleep(0.01)  # together longer than the response timeout
    assert not waiting.done()
    await push(client)
    async with asyncio.timeout(5):
        got = await waiting
    assert got == expected
    assert client.health.state.value == "up"


async def test_many_calls_block_concurrently(client):
    waiting = [asyncio.ensure_future(client.blpop(f"l:{n}", timeout=20)) for n in range(40)]
    async with asyncio.timeout(10):
        while (await client.info("clients"))["blocked_clients"] < 40:  # noqa: ASYNC110 - its state
            await asyncio.sleep(0.01)
    assert client.stats().exclusive == 40
    await asyncio.gather(*(client.rpush(f"l:{n}", n) for n in range(40)))
    results = await asyncio.gather(*waiting)
    assert results == [(f"l:{n}".encode(), str(n).encode()) for n in range(40)]
    assert client.stats().exclusive <= 8  # only a few are kept idle


async def test_callers_above_the_limit_of_the_pool_wait(fault_proxy):
    async with ResilientRedis.from_url(fault_proxy.url, max_connections=2) as client:
        await asyncio.gather(*(client.blpop("l", timeout=0.02) for _ in range(6)))
        assert client.stats().exclusive <= 2


async def test_a_block_without_limit_ends_with_the_server(client, redis_server):
    waiting = asyncio.ensure_future(elapsed(client.blpop("l", timeout=0)))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    redis_server.kill()
    async with asyncio.timeout(5):
        outcome, _ = await waiting
    assert isinstance(outcome, RedisOutcomeUnknown)  # the pop may have happened
    assert outcome.operation == "BLPOP"


async def test_a_block_without_limit_ends_with_a_frozen_server(client, redis_server):
    waiting = asyncio.ensure_future(elapsed(client.blpop("l", timeout=0)))
    await asyncio.sleep(0.1)
    redis_server.freeze()
    traffic, _ = await elapsed(client.get("k"))
    assert isinstance(traffic, driver.RedisError)
    async with asyncio.timeout(5):
        outcome, _ = await waiting
    assert isinstance(outcome, OutcomeUnknown)
    redis_server.thaw()


async def test_a_lost_reply_ends_the_wait_soon_after_the_block(
    client, fault_proxy, redis_server, slack
):
    await redis_server.query("RPUSH", "l", "gone")
    fault_proxy.drop_reply("BLPOP")
    outcome, took = await elapsed(client.blpop("l", timeout=0.1))
    assert isinstance(outcome, RedisOutcomeUnknown)
    assert 0.1 + QUICK.response_timeout - 0.05 < took < 0.1 + QUICK.response_timeout + slack()
    assert await redis_server.query("LLEN", "l") == 0


@pytest.mark.parametrize("while_down", ["fail", "wait"])
async def test_a_block_does_not_hang_on_an_unreachable_server(while_down, slack):
    policy = QUICK.replace(while_down=while_down)
    async with ResilientRedis(port=free_port(), policy=policy) as client:
        for call in (client.blpop("l", timeout=0), client.blpop("l", timeout=0.01)):
            async with asyncio.timeout(10):
                outcome, took = await elapsed(call)
            assert isinstance(outcome, (RedisUnavailable, DeadlineExceeded)), outcome
            assert took < QUICK.deadline + slack()
        async with client.client() as own:
            async with asyncio.timeout(10):
                outcome, _ = await elapsed(own.blpop("l", timeout=0))
            assert isinstance(outcome, (RedisUnavailable, DeadlineExceeded)), outcome


async def test_all_attempts_of_a_block_reach_the_server_within_one_deadline(fault_proxy, slack):
    policy = QUICK.replace(connect_timeout=1.0, deadline=1.2)
    async with ResilientRedis.from_url(fault_proxy.url, policy=policy) as client:
        await client.ping()
        fault_proxy.accept_silently()
        outcome, took = await elapsed(client.blpop("l", timeout=30))
        assert isinstance(outcome, (RedisUnavailable, DeadlineExceeded)), outcome
        assert took < policy.deadline + slack()


async def test_an_enclosing_deadline_ends_a_block(client, slack):
    with deadline(0.15):
        outcome, took = await elapsed(client.blpop("l", timeout=5))
    assert isinstance(outcome, (OutcomeUnknown, DeadlineExceeded))
    assert took < 0.15 + slack()
    with deadline(0.15):
        outcome, took = await elapsed(client.xread({"s": "$"}, block=5000))
    assert isinstance(outcome, DeadlineExceeded)  # a read
    assert took < 0.15 + slack()


async def test_a_cancelled_pop_takes_no_element_and_leaves_no_dirty_connection(client):
    for turn in range(20):
        waiting = asyncio.ensure_future(client.blpop("l", timeout=5))
        await asyncio.sleep(0.005)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await client.rpush("l", turn)
        # The next caller receives the element: the cancelled call did not take it.
        async with asyncio.timeout(5):
            assert await client.blpop("l", timeout=5) == (b"l", str(turn).encode())
    assert client.stats().exclusive <= 8


async def test_a_pop_cancelled_while_its_element_arrives_puts_it_back(client):
    """The element goes back to where it was taken from."""
    for turn in range(10):
        waiting = asyncio.ensure_future(client.blpop("l", timeout=5))
        await asyncio.sleep(0.01)
        pushed = asyncio.ensure_future(client.rpush("l", turn))
        for _ in range(turn):
            await asyncio.sleep(0)
        waiting.cancel()
        outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
        await pushed
        if isinstance(outcome, asyncio.CancelledError):
            async with asyncio.timeout(5):
                outcome = await client.blpop("l", timeout=5)
        assert outcome == (b"l", str(turn).encode())


async def test_a_bound_client_may_block(client):
    async with client.client() as own:
        outcome, took = await elapsed(own.blpop("l", timeout=0.9))
        assert outcome is None
        assert took >= 0.9
        waiting = asyncio.ensure_future(own.blpop("l", timeout=0))
        await asyncio.sleep(0.5)
        await client.rpush("l", "x")
        assert await waiting == (b"l", b"x")
        assert await own.get("missing") is None


async def test_a_bound_client_may_block_as_the_replies_before_it_arrive(redis_server):
    """The blocking command is queued, but not written, when the last reply before it is read."""
    policy = RetryPolicy(response_timeout=0.3)
    client = ResilientRedis(port=redis_server.port, policy=policy, single_connection_client=True)
    async with client:
        await client.ping()
        echo = asyncio.create_task(client.echo("before"))
        await asyncio.sleep(0)
        time.sleep(0.05)  # until the reply is in the socket
        pop = asyncio.create_task(client.blpop(["list"], timeout=0.7))
        assert await echo == b"before"
        assert await pop is None


async def test_a_connection_that_a_middlebox_has_forgotten_is_not_used(fault_proxy, redis_server):
    async with ResilientRedis.from_url(fault_proxy.url) as client:
        assert await client.blpop("k", timeout=0.1) is None
        (idle,) = client._runtime.pool._idle
        port = idle._writer.get_extra_info("sockname")[1]
        for connection in fault_proxy.connections:
            if connection.client_address[1] == port:
                connection.stall()
        await asyncio.sleep(1.2)  # longer than a connection is trusted without a PING
        await client.rpush("k", "a")
        assert await client.blpop("k", timeout=0) == (b"k", b"a")


def _forget(proxy, client):
    """Have the proxy drop everything on the connection of a bound client."""
    (own,) = client._runtime.multiplexer.connections
    port = own.socket.getsockname()[1]
    for connection in proxy.connections:
        if connection.client_address[1] == port:
            connection.stall()


async def test_the_idle_connection_of_a_bound_client_is_replaced_if_it_was_forgotten(
    fault_proxy, redis_server
):
    policy = RetryPolicy(response_timeout=0.5, connect_timeout=1.0, deadline=2.0)
    async with (
        ResilientRedis.from_url(fault_proxy.url, policy=policy) as client,
        client.client() as plain,
        client.client() as watching,
    ):
        for own in (plain, watching):
            await own.ping()
        await watching.execute_command("WATCH", "k")
        for own in (plain, watching):
            _forget(fault_proxy, own)
        await asyncio.sleep(1.1)  # longer than a connection is trusted without a PING
        lost = asyncio.create_task(elapsed(watching.incr("n")))
        assert await plain.incr("n") == 1
        outcome, _ = await lost
        assert isinstance(outcome, RedisUnavailable)  # nothing was sent
        assert "WATCH: start again" in str(outcome)
        assert await watching.incr("n") == 2


async def test_waiting_for_an_idle_connection_counts_against_the_deadline(fault_proxy):
    policy = QUICK.replace(response_timeout=0.7, while_down="wait")
    async with ResilientRedis.from_url(
        fault_proxy.url, policy=policy, single_connection_client=True
    ) as client:
        await client.ping()
        await asyncio.sleep(1.1)
        fault_proxy.accept_silently()
        fault_proxy.stall()
        with pytest.raises(DeadlineExceeded), deadline(0.02):
            await client.get("k")
        outcome, took = await elapsed(client.get("k"))  # waits for the same answer
        assert isinstance(outcome, DeadlineExceeded)
        assert 0.6 < took < 1.0
        fault_proxy.restore()


async def test_no_ping_disturbs_a_transaction_of_a_bound_client(fault_proxy):
    async with ResilientRedis.from_url(fault_proxy.url) as client, client.client() as own:
        await own.execute_command("MULTI")
        await own.execute_command("SET", "k", 1)
        await asyncio.sleep(1.1)
        assert await own.execute_command("EXEC") == [b"OK"]
