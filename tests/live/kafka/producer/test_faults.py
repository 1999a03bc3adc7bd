"""The producer while a real broker is killed, frozen, or not started yet."""

import asyncio
import contextlib
import logging
from collections import Counter

import pytest

from resilient_io import DependencyUnavailable, OutcomeUnknown, Progress, RetryPolicy, deadline
from resilient_io.errors import Closed, DeadlineExceeded, ResilientIOError
from resilient_io.health import Dependency, HealthSettings, State
from resilient_io.kafka.producer import ResilientKafkaProducer

OURS = ("resilient_io", "aiokafka", "asyncio")


def logged(caplog):
    """The log records of level INFO and above that a service would see."""
    return [
        record
        for record in caplog.records
        if record.name.startswith(OURS) and record.levelno >= logging.INFO
    ]


def quick_health():
    return Dependency("kafka", settings=HealthSettings(interval=0.2, timeout=0.5))


async def reached(health, state, timeout=20.0):
    async with asyncio.timeout(timeout):
        async for change in health.watch():
            if change.state is state:
                return


async def test_every_acknowledged_record_is_written_once_when_the_broker_is_killed(
    kafka_server, read_all
):
    topic = "killed"
    await kafka_server.create_topic(topic, partitions=3)
    outcomes = {}
    stop = asyncio.Event()

    async def work(producer, worker):
        number = 0
        while not stop.is_set():
            value = b"%d:%d" % (worker, number)
            number += 1
            try:
                outcomes[value] = await producer.send_and_wait(topic, value, key=b"%d" % worker)
            except (DependencyUnavailable, OutcomeUnknown, DeadlineExceeded) as error:
                outcomes[value] = error
                await asyncio.sleep(0.05)

    policy = RetryPolicy(deadline=2.0, response_timeout=1.0)
    health = quick_health()
    async with ResilientKafkaProducer(
        kafka_server.bootstrap_servers, policy=policy, health=health
    ) as producer:
        await producer.send_and_wait(topic, b"first")
        workers = [asyncio.create_task(work(producer, worker)) for worker in range(12)]
        while len(outcomes) < 500:  # noqa: ASYNC110 (counters can only be polled)
            await asyncio.sleep(0.01)
        kafka_server.kill()
        await reached(health, State.DOWN)
        await asyncio.sleep(0.3)
        await kafka_server.restart()
        before = sum(isinstance(outcome, tuple) for outcome in outcomes.values())
        async with asyncio.timeout(30):
            while sum(isinstance(o, tuple) for o in outcomes.values()) < before + 500:  # noqa: ASYNC110 (counters can only be polled)
                await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*workers)
        report = await producer.aclose()
        assert report.ok
    await health.aclose()

    records = await read_all(kafka_server, topic)
    written = Counter(record.value for record in records)
    places = {record.value: (record.partition, record.offset) for record in records}
    acknowledged = {v: o for v, o in outcomes.items() if isinstance(o, tuple)}
    assert all(written[value] == 1 for value in acknowledged)
    assert all(
        places[value] == (found.partition, found.offset) or found.offset == -1
        for value, found in acknowledged.items()
    )
    for value, outcome in outcomes.items():
        if isinstance(outcome, (DependencyUnavailable, DeadlineExceeded)):
            assert outcome.progress is Progress.NOT_SENT
            assert written[value] == 0
        assert written[value] <= 1
    last = {}
    for record in records:  # in the order of each partition
        if record.value == b"first":
            continue
        worker, number = map(int, record.value.split(b":"))
        assert last.get(worker, -1) < number
        last[worker] = number
    kinds = Counter(type(outcome).__name__ for outcome in outcomes.values())
    assert kinds["KafkaUnavailable"], kinds


async def test_records_that_wait_while_the_broker_is_down_arrive_in_order(kafka_server, read_all):
    topic = "waiting"
    await kafka_server.create_topic(topic)
    health = quick_health()
    policy = RetryPolicy(deadline=30.0, while_down="wait")
    async with ResilientKafkaProducer(
        kafka_server.bootstrap_servers, policy=policy, health=health
    ) as producer:
        futures = [await producer.send(topic, b"%d" % n) for n in range(10)]
        await producer.flush(10)
        kafka_server.kill()
        await reached(health, State.DOWN)
        futures += [await producer.send(topic, b"%d" % n) for n in range(10, 200)]
        await kafka_server.restart()
        await producer.flush(20)
        assert [future.result().offset for future in futures] == list(range(200))
    await health.aclose()
    assert [record.value for record in await read_all(kafka_server, topic)] == [
        b"%d" % n for n in range(200)
    ]


