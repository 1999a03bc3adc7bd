"""The readings of health and clients."""

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
from resilient_io.health import Topology, TopologyServer
from resilient_io.histogram import Latencies
from resilient_io.telemetry import readings as reading_module
from resilient_io.telemetry.catalog import BOUNDARIES
from resilient_io.telemetry.readings import Distribution, Readings


def values(readings, name):
    """Return the values of a metric by its labels."""
    return {
        reading.labels: reading.value
        for reading in readings.collect()
        if reading.metric.name == name
    }


@pytest.fixture
async def monitor():
    async with HealthMonitor(Dependency("redis a"), optional=[Dependency("kafka b")]) as monitor:
        yield monitor


async def test_readings_have_a_value_for_each_label(monitor):
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


async def test_readings_have_unique_names_and_labels():
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


async def test_names_of_a_mapping_become_labels(monitor):
    readings = Readings(monitor, {"cache": ResilientRedis()})
    assert [labels[0] for labels in values(readings, "resilient_io.redis.retries")] == ["cache"]


async def test_name_of_a_client_becomes_its_label(monitor):
    clients = [
        ResilientRedis(name="cart"),
        ResilientRedis(name="cart"),
        ResilientKafkaProducer(name="orders"),
    ]
    readings = Readings(monitor, clients)
    found = [labels[0] for labels in values(readings, "resilient_io.client.liveness_failure")]
    assert found == ["cart", "cart 2", "orders"]
    readings = Readings(monitor, {"sessions": clients[0]})
    assert [labels[0] for labels in values(readings, "resilient_io.redis.retries")] == ["sessions"]


async def test_client_without_a_name_of_its_own_is_called_by_its_kind(monitor):
    shared = Dependency("kafka")
    clients = [
        ResilientRedis(),
        ResilientKafkaProducer(health=shared),
        ResilientKafkaConsumer("orders", group_id="billing", health=shared),
        ResilientRedis(health=Dependency("cart")),
    ]
    readings = Readings(monitor, clients)
    found = [labels[0] for labels in values(readings, "resilient_io.client.liveness_failure")]
    assert found == ["redis", "producer", "consumer", "cart"]


async def test_transitions_are_counted_by_state_and_cause(monitor):
    redis, kafka = monitor.dependencies
    readings = Readings(monitor, ())
    for _ in range(2):
        redis.succeeded()
        redis.failed(Cause.REFUSED, "connection refused", definite=True)
        await asyncio.sleep(60)  # otherwise it would count as flapping
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


async def test_liveness_failure_of_a_client_is_read(monitor, monkeypatch):
    redis = ResilientRedis()
    readings = Readings(monitor, [redis])
    labels = ("redis", redis.health.name)
    assert values(readings, "resilient_io.client.liveness_failure") == {labels: False}
    monkeypatch.setattr(redis, "liveness_failure", lambda: "a task has ended")
    assert values(readings, "resilient_io.client.liveness_failure") == {labels: True}


def test_latencies_are_counted_up_to_each_boundary():
    latencies = Latencies()
    measured = [0.00005, 0.00015, 0.0004, 0.0009, 0.003, 0.007, 0.03, 0.08, 0.3, 0.8, 3, 8, 60]
    for seconds in measured:
        latencies.record(seconds)
    assert Distribution(latencies.counts, latencies.total).cumulative() == list(
        range(1, len(BOUNDARIES) + 2)
    )


def test_latency_near_a_boundary_is_at_most_half_a_bucket_off():
    for seconds in (0.00094, 0.00106, 0.0094, 0.0106):
        latencies = Latencies()
        latencies.record(seconds, count=7)
        cumulative = Distribution(latencies.counts, latencies.total).cumulative()
        for boundary, count in zip(BOUNDARIES, cumulative, strict=False):
            assert count == (7 if seconds <= boundary else 0), (seconds, boundary)
        assert cumulative[-1] == 7


async def test_number_of_series_is_bounded(monitor, monkeypatch):
    consumer = ResilientKafkaConsumer("orders", group_id="billing")
    lags = {("orders", number): 2 for number in range(1_500)}
    monkeypatch.setattr(consumer, "known_lag", lambda: lags)
    found = values(Readings(monitor, [consumer]), "resilient_io.consumer.lag")
    assert len(found) == 501
    assert sum(found.values()) == 3_000
    assert found["consumer", consumer.health.name, "billing", "other", "other"] == 2_000

    bounded = reading_module._bounded({f"Error{number}": 1 for number in range(80)})
    assert len(bounded) == 51
    assert bounded["other"] == 30


@pytest.mark.parametrize(
    ("clients", "error", "message"),
    [
        ([object()], TypeError, "clients must contain .*, not object: pass clients="),
        ({"": None}, ConfigurationError, "name must not be empty: pass clients="),
        ({7: None}, TypeError, "name must be a str, not 7: pass clients="),
        (object(), TypeError, "must be a sequence or a mapping, not object: pass clients="),
        ("redis", TypeError, "must be a sequence or a mapping, not str"),
    ],
)
async def test_wrong_clients_are_rejected_with_advice(monitor, clients, error, message):
    with pytest.raises(error, match=message):
        Readings(monitor, clients)


