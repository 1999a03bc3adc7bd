"""`redis.pubsub()` without faults: redis-py's messages, limits, other commands, and the end."""

import asyncio
import contextlib
import gc
import warnings

import pytest
import redis.asyncio as driver
from redis.exceptions import NoPermissionError, PubSubError, ResponseError

from resilient_io import Cause, ConfigurationError
from resilient_io.redis import (
    Gap,
    RedisAuthenticationFailed,
    RedisClosed,
    RedisUnavailable,
    ResilientRedis,
)
from resilient_io.testing import cancel_everywhere, free_port

SETTINGS = [
    pytest.param({"protocol": protocol, "decode_responses": decode}, id=f"RESP{protocol} {kind}")
    for protocol in (2, 3)
    for decode, kind in ((False, "bytes"), (True, "text"))
]


async def next_message(pubsub, *, kind="message"):
    """Return the next message of a kind."""
    async with asyncio.timeout(5):
        while True:
            message = await pubsub.get_message(timeout=5)
            if message is not None and message["type"] == kind:
                return message


async def use(kind, port, settings):
    """Return everything that a subscriber of a client sees."""
    seen = []

    async def handle(message):
        seen.append(("handled", message))

    async with kind(port=port, **settings) as client, client.pubsub() as pubsub:

        async def read(count):
            for _ in range(count):
                seen.append(await pubsub.get_message(timeout=5))  # noqa: PERF401

        await pubsub.subscribe("one", b"two")
        await pubsub.psubscribe("n*", **{"handled*": handle})
        await pubsub.ssubscribe("shard", **{"handled shard": lambda m: seen.append(("sync", m))})
        await read(6)
        for channel in ("one", "news", "handled 1", "two"):
            await client.publish(channel, channel * 2)
            await read(1)
        for channel in ("shard", "handled shard"):
            await client.spublish(channel, b"\x01")
            await read(1)
        await pubsub.ping()
        await read(1)
        await pubsub.unsubscribe("one", "never subscribed")
        await read(2)
        await client.publish("one", "not received")
        await pubsub.punsubscribe()
        await read(2)
        seen[-2:] = sorted(str(each["channel"]) for each in seen[-2:])
        await pubsub.sunsubscribe()
        await read(2)
        seen[-2:] = sorted(str(each["channel"]) for each in seen[-2:])  # in any order
        seen.append(pubsub.subscribed)
        await pubsub.unsubscribe()
        await read(1)
        seen.append(pubsub.subscribed)
        await pubsub.subscribe("again", "again")
        await read(1)
        await client.publish("again", 1)
        seen.append(await pubsub.get_message(ignore_subscribe_messages=True, timeout=5))
        seen.append((sorted(pubsub.channels), pubsub.patterns, pubsub.shard_channels))
    return seen


@pytest.mark.parametrize("settings", SETTINGS)
async def test_subscriber_sees_what_redis_py_shows(shared_redis, settings):
    if settings == {"protocol": 3, "decode_responses": True}:
        # redis-py 8.1 takes the reply to PING apart: {'type': 'P', 'channel': 'O', 'data': 'N'}.
        expected = [
            {"type": "pong", "pattern": None, "channel": None, "data": ""}
            if isinstance(each, dict) and each["type"] == "P"
            else each
            for each in await use(driver.Redis, shared_redis.port, settings)
        ]
    else:
        expected = await use(driver.Redis, shared_redis.port, settings)
    assert await use(ResilientRedis, shared_redis.port, settings) == expected


async def test_pubsub_is_redis_pys_and_has_its_own_connection(client):
    async with client.pubsub() as one, client.pubsub() as other:
        assert isinstance(one, driver.client.PubSub)
        assert one.connection is None
        await one.subscribe("c")
        await other.subscribe("c")
        assert one.connection is not other.connection
        assert one.connection.is_connected
        assert one.connection_pool is client.connection_pool
        assert (await client.pubsub_numsub("c"))[0][1] == 2
    assert (await client.pubsub_numsub("c"))[0][1] == 0


async def test_get_message_without_waiting_finds_what_has_arrived(client):
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("c")
        assert await pubsub.get_message(timeout=0.05) is None
        assert await pubsub.get_message() is None
        await client.publish("c", 1)
        for _ in range(100):
            message = await pubsub.get_message()
            if message is not None:
                break
        assert message["data"] == b"1"


async def test_reading_without_a_subscription_is_refused_as_by_redis_py(client):
    async with client.pubsub() as pubsub:
        with pytest.raises(RuntimeError, match="did you forget to call subscribe"):
            await pubsub.get_message()


