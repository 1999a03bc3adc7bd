"""A reply is lost, or half of it: a non-idempotent command is never executed twice."""

import asyncio

import pytest

from resilient_io import Closed, OutcomeUnknown, Progress
from resilient_io.redis import ConnectionSettings

LOSSES = {
    "dropped": lambda proxy, command: proxy.drop_reply(command),
    "half, then closed": lambda proxy, command: proxy.half_reply(command, then="close"),
    "half, then reset": lambda proxy, command: proxy.half_reply(command, then="reset"),
    "half, then silence": lambda proxy, command: proxy.half_reply(command, then="silence"),
    "reset after the request": lambda proxy, command: proxy.reset_on(command, forward=True),
}

losses = pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)


@losses
async def test_an_increment_whose_reply_is_lost_was_executed_once_and_its_outcome_is_unknown(
    lose, redis_server, fault_proxy, connect, quick, patient, slack
):
    redis = await connect(fault_proxy, policy=patient)
    fault = lose(fault_proxy, "INCRBY")
    began = asyncio.get_running_loop().time()

    with pytest.raises(OutcomeUnknown) as caught:
        await redis.incr("counter")

    assert asyncio.get_running_loop().time() - began <= quick.response_timeout + slack()
    assert caught.value.progress is Progress.MAYBE_APPLIED
    assert caught.value.attempts == 1
    assert len(fault.struck) == 1
    assert fault_proxy.requests["INCRBY"] == 1
    assert await redis_server.query("GET", "counter") == b"1"
    assert await redis.incr("counter") == 2


@losses
async def test_an_increment_is_repeated_if_the_caller_allows_it(
    lose, redis_server, fault_proxy, connect, quick, patient, slack
):
    redis = await connect(fault_proxy, policy=patient)
    lose(fault_proxy, "INCRBY")
    began = asyncio.get_running_loop().time()

    assert await redis.with_policy(repeat="any").incr("counter") == 2

    assert asyncio.get_running_loop().time() - began <= quick.deadline + slack()
    assert await redis_server.query("GET", "counter") == b"2"


@losses
async def test_a_read_whose_reply_is_lost_is_answered_within_the_deadline(
    lose, redis_server, fault_proxy, connect, quick, patient, slack
):
    await redis_server.query("SET", "key", "value")
    redis = await connect(fault_proxy, policy=patient)
    lose(fault_proxy, "GET")
    began = asyncio.get_running_loop().time()

    assert await redis.get("key") == b"value"

    assert asyncio.get_running_loop().time() - began <= quick.deadline + slack()
    assert fault_proxy.requests["GET"] == 2


@losses
async def test_a_plain_set_whose_reply_is_lost_is_repeated_within_the_deadline(
    lose, redis_server, fault_proxy, connect, quick, patient, slack, executed
):
    redis = await connect(fault_proxy, policy=patient)
    lose(fault_proxy, "SET")
    began = asyncio.get_running_loop().time()

    assert await redis.set("key", "value") is True

    assert asyncio.get_running_loop().time() - began <= quick.deadline + slack()
    assert await executed(redis_server, "SET") == 2
    assert await redis_server.query("GET", "key") == b"value"


REFUSALS = {
    "OOM": ("maxmemory", "1"),
    "NOREPLICAS": ("min-replicas-to-write", "1"),
}


