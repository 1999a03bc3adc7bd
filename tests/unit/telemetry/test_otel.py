"""The instruments of OpenTelemetry, with its SDK."""

import gc
import weakref

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum

from resilient_io import Dependency, HealthMonitor, ResilientKafkaProducer, ResilientRedis
from resilient_io.telemetry.catalog import BOUNDARIES, CATALOG
from resilient_io.telemetry.otel import OpenTelemetryMetrics


@pytest.fixture
async def monitor():
    async with HealthMonitor(Dependency("redis a")) as monitor:
        yield monitor


class Collected:
    """A meter provider, and its metrics by name."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def collect(self):
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "resilient_io"
        return {metric.name: metric for metric in scope.metrics}


@pytest.fixture
def collected():
    made = Collected()
    yield made
    made.provider.shutdown()


async def test_instruments_have_the_names_kinds_and_units_of_the_catalog(monitor, collected):
    redis = ResilientRedis()
    redis._runtime.multiplexer.latencies.record(0.002)
    OpenTelemetryMetrics(monitor, [redis, ResilientKafkaProducer()], collected.provider)
    found = collected.collect()
    assert found["db.client.operation.duration"]
    for name, metric in found.items():
        known = CATALOG[name]
        assert metric.unit == known.unit
        assert metric.description == known.help
        data = metric.data
        if known.kind == "counter":
            assert isinstance(data, Sum)
            assert data.is_monotonic
        elif known.kind == "updown":
            assert isinstance(data, Sum)
            assert not data.is_monotonic
        else:
            assert isinstance(data, Histogram if known.kind == "histogram" else Gauge)
        for point in data.data_points:
            assert set(point.attributes) <= set(known.labels)
            assert all(point.attributes.values())


async def test_values_are_current(monitor, collected):
    OpenTelemetryMetrics(monitor, meter_provider=collected.provider)

    def ready():
        (point,) = collected.collect()["resilient_io.service.ready"].data.data_points
        return point.value

    assert ready() == 0
    monitor.dependencies[0].succeeded()
    assert ready() == 1
    monitor.drain()
    assert ready() == 0


async def test_collection_reads_once(monitor, collected, monkeypatch):
    redis = ResilientRedis()
    asked = []
    stats = redis.stats
    monkeypatch.setattr(redis, "stats", lambda: asked.append(None) or stats())
    OpenTelemetryMetrics(monitor, [redis], collected.provider)
    for times in (1, 2, 3):
        collected.collect()
        assert len(asked) == times


async def test_few_latencies_are_recorded_exactly_and_once(monitor, collected):
    redis = ResilientRedis()
    latencies = redis._runtime.multiplexer.latencies
    OpenTelemetryMetrics(monitor, [redis], collected.provider)
    latencies.record(0.002, 30)
    latencies.record(0.2, 3)

    def point():
        (found,) = collected.collect()["db.client.operation.duration"].data.data_points
        return found

    for _ in range(2):  # the second collection adds nothing
        assert point().count == 33
    latencies.record(0.002, 7)
    last = point()
    assert last.count == 40
    assert tuple(last.explicit_bounds) == BOUNDARIES
    counts = dict(zip([*BOUNDARIES, None], last.bucket_counts, strict=True))
    assert {edge: count for edge, count in counts.items() if count} == {0.005: 37, 0.5: 3}
    assert last.sum == pytest.approx(0.002 * 37 + 0.2 * 3, rel=0.05)
    assert last.attributes["db.system.name"] == "redis"


async def test_many_latencies_are_sampled_evenly(monitor, collected):
    redis = ResilientRedis()
    latencies = redis._runtime.multiplexer.latencies
    OpenTelemetryMetrics(monitor, [redis], collected.provider)
    latencies.record(0.0007, 900_000)
    latencies.record(0.03, 99_000)
    latencies.record(3.0, 1_000)
    (point,) = collected.collect()["db.client.operation.duration"].data.data_points
    assert 499 <= point.count <= 501
    counts = dict(zip([*BOUNDARIES, None], point.bucket_counts, strict=True))
    assert counts[0.001] == pytest.approx(450, abs=1)
    assert counts[0.05] == pytest.approx(50, abs=1)
    assert counts[5.0] == pytest.approx(0.5, abs=0.5)


async def test_client_that_was_opened_again_counts_from_zero(monitor, collected):
    redis = ResilientRedis()
    OpenTelemetryMetrics(monitor, [redis], collected.provider)
    redis._runtime.multiplexer.latencies.record(0.002, 10)
    collected.collect()
    redis._runtime._build()  # as after its event loop was closed
    redis._runtime.multiplexer.latencies.record(0.002, 4)
    (point,) = collected.collect()["db.client.operation.duration"].data.data_points
    assert point.count == 14


async def test_closed_metrics_report_nothing(monitor, collected):
    metrics = OpenTelemetryMetrics(monitor, meter_provider=collected.provider)
    assert collected.collect()
    metrics.close()
    assert collected.collect() == {}


async def test_closed_metrics_release_their_clients(monitor, collected):
    redis = ResilientRedis()
    exported = OpenTelemetryMetrics(monitor, [redis], collected.provider)
    assert collected.collect()
    reference = weakref.ref(redis)
    exported.close()
    del redis
    gc.collect()
    assert reference() is None
    assert collected.collect() == {}