async def test_a_full_queue_does_not_keep_other_tasks_from_running(client):
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("c")
        await client.pipeline(transaction=False).execute()
        pipe = client.pipeline(transaction=False)
        for number in range(500):
            pipe.publish("c", number)
        await pipe.execute()
        ran = 0

        async def other():
            nonlocal ran
            while True:
                ran += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        got = 0
        async for message in pubsub.listen():
            got += message["type"] == "message"
            if got == 500:
                break
        task.cancel()
        assert ran >= 5


async def test_run_calls_handlers_and_passes_their_errors_on(client):
    seen, errors = asyncio.Queue(), []

    def handle(message):
        seen.put_nowait(message["data"])
        raise ValueError(message["data"])

    async with client.pubsub() as pubsub:
        await pubsub.subscribe(c=handle)
        running = asyncio.ensure_future(
            pubsub.run(exception_handler=lambda error, _: errors.append(error), poll_timeout=0.1)
        )
        for number in (b"1", b"2"):
            await client.publish("c", number)
            async with asyncio.timeout(5):
                assert await seen.get() == number
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert [str(error) for error in errors] == ["b'1'", "b'2'"]
        await pubsub.subscribe("no handler")
        with pytest.raises(PubSubError, match="no handler"):
            await pubsub.run()


async def test_push_handler_takes_the_messages_with_resp3(shared_redis):
    pushed = []

    async def take(response):
        pushed.append(response)

    async with (
        ResilientRedis(port=shared_redis.port, protocol=3) as client,
        client.pubsub(push_handler_func=take) as pubsub,
    ):
        await pubsub.subscribe("c")
        await client.publish("c", 1)
        for _ in range(2):
            assert await pubsub.get_message(timeout=0.5) is None
        assert pushed == [[b"subscribe", b"c", 1], [b"message", b"c", b"1"]]


async def test_a_message_that_is_not_text_is_an_error_and_the_next_one_arrives(shared_redis):
    async with (
        ResilientRedis(port=shared_redis.port, decode_responses=True) as client,
        client.pubsub(ignore_subscribe_messages=True) as pubsub,
    ):
        await pubsub.subscribe("c")
        assert await pubsub.get_message(timeout=0.1) is None
        await client.publish("c", b"\xff")
        await client.publish("c", "text")
        with pytest.raises(UnicodeDecodeError):
            await pubsub.get_message(timeout=5)
        assert (await pubsub.get_message(timeout=5))["data"] == "text"


async def test_after_the_last_unsubscribe_a_new_subscribe_receives_messages(shared_redis):
    async with (
        ResilientRedis(port=shared_redis.port, health_check_interval=0.05) as client,
        client.pubsub() as pubsub,
    ):
        await pubsub.subscribe("first")
        await pubsub.unsubscribe()
        assert [message["type"] async for message in pubsub.listen()] == [
            "subscribe",
            "unsubscribe",
        ]
        await asyncio.sleep(0.3)  # several pings
        await pubsub.subscribe("second")
        await client.publish("second", 1)
        assert (await next_message(pubsub))["data"] == b"1"
        assert client.health.snapshot()["parts_lost"] == []


async def test_forbidden_channel_raises_where_the_subscriber_reads(redis_server):
    await redis_server.query(
        "ACL", "SETUSER", "reader", "on", "nopass", "~*", "+@all", "resetchannels", "&open"
    )
    async with (
        ResilientRedis(port=redis_server.port, username="reader", password="any") as client,
        client.pubsub(ignore_subscribe_messages=True) as pubsub,
    ):
        await pubsub.subscribe("open")
        await pubsub.subscribe("closed")
        with pytest.raises(NoPermissionError):
            await next_message(pubsub)
        await redis_server.query("PUBLISH", "open", "1")
        assert (await next_message(pubsub))["data"] == b"1"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_other_commands_work_and_the_loss_of_what_they_set_is_an_error(
    redis_server, protocol
):
    """As for client-side caching: CLIENT TRACKING redirects invalidations to the subscriber."""
    async with ResilientRedis(port=redis_server.port, protocol=protocol) as client:
        pubsub = client.pubsub()
        await pubsub.execute_command(b"CLIENT", b"ID")
        client_id = await pubsub.parse_response()
        tracking = f"CLIENT TRACKING on REDIRECT {client_id} BCAST PREFIX cached:".encode().split()
        await pubsub.execute_command(*tracking)
        assert await pubsub.parse_response() == b"OK"
        await pubsub.subscribe("__redis__:invalidate")
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        if protocol == 2:  # with RESP3 it is a push message of its own, which redis-py drops, too
            await client.set("cached:1", 1)
            assert (await pubsub.get_message(timeout=5))["data"] == [b"cached:1"]
            await redis_server.query("FLUSHALL")
            assert (await pubsub.get_message(timeout=5))["data"] is None

        await client.client_kill_filter(_id=client_id)
        with pytest.raises(RedisUnavailable, match="the state set by CLIENT ID, CLIENT TRACKING"):
            await pubsub.get_message(timeout=5)
        assert (await pubsub.get_message(timeout=5))["type"] == "gap"
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        await pubsub.aclose()