@pytest.mark.parametrize("setting", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("repeat", ["idempotent", "any"])
async def test_a_write_that_was_applied_has_an_unknown_outcome_if_its_repeat_is_refused(
    repeat, setting, redis_server, fault_proxy, connect, patient
):
    redis = await connect(fault_proxy, policy=patient.replace(repeat=repeat))
    command = "SET" if repeat == "idempotent" else "INCRBY"
    lost = fault_proxy.drop_reply(command)
    call = asyncio.create_task(redis.set("key", "1") if command == "SET" else redis.incr("key"))
    async with asyncio.timeout(5):
        await lost.happened()
    await redis_server.query("CONFIG", "SET", *setting)

    with pytest.raises(OutcomeUnknown, match="an earlier attempt may have been applied") as caught:
        await call

    assert caught.value.progress is Progress.MAYBE_APPLIED
    assert caught.value.attempts == 3
    assert await redis_server.query("GET", "key") == b"1"


@pytest.mark.parametrize("end", ["deadline", "close", "unreachable"])
async def test_a_write_that_was_applied_never_counts_as_not_sent(
    end, redis_server, fault_proxy, connect, quick
):
    policy = quick.replace(response_timeout=0.2, deadline=1.0)
    redis = await connect(fault_proxy, policy=policy, connections=ConnectionSettings(count=1))
    lost = fault_proxy.drop_reply("SET")
    call = asyncio.create_task(redis.set("key", "value"))
    async with asyncio.timeout(5):
        await lost.happened()
    # The repeat waits for a connection.
    if end == "unreachable":
        fault_proxy.refuse()
    else:
        fault_proxy.accept_silently()
    if end == "close":
        await asyncio.sleep(0.5)
        closing = asyncio.create_task(redis.aclose())

    with pytest.raises((OutcomeUnknown, Closed)) as caught:
        await call

    assert caught.value.progress is Progress.MAYBE_APPLIED
    assert await redis_server.query("GET", "key") == b"value"
    if end == "close":
        await closing


@losses
async def test_other_calls_on_the_lost_connection_are_treated_by_their_own_effect(
    lose, redis_server, fault_proxy, connect, patient
):
    await redis_server.query("SET", "key", "value")
    redis = await connect(fault_proxy, policy=patient)
    lose(fault_proxy, "INCRBY")

    first, *others = await asyncio.gather(
        redis.incr("counter"),
        *[redis.get("key") for _ in range(20)],
        *[redis.set(f"key:{n}", n) for n in range(20)],
        *[redis.incr(f"counter:{n}") for n in range(20)],
        return_exceptions=True,
    )

    assert isinstance(first, OutcomeUnknown)
    assert others[:20] == [b"value"] * 20
    assert others[20:40] == [True] * 20
    for number, result in enumerate(others[40:]):
        found = await redis_server.query("GET", f"counter:{number}")
        assert (result, found) == (1, b"1") or (
            isinstance(result, OutcomeUnknown) and found in (None, b"1")
        )


@pytest.mark.parametrize("transaction", [True, False], ids=["MULTI", "plain"])
async def test_a_batch_of_increments_whose_replies_are_lost_was_executed_once(
    transaction, redis_server, fault_proxy, connect, patient
):
    redis = await connect(fault_proxy, policy=patient)
    fault_proxy.drop_reply("INCRBY", nth=3)
    pipeline = redis.pipeline(transaction=transaction)
    for _ in range(5):
        pipeline.incr("counter")

    with pytest.raises(OutcomeUnknown) as caught:
        await pipeline.execute()

    assert await redis_server.query("GET", "counter") == b"5"
    assert caught.value.answered == (() if transaction else (1, 2))
    assert caught.value.unanswered == (tuple(range(5)) if transaction else (2, 3, 4))


async def test_a_script_that_returns_a_refusal_is_not_repeated(redis_server, connect, patient):
    redis = await connect(redis_server, policy=patient.replace(repeat="conditional"))
    script = "redis.call('INCR', KEYS[1]) return redis.error_reply('LOADING after the fact')"

    with pytest.raises(Exception, match="after the fact") as caught:
        await redis.eval(script, 1, "counter")

    assert not isinstance(caught.value, AssertionError)
    assert await redis_server.query("GET", "counter") == b"1"
    assert redis.stats().retries == 0


@pytest.mark.parametrize("prefix", ["LOADING", "READONLY", "OOM", "MISCONF", "BUSY", "MASTERDOWN"])
async def test_no_error_of_a_script_proves_that_nothing_was_applied(
    prefix, redis_server, connect, patient, watch
):
    redis = await connect(redis_server, policy=patient)
    seen = watch(redis)
    script = f"redis.call('INCR', KEYS[1]) return redis.error_reply('{prefix} x')"
    pipeline = redis.pipeline(transaction=False).eval(script, 1, "counter")

    with pytest.raises(Exception, match="x"):
        await redis.eval(script, 1, "counter")
    with pytest.raises(Exception, match="x"):
        await pipeline.execute()

    assert await redis_server.query("GET", "counter") == b"2"
    assert not seen.changes
