"""Subscribers while the server, or only their connection, fails: one gap, and messages again."""

import asyncio
import contextlib
import logging
import random
import time

import pytest
import redis as sync_driver

from resilient_io import Cause, State
from resilient_io.redis import ResilientRedis
from resilient_io.testing import FaultProxy, RedisServer, find_embedded_redis
from tests.live.redis.cancelling import cancelled_at_random
from tests.live.redis.subscribers import (
    KINDS,
    SERVES_AGAIN,
    CancelledReader,
    Listener,
    Publisher,
    now,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [2.5, pytest.param(20.0, marks=pytest.mark.soak)])
async def test_frozen_server_is_one_gap(connect, redis_server, slack, kind, seconds):
    client = await connect(redis_server, health_check_interval=0.1)
    async with Listener(client.pubsub(), kind) as listener, Publisher(redis_server, kind=kind):
        await listener.received(now())
        redis_server.freeze()
        await asyncio.sleep(seconds)
        resumed = now()
        redis_server.thaw()
        gap_at, gap = await listener.gap()
        assert await listener.received(gap_at) + gap_at - resumed < SERVES_AGAIN + slack()
        await asyncio.sleep(0.2)
        assert listener.gaps == [gap]
        _, message = await listener.until(lambda m: m["type"] == "gap")
        assert message == {"type": "gap", "pattern": None, "channel": None, "data": gap}
        assert gap.cause is Cause.TIMED_OUT
        assert "no reply to PING within 1 s" in gap.detail
        assert seconds - 0.2 < gap.seconds < gap_at - resumed + seconds + 0.2 + slack()


@pytest.mark.parametrize("kind", KINDS)
async def test_killed_and_restarted_server_is_one_gap(connect, redis_server, slack, kind):
    client = await connect(redis_server)
    async with Listener(client.pubsub(), kind) as listener, Publisher(redis_server, kind=kind):
        await listener.received(now())
        redis_server.kill()
        await client.health.until_up(10)  # it may not have noticed yet
        await asyncio.sleep(0.5)
        await redis_server.start()
        assert await listener.received(now()) < SERVES_AGAIN + slack()
        await asyncio.sleep(0.2)
        (gap,) = listener.gaps
        assert gap.cause is Cause.RESET
        assert 0.5 < gap.seconds < 2 * SERVES_AGAIN + slack()
        assert client.health.state is State.UP


@pytest.mark.parametrize("kind", KINDS)
async def test_stalled_connection_is_replaced_although_the_server_serves(
    connect, redis_server, slack, kind
):
    async with FaultProxy(redis_server.port, protocol=None) as proxy:
        client = await connect(proxy)
        before = list(proxy.connections)
        async with Listener(client.pubsub(), kind) as listener, Publisher(redis_server, kind=kind):
            await listener.received(now())
            (own,) = [each for each in proxy.connections if each not in before]
            own.set_stalled("both", stalled=True)
            began = now()
            gap_at, gap = await listener.gap()
            assert gap_at - began < SERVES_AGAIN + slack()
            await listener.received(gap_at)
            await asyncio.sleep(0.1)
            assert listener.gaps == [gap]
            assert gap.cause is Cause.TIMED_OUT
            assert "while the server answers on another connection" in gap.detail
            # Nothing else was affected.
            assert State.DOWN not in [change.state for change in client.health.history]
            assert all(each in proxy.connections for each in before)


