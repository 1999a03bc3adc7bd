"""Batches whose replies are lost: answered commands are settled, only the rest counts."""

import asyncio
import random

import pytest
import redis.asyncio as driver
from redis.exceptions import WatchError

from resilient_io import DeadlineExceeded, OutcomeUnknown, Progress, RetryPolicy
from resilient_io.redis import (
    ConnectionSettings,
    RedisOutcomeUnknown,
    RedisUnavailable,
    ResilientRedis,
)

QUICK = RetryPolicy(response_timeout=0.2, connect_timeout=0.5, deadline=5.0, backoff=0.01)


@pytest.fixture
async def client(fault_proxy):
    async with ResilientRedis.from_url(fault_proxy.url, policy=QUICK) as client:
        await client.ping()
        yield client


@pytest.fixture
def settled(client, until_complete):
    """Return a function that waits until the client has recovered from a reset."""

    async def settle():
        await asyncio.sleep(0.02)
        await client.health.until_up(5)
        await until_complete(client)

    return settle


async def test_the_error_of_a_plain_pipeline_contains_its_progress(
    client, fault_proxy, redis_server
):
    fault_proxy.reset_on("INCRBY", nth=3)
    pipe = client.pipeline(transaction=False)
    pipe.set("k", "v").incr("n").incr("n").incr("n").get("k")
    with pytest.raises(RedisOutcomeUnknown, match="the call may have been applied") as caught:
        await pipe.execute()
    error = caught.value
    assert isinstance(error, OutcomeUnknown)
    assert isinstance(error, driver.ConnectionError)
    assert error.operation == "PIPELINE"
    assert error.progress is Progress.MAYBE_APPLIED
    assert len(error.answered) + len(error.unanswered) == 5
    assert tuple(error.answered) == (b"OK", 1, 2)[: len(error.answered)]
    assert tuple(error.unanswered) == tuple(range(len(error.answered), 5))
    assert 3 in error.unanswered
    assert await redis_server.query("GET", "n") == b"2"
    assert len(pipe) == 0


@pytest.mark.parametrize("answered", [0, 1, 3])
async def test_the_error_separates_answered_and_unanswered_commands(
    client, fault_proxy, redis_server, answered
):
    fault_proxy.drop_reply("INCRBY", nth=answered + 1)
    pipe = client.pipeline(transaction=False)
    for _ in range(4):
        pipe.incr("n")
    with pytest.raises(RedisOutcomeUnknown) as caught:
        await pipe.execute()
    assert list(caught.value.answered) == list(range(1, answered + 1))
    assert list(caught.value.unanswered) == list(range(answered, 4))
    assert await redis_server.query("GET", "n") == b"4"


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_batch_of_reads_is_repeated(client, fault_proxy, redis_server, transaction):
    await client.mset({"a": 1, "b": 2})
    fault_proxy.drop_reply("EXEC" if transaction else "GET", nth=1 if transaction else 2)
    pipe = client.pipeline(transaction=transaction).get("a").get("b").hgetall("none").get("a")
    assert await pipe.execute() == [b"1", b"2", {}, b"1"]
    # None if the reply was late for so long that the reads moved to the other connection.
    assert client.stats().retries <= 1


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_batch_of_plain_overwrites_is_repeated(
    client, fault_proxy, redis_server, transaction
):
    fault_proxy.drop_reply("EXEC" if transaction else "SET", nth=1 if transaction else 2)
    pipe = client.pipeline(transaction=transaction)
    pipe.set("a", 1).set("b", 2).mset({"c": 3}).set("a", 4)
    assert await pipe.execute() == [True] * 4
    assert await redis_server.query("MGET", "a", "b", "c") == [b"4", b"2", b"3"]
    assert client.stats().retries == 1


