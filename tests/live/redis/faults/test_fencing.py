"""A dead connection may not apply a write after a later write was acknowledged."""

import asyncio

import pytest

from resilient_io import Closed, DeadlineExceeded, OutcomeUnknown
from resilient_io.redis import ConnectionSettings

BUSY = b"-BUSY Redis is busy running a script\r\n"
ALL_BUT_FENCING = ["+@all", "-client|kill", "-client|list", "-client|id"]


def sets(value: bytes):
    return lambda request: request.name == "SET" and value in request.arguments


async def lose_the_connection_of_a_held_set(redis, proxy):
    """Delay a SET on its way to the server. Return its task and the fault."""
    held = proxy.hold(sets(b"first"), times=1)
    first = asyncio.create_task(redis.set("key", "first"))
    async with asyncio.timeout(5):
        await held.happened()
    return first, held


async def test_a_set_that_arrives_after_a_later_one_was_acknowledged_is_fenced(
    redis_server, fault_proxy, connect, patient
):
    redis = await connect(fault_proxy, policy=patient.replace(repeat="read"))
    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)
    with pytest.raises(OutcomeUnknown):
        await first

    assert await redis.set("key", "later") is True
    assert await redis_server.query("GET", "key") == b"later"
    held.release()
    await asyncio.sleep(0.1)

    assert await redis_server.query("GET", "key") == b"later"
    assert await redis.get("key") == b"later"


async def test_only_the_repeat_of_a_held_set_is_applied(
    redis_server, fault_proxy, connect, patient, executed
):
    redis = await connect(fault_proxy, policy=patient)
    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)
    assert await first is True  # repeated on another connection, after the dead one was fenced

    assert await redis.set("key", "later") is True
    held.release()
    await asyncio.sleep(0.1)

    assert await redis_server.query("GET", "key") == b"later"
    assert await executed(redis_server, "SET") == 2


async def test_nothing_is_sent_between_the_death_of_a_connection_and_its_fencing(
    redis_server, fault_proxy, connect, patient
):
    redis = await connect(fault_proxy, policy=patient.replace(repeat="read"))
    kills = fault_proxy.hold("CLIENT KILL", times=1)
    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)
    async with asyncio.timeout(5):
        await kills.happened()

    later = asyncio.create_task(redis.set("key", "later"))
    await asyncio.sleep(0.2)
    assert not later.done()
    assert await redis_server.query("GET", "key") is None

    kills.release()
    assert await later is True
    held.release()
    await asyncio.sleep(0.1)
    assert await redis_server.query("GET", "key") == b"later"
    with pytest.raises(OutcomeUnknown):
        await first


async def test_a_call_that_waits_too_long_for_fencing_names_the_reason(
    redis_server, fault_proxy, connect, quick
):
    redis = await connect(fault_proxy, policy=quick.replace(repeat="read"))
    refused = fault_proxy.answer("CLIENT LIST", BUSY, times=None)
    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)
    with pytest.raises(OutcomeUnknown):
        await first
    with pytest.raises(DeadlineExceeded, match="waited for a lost connection to be fenced"):
        await redis.set("key", "later")
    refused.remove()
    assert await redis.set("key", "later") is True
    held.release()


@pytest.mark.parametrize("count", [1, 2])
async def test_a_dead_connection_is_fenced_by_its_successor_or_by_a_survivor(
    count, redis_server, fault_proxy, connect, patient
):
    redis = await connect(
        fault_proxy,
        policy=patient.replace(repeat="read"),
        connections=ConnectionSettings(count=count),
    )
    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)
    with pytest.raises(OutcomeUnknown):
        await first

    assert await redis.set("key", "later") is True
    held.release()
    await asyncio.sleep(0.1)
    assert await redis_server.query("GET", "key") == b"later"


async def test_the_outcome_of_a_set_is_unknown_if_an_acl_forbids_fencing(
    redis_server, fault_proxy, connect, patient, executed
):
    await redis_server.query("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", *ALL_BUT_FENCING)
    url = fault_proxy.url.replace("redis://", "redis://app:secret@")
    redis = await connect(url, policy=patient)
    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)

    with pytest.raises(OutcomeUnknown) as caught:
        await first
    assert "secret" not in str(caught.value)
    assert caught.value.attempts == 1
    assert await executed(redis_server, "SET") == 0

    assert await redis.set("key", "later") is True
    held.release()


