"""Retry topics: names and delays, and how records wait in them, on virtual time."""

import asyncio
import contextlib
import itertools
import logging

import pytest
from aiokafka import TopicPartition

from resilient_io import ConfigurationError, OutcomeUnknown, Progress
from resilient_io.kafka import RetryTopic
from resilient_io.kafka.processing import HandlerPolicy, plan_run
from resilient_io.testing import cancel_everywhere

ONCE = HandlerPolicy(attempts=1)
TOPICS = ["t.retry.2s", "t.retry.20s"]
SHORT, LONG = (TopicPartition(topic, 0) for topic in TOPICS)


async def handle(record):
    """Do nothing."""


# --- names and delays


@pytest.mark.parametrize(
    ("name", "delay"),
    [
        ("orders.retry.1m", 60.0),
        ("orders.retry.30s", 30.0),
        ("orders-retry-200ms", 0.2),
        ("orders_retry_1h", 3600.0),
        ("orders.7d", 7 * 86400.0),
        ("10m", 600.0),
    ],
)
def test_the_delay_is_the_end_of_the_name(name, delay):
    plan = plan_run(handle, retry_topics=[name])
    assert plan.retry_topics.names == (name,)
    assert RetryTopic.from_name(name).delay == pytest.approx(delay)


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        (["orders.retry"], r"no delay in the name 'orders\.retry': use a name that ends with one"),
        (["orders.retry10m"], "no delay in the name"),
        (["orders.retry.10"], "no delay in the name"),
        (["orders.retry.10M"], "no delay in the name"),
        (["orders.retry.0s"], r"delay=0\.0 is out of range"),
        (["orders retry.10m"], "is not a topic name"),
        ([RetryTopic("a", 1.0), RetryTopic("a", 2.0)], "'a' has the delays 1 and 2 s"),
        (["t.retry.1m"], "'t.retry.1m' is both a topic of this consumer and a retry topic"),
        (["dead.1m"], "'dead.1m' is both the dead-letter topic and a retry topic"),
    ],
)
def test_run_refuses_topics_that_cannot_be_retry_topics(topics, message):
    reads = {"t", "t.retry.1m"}.__contains__
    with pytest.raises(ConfigurationError, match=message):
        plan_run(handle, retry_topics=topics, dead_letter="dead.1m", reads=reads)


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        ("orders.retry.1m", r'must be a list, not str: use for example retry_topics=\["orders'),
        (None, "must be a list, not NoneType"),
        ([60.0], "contains an object of type float"),
    ],
)
def test_run_refuses_other_types(topics, message):
    with pytest.raises(TypeError, match=message):
        plan_run(handle, retry_topics=topics)


@pytest.mark.parametrize("delay", [0, -1.0, "10m", float("inf")])
def test_a_retry_topic_refuses_invalid_delays(delay):
    with pytest.raises(ConfigurationError, match="delay="):
        RetryTopic("orders.retry", delay)


# --- waiting


@pytest.fixture
def clock(monkeypatch):
    """Make the wall clock follow the loop's; `clock.ahead` is the difference."""

    class Clock:
        ahead = 1_700_000_000.0

        def now(self):
            return asyncio.get_running_loop().time() + self.ahead

    found = Clock()
    monkeypatch.setattr("resilient_io.wall_clock.now", found.now)
    return found


@pytest.fixture
def retrying(scenes, sources, clock):
    """Create scenes whose producer writes to the topics of their source, like Kafka."""

    def make(*partitions, **options):
        source = sources(1, *(partitions or (SHORT, LONG)))
        options = {"handler_policy": ONCE, "retry_topics": TOPICS, "group": "g"} | options
        scene = scenes(source, **options)
        write = scene.producer.send_and_wait

        async def write_and_deliver(topic, value=None, key=None, headers=None):
            await write(topic, value=value, key=key, headers=headers)
            if TopicPartition(topic, 0) in source.log:
                source.put(
                    key,
                    value,
                    topic=topic,
                    timestamp=int(clock.now() * 1000),
                    headers=tuple(headers),
                )

        scene.producer.send_and_wait = write_and_deliver
        return scene

    return make


class Failing:
    """Raises for records with this key, `times` times; keeps what each call was given."""

    def __init__(self, key=b"bad", times=100, error=None):
        self.key = key
        self.times = times
        self.error = error or LookupError("no such user")
        self.calls = []
        self.headers = []
        self.done = []

    async def __call__(self, record):
        self.calls.append((record, asyncio.get_running_loop().time()))
        self.headers.append(dict(record.headers))
        if record.key == self.key and self.times:
            self.times -= 1
            raise self.error
        self.done.append(record)

    def times_of(self, key=b"bad"):
        return [time for record, time in self.calls if record.key == key]


