"""The types of ResilientRedis: those of redis-py's client, and of the additions.

Never executed; mypy --strict and pyright check it. Where redis-py 8.1 declares the same type for
synchronous and asynchronous commands, the awaited value counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, assert_type

import redis.asyncio as driver

import resilient_io
from resilient_io import (
    Closed,
    Deadline,
    DeadlineExceeded,
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
    Progress,
    ResilientRedis,
    RetryPolicy,
    deadline,
)
from resilient_io.health import Change, Dependency, HealthMonitor, State, Subscription
from resilient_io.redis import (
    ConnectionSettings,
    LockLost,
    RedisOutcomeUnknown,
    RedisStats,
    RedisUnavailable,
    ResilientLock,
    ResilientPipeline,
)

if TYPE_CHECKING:
    from redis.asyncio.lock import Lock


async def constructors() -> None:
    assert_type(ResilientRedis(), ResilientRedis)
    assert_type(ResilientRedis(host="h", port=1, db=2, decode_responses=True), ResilientRedis)
    assert_type(ResilientRedis.from_url("redis://h"), ResilientRedis)
    pool = driver.ConnectionPool.from_url("redis://h")
    assert_type(ResilientRedis.from_pool(pool, name="cache"), ResilientRedis)
    assert_type(ResilientRedis(name="cache").name, str)
    ResilientRedis.from_url("redis://h", connections=ConnectionSettings(count=1), ssl_ca_certs="f")
    ResilientRedis(connection_pool=pool, single_connection_client=True)
    ResilientRedis(
        policy=RetryPolicy(attempts=1), health=Dependency("r"), connections=ConnectionSettings()
    )
    assert_type(ResilientRedis().client(), ResilientRedis)
    async with ResilientRedis() as client:
        assert_type(client, ResilientRedis)

    class Mine(ResilientRedis):
        pass

    assert_type(Mine.from_url("redis://h"), Mine)
    assert_type(Mine().with_policy(attempts=2), Mine)
    async with Mine() as mine:
        assert_type(mine, Mine)


async def commands(client: ResilientRedis) -> None:
    assert_type(await client.get("k"), bytes | str | None)
    assert_type(await client.exists("k"), int)
    assert_type(await client.incr("k"), int)
    assert_type(await client.ping(), bool)
    assert_type(await client.execute_command("GET", "k"), Any)


async def as_in_redis_py(ours: ResilientRedis, theirs: driver.Redis) -> None:
    """The same expression has the same type on both clients."""
    fits: driver.Redis = ours
    del fits
    value = await theirs.get("k")
    value = await ours.get("k")
    fields = await theirs.hgetall("k")
    fields = await ours.hgetall("k")
    members = await theirs.smembers("k")
    members = await ours.smembers("k")
    done = await theirs.set("k", "v", ex=1, nx=True)
    done = await ours.set("k", "v", ex=1, nx=True)
    ranked = await theirs.zrange("k", 0, -1, withscores=True)
    ranked = await ours.zrange("k", 0, -1, withscores=True)
    entries = await theirs.xread({"s": "0"})
    entries = await ours.xread({"s": "0"})
    del value, fields, members, done, ranked, entries


async def batches(client: ResilientRedis) -> None:
    pipe = client.pipeline(transaction=False)
    assert_type(pipe, ResilientPipeline)
    assert_type(await pipe.execute(), list[Any])
    async with client.pipeline() as other:
        await other.watch("k")
        other.multi()  # type: ignore[no-untyped-call]  # redis-py 8.1 leaves it untyped
    lock: Lock = client.lock("l", timeout=1.0)
    acquired: bool = await lock.acquire()  # typed only in part in redis-py 8.1
    del acquired
    renewed = client.lock("l", timeout=1.0, renew=True, fencing=True, cancel_on_loss=False)
    assert_type(renewed, ResilientLock)
    assert_type(renewed.fencing_token, int)
    assert_type(await renewed.lost, LockLost)
    async with renewed as held:
        assert_type(held, ResilientLock)


async def policies(client: ResilientRedis) -> None:
    assert_type(client.with_policy(repeat="any", deadline=0.5), ResilientRedis)
    assert_type(client.with_policy(RetryPolicy()), ResilientRedis)
    policy = RetryPolicy(repeat="read", while_down="wait", deadline=None)
    assert_type(policy.attempts, int)
    assert_type(policy.deadline, float | None)
    assert_type(policy.replace(attempts=5), RetryPolicy)
    with deadline(0.2) as limit:
        assert_type(limit, Deadline)
        assert_type(limit.remaining(), float)
    with resilient_io.deadline(1):
        pass


async def health(client: ResilientRedis) -> None:
    assert_type(client.health, Dependency)
    assert_type(client.health.state, State)
    assert_type(client.health.available, bool)
    assert_type(await client.health.until_up(1.0), None)
    changes: AsyncIterator[Change] = client.health.watch()
    async for change in changes:
        assert_type(change, Change)
        assert_type(change.state, State)
        assert_type(change.after, float)
    assert_type(client.health.snapshot(), dict[str, object])
    assert_type(client.health.history, tuple[Change, ...])

    def sync_callback(change: Change) -> None:
        del change

    async def async_callback(change: Change) -> None:
        del change

    assert_type(client.health.on_change(sync_callback), Subscription[Change])
    with client.health.on_change(async_callback) as subscription:
        subscription.remove()
    monitor = HealthMonitor(client.health)
    assert_type(monitor.ready, bool)


async def numbers(client: ResilientRedis) -> None:
    stats = client.stats()
    assert_type(stats, RedisStats)
    assert_type(stats.retries, int)
    latency: Mapping[str, float | None] = stats.latency
    del latency


async def errors(client: ResilientRedis) -> None:
    try:
        await client.incr("n")
    except RedisOutcomeUnknown as unknown:
        places: list[int] = list(unknown.unanswered)
        assert_type(unknown.progress, Progress)
        known: OutcomeUnknown = unknown
        del places, known
    except RedisUnavailable as down:
        assert_type(down.attempts, int)
        general: DependencyUnavailable = down
        of_redis_py: driver.ConnectionError = down
        del general, of_redis_py
    except DeadlineExceeded as late:
        builtin: TimeoutError = late
        del builtin
    except (Overloaded, Closed) as other:
        assert_type(other.elapsed, float)


def refused(client: ResilientRedis) -> None:
    """Mistakes that a type checker must find: each line is an error without its comment."""
    RetryPolicy(repeat="all")  # type: ignore[arg-type]
    RetryPolicy(3)  # type: ignore[call-arg]
    ResilientRedis(policy=3)  # type: ignore[arg-type]
    ResilientRedis(hots="x")  # type: ignore[call-arg]
    ResilientRedis(port="x")  # type: ignore[arg-type]
    ResilientRedis.from_url("redis://h", count=2)  # type: ignore[call-arg]
    ResilientRedis.from_pool(client.connection_pool, host="h")  # type: ignore[call-arg]
    client.health.on_change("print")  # type: ignore[arg-type]
    client.lock("l", timeout="long")  # type: ignore[arg-type]
    client.stats().nothing  # type: ignore[attr-defined]  # noqa: B018
