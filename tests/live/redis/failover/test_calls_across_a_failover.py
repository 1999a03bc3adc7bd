"""Calls of all kinds across a failover: as the effects table says, and nothing is left behind."""

import asyncio

import pytest
import redis as driver

from resilient_io import OutcomeUnknown
from resilient_io.redis import LockLost
from tests.live.redis.cancelling import cancelled_at_random


async def blocked(server, count):
    """Wait until so many clients of a server are blocked."""
    async with asyncio.timeout(5):
        while b"blocked_clients:%d\r" % count not in await server.query("INFO", "clients"):  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.01)


async def test_blocking_calls_continue_on_the_new_master(quick_setup, follow):
    redis = (await follow()).redis
    await redis.xgroup_create("stream", "group", mkstream=True)
    waiting = [
        asyncio.create_task(redis.blpop("list", timeout=0)),
        asyncio.create_task(redis.blpop("list", timeout=20)),
        asyncio.create_task(redis.blmove("from", "to", timeout=0)),
        asyncio.create_task(redis.xreadgroup("group", "me", {"stream": ">"}, block=0)),
    ]
    await blocked(quick_setup.nodes[0], 4)
    new = await quick_setup.fail_over()
    await blocked(new, 4)
    await new.query("RPUSH", "list", "a", "b")
    await new.query("RPUSH", "from", "moved")
    await new.query("XADD", "stream", "1-1", "field", "value")
    async with asyncio.timeout(2):
        first, second, moved, read = await asyncio.gather(*waiting)
    assert sorted([*first, *second]) == [b"a", b"b", b"list", b"list"]
    assert moved == b"moved"
    assert "1-1" in str(read)


async def test_killed_master_leaves_the_outcome_of_a_pop_unknown(quick_setup, follow):
    redis = (await follow()).redis
    waiting = asyncio.create_task(redis.blpop("list", timeout=0))
    await blocked(quick_setup.nodes[0], 1)
    quick_setup.nodes[0].kill()
    async with asyncio.timeout(5):
        with pytest.raises(OutcomeUnknown):
            await waiting
        assert await redis.blpop("list", timeout=0.01) is None


async def test_transaction_that_watched_keys_on_the_former_master_is_not_executed(
    quick_setup, follow
):
    redis = (await follow()).redis
    async with redis.pipeline() as pipe:
        await pipe.watch("key")
        assert await pipe.get("key") is None
        pipe.multi()
        pipe.set("key", "value")
        new = await quick_setup.fail_over()
        with pytest.raises(driver.WatchError):
            await pipe.execute()
    assert await new.query("EXISTS", "key") == 0
    assert await redis.transaction(lambda pipe: pipe.multi(), "key") == []


async def test_scripts_are_loaded_on_the_new_master(quick_setup, follow):
    redis = (await follow()).redis
    script = redis.register_script("return redis.call('INCR', KEYS[1])")
    assert await script(keys=["n"]) == 1
    sha = await redis.script_load("return 7")
    await quick_setup.fail_over()
    assert await script(keys=["n"]) == 2
    async with redis.pipeline() as pipe:
        await script(keys=["n"], client=pipe)
        assert await pipe.execute() == [3]
    assert await redis.evalsha(sha, 0) == 7


async def test_lock_survives_a_failover_that_does_not_lose_it(quick_setup, follow):
    redis = (await follow()).redis
    async with redis.lock("lock", timeout=10) as lock:
        await quick_setup.fail_over()
        await asyncio.sleep(0.2)
        assert not lock.lost.done()
        assert await lock.owned()
    assert await redis.exists("lock") == 0


async def test_lock_holder_is_notified_if_the_new_master_does_not_have_the_lock(
    quick_setup, follow
):
    redis = (await follow()).redis
    master, *replicas = quick_setup.nodes
    for replica in replicas:
        await replica.query("REPLICAOF", "127.0.0.1", 1)
    lock = redis.lock("lock", timeout=30)
    assert await lock.acquire()
    lost = lock.lost
    master.kill()
    async with asyncio.timeout(10):
        assert isinstance(await lost, LockLost)


async def test_lock_holder_is_notified_if_its_state_cannot_be_determined(
    quick_setup, follow, monkeypatch
):
    """Also the holder of a lock that never expires."""
    monkeypatch.setattr("resilient_io.redis.lock_keys._UNDETERMINED_AFTER", 0.5)
    redis = (await follow()).redis
    lock = redis.lock("lock", timeout=None)
    assert await lock.acquire()
    await asyncio.sleep(0.7)
    assert not lock.lost.done()
    quick_setup.kill()
    async with asyncio.timeout(5):
        assert "cannot be determined" in str(await lock.lost)


async def test_calls_that_are_cancelled_in_a_failover_leave_nothing_behind(quick_setup, follow):
    redis = (await follow()).redis
    calls = [
        lambda: redis.rpush("list", "value"),
        lambda: redis.get("key"),
        lambda: redis.pipeline().incr("counter").get("key").execute(),
        lambda: redis.blpop("nothing", timeout=1),
        lambda: redis.set("other", "x" * 100_000),
    ]
    async with cancelled_at_random(*calls):
        await quick_setup.fail_over()
    assert await asyncio.gather(*(redis.echo(f"{n}") for n in range(50))) == [
        b"%d" % n for n in range(50)
    ]
    multiplexer = redis._runtime.multiplexer
    assert multiplexer.waiting == 0
    assert not any(connection.in_flight for connection in multiplexer.connections)
