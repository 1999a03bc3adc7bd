"""The collector of prometheus_client."""

import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_plain

from resilient_io import ConfigurationError, Dependency, HealthMonitor, ResilientRedis
from resilient_io.telemetry.catalog import CATALOG
from resilient_io.telemetry.prometheus import PrometheusMetrics


@pytest.fixture
async def monitor():
    async with HealthMonitor(Dependency("redis a")) as monitor:
        yield monitor


async def test_samples_are_those_of_the_catalog(monitor):
    redis = ResilientRedis()
    redis._runtime.multiplexer.latencies.record(0.002, 3)
    body, content_type = PrometheusMetrics(monitor, [redis]).render()
    assert content_type.startswith("text/plain")
    known = {sample: metric for metric in CATALOG.values() for sample in metric.sample_names}
    samples = [each for family in read_plain(body.decode()) for each in family.samples]
    assert samples
    for sample in samples:
        labels = set(known[sample.name].prometheus_labels)
        assert set(sample.labels) - {"le"} == labels, sample.name
    duration = [each for each in samples if each.name.startswith("db_client_operation_duration")]
    assert {each.labels.get("le"): each.value for each in duration if "le" in each.labels} == {
        "0.0001": 0.0,
        "0.0002": 0.0,
        "0.0005": 0.0,
        "0.001": 0.0,
        "0.005": 3.0,
        "0.01": 3.0,
        "0.05": 3.0,
        "0.1": 3.0,
        "0.5": 3.0,
        "1.0": 3.0,
        "5.0": 3.0,
        "10.0": 3.0,
        "+Inf": 3.0,
    }
    (total,) = [each for each in duration if each.name.endswith("_sum")]
    assert total.value == pytest.approx(0.006)


async def test_openmetrics_is_rendered_on_request(monitor):
    accept = "application/openmetrics-text; version=1.0.0"
    body, content_type = PrometheusMetrics(monitor, [ResilientRedis()]).render(accept)
    assert content_type.startswith("application/openmetrics-text")
    assert list(read_open(body.decode()))


async def test_registry_collects_until_the_metrics_are_unregistered(monitor):
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(monitor).register(registry)
    assert registry.get_sample_value("resilient_io_service_ready") == 0.0
    monitor.dependencies[0].succeeded()
    assert registry.get_sample_value("resilient_io_service_ready") == 1.0
    assert metrics.render()[0] == generate_latest(registry)
    metrics.unregister()
    metrics.unregister()
    assert registry.get_sample_value("resilient_io_service_ready") is None


async def test_second_collector_in_the_same_registry_is_rejected(monitor):
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(monitor).register(registry)
    with pytest.raises(ConfigurationError, match="pass all clients to one PrometheusMetrics"):
        PrometheusMetrics(monitor).register(registry)
    metrics.unregister()
    PrometheusMetrics(monitor).register(registry)


async def test_special_characters_in_a_name_are_escaped():
    async with HealthMonitor(Dependency('redis "a"\\b')) as monitor:
        body, _ = PrometheusMetrics(monitor).render()
    families = {family.name: family for family in read_plain(body.decode())}
    (sample,) = families["resilient_io_dependency_failures"].samples
    assert sample.labels["dependency"] == 'redis "a"\\b'


@pytest.mark.parametrize(
    ("module", "missing", "hint"),
    [
        ("prometheus", "prometheus_client", "pip install 'resilient-io[prometheus]'"),
        ("otel", "opentelemetry", "pip install 'resilient-io[otel]'"),
    ],
)
def test_missing_extra_is_an_error_with_the_command_to_install_it(module, missing, hint):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from resilient_io import ConfigurationError\n"
        "try:\n"
        f"    import resilient_io.telemetry.{module}\n"
        "except ConfigurationError as error:\n"
        "    print(error)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert hint in output
    assert output.count("\n") == 1


def test_metrics_are_not_imported_before_they_are_used():
    code = (
        "import sys, resilient_io; resilient_io.ResilientRedis; resilient_io.HealthMonitor\n"
        "resilient_io.ResilientKafkaConsumer; resilient_io.ResilientKafkaProducer\n"
        "found = [n for n in sys.modules if n.startswith("
        "('prometheus_client', 'resilient_io.telemetry.prom', 'resilient_io.telemetry.otel'))]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_metrics_of_redis_alone_do_not_import_kafka():
    code = (
        "import sys, resilient_io\n"
        "from resilient_io.telemetry.prometheus import PrometheusMetrics\n"
        "monitor = resilient_io.HealthMonitor(resilient_io.Dependency('redis'))\n"
        "PrometheusMetrics(monitor, [resilient_io.ResilientRedis()]).render()\n"
        "assert 'aiokafka' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