@pytest.mark.parametrize("transaction", [True, False])
@pytest.mark.parametrize(
    "fill",
    [
        lambda pipe: pipe.copy("a", "b", replace=True).set("a", 2),
        lambda pipe: pipe.get("a").set("a", 2),
        lambda pipe: pipe.set("a", 2).incr("n"),
        lambda pipe: pipe.set("a", 2).delete("b"),
        lambda pipe: pipe.eval("return 1", 0),
    ],
)
async def test_a_batch_of_different_effects_is_not_repeated(
    client, fault_proxy, redis_server, fill, transaction
):
    await client.set("a", 1)
    pipe = client.pipeline(transaction=transaction)
    fill(pipe)
    count = len(pipe)
    name = "EXEC" if transaction else pipe.command_stack[0][0][0]
    fault_proxy.drop_reply(name)
    with pytest.raises(RedisOutcomeUnknown) as caught:
        await pipe.execute()
    assert caught.value.attempts == 1
    assert list(caught.value.unanswered) == list(range(count))
    assert client.stats().retries == 0


@pytest.mark.parametrize("end", ["deadline", "attempts", "refused"])
async def test_an_applied_head_is_reported_although_the_tail_only_reads(
    fault_proxy, redis_server, end
):
    policy = QUICK.replace(deadline=0.5 if end == "deadline" else 5.0, attempts=2)
    async with ResilientRedis.from_url(fault_proxy.url, policy=policy) as client:
        await client.ping()
        fault_proxy.drop_reply("GET", times=1 if end == "refused" else None)
        if end == "refused":
            fault_proxy.answer("GET", b"-LOADING Redis is loading\r\n", nth=2, times=None)
        pipe = client.pipeline(transaction=False).incr("n").set("k", "v").get("n").get("k")
        if end == "refused":
            # The reads were not applied, whatever they say: their replies are exact.
            replies = await pipe.execute(raise_on_error=False)
            assert replies[:2] == [1, True]
            assert all(isinstance(reply, driver.BusyLoadingError) for reply in replies[2:])
            return
        with pytest.raises(RedisOutcomeUnknown, match="a part of the call was applied") as caught:
            await pipe.execute()
        assert caught.value.progress is Progress.MAYBE_APPLIED
        assert caught.value.answered == (1, b"OK")
        assert caught.value.unanswered == (2, 3)
        assert await redis_server.query("MGET", "n", "k") == [b"1", b"v"]


@pytest.mark.parametrize("head", [lambda pipe: pipe.get("a"), lambda pipe: pipe.incr("text")])
async def test_a_head_that_changed_nothing_does_not_make_the_outcome_unknown(
    client, fault_proxy, redis_server, head
):
    await client.set("text", "no number")
    fault_proxy.drop_reply("HGETALL", times=None)
    pipe = head(client.pipeline(transaction=False)).hgetall("b")
    with pytest.raises(driver.TimeoutError) as caught:
        await pipe.execute()
    assert not isinstance(caught.value, OutcomeUnknown)
    assert caught.value.progress is Progress.SENT