async def test_a_record_waits_in_each_topic_and_is_then_dead_lettered(retrying, until):
    scene = retrying(dead_letter="t.dead")
    handler = Failing()
    scene.source.put(b"bad", b"v", headers=(("trace", b"1"),))
    scene.source.put(b"bad", b"later")
    scene.source.put(b"good")
    scene.start(handler)
    await until(lambda: scene.stats.dead_lettered == 2, timeout=60.0)
    assert scene.source.required == [("t.retry.2s", "t.retry.20s")]
    first, _, second, _, third, _ = handler.times_of()
    assert second - first == pytest.approx(2.0, abs=0.1)
    assert third - second == pytest.approx(20.0, abs=0.1)
    assert scene.source.committable() == 3
    assert scene.source.committable(topic="t.retry.2s") == 2
    assert scene.source.committable(topic="t.retry.20s") == 2
    letter = next(headers for topic, _, value, headers in scene.producer.sent if value == b"v")
    assert letter["x-retries"] == b"1"
    *_, (topic, key, value, headers) = [each for each in scene.producer.sent if each[2] == b"v"]
    assert (topic, key, value) == ("t.dead", b"bad", b"v")
    assert float(headers.pop("x-first-failure-ago")) == pytest.approx(22.0, abs=0.2)
    assert float(headers.pop("x-last-failure-ago")) == pytest.approx(0.0, abs=0.1)
    assert headers == {
        "trace": b"1",
        "x-original-topic": b"t",
        "x-original-partition": b"0",
        "x-original-offset": b"0",
        "x-original-timestamp": b"1000",
        "x-error-type": b"builtins.LookupError",
        "x-error-message": b"no such user",
        "x-attempts": b"3",
    }
    stats = scene.stats
    assert (stats.sent_to_retry, stats.failed, stats.retried, stats.handled) == (4, 6, 0, 1)


async def test_the_handler_gets_the_original_record(retrying, until):
    scene = retrying()
    handler = Failing(times=2)
    scene.source.put(b"good", b"0")
    scene.source.put(b"bad", b"1", headers=(("trace", b"1"),))
    scene.start(handler)
    await until(lambda: len(handler.done) == 2, timeout=60.0)
    seen = [record for record, _ in handler.calls if record.key == b"bad"]
    assert [record.retries for record in seen] == [0, 1, 2]
    for record in seen:
        assert (record.topic, record.partition, record.offset) == ("t", 0, 1)
        assert (record.timestamp, record.headers) == (1001, (("trace", b"1"),))
        assert (record.key, record.value) == (b"bad", b"1")
        assert record == seen[0]


async def test_waiting_records_delay_no_other_partition_and_no_poll(retrying, until):
    scene = retrying(concurrency=1)
    handler = Failing(times=1)
    scene.source.put(b"bad")
    scene.start(handler)
    await until(lambda: scene.stats.sent_to_retry == 1)
    for _ in range(50):
        scene.source.put(b"good")
        await asyncio.sleep(0.03)
    assert len(handler.done) == 50
    assert scene.stats.in_flight == 0
    assert scene.source.paused(SHORT)
    polls = scene.source.polls
    assert max(after - before for before, after in itertools.pairwise(polls)) < 1.5
    await until(lambda: len(handler.done) == 51)
    assert not scene.source.paused(SHORT)


async def test_records_of_a_topic_are_handled_as_soon_as_each_is_due(retrying, until):
    scene = retrying()
    handler = Failing(times=5)
    scene.start(handler)
    for _ in range(5):
        scene.source.put(b"bad")
        await asyncio.sleep(0.3)
    await until(lambda: len(handler.done) == 5)
    times = handler.times_of()
    waits = [after - before for before, after in zip(times[:5], times[5:], strict=True)]
    assert waits == [pytest.approx(2.0, abs=0.1)] * 5
    assert [record.offset for record in handler.done] == [0, 1, 2, 3, 4]


async def test_the_attempts_in_memory_come_first(retrying, until):
    policy = HandlerPolicy(attempts=3, backoff=0.1)
    scene = retrying(handler_policy=policy, dead_letter="t.dead")
    handler = Failing()
    scene.source.put(b"bad")
    scene.start(handler)
    await until(lambda: scene.stats.dead_lettered == 1, timeout=60.0)
    times = handler.times_of()
    assert len(times) == 9
    assert times[2] - times[0] < 0.4
    assert times[3] - times[2] == pytest.approx(2.0, abs=0.1)
    assert scene.producer.sent[-1][3]["x-attempts"] == b"9"


