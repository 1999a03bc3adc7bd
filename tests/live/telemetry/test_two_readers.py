"""A meter provider with several readers: each collects in a thread of its own."""

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


async def test_each_reader_gets_everything_each_time():
    redis = ResilientRedis(port=1)
    readers = [InMemoryMetricReader() for _ in range(READERS)]
    provider = MeterProvider(readers, shutdown_on_exit=False)
    OpenTelemetryMetrics(HealthMonitor(redis.health), [redis, ResilientKafkaProducer()], provider)
    whole = await asyncio.to_thread(names, readers[0])
    assert "resilient_io.redis.calls" in whole

    def collect(reader):
        return {names(reader) for _ in range(COLLECTIONS)}

    found = await asyncio.gather(*(asyncio.to_thread(collect, reader) for reader in readers))
    assert found == [{whole}] * READERS
    provider.shutdown()
