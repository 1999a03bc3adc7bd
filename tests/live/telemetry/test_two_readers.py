"""A meter provider with several readers, each of which collects in its own thread."""

import asyncio

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from resilient_io import HealthMonitor, ResilientKafkaProducer, ResilientRedis
from resilient_io.telemetry import OpenTelemetryMetrics

READERS, COLLECTIONS = 4, 15


def names(reader):
    (resource,) = reader.get_metrics_data().resource_metrics
    (scope,) = resource.scope_metrics
    return frozenset(metric.name for metric in scope.metrics)


async def test_every_reader_gets_all_metrics_each_time():
    redis = ResilientRedis(port=1)
    readers = [InMemoryMetricReader() for _ in range(READERS)]
    provider = MeterProvider(readers, shutdown_on_exit=False)
    OpenTelemetryMetrics(HealthMonitor(redis.health), [redis, ResilientKafkaProducer()], provider)
    everything = await asyncio.to_thread(names, readers[0])
    assert "resilient_io.redis.calls" in everything

    def collect(reader):
        return {names(reader) for _ in range(COLLECTIONS)}

    found = await asyncio.gather(*(asyncio.to_thread(collect, reader) for reader in readers))
    assert found == [{everything}] * READERS
    provider.shutdown()