async def test_a_topic_may_be_repeated(retrying, until):
    scene = retrying(retry_topics=["t.retry.2s"] * 3, dead_letter="t.dead")
    handler = Failing()
    scene.source.put(b"bad")
    scene.start(handler)
    await until(lambda: scene.stats.dead_lettered == 1, timeout=60.0)
    assert len(handler.calls) == 4
    assert scene.stats.sent_to_retry == 3


@pytest.mark.parametrize("on_failure", ["stop", "skip", "function"])
async def test_on_failure_decides_after_the_last_topic(retrying, until, on_failure):
    failures = []
    decide = failures.append if on_failure == "function" else on_failure
    scene = retrying(on_failure=decide)
    error = OutcomeUnknown(
        "lost", dependency="redis", operation="INCR", progress=Progress.MAYBE_APPLIED
    )
    handler = Failing(error=error)
    scene.source.put(b"bad")
    running = scene.start(handler)
    if on_failure == "stop":
        with pytest.raises(OutcomeUnknown):
            await running
        assert scene.source.committable(topic="t.retry.20s") is None
    else:
        await until(lambda: scene.stats.skipped == 1, timeout=60.0)
    assert len(handler.calls) == 3
    assert handler.headers == [
        {},
        {"x-outcome-unknown": b"1"},
        {"x-outcome-unknown": b"1"},
    ]
    for failure in failures:
        assert (failure.attempts, failure.outcome_unknown) == (3, 3)
        assert failure.seconds == pytest.approx(22.0, abs=0.2)
        assert (failure.record.topic, failure.record.offset) == ("t", 0)


async def test_an_unreadable_record_does_not_wait(retrying, until):
    scene = retrying(dead_letter="t.dead")
    scene.source.put(b"bad", error=ValueError("not JSON"))
    scene.start(Failing())
    await until(lambda: scene.stats.dead_lettered == 1)
    assert scene.stats.sent_to_retry == 0


async def test_records_of_a_batch_wait_one_by_one_and_may_be_marked_as_done(retrying, until):
    scene = retrying(batch_size=10)
    batches = []

    async def handler(records):
        batches.append([(record.value, record.retries) for record in records])
        for record in records:
            if record.value == b"good" or record.retries:
                record.done()
        if any(record.value != b"good" for record in records):
            raise LookupError

    for value in (b"good", b"bad", b"worse", b"good"):
        scene.source.put(value, value)
    scene.start(handler)
    await until(lambda: scene.stats.handled == 4)
    assert scene.stats.sent_to_retry == 2
    assert (scene.source.committable(), scene.source.committable(topic="t.retry.2s")) == (4, 2)
    assert [pair for batch in batches for pair in batch if pair[1]] == [(b"bad", 1), (b"worse", 1)]


async def test_a_topic_that_cannot_be_written_holds_the_offset_and_the_key(retrying, until, caplog):
    caplog.set_level(logging.WARNING)
    scene = retrying()
    scene.producer.failing = 30
    handler = Failing(times=1)
    for key in (b"bad", b"bad", b"good"):
        scene.source.put(key)
    scene.start(handler)
    await until(lambda: scene.producer.attempts == 20)
    assert [record.key for record in handler.done] == [b"good"]
    assert scene.source.committable() is None
    await until(lambda: len(handler.done) == 3)
    assert scene.source.committable() == 3
    assert any("retry topic of t[0]@0 raised" in each for each in caplog.messages)
    assert any("could not write a failed record to t.retry.2s" in each for each in caplog.messages)


async def test_a_topic_that_cannot_be_written_does_not_delay_those_that_can(retrying, until):
    scene = retrying(dead_letter="t.dead", on_outcome_unknown="dead_letter")
    write, silent = scene.producer.send_and_wait, True

    async def write_only_dead_letters(topic, **record):
        if topic != "t.dead" and silent:
            await asyncio.sleep(5.0)
            raise TimeoutError
        await write(topic, **record)

    scene.producer.send_and_wait = write_only_dead_letters

    async def handler(record):
        if record.key == b"bad":
            raise LookupError
        raise OutcomeUnknown(
            "lost", dependency="redis", operation="INCR", progress=Progress.MAYBE_APPLIED
        )

    for number in range(10):
        scene.source.put(b"bad")
        scene.source.put(b"unknown %d" % number)
    scene.start(handler)
    await until(lambda: scene.stats.dead_lettered == 10, timeout=4.0)
    silent = False