OOM = b"-OOM command not allowed\r\n"


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_refused_repeat_is_no_reply_to_a_batch_that_may_be_applied(
    client, fault_proxy, redis_server, transaction
):
    name = "EXEC" if transaction else "SET"
    lost = fault_proxy.drop_reply(name)
    pipe = client.pipeline(transaction=transaction).set("a", 1).set("b", 2)
    call = asyncio.create_task(pipe.execute(raise_on_error=False))
    async with asyncio.timeout(5):
        await lost.happened()
    await redis_server.query("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(RedisOutcomeUnknown, match="; an earlier attempt may") as caught:
        await call
    assert caught.value.attempts == 3
    assert caught.value.answered == ()
    assert caught.value.unanswered == (0, 1)
    assert await redis_server.query("MGET", "a", "b") == [b"1", b"2"]


@pytest.mark.parametrize("times", [1, None])
async def test_a_refused_write_in_a_repeated_tail_is_repeated_or_unknown(
    client, fault_proxy, redis_server, times
):
    fault_proxy.drop_reply("SET", nth=2)
    refused = fault_proxy.answer("SET", OOM, nth=2, times=times)  # the repeat of the tail
    pipe = client.pipeline(transaction=False).set("a", 1).set("b", 2)
    if times == 1:
        assert await pipe.execute() == [True, True]
        assert fault_proxy.requests["SET"] == 3
    else:
        with pytest.raises(RedisOutcomeUnknown, match="command not allowed") as caught:
            await pipe.execute(raise_on_error=False)
        assert caught.value.answered == (b"OK",)
        assert caught.value.unanswered == (1,)
        refused.remove()
    assert await redis_server.query("MGET", "a", "b") == [b"1", b"2"]


async def test_one_refused_write_in_a_repeated_batch_makes_the_outcome_unknown(
    client, fault_proxy, redis_server
):
    fault_proxy.drop_reply("SET", nth=1)
    fault_proxy.answer("SET", OOM, nth=4)  # the second of the repeat
    pipe = client.pipeline(transaction=False).set("a", 1).set("b", 2).set("c", 3)
    with pytest.raises(RedisOutcomeUnknown, match="command not allowed") as caught:
        await pipe.execute(raise_on_error=False)
    assert caught.value.answered == (b"OK",)
    assert caught.value.unanswered == (1, 2)


async def test_the_unknown_outcome_of_an_exec_names_its_commands(client, fault_proxy):
    fault_proxy.drop_reply("EXEC")
    async with client.pipeline() as pipe:
        await pipe.watch("n")
        pipe.multi()
        with pytest.raises(RedisOutcomeUnknown) as caught:
            await pipe.incr("n").set("k", 1).execute()
    assert caught.value.unanswered == (0, 1)


async def test_only_the_unanswered_commands_of_a_batch_count(client, fault_proxy, redis_server):
    fault_proxy.drop_reply("GET", nth=1)
    pipe = client.pipeline(transaction=False).incr("n").incr("n").get("n").get("n")
    assert await pipe.execute() == [1, 2, b"2", b"2"]
    assert await redis_server.query("GET", "n") == b"2"
    assert fault_proxy.requests["INCRBY"] == 2


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_batch_of_different_effects_is_repeated_with_the_opt_in(
    client, fault_proxy, transaction
):
    fault_proxy.drop_reply("EXEC" if transaction else "INCRBY")
    careless = client.with_policy(repeat="any")
    pipe = careless.pipeline(transaction=transaction).incr("n").set("k", 1)
    assert await pipe.execute() == [2, True]


@pytest.mark.parametrize("transaction", [True, False])
async def test_an_unsent_batch_is_sent_when_the_server_is_back(
    client, fault_proxy, redis_server, transaction
):
    await redis_server.restart()
    await client.health.until_up(5)
    pipe = client.pipeline(transaction=transaction).incr("n").incr("n")
    assert await pipe.execute() == [1, 2]


@pytest.fixture
async def limited(fault_proxy):
    """A client with a deadline of 0.6 s and one connection."""
    policy = QUICK.replace(deadline=0.6, while_down="wait")
    connections = ConnectionSettings(count=1)
    async with ResilientRedis.from_url(
        fault_proxy.url, policy=policy, connections=connections
    ) as client:
        await client.ping()
        yield client


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_batch_of_reads_behind_a_slow_reply_is_repeated_elsewhere(
    limited, fault_proxy, redis_server, transaction
):
    size = 6 * 1024 * 1024
    await redis_server.query("SETRANGE", "big", size - 1, "x")
    fault_proxy.bandwidth(replies=size / 2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    big = asyncio.create_task(limited.with_policy(deadline=60.0).get("big"))
    await asyncio.sleep(0)
    pipe = limited.with_policy(deadline=5.0).pipeline(transaction=transaction).get("a").get("b")
    assert await pipe.execute() == [None, None]
    assert loop.time() - began < 1.8  # the slow reply takes 2 s
    assert not big.done()
    big.cancel()


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_batch_that_was_not_written_ends_at_its_deadline(limited, fault_proxy, transaction):
    limited._runtime.multiplexer.current.pause_writing()  # as a full socket does
    pipe = limited.pipeline(transaction=transaction).incr("n").incr("n")
    call = asyncio.create_task(pipe.execute())
    await asyncio.sleep(0.01)
    fault_proxy.refuse()
    fault_proxy.reset()
    with pytest.raises(DeadlineExceeded) as caught:
        async with asyncio.timeout(3):
            await call
    assert caught.value.progress is Progress.NOT_SENT


@pytest.mark.parametrize("transaction", [True, False])
async def test_the_outcome_of_a_sent_batch_is_unknown_while_the_server_is_down(
    fault_proxy, transaction
):
    policy = QUICK.replace(outage_wait=0.0)
    async with ResilientRedis.from_url(fault_proxy.url, policy=policy) as client:
        await client.ping()
        fault_proxy.refuse()
        fault_proxy.drop_reply("EXEC" if transaction else "INCRBY")
        with pytest.raises(RedisOutcomeUnknown) as caught:
            await client.pipeline(transaction=transaction).incr("n").incr("n").execute()
        assert caught.value.progress is Progress.MAYBE_APPLIED


async def test_a_lost_reply_to_exec_does_not_raise_watch_error(client, fault_proxy, redis_server):
    fault_proxy.drop_reply("EXEC")
    async with client.pipeline() as pipe:
        await pipe.watch("n")
        pipe.multi()
        pipe.incr("n")
        with pytest.raises(RedisOutcomeUnknown) as caught:
            await pipe.execute()
    assert not isinstance(caught.value, WatchError)
    assert caught.value.operation == "EXEC"
    assert await redis_server.query("GET", "n") == b"1"
    # transaction() repeats after WatchError, so the error must be another.
    calls = 0

    async def add(pipe):
        nonlocal calls
        calls += 1
        pipe.multi()
        pipe.incr("n")

    fault_proxy.drop_reply("EXEC")
    with pytest.raises(RedisOutcomeUnknown):
        await client.transaction(add, "n")
    assert calls == 1
    assert await redis_server.query("GET", "n") == b"2"
    assert await client.transaction(add, "n") == [3]


async def test_a_watch_lost_before_exec_raises_watch_error(
    client, fault_proxy, redis_server, settled
):
    async with client.pipeline() as pipe:
        await pipe.watch("n")
        await pipe.get("n")
        fault_proxy.reset()
        with pytest.raises(WatchError, match="nothing was applied"):
            await pipe.get("n")
    await settled()
    async with client.pipeline() as pipe:
        await pipe.watch("n")
        fault_proxy.reset()
        await asyncio.sleep(0.02)
        pipe.multi()
        pipe.incr("n")
        # Unavailable if the probe after the first reset was reset, too.
        with pytest.raises((WatchError, RedisOutcomeUnknown, RedisUnavailable)):
            await pipe.execute()
    assert await redis_server.query("GET", "n") is None
    await settled()
    calls = 0

    async def add(pipe):
        nonlocal calls
        calls += 1
        if calls == 1:
            fault_proxy.reset()
        value = int(await pipe.get("n") or 0)
        pipe.multi()
        pipe.set("n", value + 1)

    assert await client.transaction(add, "n") == [True]
    assert calls == 2


async def test_keys_watched_before_an_outage_are_not_watched_after_it(
    client,
    fault_proxy,
    redis_server,
    settled,
):
    """redis-py reconnects by itself: EXEC would then run without the watched keys."""
    for explicit in (True, False):
        async with client.pipeline() as pipe:
            await pipe.watch("n")
            value = int(await pipe.get("n") or 0)
            if explicit:
                pipe.multi()
                pipe.set("n", value + 1)
            redis_server.kill()
            async with asyncio.timeout(5):
                while client.health.available:  # noqa: ASYNC110 - the state itself is tested
                    await asyncio.sleep(0.005)
            await redis_server.start()
            await settled()
            await redis_server.query("SET", "n", 100)  # another client's write
            with pytest.raises(WatchError, match="nothing was applied"):
                await (pipe.execute() if explicit else pipe.get("n"))
        assert await redis_server.query("GET", "n") == b"100"


async def test_a_watch_known_to_be_lost_raises_watch_error(
    client, fault_proxy, redis_server, settled
):
    async with client.pipeline() as pipe:
        await pipe.watch("n")
        pipe.multi()
        pipe.incr("n")
        fault_proxy.reset()
        await asyncio.sleep(0.05)
        with pytest.raises(WatchError, match="nothing was applied"):
            await pipe.execute()
    async with client.pipeline() as pipe:
        await pipe.watch("n")
        await pipe.unwatch()
        fault_proxy.reset()
        await settled()
        assert await pipe.incr("n").execute() == [1]


async def test_a_bound_client_reports_the_loss_of_its_state_once(client, fault_proxy, redis_server):
    async with client.client() as own:
        await own.select(3)
        await own.set("k", "three")
        fault_proxy.reset()
        with pytest.raises(driver.ConnectionError, match="the state set by SELECT: start again"):
            await own.get("k")
        assert await own.get("k") is None
        await own.select(3)
        assert await own.get("k") == b"three"
        await own.execute_command("MULTI")
        await own.incr("n")
        fault_proxy.reset()
        with pytest.raises(driver.ConnectionError, match=r"state set by SELECT.*: start again"):
            await own.execute_command("EXEC")
        assert await own.incr("n") == 1
        assert await redis_server.query("GET", "n") == b"1"


async def cut_during_the_backoff(own, fault_proxy, call):
    """Cut the connection of a bound client while it backs off before it repeats a refused call."""
    answered = asyncio.create_task(call)
    async with asyncio.timeout(5):
        while not own._runtime.executor.refusals:  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0)
    fault_proxy.reset()
    return answered


REFUSED_CALLS = {
    "SET": ("SET", lambda own: own.set("k", "v")),
    "INCR": ("INCRBY", lambda own: own.incr("k")),
    "pipeline": ("SET", lambda own: own.pipeline(transaction=False).set("k", "v").execute()),
}


@pytest.mark.parametrize("taken_first", [False, True], ids=["", "loss reported before"])
@pytest.mark.parametrize("state", ["MULTI", "SELECT"])
@pytest.mark.parametrize(("command", "call"), REFUSED_CALLS.values(), ids=REFUSED_CALLS)
async def test_a_refused_call_is_not_repeated_without_the_state_it_was_made_for(
    client, fault_proxy, redis_server, command, call, state, taken_first
):
    policy = QUICK.replace(backoff=1.0)
    async with client.with_policy(policy).client() as own:
        own._runtime.executor._rng = random.Random(3)  # backs off for 0.24 s
        await own.ping()
        await (own.execute_command("MULTI") if state == "MULTI" else own.select(3))
        fault_proxy.answer(command, b"-OOM command not allowed\r\n")
        refused = await cut_during_the_backoff(own, fault_proxy, call(own))
        if taken_first:
            await asyncio.sleep(0.05)
            with pytest.raises(driver.ConnectionError, match=f"state set by {state}: start again"):
                await own.get("other")
        with pytest.raises(driver.ConnectionError) as caught:
            await refused
        assert caught.value.progress is Progress.REFUSED
        assert ("start again" in str(caught.value)) is not taken_first
        assert await own.get("k") is None  # reported once
        assert await redis_server.query("EXISTS", "k") == 0


async def test_dangerous_commands_are_repeated_only_with_an_opt_in_on_the_call(
    fault_proxy, redis_server
):
    careless = QUICK.replace(repeat="any")
    async with ResilientRedis.from_url(fault_proxy.url, policy=careless) as client:
        fault_proxy.drop_reply("INCRBY")
        assert await client.incr("n") == 2
        fault_proxy.drop_reply("FLUSHALL")
        with pytest.raises(RedisOutcomeUnknown):
            await client.flushall()
        assert fault_proxy.requests["FLUSHALL"] == 1
        fault_proxy.drop_reply("FLUSHALL")
        assert await client.with_policy(repeat="any").flushall() is True
        assert fault_proxy.requests["FLUSHALL"] == 3
        fault_proxy.drop_reply("FLUSHALL")
        with pytest.raises(RedisOutcomeUnknown):
            await client.with_policy(repeat="conditional").flushall()


async def test_a_view_shares_the_connections_and_has_its_own_policy(client, fault_proxy, settled):
    view = client.with_policy(repeat="any", attempts=2)
    fault_proxy.drop_reply("INCRBY")
    assert await view.incr("n") == 2
    fault_proxy.drop_reply("INCRBY")
    with pytest.raises(RedisOutcomeUnknown):
        await client.incr("n")
    fault_proxy.drop_reply("GET", times=2)
    with pytest.raises(driver.TimeoutError):
        await view.get("n")
    await settled()
    before = fault_proxy.accepted
    async with client.with_policy(response_timeout=0.15) as other:
        assert await other.get("n") == b"3"
    assert fault_proxy.accepted == before
    assert await client.get("n") == b"3"  # leaving the view does not close the client


async def test_statistics_count_replies_retries_and_errors(client, fault_proxy):
    while client.stats().in_flight:  # noqa: ASYNC110 - a PING is counted, too
        await asyncio.sleep(0.001)
    before = client.stats()
    await asyncio.gather(*(client.set("k", "x" * 100) for _ in range(50)))
    await client.pipeline().get("k").get("k").execute()
    stats = client.stats()
    assert stats.replies - before.replies == 54  # MULTI, two GET, EXEC
    assert stats.bytes_sent - before.bytes_sent > 5000
    assert stats.bytes_received > before.bytes_received
    assert (stats.in_flight, stats.waiting, stats.retries) == (0, 0, 0)
    assert stats.ended == {}
    assert 0 < stats.latency["p50"] <= stats.latency["p99.9"] < 1
    fault_proxy.drop_reply("GET")
    await client.get("k")
    fault_proxy.drop_reply("INCRBY")
    with pytest.raises(RedisOutcomeUnknown):
        await client.incr("n")
    stats = client.stats()
    assert stats.retries == 1
    assert stats.ended == {"OutcomeUnknown": 1}
    assert stats.budget < before.budget
    fault_proxy.refuse()
    fault_proxy.reset()
    while client.health.available:  # noqa: ASYNC110 - the state itself is tested
        await asyncio.sleep(0.005)
    with pytest.raises(RedisUnavailable):
        await client.get("k")
    assert client.stats().ended["DependencyUnavailable"] == 1
    assert client.stats().connections == 0


async def test_a_batch_that_was_sent_before_the_outage_still_gets_its_replies(fault_proxy):
    policy = RetryPolicy(response_timeout=1.0, outage_wait=0.0)
    async with ResilientRedis.from_url(fault_proxy.url, policy=policy) as client:
        await client.ping()
        fault_proxy.latency(replies=0.5)
        batch = client.pipeline(transaction=False).incr("n").lpush("n", "x")
        call = asyncio.create_task(batch.execute(raise_on_error=False))
        await asyncio.sleep(0.05)  # it is sent

        client.health.unreachable("said by this test", asyncio.get_running_loop().time())
        assert not client.health.available

        number, error = await call
        assert number == 1
        assert "WRONGTYPE" in str(error)
