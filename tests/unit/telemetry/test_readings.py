"""What is read of health and of clients when somebody collects."""

import asyncio

import pytest

from resilient_io import (
    Cause,
    ConfigurationError,
    Dependency,
    HealthMonitor,
    ResilientKafkaConsumer,
    ResilientKafkaProducer,
    ResilientRedis,
)
from resilient_io.histogram import Latencies
from resilient_io.telemetry import _counts
from resilient_io.telemetry._metric import BOUNDARIES
from resilient_io.telemetry._readings import Readings, fold
from resilient_io.telemetry._totals import Distribution


def values(readings, name):
    """Give the values of a metric by its labels."""
    return {
        reading.labels: reading.value
        for reading in readings.collect()
        if reading.metric.name == name
    }


@pytest.fixture
async def monitor():
    async with HealthMonitor(Dependency("redis a"), optional=[Dependency("kafka b")]) as monitor:
        yield monitor


async def test_every_reading_has_a_value_for_each_of_its_labels(monitor):
    clients = [
        ResilientRedis(),
        ResilientKafkaProducer(),
        ResilientKafkaConsumer("orders", group_id="billing"),
    ]
    found = Readings(monitor, clients).collect()
    assert found
    for reading in found:
        assert len(reading.labels) == len(reading.metric.labels), reading.metric.name
        assert isinstance(reading.value, (int, float, Distribution)), reading.metric.name


async def test_no_two_readings_have_the_same_name_and_labels():
    twins = [Dependency("kafka b"), Dependency("kafka b")]
    monitor = HealthMonitor(*twins)
    clients = [ResilientRedis(), ResilientRedis(), ResilientRedis()]
    found = Readings(monitor, clients).collect()
    keys = [(reading.metric.name, reading.labels) for reading in found]
    assert len(keys) == len(set(keys))
    names = {labels[0] for name, labels in keys if name == "resilient_io.redis.retries"}
    assert names == {"redis", "redis 2", "redis 3"}
    names = {labels[0] for name, labels in keys if name == "resilient_io.dependency.failures"}
    assert names == {"kafka b", "kafka b 2"}


async def test_clients_may_be_given_names(monitor):
    readings = Readings(monitor, {"cache": ResilientRedis()})
    assert [labels[0] for labels in values(readings, "resilient_io.redis.retries")] == ["cache"]


async def test_transitions_are_counted_by_state_and_cause(monitor):
    redis, kafka = monitor.dependencies
    readings = Readings(monitor, ())
    for _ in range(2):
        redis.succeeded()
        redis.failed(Cause.REFUSED, "nobody there", definite=True)
        await asyncio.sleep(60)  # so that it is not damped as flapping
    redis.succeeded()
    redis.refused(Cause.READ_ONLY, "a replica")
    kafka.succeeded()
    assert values(readings, "resilient_io.dependency.transitions") == {
        ("redis a", "critical", "up", ""): 3,
        ("redis a", "critical", "down", "refused"): 2,
        ("redis a", "critical", "degraded", "read-only"): 1,
        ("kafka b", "optional", "up", ""): 1,
    }
    states = values(readings, "resilient_io.dependency.state")
    assert [labels for labels, value in states.items() if value] == [
        ("redis a", "critical", "degraded"),
        ("kafka b", "optional", "up"),
    ]
    assert values(readings, "resilient_io.service.ready") == {(): True}
    await asyncio.sleep(5)
    ages = values(readings, "resilient_io.dependency.state.age")
    assert ages["redis a", "critical"] == pytest.approx(5)


async def test_ready_and_draining_follow_the_monitor(monitor):
    readings = Readings(monitor, ())
    assert values(readings, "resilient_io.service.ready") == {(): False}
    monitor.dependencies[0].succeeded()
    assert values(readings, "resilient_io.service.ready") == {(): True}
    assert values(readings, "resilient_io.service.draining") == {(): False}
    monitor.drain()
    assert values(readings, "resilient_io.service.ready") == {(): False}
    assert values(readings, "resilient_io.service.draining") == {(): True}
    assert values(readings, "resilient_io.service.alive") == {(): True}


async def test_a_client_that_is_stuck_says_so(monitor, monkeypatch):
    redis = ResilientRedis()
    readings = Readings(monitor, [redis])
    labels = ("redis", redis.health.name)
    assert values(readings, "resilient_io.client.liveness_failure") == {labels: False}
    monkeypatch.setattr(redis, "liveness_failure", lambda: "its keeper is gone")
    assert values(readings, "resilient_io.client.liveness_failure") == {labels: True}