async def test_a_held_partition_is_read_again_when_it_comes_back(retrying, until):
    scene = retrying()
    handler = Failing(times=2)
    for _ in range(2):
        scene.source.put(b"bad")
    scene.start(handler)
    await until(lambda: scene.source.paused(SHORT))
    await asyncio.sleep(0.5)
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, found: errors.append(found))
    await scene.source.revoke(SHORT)
    await asyncio.sleep(0.5)
    scene.source.assign(SHORT)
    await until(lambda: scene.source.paused(SHORT))
    await until(lambda: len(handler.done) == 2)
    await asyncio.sleep(2.0)
    assert errors == []
    times = handler.times_of()
    assert [times[2] - times[0], times[3] - times[1]] == [pytest.approx(2.0, abs=0.2)] * 2
    assert scene.source.committable(topic="t.retry.2s") == 2


async def test_records_of_other_groups_are_left_to_them(retrying, until):
    scene = retrying()
    handler = Failing(times=0)
    due = ("x-retry-due", b"1")
    for group in (b"other", b"g", b"other", None):
        headers = (due,) if group is None else (due, ("x-retry-group", group))
        scene.source.put(b"k", group, topic="t.retry.2s", headers=headers)
    scene.start(handler)
    await until(lambda: scene.source.committable(topic="t.retry.2s") == 4)
    assert [record.value for record in handler.done] == [b"g", None]


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
async def test_a_clock_that_was_wrong_delays_records_for_a_few_delays_at_most(
    retrying, until, clock, ahead
):
    scene = retrying()
    handler = Failing(times=20)
    clock.ahead += ahead
    scene.start(handler)
    for _ in range(20):
        scene.source.put(b"bad")
        await asyncio.sleep(0.05)
    clock.ahead -= ahead
    await until(lambda: len(handler.done) == 20)
    assert scene.stats.sent_to_retry == 20
    assert handler.times_of()[-1] - handler.times_of()[0] < 8.0


async def test_a_foreign_record_is_handled_as_it_is(retrying, until):
    scene = retrying()
    handler = Failing(times=1)
    headers = (("x-retries", b"?"), ("x-original-topic", b"t"), ("x-first-failure-ago", b"nan"))
    scene.source.put(b"bad", topic="t.retry.2s", headers=headers)
    scene.start(handler)
    await until(lambda: handler.done, timeout=60.0)
    assert handler.calls[0][0].topic == "t.retry.2s"
    assert scene.producer.sent[0][0] == "t.retry.20s"


async def test_missing_topics_end_the_run(scenes):
    scene = scenes(retry_topics=TOPICS)

    async def missing(topics):
        raise ConfigurationError(f"missing topics: {topics}")

    scene.source.require_topics = missing
    with pytest.raises(ConfigurationError, match=r"t\.retry\.2s"):
        await scene.start(handle)


async def test_closing_does_not_wait_until_topics_are_found(scenes):
    scene = scenes(retry_topics=TOPICS)

    async def never(topics):
        await asyncio.get_running_loop().create_future()

    scene.source.require_topics = never
    running = scene.start(handle)
    await asyncio.sleep(1.0)
    await scene.aclose()
    assert running.result() is None


async def test_closing_does_not_wait_for_records_that_wait(retrying, until):
    scene = retrying()
    for _ in range(3):
        scene.source.put(b"bad")
    scene.start(Failing())
    await until(lambda: scene.stats.sent_to_retry == 3)
    await until(lambda: scene.source.paused(SHORT))
    began = asyncio.get_running_loop().time()
    await scene.aclose()
    assert asyncio.get_running_loop().time() - began < 0.1
    assert not scene.source.paused(SHORT)
    assert scene.source.committed == {TopicPartition("t", 0): 3}


async def test_a_run_that_is_cancelled_anywhere_leaves_nothing_behind_and_loses_nothing(
    retrying, until
):
    @contextlib.asynccontextmanager
    async def setup():
        scene = retrying()
        scene.handler = Failing()
        for _ in range(2):
            scene.source.put(b"bad")
        scene.create(scene.handler)
        yield scene
        await scene.aclose()
        where = TopicPartition("t", 0)
        waiting = {record.value for record in scene.source.log[SHORT]}
        assert scene.source.committed.get(where, 0) <= len(scene.source.log[SHORT]), waiting

    async def run(scene):
        closing = asyncio.get_running_loop().call_later(
            3.0, lambda: asyncio.ensure_future(scene.processor.aclose())
        )
        try:
            await scene.processor.run()
        finally:
            closing.cancel()

    report = await cancel_everywhere(run, setup=setup, settle=20.0)
    assert report.complete
    assert report.findings == [], "\n".join(map(str, report.findings))