GARBAGE = {
    "not RESP": b"?what\r\n",
    "a reply without a request": b":1\r\n",
    "a message of two parts": b"*2\r\n$7\r\nmessage\r\n$1\r\nc\r\n",
    "an invalid confirmation": b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n$1\r\nx\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
@pytest.mark.parametrize(("protocol", "kind"), [(2, "plain"), (3, "sharded")])
async def test_malformed_data_is_one_error_and_one_gap(
    connect, redis_server, slack, caplog, garbage, protocol, kind
):
    async with FaultProxy(redis_server.port, protocol=None) as proxy:
        client = await connect(proxy, protocol=protocol)
        before = list(proxy.connections)
        async with Listener(client.pubsub(), kind) as listener, Publisher(redis_server, kind=kind):
            await listener.received(now())
            (own,) = [each for each in proxy.connections if each not in before]
            caplog.clear()
            own.inject(garbage)
            began = now()
            gap_at, gap = await listener.gap()
            assert await listener.received(gap_at) + gap_at - began < SERVES_AGAIN + slack()
            await asyncio.sleep(0.1)
            assert listener.gaps == [gap]
            assert gap.cause is Cause.PROTOCOL
            errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
            assert [each.event for each in errors] == ["subscription_garbage"]


async def test_server_that_sends_malformed_data_each_time_is_not_asked_often(connect, redis_server):
    async with FaultProxy(redis_server.port, protocol=None) as proxy:
        client = await connect(proxy)
        before = list(proxy.connections)
        async with Listener(client.pubsub()) as listener:
            accepted, until = proxy.accepted, now() + 1.0
            while now() < until:
                for each in proxy.connections:
                    if each not in before:
                        each.inject(b"?what\r\n")
                await asyncio.sleep(0.005)
            assert proxy.accepted - accepted < 40
            gap_at, _ = await listener.until(lambda m: m["type"] == "gap", after=until)
            async with Publisher(redis_server):
                await listener.received(gap_at)


@pytest.mark.parametrize("size", [1_000, 1_000_000])
async def test_output_buffer_limit_of_the_server_is_named_as_the_cause(connect, slack, size):
    # Redis counts the connections that it closes for this reason from version 7.2 on.
    async with RedisServer(binary=find_embedded_redis()) as server:
        await server.query("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
        client = await connect(server)
        async with Listener(client.pubsub()) as listener:
            with sync_driver.Redis(port=server.port) as publisher:
                while publisher.pubsub_numsub("c")[0][1]:  # nothing is read meanwhile
                    pipe = publisher.pipeline(transaction=False)
                    for _ in range(1_000_000 // size):
                        pipe.publish("c", b"x" * size)
                    pipe.execute()
            gap_at, gap = await listener.gap()
            assert gap.cause is Cause.SLOW_SUBSCRIBER
            assert "client-output-buffer-limit" in gap.detail
            async with Publisher(server):
                assert await listener.received(gap_at) < SERVES_AGAIN + slack()
            assert len(listener.gaps) == 1


async def test_connection_that_is_cut_in_the_middle_of_a_message_was_too_slow(
    connect, redis_server
):
    await redis_server.query("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
    async with FaultProxy(redis_server.port, protocol=None) as proxy:
        client = await connect(proxy)
        before = list(proxy.connections)
        async with Listener(client.pubsub()) as listener:
            (own,) = [each for each in proxy.connections if each not in before]
            own.inject(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$100\r\nxxx")
            await asyncio.sleep(0.02)
            await client.client_kill_filter(_type="pubsub")
            _, gap = await listener.gap()
            assert gap.cause is Cause.SLOW_SUBSCRIBER
            assert "in the middle of a message" in gap.detail


async def test_own_event_loop_that_is_blocked_is_no_gap(connect, redis_server):
    client = await connect(redis_server, health_check_interval=0.1)
    async with Listener(client.pubsub()) as listener, Publisher(redis_server):
        for _ in range(3):
            await listener.received(now())
            await asyncio.sleep(random.uniform(0.0, 0.2))
            time.sleep(1.3)
        await asyncio.sleep(0.3)
        await listener.received(now())
        assert not listener.gaps


async def test_idle_subscriber_is_pinged_and_nothing_else_happens(connect, redis_server):
    client = await connect(redis_server, health_check_interval=0.05)
    async with Listener(client.pubsub()) as listener:
        connection = listener.pubsub.connection
        await redis_server.query("CONFIG", "RESETSTAT")
        await asyncio.sleep(1.0)
        info = (await redis_server.query("INFO", "commandstats")).decode()
        pings = int(info.partition("cmdstat_ping:calls=")[2].partition(",")[0])
        assert 10 <= pings <= 2 * 21 + 5  # of the subscriber, and of the client
        assert listener.pubsub.connection is connection
        assert len(listener.seen) == 1


async def test_only_probes_contact_a_server_that_is_down(connect, redis_server, watch):
    async with FaultProxy(redis_server.port, protocol=None) as proxy:
        client = await connect(proxy)
        states = watch(client)
        async with Listener(client.pubsub()) as listener:
            proxy.accept_silently()
            proxy.reset()
            await states.until(State.DOWN, within=5)
            await asyncio.sleep(1.1)  # attempts that had begun before
            accepted = proxy.accepted
            probes = sum(client.health.snapshot()["probes"].values())
            await asyncio.sleep(1.0)
            probes = sum(client.health.snapshot()["probes"].values()) - probes
            assert proxy.accepted - accepted <= probes + 1
            proxy.accept()
            await listener.gap()
            assert len(listener.gaps) == 1


async def test_client_is_degraded_while_a_subscriber_receives_nothing(connect, redis_server, watch):
    async with FaultProxy(redis_server.port, protocol=None) as proxy:
        client = await connect(proxy)
        before = list(proxy.connections)
        states = watch(client)
        async with Listener(client.pubsub()) as listener:
            proxy.accept_silently()
            (own,) = [each for each in proxy.connections if each not in before]
            own.reset()
            await states.until(State.DEGRADED, within=5)
            assert client.health.snapshot()["parts_lost"] == ["subscription"]
            assert client.health.detail.startswith("subscription: ")
            assert await client.ping()
            proxy.accept()
            await listener.gap()
            await states.until(State.UP, within=5) if client.health.state is not State.UP else None
            assert client.health.snapshot()["parts_lost"] == []


async def test_unsubscribing_during_an_outage_is_confirmed_immediately(connect, redis_server):
    client = await connect(redis_server)
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("a", "b")
        for _ in range(2):
            await pubsub.get_message(timeout=5)
        redis_server.kill()
        await asyncio.sleep(0.1)
        await pubsub.unsubscribe("a")
        message = await pubsub.get_message(timeout=1)
        assert (message["type"], message["channel"], message["data"]) == ("unsubscribe", b"a", 1)
        await pubsub.unsubscribe()
        kinds = [message["type"] async for message in pubsub.listen()]
        assert kinds == ["unsubscribe"]
        await redis_server.start()
        await client.health.until_up(10)
        await asyncio.sleep(0.1)
        assert client.health.snapshot()["parts_lost"] == []
        await pubsub.subscribe("again")
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"


async def test_many_subscribers_return_after_a_restart(connect, redis_server, slack):
    client = await connect(redis_server)
    async with contextlib.AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(Listener(client.pubsub())) for _ in range(50)]
        redis_server.kill()
        await asyncio.sleep(0.3)
        await redis_server.start()
        began = now()
        async with Publisher(redis_server):
            waits = [await each.received(began) for each in listeners]
        assert max(waits) < SERVES_AGAIN + slack()
        assert [len(each.gaps) for each in listeners] == [1] * 50


async def test_every_channel_is_subscribed_to_again_with_its_handler(connect, redis_server):
    client = await connect(redis_server)
    seen = asyncio.Queue()
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("one", handled=seen.put)
        await pubsub.psubscribe(**{"p*": seen.put_nowait})
        await pubsub.ssubscribe(shard=seen.put)

        async def read():
            while True:
                message = await pubsub.get_message(timeout=5)
                if message is not None and message["type"] in ("message", "gap"):
                    seen.put_nowait(message)

        reading = asyncio.ensure_future(read())
        await asyncio.sleep(0.05)
        await client.client_kill_filter(_type="pubsub")
        async with asyncio.timeout(5):
            assert (await seen.get())["type"] == "gap"
            await client.ping()
            for channel in ("one", "handled", "pattern", "shard"):
                publish = client.spublish if channel == "shard" else client.publish
                while not await publish(channel, channel):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert (await seen.get())["data"] == channel.encode()
        reading.cancel()


async def kill(server, _own):
    server.kill()
    await asyncio.sleep(0.5)
    await server.start()


async def freeze(server, _own):
    server.freeze()
    await asyncio.sleep(2.0)
    server.thaw()


async def stall(_server, own):
    stalled = own()
    for each in stalled:
        each.set_stalled("both", stalled=True)
    await asyncio.sleep(1.5)
    for each in stalled:
        each.set_stalled("both", stalled=False)


async def send_garbage(_server, own):
    for _ in range(5):
        for each in own():
            each.inject(b"?what\r\n")
        await asyncio.sleep(0.2)


@pytest.mark.soak
@pytest.mark.parametrize("fault", [kill, freeze, stall, send_garbage])
async def test_cancelled_readers_leave_nothing_behind(connect, redis_server, fault):
    async with FaultProxy(redis_server.port, protocol=None, allow_unused_faults=True) as proxy:
        client = await connect(proxy, health_check_interval=0.1)
        before = list(proxy.connections)

        def own():
            return [each for each in proxy.connections if each not in before]

        readers = [CancelledReader(client.pubsub(), kind) for kind in KINDS]
        for each in readers:
            await each.start()
        calls = [call for each in readers for call in (each.read, each.use_others)]
        async with (
            Publisher(redis_server),
            Publisher(redis_server, kind="sharded"),
        ):
            async with cancelled_at_random(*calls):
                await asyncio.sleep(0.1)
                await fault(redis_server, own)
            await asyncio.gather(*(each.check() for each in readers))
        for each in readers:
            await each.pubsub.aclose()
        await asyncio.sleep(0.05)
        assert await redis_server.query("PUBSUB", "NUMSUB", "c") == [b"c", 0]
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert "resilient-io redis subscription" not in names


async def test_forked_process_leaves_the_connection_to_its_parent(redis_server):
    server: RedisServer = redis_server
    async with ResilientRedis(port=server.port) as client, Listener(client.pubsub()) as listener:
        client._runtime.note_fork()  # as in the child process
        with pytest.raises(Exception, match="closed"):
            await listener.task
        assert listener.pubsub.connection.is_connected
        listener.task = asyncio.ensure_future(asyncio.sleep(60))
        client._runtime.subscriptions.disowned = False