@pytest.mark.parametrize("seconds", [3.0, pytest.param(30.0, marks=pytest.mark.soak(seconds=30))])
async def test_no_call_outlives_its_deadline_while_the_broker_is_frozen(
    seconds, kafka_server, caplog
):
    topic = "frozen"
    await kafka_server.create_topic(topic)
    caplog.set_level(logging.INFO)
    health = Dependency("kafka", settings=HealthSettings(interval=0.5, timeout=0.5))
    policy = RetryPolicy(deadline=1.0, response_timeout=0.8)
    loop = asyncio.get_running_loop()
    late, kinds = [], Counter()

    async def call(producer, n):
        began = loop.time()
        try:
            await producer.send_and_wait(topic, b"%d" % n)
        except ResilientIOError as error:
            kinds[type(error).__name__] += 1
        else:
            kinds["ok"] += 1
        late.append(loop.time() - began)

    async with ResilientKafkaProducer(
        kafka_server.bootstrap_servers, policy=policy, health=health
    ) as producer:
        await producer.send_and_wait(topic, b"first")
        caplog.clear()
        kafka_server.freeze()
        calls = []
        until = loop.time() + seconds
        while loop.time() < until:
            calls.append(asyncio.create_task(call(producer, len(calls))))
            await asyncio.sleep(0.05)
        assert health.state is State.DOWN
        await asyncio.gather(*calls)
        lag = health.lag.worst if health.lag else 0.0
        assert max(late) < 1.0 + 0.2 + lag
        assert set(kinds) <= {"KafkaOutcomeUnknown", "KafkaDeadlineExceeded", "KafkaUnavailable"}
        assert kinds["KafkaOutcomeUnknown"]
        kafka_server.thaw()
        await reached(health, State.UP)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OutcomeUnknown, DeadlineExceeded, DependencyUnavailable):
                    await producer.send_and_wait(topic, b"again")
                    break
                await asyncio.sleep(0.05)
        assert len(logged(caplog)) <= 5, [record.getMessage() for record in logged(caplog)]
    await health.aclose()


async def test_a_producer_starts_while_kafka_is_down_and_works_once_it_is_up(kafka_server):
    topic = "late"
    await kafka_server.create_topic(topic)
    kafka_server.kill()
    policy = RetryPolicy(deadline=1.0, response_timeout=0.8)
    async with ResilientKafkaProducer(
        kafka_server.bootstrap_servers, policy=policy, health=(health := quick_health())
    ) as producer:
        with pytest.raises(DependencyUnavailable) as caught:
            await producer.send_and_wait(topic, b"x")
        assert caught.value.progress is Progress.NOT_SENT
        await kafka_server.restart()
        await health.until_up(20)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(DeadlineExceeded):
                    assert (await producer.send_and_wait(topic, b"x")).offset == 0
                    break
    await health.aclose()


async def test_an_error_names_the_call_that_was_made_and_one_record_is_logged_as_one(
    kafka_server, caplog
):
    topic = "named"
    await kafka_server.create_topic(topic)
    health = quick_health()
    async with ResilientKafkaProducer(kafka_server.bootstrap_servers, health=health) as producer:
        await producer.send_and_wait(topic, b"first")
        kafka_server.freeze()
        try:
            with deadline(0.3), pytest.raises(ResilientIOError) as caught:
                await producer.send_and_wait(topic, b"x")
            assert caught.value.operation == "send_and_wait"
            assert "1 record was not delivered" in caplog.text
            await reached(health, State.DOWN)
            calls = {
                "send": producer.send("new", b"x"),
                "send_and_wait": producer.send_and_wait("new", b"x"),
                "send_many": producer.send_many("new", [b"x"]),
            }
            for name, call in calls.items():
                with pytest.raises(DependencyUnavailable) as refused:
                    await call
                assert refused.value.operation == name
        finally:
            kafka_server.thaw()
        await reached(health, State.UP)
    await health.aclose()


async def test_closing_while_the_broker_is_down_reports_undelivered_records(kafka_server):
    topic = "closing"
    await kafka_server.create_topic(topic)
    health = quick_health()
    policy = RetryPolicy(while_down="wait")
    async with ResilientKafkaProducer(
        kafka_server.bootstrap_servers, policy=policy, health=health
    ) as producer:
        await producer.send_and_wait(topic, b"first")
        kafka_server.kill()
        futures = [await producer.send(topic, b"%d" % n, key=b"k") for n in range(3)]
        await asyncio.sleep(0.2)  # sent, but the broker is gone
        futures += [await producer.send(topic, b"%d" % n, key=b"k") for n in range(3, 6)]
        began = asyncio.get_running_loop().time()
        report = await producer.aclose(1.0)
        assert asyncio.get_running_loop().time() - began < 5.0
        assert report.delivered == 0
        assert not report.ok
        assert sorted(failure.value for failure in report.failures) == [b"%d" % n for n in range(6)]
        assert {failure.progress for failure in report.failures} <= {
            Progress.NOT_SENT,
            Progress.MAYBE_APPLIED,
        }
        assert isinstance(futures[-1].exception(), Closed)
        with pytest.raises(Closed):
            await producer.send(topic, b"x")
        assert (await producer.aclose(1.0)).failures == report.failures
    await health.aclose()


@pytest.mark.soak(seconds=70)
async def test_a_minute_of_outage_makes_at_most_ten_log_records(kafka_server, caplog):
    topic = "minute"
    await kafka_server.create_topic(topic)
    caplog.set_level(logging.INFO)
    policy = RetryPolicy(deadline=1.0, response_timeout=0.8)
    async with ResilientKafkaProducer(kafka_server.bootstrap_servers, policy=policy) as producer:
        await producer.send_and_wait(topic, b"first")
        caplog.clear()
        kafka_server.kill()
        loop = asyncio.get_running_loop()
        until = loop.time() + 60
        while loop.time() < until:
            with contextlib.suppress(OutcomeUnknown, DependencyUnavailable, DeadlineExceeded):
                await producer.send_and_wait(topic, b"x")
            await asyncio.sleep(0.1)
        await kafka_server.restart()
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OutcomeUnknown, DependencyUnavailable, DeadlineExceeded):
                    await producer.send_and_wait(topic, b"again")
                    break
                await asyncio.sleep(0.1)
        assert len(logged(caplog)) <= 10, [record.getMessage() for record in logged(caplog)]