@pytest.mark.parametrize("forbidden", ["-client|kill", "-client|list", "-client|id"])
async def test_any_missing_permission_makes_the_outcome_unknown(
    forbidden, redis_server, fault_proxy, connect, patient
):
    await redis_server.query(
        "ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", forbidden
    )
    url = fault_proxy.url.replace("redis://", "redis://app:secret@")
    redis = await connect(url, policy=patient)
    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)

    with pytest.raises(OutcomeUnknown):
        await first
    assert await redis.set("key", "later") is True
    held.release()


async def test_a_client_of_a_restarted_server_with_the_same_id_is_not_killed(
    redis_server, fault_proxy, connect, stranger, patient
):
    redis = await connect(fault_proxy, policy=patient.replace(repeat="read"))
    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)
    await redis_server.restart()
    # IDs start again: these clients have the IDs of the dead connections.
    strangers = [await stranger(redis_server.port) for _ in range(20)]
    with pytest.raises(OutcomeUnknown):
        await first

    await redis.health.until_up(5)
    assert await redis.set("key", "later") is True
    for reader, writer in strangers:
        writer.write(b"PING\r\n")
        assert await reader.readline() == b"+PONG\r\n"
    held.release()


async def test_a_connection_opened_while_a_script_runs_is_fenced(
    redis_server, fault_proxy, connect, stranger, patient
):
    """The server refuses CLIENT SETNAME while a script runs, but not HELLO."""
    await redis_server.query("CONFIG", "SET", "lua-time-limit", "20")
    reader, writer = await stranger(redis_server.port)
    writer.write(b"EVAL 'while true do end' 0\r\n")
    await asyncio.sleep(0.2)
    redis = await connect(fault_proxy, policy=patient.replace(repeat="read"))
    await redis_server.query("SCRIPT", "KILL")
    assert b"killed" in await reader.readline()

    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)
    with pytest.raises(OutcomeUnknown):
        await first
    assert await redis.set("key", "later") is True
    held.release()
    await asyncio.sleep(0.1)

    assert await redis_server.query("GET", "key") == b"later"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("command", ["CLIENT SETNAME", "CLIENT ID"])
async def test_only_a_missing_permission_leaves_a_connection_without_identity(
    command, protocol, redis_server, fault_proxy, connect, patient
):
    fault_proxy.answer(command, BUSY, times=2)
    redis = await connect(fault_proxy, policy=patient, protocol=protocol)
    names = [each["name"] for each in await redis.client_list()]
    assert sum(name.startswith("resilient-io:") for name in names) == 2

    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)
    assert await first is True  # repeated, because the first copy was fenced
    held.release()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("command", ["CLIENT LIST", "CLIENT KILL"])
async def test_fencing_that_is_refused_for_now_is_tried_again(
    command, count, redis_server, fault_proxy, connect, patient, executed
):
    redis = await connect(fault_proxy, policy=patient, connections=ConnectionSettings(count=count))
    refused = fault_proxy.answer(command, BUSY, times=3)
    first, held = await lose_the_connection_of_a_held_set(redis, fault_proxy)

    assert await first is True
    assert len(refused.struck) == 3
    held.release()
    await asyncio.sleep(0.1)
    assert await executed(redis_server, "SET") == 1


async def hold_an_exec(redis, proxy):
    """Hold an EXEC in the network. Return the fault, and the task of its caller."""
    held = proxy.hold("EXEC", times=1)

    async def transact():
        async with redis.pipeline() as pipe:
            await pipe.watch("guard")
            pipe.multi()
            await pipe.set("key", "first").execute()

    call = asyncio.create_task(transact())
    async with asyncio.timeout(5):
        await held.happened()
    return held, call


async def abandon_a_held_exec(redis, proxy, *, cancel=False):
    """Hold an EXEC in the network until its caller gives up. Return the fault."""
    held, call = await hold_an_exec(redis, proxy)
    if cancel:
        call.cancel()
    with pytest.raises(asyncio.CancelledError if cancel else OutcomeUnknown):
        await call
    return held


