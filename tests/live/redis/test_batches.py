"""Pipelines, transactions, WATCH and scripts on a healthy server."""

import asyncio

import pytest
from redis.exceptions import (
    DataError,
    ExecAbortError,
    NoScriptError,
    ResponseError,
    WatchError,
)

from resilient_io.redis import ResilientRedis, RouteRefused


@pytest.fixture
async def client(shared_redis):
    async with ResilientRedis(port=shared_redis.port, decode_responses=True) as client:
        yield client


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_batch_returns_every_reply_in_order(client, transaction):
    pipe = client.pipeline(transaction=transaction)
    pipe.set("k", 1).incr("k").hset("h", mapping={"a": 1}).hgetall("h").get("missing")
    assert len(pipe) == 5
    assert await pipe.execute() == [True, 2, 1, {"a": "1"}, None]
    assert len(pipe) == 0
    assert await pipe.execute() == []
    # The same pipeline again.
    assert await pipe.get("k").execute() == ["2"]


@pytest.mark.parametrize("transaction", [True, False])
async def test_batches_of_many_callers_receive_their_own_replies(client, transaction):
    async def add(number):
        pipe = client.pipeline(transaction=transaction)
        for place in range(20):
            pipe.set(f"{number}:{place}", f"{number}.{place}").get(f"{number}:{place}")
        return await pipe.execute()

    def expected(number):
        return [v for place in range(20) for v in (True, f"{number}.{place}")]

    singles = [client.incr("n") for _ in range(100)]
    results = await asyncio.gather(*(add(number) for number in range(50)), *singles)
    assert results[:50] == [expected(number) for number in range(50)]
    assert results[50:] == list(range(1, 101))


async def test_a_transaction_is_not_interleaved_with_other_calls(client):
    async def pair():
        return await client.pipeline().incr("n").incr("n").execute()

    async def single():
        await client.incrby("n", 1000)

    results = await asyncio.gather(*(do() for _ in range(50) for do in (pair, single)))
    for first, second in filter(None, results):
        assert second == first + 1


@pytest.mark.parametrize("transaction", [True, False])
async def test_an_error_of_one_command_leaves_the_others_applied(client, transaction):
    await client.set("s", "text")
    pipe = client.pipeline(transaction=transaction)
    pipe.incr("n").lpush("s", 1).incr("n")
    one, error, two = await pipe.execute(raise_on_error=False)
    assert (one, two) == (1, 2)
    assert isinstance(error, ResponseError)
    assert str(error).startswith("WRONGTYPE")
    pipe.incr("n").lpush("s", 1).incr("n")
    with pytest.raises(ResponseError, match=r"Command # 2 \(LPUSH s 1\) of pipeline .*WRONGTYPE"):
        await pipe.execute()
    assert await client.get("n") == "4"
    assert len(pipe) == 0


async def test_a_command_that_the_server_does_not_queue_aborts_the_whole_transaction(client):
    pipe = client.pipeline().incr("n").execute_command("NOSUCH").incr("n")
    with pytest.raises(ResponseError, match=r"Command # 2 \(NOSUCH\).*unknown command") as caught:
        await pipe.execute()
    assert isinstance(caught.value.__cause__, ExecAbortError)
    assert await client.get("n") is None


async def test_an_argument_that_cannot_be_encoded_sends_nothing(client):
    pipe = client.pipeline().incr("n").set("k", None)
    with pytest.raises(DataError, match="NoneType"):
        await pipe.execute()
    assert await client.get("n") is None
    assert await pipe.incr("n").execute() == [1]


async def test_a_changed_key_raises_watch_error_and_nothing_is_applied(client):
    async with client.pipeline() as pipe:
        await pipe.watch("k")
        assert await pipe.get("k") is None
        await client.set("k", "theirs")
        pipe.multi()
        pipe.set("k", "ours")
        with pytest.raises(WatchError):
            await pipe.execute()
        # The pipeline is empty again.
        assert await pipe.get("k").execute() == ["theirs"]


async def test_keys_may_change_after_unwatch(client):
    async with client.pipeline() as pipe:
        await pipe.watch("k")
        await pipe.unwatch()
        await client.set("k", "theirs")
        assert await pipe.set("k", "ours").execute() == [True]


