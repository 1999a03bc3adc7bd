"""Locks check their token when a reply was lost; pub/sub and MONITOR use own connections."""

import asyncio

import pytest
import redis.asyncio as driver
from redis.exceptions import LockError, LockNotOwnedError

from resilient_io import DeadlineExceeded, OutcomeUnknown, RetryPolicy, State
from resilient_io.errors import Progress
from resilient_io.redis import ResilientLock, ResilientRedis

QUICK = RetryPolicy(response_timeout=0.2, connect_timeout=0.5, deadline=5.0, backoff=0.01)


@pytest.fixture(params=[False, True], ids=["bytes", "str"])
async def client(fault_proxy, request):
    options = {"policy": QUICK, "decode_responses": request.param}
    async with ResilientRedis.from_url(fault_proxy.url, **options) as client:
        await client.ping()
        yield client


async def test_a_lock_excludes_other_callers(client):
    lock = client.lock("lock", timeout=5)
    assert isinstance(lock, ResilientLock)
    async with lock:
        assert await lock.locked()
        assert await lock.owned()
        assert not await client.lock("lock", blocking=False).acquire()
    assert not await lock.locked()
    inside = most = 0

    async def hold():
        nonlocal inside, most
        async with client.lock("lock", timeout=5, sleep=0.001):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*(hold() for _ in range(10)))
    assert most == 1


async def test_a_lock_is_acquired_although_the_reply_was_lost(client, fault_proxy, redis_server):
    fault_proxy.drop_reply("SET")
    lock = client.lock("lock", timeout=5)
    assert await lock.acquire(blocking=False) is True
    assert await lock.owned()
    assert fault_proxy.requests["SET"] == 1
    await lock.release()
    assert await redis_server.query("EXISTS", "lock") == 0


async def test_a_taken_lock_is_not_acquired_when_the_reply_was_lost(
    client, fault_proxy, redis_server
):
    await redis_server.query("SET", "lock", "another owner's")
    fault_proxy.drop_reply("SET")
    assert await client.lock("lock", timeout=5).acquire(blocking=False) is False
    assert await redis_server.query("GET", "lock") == b"another owner's"


async def test_a_lock_is_not_acquired_when_the_request_was_lost(client, fault_proxy, redis_server):
    fault_proxy.reset_on("SET")
    lock = client.lock("lock", timeout=5, sleep=0.01)
    assert await lock.acquire(blocking_timeout=5) is True
    assert await lock.owned()
    await lock.release()


async def test_a_lock_is_released_although_the_reply_was_lost(client, fault_proxy, redis_server):
    lock = client.lock("lock", timeout=5)
    await lock.acquire()
    fault_proxy.drop_reply("EVALSHA", times=1)
    await lock.release()
    assert await redis_server.query("EXISTS", "lock") == 0
    with pytest.raises(LockError):
        await lock.release()


async def test_a_lock_is_released_again_when_the_request_was_lost(
    client, fault_proxy, redis_server
):
    lock = client.lock("lock", timeout=5)
    await lock.acquire()
    fault_proxy.reset_on("EVALSHA")
    await lock.release()
    assert await redis_server.query("EXISTS", "lock") == 0


async def test_the_release_of_a_lost_lock_is_refused_although_the_reply_was_lost(
    client, fault_proxy, redis_server
):
    lock = client.lock("lock", timeout=5)
    await lock.acquire()
    lost = lock.lost
    await redis_server.query("DEL", "lock")
    await lost
    fault_proxy.drop_reply("EVALSHA", times=1)
    with pytest.raises(LockNotOwnedError, match="deleted"):
        await lock.release()
    fault_proxy.assert_faults_used()


async def test_the_lock_of_another_owner_is_not_released(client, fault_proxy, redis_server):
    lock = client.lock("lock", timeout=5)
    await lock.acquire()
    await redis_server.query("SET", "lock", "another")
    with pytest.raises(LockNotOwnedError):
        await lock.release()
    assert await redis_server.query("GET", "lock") == b"another"


async def test_an_extension_whose_reply_was_lost(client, fault_proxy, redis_server):
    lock = client.lock("lock", timeout=5)
    await lock.acquire()
    assert await lock.extend(5) is True
    fault_proxy.drop_reply("EVALSHA")
    with pytest.raises(OutcomeUnknown):  # it may have been extended, and is still held
        await lock.extend(10)
    assert await lock.owned()
    fault_proxy.drop_reply("EVALSHA")
    assert await lock.extend(20, replace_ttl=True) is True
    assert 19_000 < await redis_server.query("PTTL", "lock") <= 20_000
    fault_proxy.drop_reply("EVALSHA")
    assert await lock.reacquire() is True
    assert 4000 < await redis_server.query("PTTL", "lock") <= 5000
    await redis_server.query("DEL", "lock")
    fault_proxy.drop_reply("EVALSHA")
    with pytest.raises(LockNotOwnedError):
        await lock.reacquire()


async def test_a_custom_lock_class_is_used(client):
    class Mine(driver.lock.Lock):
        pass

    assert type(client.lock("l", lock_class=Mine)) is Mine


async def test_pubsub_receives_published_messages(client):
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("c")
        await pubsub.psubscribe("p*")
        for expected in ("subscribe", "psubscribe"):
            assert (await pubsub.get_message(timeout=5))["type"] == expected
        assert await pubsub.get_message(timeout=0.01) is None
        assert await client.publish("c", "one") == 1
        assert await client.publish("pp", "two") == 1
        heard = []
        async for message in pubsub.listen():
            heard.append(message["data"])
            if len(heard) == 2:
                break
        assert [h if isinstance(h, str) else h.decode() for h in heard] == ["one", "two"]
        assert await client.pubsub_numsub("c") in ([("c", 1)], [(b"c", 1)])


async def test_monitor_receives_the_commands(client, redis_server):
    async with client.monitor() as monitor:
        await client.set("seen", 1)
        async with asyncio.timeout(5):
            while True:
                command = await monitor.next_command()
                if command["command"].startswith("SET seen"):
                    break


async def test_a_lock_of_a_bound_client_is_released_in_the_background_after_a_select(shared_redis):
    async with ResilientRedis(port=shared_redis.port, single_connection_client=True) as client:
        await client.select(1)
        lock = client.lock("lock", timeout=60)
        assert await lock.acquire()
        releasing = asyncio.create_task(lock.release())
        await asyncio.sleep(0)
        releasing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await releasing
        async with asyncio.timeout(2):
            await client.lock("lock", sleep=0.01).acquire()


async def test_a_select_that_was_not_sent_is_no_state_of_a_connection(fault_proxy):
    patient = QUICK.replace(while_down="wait", deadline=0.5)
    async with ResilientRedis(
        port=fault_proxy.port, single_connection_client=True, policy=patient
    ) as client:
        await client.ping()
        fault_proxy.refuse()
        fault_proxy.reset()
        async with asyncio.timeout(5):
            async for change in client.health.watch():
                if change.state is State.DOWN:
                    break
        with pytest.raises(DeadlineExceeded) as caught:
            await client.select(1)
        assert caught.value.progress is Progress.NOT_SENT
        fault_proxy.restore()
        await client.health.until_up(5)
        await client.ping()
        fault_proxy.reset()
        assert await client.set("key", "value") is True