@pytest.mark.parametrize("cancel", [False, True], ids=["timed out", "cancelled"])
@pytest.mark.parametrize("later", ["shared", "exclusive"])
async def test_an_exec_that_arrives_after_a_later_write_was_acknowledged_is_fenced(
    later, cancel, redis_server, fault_proxy, connect, patient
):
    redis = await connect(fault_proxy, policy=patient)
    held = await abandon_a_held_exec(redis, fault_proxy, cancel=cancel)

    if later == "shared":
        assert await redis.set("key", "later") is True
    else:
        async with redis.pipeline() as pipe:
            await pipe.watch("other")
            pipe.multi()
            assert await pipe.set("key", "later").execute() == [True]
    held.release()
    await asyncio.sleep(0.1)

    assert await redis_server.query("GET", "key") == b"later"


@pytest.mark.parametrize("later", ["shared", "exclusive", "watching"])
async def test_no_write_is_sent_before_an_exclusive_connection_is_fenced(
    later, redis_server, fault_proxy, connect, patient
):
    redis = await connect(fault_proxy, policy=patient)
    kills = fault_proxy.hold("CLIENT KILL", times=1)
    watching = redis.pipeline()
    await watching.watch("other")
    watching.multi()
    held = await abandon_a_held_exec(redis, fault_proxy)
    async with asyncio.timeout(5):
        await kills.happened()

    calls = {
        "shared": lambda: redis.set("key", "later"),
        "exclusive": lambda: redis.blmove("absent", "other", 0.01),
        "watching": lambda: watching.set("key", "later").execute(),
    }
    call = asyncio.create_task(calls[later]())
    sent = fault_proxy.requests["SET"] + fault_proxy.requests["BLMOVE"]
    await asyncio.sleep(0.2)
    assert not call.done()
    assert fault_proxy.requests["SET"] + fault_proxy.requests["BLMOVE"] == sent
    kills.release()
    await call
    held.release()
    await watching.reset()


async def test_a_cancelled_blocking_write_takes_nothing_after_a_later_call(
    redis_server, fault_proxy, connect, patient
):
    redis = await connect(fault_proxy, policy=patient)
    held = fault_proxy.hold("BLMOVE", times=1)
    call = asyncio.create_task(redis.blmove("from", "to", 5))
    async with asyncio.timeout(5):
        await held.happened()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    await redis.rpush("from", "element")
    held.release()
    await asyncio.sleep(0.1)

    assert await redis_server.query("LLEN", "from") == 1


async def test_a_blocking_read_is_given_up_without_fencing(
    redis_server, fault_proxy, connect, patient
):
    redis = await connect(fault_proxy, policy=patient)
    kills = fault_proxy.hold("CLIENT KILL")
    call = asyncio.create_task(redis.xread({"stream": "$"}, block=5000))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await redis.set("key", "value")
    assert not kills.struck
    kills.remove()


async def test_an_unsent_repeat_does_not_move_past_its_first_copy(
    redis_server, fault_proxy, connect, patient
):
    """The first copy is in the network, and the server does not permit fencing it."""
    await redis_server.query("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", *ALL_BUT_FENCING)
    redis = await connect(
        fault_proxy.url.replace("redis://", "redis://app:secret@"),
        policy=patient.replace(response_timeout=3.0),
        connections=ConnectionSettings(count=1),
    )
    hasty = redis.with_policy(response_timeout=0.3, backoff=0.01)
    (carrier,) = redis._runtime.multiplexer.connections
    fault_proxy.stall("requests", new=False)
    first = asyncio.create_task(hasty.set("key", "first"))
    await asyncio.sleep(0.05)
    carrier.pause_writing()  # as asyncio does when the network takes no more bytes
    async with asyncio.timeout(5):
        while not carrier._queue:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)
    assert redis.stats().retries == 1
    assert redis._runtime.multiplexer.current is carrier
    fault_proxy.connections[0].reset()

    with pytest.raises(OutcomeUnknown, match="does not permit ending the connection"):
        await first
    assert await redis_server.query("EXISTS", "key") == 0
    fault_proxy.resume()


async def test_an_exec_in_flight_at_the_close_is_fenced_before_the_client_is_used_again(
    redis_server, fault_proxy, connect, patient
):
    redis = await connect(fault_proxy, policy=patient)
    held, call = await hold_an_exec(redis, fault_proxy)
    await redis.aclose()
    with pytest.raises((OutcomeUnknown, Closed)):
        await call

    await redis.initialize()
    async with redis.pipeline() as pipe:
        await pipe.watch("other")
        pipe.multi()
        assert await pipe.set("key", "later").execute() == [True]
    held.release()
    await asyncio.sleep(0.1)
    assert await redis_server.query("GET", "key") == b"later"