async def test_leaving_a_watching_pipeline_releases_its_connection(client):
    for _ in range(20):
        async with client.pipeline() as pipe:
            await pipe.watch("k")
    assert client.stats().exclusive <= 1
    assert await client.set("k", 1)


async def test_transactions_with_conflicts_run_again_until_they_succeed(client):
    await client.set("n", 0)
    tries = 0

    async def add(pipe):
        nonlocal tries
        tries += 1
        value = int(await pipe.get("n"))
        await asyncio.sleep(0)
        pipe.multi()
        pipe.set("n", value + 1)

    results = await asyncio.gather(*(client.transaction(add, "n") for _ in range(10)))
    assert results == [[True]] * 10
    assert await client.get("n") == "10"
    assert tries > 10


async def test_a_transaction_may_return_the_value_of_its_function(client):
    await client.set("n", 5)

    async def move(pipe):
        value = await pipe.get("n")
        pipe.multi()
        pipe.delete("n")
        return value

    assert await client.transaction(move, "n", value_from_callable=True) == "5"


async def test_missing_scripts_are_loaded(client):
    script = client.register_script("return {KEYS[1], ARGV[1]}")
    assert await script(keys=["k"], args=["a"]) == ["k", "a"]
    await client.script_flush()
    assert await script(keys=["k"], args=["b"]) == ["k", "b"]
    await client.script_flush()
    for transaction in (True, False):
        pipe = client.pipeline(transaction=transaction)
        await script(keys=["k"], args=["c"], client=pipe)
        pipe.set("x", 1)
        assert await pipe.execute() == [["k", "c"], True]
        await client.script_flush()
    with pytest.raises(NoScriptError):
        await client.evalsha("0" * 40, 0)


async def test_blocking_commands_may_be_queued(client):
    await client.rpush("l", "a")
    pipe = client.pipeline(transaction=False).blpop("l", timeout=1).blpop("none", timeout=0.01)
    assert await pipe.set("k", 1).execute() == [("l", "a"), None, True]
    # In MULTI nothing blocks.
    pipe = client.pipeline().blpop("none", timeout=0).set("k", 2)
    assert await pipe.execute() == [None, True]


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("WATCH", "k"), r"pipeline\(transaction=True\)"),
        (("MULTI",), r"transaction\(\)"),
        (("EXEC",), r"transaction\(\)"),
        (("SELECT", 1), "`db=`"),
        (("AUTH", "x"), "`password=`"),
        (("HELLO", 3), "`protocol=`"),
        (("RESET",), r"`client\(\)`"),
        (("QUIT",), r"`aclose\(\)`"),
        (("WAIT", 0, 0), r"`client\(\)`"),
        (("SUBSCRIBE", "c"), r"`pubsub\(\)`"),
        (("UNSUBSCRIBE",), r"`pubsub\(\)`"),
        (("MONITOR",), r"`monitor\(\)`"),
        (("CLIENT", "REPLY", "OFF"), r"`pipeline\(\)`"),
        (("CLIENT REPLY", "SKIP"), r"`pipeline\(\)`"),
        (("CLIENT TRACKING", "ON"), r"`client\(\)`"),
        (("select", 1), "`db=`"),
        ((b"SELECT", 1), "`db=`"),
        (("SELECT 1",), "`db=`"),
        (("SYNC",), "replication"),
    ],
)
async def test_a_command_that_would_change_a_shared_connection_is_refused_with_advice(
    client, words, advice
):
    for refused in (
        client.execute_command(*words),
        client.pipeline(transaction=words[0] == "WAIT").get("k").execute_command(*words).execute()
        if words[0] != "WATCH"
        else client.execute_command(*words),
    ):
        with pytest.raises(RouteRefused, match=advice) as caught:
            await refused
        assert isinstance(caught.value, DataError)
    assert await client.execute_command("CLIENT", "INFO")
    assert await client.set("k", 1)


async def test_a_refused_command_affects_no_call_in_flight(client):
    calls = [asyncio.ensure_future(client.incr("n")) for _ in range(20)]
    with pytest.raises(RouteRefused):
        await client.select(1)
    assert await asyncio.gather(*calls) == list(range(1, 21))