# -- a slow subscriber ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({"max_messages": 10}, 10), ({"max_message_bytes": 10_000}, 9)],
    ids=["messages", "bytes"],
)
async def test_messages_beyond_the_limit_are_dropped_and_reported(client, limits, kept):
    async with client.pubsub(**limits) as pubsub:
        await pubsub.subscribe("c")
        for number in range(25):
            await client.publish("c", str(number).zfill(1000))
        await pubsub.subscribe("other")  # is confirmed although the queue is full
        await asyncio.sleep(0.05)
        seen = []
        while (message := await pubsub.get_message(timeout=0.1)) is not None:
            seen.append(message)
        kinds = [message["type"] for message in seen]
        assert kinds == ["subscribe", *["message"] * kept, "subscribe", "gap"]
        assert [int(message["data"]) for message in seen[1 : kept + 1]] == list(range(kept))
        gap = seen[-1]["data"]
        assert isinstance(gap, Gap)
        assert gap.cause is Cause.SLOW_SUBSCRIBER
        assert gap.dropped == 25 - kept
        assert 0 < gap.seconds < 5
        assert str(gap).startswith(f"{25 - kept} messages were missed within")
        await client.publish("c", "again")
        assert (await pubsub.get_message(timeout=5))["data"] == b"again"


async def test_a_gap_takes_the_place_of_the_dropped_messages(client):
    async with client.pubsub(max_messages=4, ignore_subscribe_messages=True) as pubsub:
        seen = []
        pubsub.on_gap(lambda message: seen.append(message["data"].dropped))
        await pubsub.subscribe("c")
        for number in range(6):
            await client.publish("c", number)
        await asyncio.sleep(0.05)
        for _ in range(3):
            seen.append((await next_message(pubsub))["data"])  # noqa: PERF401
        await client.publish("c", "6")
        async with asyncio.timeout(5):
            while len(seen) < 6:
                message = await pubsub.get_message(timeout=0.1)
                if message is not None:
                    seen.append(message["data"])
        assert seen == [b"0", b"1", b"2", b"3", 2, b"6"]


async def test_one_message_may_be_larger_than_the_limit(client):
    async with client.pubsub(max_message_bytes=1024) as pubsub:
        await pubsub.subscribe("c")
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        await client.publish("c", b"x" * 100_000)
        assert len((await next_message(pubsub))["data"]) == 100_000


@pytest.mark.parametrize("option", ["max_messages", "max_message_bytes"])
async def test_limits_are_positive_integers(client, option):
    for value in (0, -1, 1.5, None, "10"):
        with pytest.raises(ConfigurationError, match=option):
            client.pubsub(**{option: value})
    with pytest.raises(TypeError, match="on_gap"):
        client.pubsub(on_gap="handler")


# -- a server that is not there ------------------------------------------------------------


async def test_subscribing_fails_as_a_call_does_and_leaves_nothing_running():
    async with ResilientRedis(port=free_port()) as client, client.pubsub() as pubsub:
        with pytest.raises(RedisUnavailable):
            await pubsub.subscribe("c")
        assert not pubsub.subscribed
        await pubsub.unsubscribe()
        assert client.health.snapshot()["parts_lost"] == []


async def test_wrong_password_fails_immediately(redis_server):
    await redis_server.query("CONFIG", "SET", "requirepass", "right")
    async with (
        ResilientRedis(port=redis_server.port, password="wrong") as client,
        client.pubsub() as pubsub,
    ):
        with pytest.raises(RedisAuthenticationFailed):
            await pubsub.subscribe("c")


# -- the end -------------------------------------------------------------------------------


async def subscriber_is_gone(client):
    async with asyncio.timeout(5):
        while (await client.pubsub_numsub("c"))[0][1]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("closed", ["subscriber", "client"])
