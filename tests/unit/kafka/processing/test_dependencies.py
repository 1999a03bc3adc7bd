"""`requires`: handling pauses while a dependency is down, and its failures do not count."""

import asyncio
import logging

import pytest

from resilient_io import (
    Cause,
    DeadlineExceeded,
    Dependency,
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
)
from resilient_io.errors import mark_refused
from resilient_io.kafka.processing import HandlerPolicy, RunLimits

POLICY = HandlerPolicy(attempts=2, backoff=0.1)


class Redis:
    """A dependency that tests control, and a handler that needs it."""

    def __init__(self):
        self.health = Dependency("redis")
        self.health.succeeded()
        self.error = DependencyUnavailable("down", dependency="redis", operation="INCR")
        self.handled = []
        self.calls = 0
        self.at_once = 0
        self.most = 0

    @property
    def up(self):
        return self.health.available

    def kill(self):
        self.health.failed(Cause.REFUSED, definite=True)
        assert not self.up

    def revive(self):
        self.health.succeeded()
        assert self.up

    async def __call__(self, record):
        self.calls += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(0.1)
            if not self.up:
                raise self.error
        finally:
            self.at_once -= 1
        self.handled.append(record.offset)


@pytest.fixture
async def redis():
    made = Redis()
    yield made
    await made.health.aclose()


async def test_a_required_dependency_that_is_down_pauses_handling_until_it_is_back(
    scenes, until, redis, caplog
):
    scene = scenes(
        requires=[redis.health], concurrency=8, handler_policy=POLICY, dead_letter="t.dead"
    )
    for number in range(100):
        scene.source.put(b"%d" % number)
    with caplog.at_level(logging.INFO, "resilient_io.kafka"):
        scene.start(redis)
        await asyncio.sleep(0.25)
        redis.kill()
        await asyncio.sleep(0.2)
        calls = redis.calls
        assert scene.source.paused(("t", 0))
        assert scene.stats.allowed == 0
        polls = len(scene.source.polls)
        await asyncio.sleep(600)
        assert redis.calls == calls
        assert len(scene.source.polls) - polls > 1_000  # Kafka is polled
        redis.revive()
        await until(lambda: scene.source.committable() == 100)
    assert not scene.source.paused(("t", 0))
    assert scene.producer.sent == []
    assert sorted(redis.handled) == list(range(100))
    assert scene.stats.not_counted == scene.stats.failed == 8
    assert scene.stats.pauses == 1
    logged = [record.getMessage() for record in caplog.records if record.name.endswith("kafka")]
    assert [line.split(":")[0] for line in logged] == ["paused", "resumed"]


@pytest.mark.parametrize(("dependency", "dead"), [("redis", 0), ("another", 1)])
async def test_a_temporary_refusal_of_a_required_server_does_not_count(
    scenes, until, redis, dependency, dead
):
    scene = scenes(requires=[redis.health], handler_policy=POLICY, dead_letter="t.dead")
    scene.source.put(b"0")
    full = ["it is full"] * 5

    async def handle(record):
        if full:
            error = RuntimeError(full.pop())
            mark_refused(error, dependency)
            raise error
        redis.handled.append(record.offset)

    scene.start(handle)
    await until(lambda: scene.source.committable() == 1)
    assert len(scene.producer.sent) == dead
    assert redis.handled == [0] * (1 - dead)


async def test_handling_restarts_slowly_after_an_outage(scenes, until, redis):
    scene = scenes(
        requires=[redis.health], concurrency=16, limits=RunLimits(slow_start=4.0), order="none"
    )
    for _ in range(5_000):
        scene.source.put(None)
    scene.start(redis)
    await asyncio.sleep(1)
    assert redis.most == 16
    redis.kill()
    await asyncio.sleep(10)
    redis.revive()
    redis.most = 0
    seen = []
    for _ in range(5):
        await asyncio.sleep(0.9)
        seen.append(redis.most)
        await asyncio.sleep(0.1)
    assert seen == [1, 2, 4, 8, 16]


async def test_handlers_do_not_grow_while_the_dependency_causes_every_failure(scenes, until, redis):
    scene = scenes(requires=[redis.health], concurrency=16, handler_policy=POLICY, order="none")

    async def handler(record):
        await asyncio.sleep(0.1)
        raise redis.error

    for _ in range(100):
        scene.source.put(None)
    redis.kill()
    scene.start(handler)
    await asyncio.sleep(1)
    redis.revive()
    await asyncio.sleep(60)
    assert scene.stats.allowed == 1
    assert scene.stats.failed > 10


async def test_failures_caused_by_records_do_not_slow_the_restart(scenes, until, redis):
    scene = scenes(requires=[redis.health], concurrency=16, order="none", on_failure="skip")

    async def handler(record):
        await asyncio.sleep(0.1)
        raise ValueError("no such article")

    for _ in range(500):
        scene.source.put(None)
    redis.kill()
    scene.start(handler)
    await asyncio.sleep(1)
    redis.revive()
    await until(lambda: scene.stats.skipped == 500)
    assert scene.stats.allowed == 16