def test_latencies_are_folded_into_the_conventional_boundaries():
    latencies = Latencies()
    measured = [0.00005, 0.00015, 0.0004, 0.0009, 0.003, 0.007, 0.03, 0.08, 0.3, 0.8, 3, 8, 60]
    for seconds in measured:
        latencies.record(seconds)
    assert fold(latencies.counts) == list(range(1, len(BOUNDARIES) + 2))


def test_a_latency_is_at_most_a_bucket_s_half_on_the_wrong_side_of_a_boundary():
    for seconds in (0.00094, 0.00106, 0.0094, 0.0106):
        latencies = Latencies()
        latencies.record(seconds, count=7)
        folded = fold(latencies.counts)
        for boundary, count in zip(BOUNDARIES, folded, strict=False):
            assert count == (7 if seconds <= boundary else 0), (seconds, boundary)
        assert folded[-1] == 7


async def test_series_are_bounded_whatever_the_assignment_and_the_errors(monitor, monkeypatch):
    consumer = ResilientKafkaConsumer("orders", group_id="billing")
    lags = {("orders", number): 2 for number in range(1_500)}
    monkeypatch.setattr(consumer, "known_lag", lambda: lags)
    found = values(Readings(monitor, [consumer]), "resilient_io.consumer.lag")
    assert len(found) == 501
    assert sum(found.values()) == 3_000
    assert found["consumer", consumer.health.name, "billing", "other", "other"] == 2_000

    bounded = _counts._bounded({f"Error{number}": 1 for number in range(80)})
    assert len(bounded) == 51
    assert bounded["other"] == 30


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([object()], "clients holds a object: write clients="),
        ({"": None}, "is no name of a client"),
        (object(), "is no list: write clients="),
    ],
)
async def test_what_is_no_client_is_refused_with_what_to_write(monitor, clients, message):
    with pytest.raises(ConfigurationError, match=message):
        Readings(monitor, clients)


async def test_what_is_no_monitor_is_refused():
    with pytest.raises(TypeError, match="write HealthMonitor"):
        Readings(Dependency("redis"), ())


def test_it_can_be_read_without_any_loop():
    monitor = HealthMonitor(Dependency("redis"))
    readings = Readings(monitor, [ResilientRedis(), ResilientKafkaProducer()])
    assert values(readings, "resilient_io.service.ready") == {(): False}


async def test_no_number_makes_a_name_that_somebody_has():
    names = ["redis", "redis 2", "redis", "redis"]
    readings = Readings(HealthMonitor(*map(Dependency, names)), ())
    found = values(readings, "resilient_io.dependency.failures")
    assert [labels[0] for labels in found] == ["redis", "redis 2", "redis 3", "redis 4"]


async def test_what_would_be_counted_twice_is_refused(monitor):
    redis, producer = ResilientRedis(), ResilientKafkaProducer()
    for clients in (
        [redis, redis],
        {"cache": redis, "sessions": redis.with_policy(attempts=1)},
        [producer, producer],
    ):
        with pytest.raises(ConfigurationError, match="would be counted twice: give it once"):
            Readings(monitor, clients)


async def test_counters_never_go_back(monitor):
    redis = ResilientRedis()
    readings = Readings(monitor, [redis])

    def counted():
        (retries,) = values(readings, "resilient_io.redis.retries").values()
        (latency,) = values(readings, "db.client.operation.duration").values()
        return retries, sum(count for _, count in latency.counts), latency.total

    def count(retries, latencies):
        redis._engine.gate.verdicts.retries += retries
        redis._engine.lanes.latencies.record(0.1, count=latencies)

    count(7, 10)
    assert counted() == (7, 10, pytest.approx(1.0))
    redis._engine._build()  # as when it is opened again
    assert counted() == (7, 10, pytest.approx(1.0))
    count(1, 2)
    assert counted() == (8, 12, pytest.approx(1.2))
    redis._engine._build()
    count(2, 1)
    redis._engine.gate.verdicts.retries = 0
    assert counted() == (8, 13, pytest.approx(1.3))


async def test_a_part_that_raises_blinds_nobody_to_the_others(monkeypatch, caplog):
    cache, sessions = ResilientRedis(), ResilientRedis()
    monitor = HealthMonitor(Dependency("redis"))
    readings = Readings(monitor, {"cache": cache, "sessions": sessions})

    def broken():
        raise LookupError("hidden")

    monkeypatch.setattr(cache, "stats", broken)
    for _ in range(3):
        assert [labels[0] for labels in values(readings, "resilient_io.redis.retries")] == [
            "sessions"
        ]
        assert values(readings, "resilient_io.service.ready") == {(): False}
        assert values(readings, "resilient_io.service.alive") == {(): True}
    told = [(record.event, record.part, record.error) for record in caplog.records]
    assert told == [("metrics_not_read", "cache", "LookupError")]