async def test_closing_ends_the_readers(shared_redis, client, closed):
    tasks = asyncio.all_tasks()
    other = ResilientRedis(port=shared_redis.port)
    pubsub = other.pubsub()
    await pubsub.subscribe("c")

    async def listen():
        async for _ in pubsub.listen():
            pass

    listening = asyncio.ensure_future(listen())
    await asyncio.sleep(0.02)
    await (pubsub if closed == "subscriber" else other).aclose()
    with pytest.raises(RedisClosed, match=f"the {closed} was closed"):
        await listening
    await subscriber_is_gone(client)
    # Either can be used again. A reader opens a client that was closed, as any call does.
    if closed == "subscriber":
        await pubsub.subscribe("c")
    else:
        assert (await pubsub.get_message(timeout=5))["data"].cause is Cause.CLOSED
    await next_message(pubsub, kind="subscribe")
    await client.publish("c", "again")
    assert (await next_message(pubsub))["data"] == b"again"
    await pubsub.aclose()
    await pubsub.aclose()
    await other.aclose()
    assert asyncio.all_tasks() <= tasks  # a probe of before may have ended


async def test_reader_of_a_client_that_is_closed_for_good_raises(shared_redis):
    client = ResilientRedis(port=shared_redis.port, reopen=False)
    pubsub = client.pubsub()
    await pubsub.subscribe("c")
    await client.aclose()
    with pytest.raises(RedisClosed, match="the client is closed"):
        await pubsub.get_message(timeout=1)
    await pubsub.aclose()


async def test_dropped_subscriber_is_closed_with_a_warning(client):
    pubsub = client.pubsub()
    await pubsub.subscribe("c")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pubsub
        gc.collect()
    assert [str(each.message).partition(" of")[0] for each in caught] == ["unclosed subscriber"]
    await subscriber_is_gone(client)
    assert not len(client._runtime.subscriptions)


async def test_dropped_subscriber_of_a_dropped_client_is_closed(shared_redis, client):
    async def use():
        pubsub = ResilientRedis(port=shared_redis.port).pubsub()
        await pubsub.subscribe("c")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        await use()
        gc.collect()
        await subscriber_is_gone(client)


async def test_application_may_disconnect_the_connection(client):
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("c")
        await next_message(pubsub, kind="subscribe")
        async with asyncio.timeout(5):
            await pubsub.connection.disconnect()
        await next_message(pubsub, kind="gap")
        await client.publish("c", 1)
        assert (await next_message(pubsub))["data"] == b"1"


# The closed loop leaves sockets, which are collected at any time.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_subscriber_can_be_used_in_the_next_event_loop(shared_redis):
    client = ResilientRedis(port=shared_redis.port)
    pubsub = client.pubsub(ignore_subscribe_messages=True)

    async def use():
        await pubsub.subscribe("c")
        await client.publish("c", 1)
        return (await next_message(pubsub))["data"]

    assert await asyncio.to_thread(asyncio.run, use()) == b"1"
    assert await pubsub.get_message(timeout=0.2) is None
    await asyncio.sleep(0.1)  # it has subscribed again
    await client.publish("c", 2)
    assert (await next_message(pubsub))["data"] == b"2"
    assert await use() == b"1"
    await pubsub.aclose()
    await client.aclose()
    gc.collect()  # here, and not in the next test


async def test_cancelled_subscriber_loses_no_message_and_leaks_nothing(client):
    @contextlib.asynccontextmanager
    async def subscribed():
        async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("c")
            pubsub.got = []
            publishing = asyncio.ensure_future(publish())
            yield pubsub
            await publishing

    async def publish():
        await asyncio.sleep(0.005)
        await client.publish("c", "1")

    async def read(pubsub):
        while len(pubsub.got) < 1:
            message = await pubsub.get_message(timeout=5)
            if message is not None:
                pubsub.got.append(message["data"])
        await pubsub.subscribe("d")
        await pubsub.unsubscribe("d")

    async def check(pubsub):
        await client.publish("c", "2")
        while len(pubsub.got) < 2:
            message = await pubsub.get_message(timeout=5)
            if message is not None:
                pubsub.got.append(message["data"])
        assert sorted(pubsub.got) == [b"1", b"2"]

    report = await cancel_everywhere(read, setup=subscribed, check=check)
    report.assert_clean()


async def test_cancelled_use_from_the_first_subscription_to_the_end_leaks_nothing(client):
    async def use():
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("c")
            await pubsub.psubscribe("p*")
            await pubsub.get_message(timeout=0.01)
            await pubsub.unsubscribe()

    report = await cancel_everywhere(use, check=lambda: subscriber_is_gone(client))
    report.assert_clean()


async def test_error_replies_to_other_commands_are_raised_where_they_are_read(client):
    async with client.pubsub() as pubsub:
        await pubsub.execute_command("CONFIG", "SET", "no-such-option", "1")
        with pytest.raises(ResponseError):
            await pubsub.parse_response()