async def test_without_slow_start_all_handlers_begin_at_once(scenes, until, redis):
    scene = scenes(
        requires=[redis.health], concurrency=16, limits=RunLimits(slow_start=0.0), order="none"
    )
    for _ in range(100):
        scene.source.put(None)
    redis.kill()
    scene.start(redis)
    await asyncio.sleep(10)
    assert redis.calls == 0
    redis.revive()
    await asyncio.sleep(0.05)
    assert redis.at_once == 16


async def test_partitions_assigned_during_an_outage_are_paused(scenes, sources, until, redis):
    scene = scenes(sources(1), requires=[redis.health])
    redis.kill()
    scene.start(redis)
    await asyncio.sleep(1)
    scene.source.assign(("t", 1))
    assert scene.source.paused(("t", 1))
    scene.source.put(b"k", number=1)
    await asyncio.sleep(10)
    assert scene.stats.in_flight == 0
    redis.revive()
    await until(lambda: scene.source.committable(1) == 1)


async def test_a_partition_revoked_during_an_outage_is_read_when_assigned_again(
    scenes, sources, until, redis
):
    scene = scenes(
        sources(2),
        requires=[redis.health],
        limits=RunLimits(records=20, slow_start=0.0),
        drain_timeout=0.5,
        concurrency=1,
    )
    for _ in range(10):
        scene.source.put(None)
        scene.source.put(None, number=1)
    scene.start(redis)
    await until(lambda: scene.stats.in_flight == 20)  # the limit is reached
    redis.kill()
    await asyncio.sleep(1)
    await scene.source.revoke(("t", 0))
    redis.revive()
    await until(lambda: scene.source.committable(1) == 10)
    scene.source.assign(("t", 0))
    await until(lambda: scene.source.committable() == 10, timeout=30.0)


async def failing(scenes, until, redis, error, *, outage, requires=True):
    """Return (attempts that counted, dead letters) of a record whose handler raises `error`."""
    scene = scenes(
        requires=[redis.health] if requires else [],
        handler_policy=POLICY,
        dead_letter="t.dead",
        limits=RunLimits(slow_start=0.0),
    )
    calls = 0

    async def handler(record):
        nonlocal calls
        calls += 1
        if calls > 5:
            return
        if outage:
            redis.kill()
            asyncio.get_running_loop().call_later(
                100.0, redis.revive
            )  # longer than the failures count as its own
        await asyncio.sleep(0.1)
        raise error

    scene.source.put(b"k")
    scene.start(handler)
    await until(lambda: scene.source.committable() == 1)
    return calls, len(scene.producer.sent)


def error_of(kind, dependency="redis"):
    return kind("it went wrong", dependency=dependency, operation="INCR")


async def test_unavailable_does_not_count_for_a_required_dependency(scenes, until, redis):
    error = error_of(DependencyUnavailable)
    assert await failing(scenes, until, redis, error, outage=False) == (6, 0)


async def test_unavailable_counts_for_another_dependency(scenes, until, redis):
    error = error_of(DependencyUnavailable, "another")
    assert await failing(scenes, until, redis, error, outage=False) == (2, 1)


async def test_unavailable_counts_when_nothing_is_required(scenes, until, redis):
    error = error_of(DependencyUnavailable)
    assert await failing(scenes, until, redis, error, outage=False, requires=False) == (2, 1)


@pytest.mark.parametrize("kind", [DeadlineExceeded, Overloaded, OutcomeUnknown])
async def test_a_late_or_unknown_answer_counts_unless_the_dependency_was_down(
    scenes, until, redis, kind
):
    assert await failing(scenes, until, redis, error_of(kind), outage=True) == (6, 0)
    assert await failing(scenes, until, redis, error_of(kind), outage=False) == (2, 1)


async def test_an_error_raised_from_unavailable_does_not_count(scenes, until, redis):
    error = LookupError("no user")
    error.__cause__ = error_of(DependencyUnavailable)
    assert await failing(scenes, until, redis, error, outage=False) == (6, 0)


async def test_a_batch_that_failed_because_of_a_dependency_stays_a_batch(scenes, until, redis):
    calls = []

    async def handler(records):
        calls.append(len(records))
        await asyncio.sleep(0.1)
        if not redis.up:
            raise redis.error

    scene = scenes(
        requires=[redis.health],
        batch_size=10,
        handler_policy=POLICY,
        dead_letter="t.dead",
        limits=RunLimits(slow_start=0.0),
    )
    for number in range(10):
        scene.source.put(b"%d" % (number % 2))
    scene.start(handler)
    await asyncio.sleep(0.05)
    redis.kill()
    await asyncio.sleep(30)
    redis.revive()
    await until(lambda: scene.source.committable() == 10)
    assert calls == [10, 10]
    assert scene.stats.in_flight == 0


@pytest.mark.parametrize("requires", ["redis", ["redis"], 5, [None]])
async def test_requires_refuses_objects_that_are_not_a_health(scenes, redis, requires):
    with pytest.raises(TypeError, match=r"requires=\[redis.health\]"):
        scenes(requires=requires).start(redis)
