"""One value that cannot be decoded, one callback that raises: only its own caller fails."""

import asyncio

import pytest
from redis.exceptions import DataError

CALLS = 100
ODD = 37


async def test_a_value_that_cannot_be_decoded_fails_only_its_own_caller(
    redis_server, connect, watch
):
    for number in range(CALLS):
        value = b"\xff\xfe" if number == ODD else b"value %d" % number
        await redis_server.query("SET", f"key:{number}", value)
    redis = await connect(redis_server, decode_responses=True)
    seen = watch(redis)
    connections = redis._runtime.multiplexer.connections

    results = await asyncio.gather(
        *[redis.get(f"key:{number}") for number in range(CALLS)], return_exceptions=True
    )

    assert isinstance(results.pop(ODD), UnicodeDecodeError)
    assert results == [f"value {number}" for number in range(CALLS) if number != ODD]
    assert redis._runtime.multiplexer.connections == connections
    assert not seen.changes
    assert redis.stats().retries == 0


@pytest.mark.parametrize("transaction", [True, False], ids=["MULTI", "plain"])
async def test_an_undecodable_value_in_a_batch_fails_only_that_batch(
    transaction, redis_server, connect
):
    await redis_server.query("SET", "good", "value")
    await redis_server.query("SET", "bad", b"\xff\xfe")
    redis = await connect(redis_server, decode_responses=True)
    connections = redis._runtime.multiplexer.connections

    bad = redis.pipeline(transaction=transaction).get("good").get("bad").get("good")
    good = redis.pipeline(transaction=transaction).get("good").get("good")
    results = await asyncio.gather(
        redis.get("good"), bad.execute(), good.execute(), redis.get("good"), return_exceptions=True
    )

    assert isinstance(results.pop(1), UnicodeDecodeError)
    assert results == ["value", ["value", "value"], "value"]
    assert redis._runtime.multiplexer.connections == connections


async def test_a_nested_undecodable_value_keeps_the_replies_in_sync(redis_server, connect):
    await redis_server.query("RPUSH", "list", "a", b"\xff\xfe", "c")
    await redis_server.query("HSET", "hash", "field", b"\xff\xfe")
    await redis_server.query("SET", "key", "value")
    redis = await connect(redis_server, decode_responses=True)

    results = await asyncio.gather(
        redis.lrange("list", 0, -1),
        redis.get("key"),
        redis.hgetall("hash"),
        redis.get("key"),
        return_exceptions=True,
    )

    assert [type(result) for result in results] == [
        UnicodeDecodeError,
        str,
        UnicodeDecodeError,
        str,
    ]


async def test_a_callback_that_raises_fails_only_its_own_caller(redis_server, connect, watch):
    class OddValueError(Exception):
        pass

    def odd(reply):
        if reply == b"37":
            raise OddValueError
        return int(reply)

    for number in range(CALLS):
        await redis_server.query("SET", f"key:{number}", str(number))
    redis = await connect(redis_server)
    redis.set_response_callback("GET", odd)
    seen = watch(redis)

    results = await asyncio.gather(
        *[redis.get(f"key:{number}") for number in range(CALLS)], return_exceptions=True
    )

    assert isinstance(results.pop(ODD), OddValueError)
    assert results == [number for number in range(CALLS) if number != ODD]
    assert not seen.changes
    assert redis.stats().connections == 2


async def test_an_argument_that_cannot_be_encoded_sends_nothing_and_fails_only_its_own_caller(
    redis_server, connect, executed
):
    redis = await connect(redis_server)

    results = await asyncio.gather(
        *[redis.set(f"key:{n}", {"a": 1} if n == ODD else n) for n in range(CALLS)],
        return_exceptions=True,
    )

    assert isinstance(results.pop(ODD), DataError)
    assert results == [True] * (CALLS - 1)
    assert await executed(redis_server, "SET") == CALLS - 1


@pytest.mark.parametrize(
    "garbage", [b"hello?\r\n", b"$-7\r\n", b"+surplus\r\n", b"*1\r\n$1\r\n"], ids=repr
)
async def test_unexpected_data_never_becomes_a_reply(
    garbage, redis_server, fault_proxy, connect, quick
):
    """Garbage or a surplus reply closes the connection; each caller gets its value or an error."""
    for number in range(CALLS):
        await redis_server.query("SET", f"key:{number}", str(number))
    redis = await connect(fault_proxy, policy=quick)

    fault_proxy.inject(garbage)
    await asyncio.sleep(0.02)  # it arrives while the connections are idle
    for _ in range(5):
        results = await asyncio.gather(*[redis.get(f"key:{n}") for n in range(CALLS)])
        assert results == [b"%d" % n for n in range(CALLS)]