async def test_wrong_monitor_is_rejected():
    with pytest.raises(TypeError, match="must be a HealthMonitor, not Dependency"):
        Readings(Dependency("redis"), ())


def test_readings_do_not_need_an_event_loop():
    monitor = HealthMonitor(Dependency("redis"))
    readings = Readings(monitor, [ResilientRedis(), ResilientKafkaProducer()])
    assert values(readings, "resilient_io.service.ready") == {(): False}


async def test_numbering_duplicates_makes_no_existing_name():
    names = ["redis", "redis 2", "redis", "redis"]
    readings = Readings(HealthMonitor(*map(Dependency, names)), ())
    found = values(readings, "resilient_io.dependency.failures")
    assert [labels[0] for labels in found] == ["redis", "redis 2", "redis 3", "redis 4"]


async def test_client_passed_twice_is_rejected(monitor):
    redis, producer = ResilientRedis(), ResilientKafkaProducer()
    for clients in (
        [redis, redis],
        {"cache": redis, "sessions": redis.with_policy(attempts=1)},
        [producer, producer],
    ):
        with pytest.raises(ConfigurationError, match="would be counted twice: pass it once"):
            Readings(monitor, clients)


async def test_counters_never_decrease(monitor):
    redis = ResilientRedis()
    readings = Readings(monitor, [redis])

    def counted():
        (retries,) = values(readings, "resilient_io.redis.retries").values()
        (latency,) = values(readings, "db.client.operation.duration").values()
        return retries, sum(count for _, count in latency.counts), latency.total

    def count(retries, latencies):
        redis._runtime.executor.retries += retries
        redis._runtime.multiplexer.latencies.record(0.1, count=latencies)

    count(7, 10)
    assert counted() == (7, 10, pytest.approx(1.0))
    redis._runtime._build()  # as when it is opened again
    assert counted() == (7, 10, pytest.approx(1.0))
    count(1, 2)
    assert counted() == (8, 12, pytest.approx(1.2))
    redis._runtime._build()
    count(2, 1)
    redis._runtime.executor.retries = 0
    assert counted() == (8, 13, pytest.approx(1.3))


async def test_error_in_one_source_does_not_hide_the_others(monkeypatch, caplog):
    cache, sessions = ResilientRedis(), ResilientRedis()
    monitor = HealthMonitor(Dependency("redis"))
    readings = Readings(monitor, {"cache": cache, "sessions": sessions})

    def fail():
        raise LookupError("hidden")

    monkeypatch.setattr(cache, "stats", fail)
    for _ in range(3):
        assert [labels[0] for labels in values(readings, "resilient_io.redis.retries")] == [
            "sessions"
        ]
        assert values(readings, "resilient_io.service.ready") == {(): False}
        assert values(readings, "resilient_io.service.alive") == {(): True}
    logged = [(record.event, record.part, record.error) for record in caplog.records]
    assert logged == [("metrics_not_read", "cache", "LookupError")]


async def test_servers_behind_sentinels_and_failovers_are_counted(monitor):
    async def answers(_suspicious):
        return 0.001

    now = asyncio.get_running_loop().time()
    topology = Topology(
        servers=(
            TopologyServer(address="a:1", role="master", state="up"),
            TopologyServer(address="b:1", role="replica", state="up", lag=0.5),
            TopologyServer(address="c:1", role="replica", state="down"),
        ),
        master_since=now,
        sentinels=3,
        sentinels_reached=2,
        failovers=2,
        failover_seconds=2.5,
        calls_held=30,
    )
    redis = monitor.dependencies[0]
    attachment = redis.start(answers, last_reply=lambda: float("-inf"), topology=lambda: topology)
    readings = Readings(monitor, ())
    own = ("redis a", "critical")
    servers = values(readings, "resilient_io.topology.servers")
    assert {labels: value for labels, value in servers.items() if value} == {
        (*own, "master", "up"): 1,
        (*own, "replica", "up"): 1,
        (*own, "replica", "down"): 1,
    }
    assert values(readings, "resilient_io.topology.replica_lag") == {own: 0.5}
    await asyncio.sleep(3.0)
    assert values(readings, "resilient_io.topology.master_age") == {own: 3.0}
    assert values(readings, "resilient_io.topology.sentinels") == {
        (*own, "reached"): 2,
        (*own, "lost"): 1,
    }
    assert values(readings, "resilient_io.topology.slots") == {}
    assert values(readings, "resilient_io.topology.failing_over") == {own: False}
    assert values(readings, "resilient_io.topology.failovers") == {own: 2}
    assert values(readings, "resilient_io.topology.failover_time") == {own: 2.5}
    assert values(readings, "resilient_io.topology.calls_held") == {own: 30}
    await attachment.detach()
