"""Collecting metrics of a working service: correct values, from any thread, without delays."""

import asyncio
import time

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from resilient_io import HealthMonitor, ResilientRedis
from resilient_io.telemetry.otel import OpenTelemetryMetrics
from resilient_io.telemetry.prometheus import PrometheusMetrics


def samples(body):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


async def test_exported_values_are_correct(service):
    body, _ = PrometheusMetrics(service.monitor, service.clients).render()
    found = samples(body)
    redis = service.redis.health.name
    group = service.topic

    assert found["resilient_io_service_ready",] == 1
    assert found["resilient_io_dependency_state", "critical", redis, "up"] == 1
    cause = service.redis.health.history[-2].cause.value
    downs = "resilient_io_dependency_transitions_total", *sorted((cause, "critical", "down", redis))
    assert found[downs] == 1
    stats = service.redis.stats()
    replied = "resilient_io_redis_calls_total", *sorted(("redis", redis, "replied"))
    assert found[replied] == stats.replies >= 99
    failed = "resilient_io_redis_calls_total", *sorted(("redis", redis, "DependencyUnavailable"))
    assert found[failed] == stats.ended["DependencyUnavailable"] >= 1
    count = "db_client_operation_duration_seconds_count", *sorted(("redis", redis, "redis"))
    assert found[count] == sum(count for _, count in stats.latency_counts) >= 99

    sent = "messaging_client_sent_messages_total", "", "kafka", "kafka", "producer", "send"
    assert found[sent] == 102  # two of them are dead letters
    duration = "messaging_client_operation_duration_seconds"
    mine = sorted(("kafka", "kafka", "producer", "send"))
    batches = service.producer.stats().batches
    assert found[f"{duration}_count", *mine] == batches >= 1
    assert 0 < found[f"{duration}_sum", *mine] < 60
    run = "resilient_io_run_records_total"
    assert found[run, *sorted(("consumer", "kafka", group, "handled"))] == 98
    assert found[run, *sorted(("consumer", "kafka", group, "dead_lettered"))] == 2
    failures = "resilient_io_run_failures_total"
    assert found[failures, *sorted(("consumer", "kafka", group, "record"))] == 4
    assert found["resilient_io_run_pauses_total", *sorted(("consumer", "kafka", group))] == 1


async def test_known_lag_is_that_of_kafka(service):
    async def lags():
        return await service.consumer.lag(10), service.consumer.known_lag()

    async with asyncio.timeout(20):  # until the last commit and the last fetch
        while (  # noqa: ASYNC110 - without an event
            found := await lags()
        ) and (found[0] != found[1] or any(found[0].values())):
            await asyncio.sleep(0.1)
    assert set(found[1].values()) == {0}
    assert sorted(found[1]) == [(service.topic, 0), (service.topic, 1)]
    assert all(client.liveness_failure() is None for client in service.clients)


@pytest.mark.parametrize("busy", [False, True])
async def test_another_thread_can_scrape_during_calls(redis_server, busy):
    """Scrape as `prometheus_client.start_http_server` does, while the counters change."""
    async with ResilientRedis.from_url(redis_server.url) as redis:
        await redis.health.until_up(10)
        async with HealthMonitor(redis.health) as monitor:
            registry = CollectorRegistry()
            PrometheusMetrics(monitor, [redis]).register(registry)
            stop = asyncio.Event()

            async def call():
                while busy and not stop.is_set():
                    await redis.incr("key")

            async with asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(call())
                for _ in range(20):
                    body = await asyncio.to_thread(generate_latest, registry)
                    assert samples(body)["resilient_io_service_ready",] == 1
                stop.set()
            counted = redis.stats().replies
            body = await asyncio.to_thread(generate_latest, registry)
            key = "resilient_io_redis_calls_total", *sorted(("redis", redis.health.name, "replied"))
            assert samples(body)[key] >= counted


async def test_scrape_of_a_blocked_event_loop_returns_the_previous_result(redis_server):
    async with ResilientRedis.from_url(redis_server.url) as redis:
        await redis.health.until_up(10)
        async with HealthMonitor(redis.health) as monitor:
            metrics = PrometheusMetrics(monitor, [redis])
            before = samples(metrics.render()[0])
            scrape = asyncio.get_running_loop().run_in_executor(None, metrics.render)
            time.sleep(2)  # a bug of the application
            body, _ = await scrape
            assert samples(body)["resilient_io_service_ready",] == 1
            assert samples(body).keys() == before.keys()


class Exporter(MetricExporter):
    """Records the metrics and the thread of each export."""

    def __init__(self):
        super().__init__()
        self.exported = []

    def export(self, metrics_data, timeout_millis=10_000, **_):
        self.exported.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **_):
        pass


def value_of(data, name):
    return [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


async def test_periodic_reader_of_opentelemetry_collects_in_its_own_thread(redis_server):
    exporter = Exporter()
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=50)
    provider = MeterProvider([reader, InMemoryMetricReader()], shutdown_on_exit=False)
    async with ResilientRedis.from_url(redis_server.url) as redis:
        await redis.health.until_up(10)
        async with HealthMonitor(redis.health) as monitor:
            OpenTelemetryMetrics(monitor, [redis], provider)
            for _ in range(100):
                await redis.incr("key")
            replies = redis.stats().replies
            async with asyncio.timeout(20):
                while not any(  # noqa: ASYNC110 - without an event
                    point.value >= replies
                    for data in exporter.exported[-1:]
                    for point in value_of(data, "resilient_io.redis.calls")
                ):
                    await asyncio.sleep(0.02)
            (latency,) = value_of(exporter.exported[-1], "db.client.operation.duration")
            assert 100 <= latency.count <= redis.stats().replies
            assert latency.sum < 60
            await asyncio.to_thread(provider.shutdown)


def test_latest_readings_are_returned_after_the_event_loop_was_closed(tmp_path):
    """Collect as a reader does for its last export, when the process ends."""
    made = []

    async def serve():
        async with ResilientRedis() as redis, HealthMonitor(redis.health) as monitor:
            made.append(PrometheusMetrics(monitor, [redis]))
            monitor.drain()

    asyncio.run(serve())
    assert samples(made[0].render()[0])["resilient_io_service_draining",] == 1


async def test_previous_readings_are_returned_if_the_event_loop_ends_during_a_scrape():
    loop = asyncio.get_running_loop()
    made, ready = [], asyncio.Event()

    async def serve():
        async with ResilientRedis() as redis, HealthMonitor(redis.health) as monitor:
            made.append(PrometheusMetrics(monitor, [redis]))
            made[0].render()
            loop.call_soon_threadsafe(ready.set)
            time.sleep(0.5)  # asked meanwhile, and cancelled before it answers
            raise asyncio.CancelledError

    def run():
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(serve())

    serving = loop.run_in_executor(None, run)
    await ready.wait()
    body, _ = await asyncio.to_thread(made[0].render)
    assert samples(body)["resilient_io_service_ready",] == 0
    await serving
