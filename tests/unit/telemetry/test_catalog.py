"""The names of all metrics in OpenTelemetry and Prometheus."""

import importlib
from pathlib import Path

import pytest
from opentelemetry.semconv._incubating.metrics import db_metrics, messaging_metrics
from opentelemetry.semconv.metrics import db_metrics as stable_db_metrics

from resilient_io.telemetry.catalog import CATALOG

ROOT = Path(__file__).parents[3]

CONVENTIONAL = {
    stable_db_metrics.DB_CLIENT_OPERATION_DURATION: "histogram",
    db_metrics.DB_CLIENT_CONNECTION_PENDING_REQUESTS: "updown",
    messaging_metrics.MESSAGING_CLIENT_SENT_MESSAGES: "counter",
    messaging_metrics.MESSAGING_CLIENT_OPERATION_DURATION: "histogram",
    messaging_metrics.MESSAGING_CLIENT_CONSUMED_MESSAGES: "counter",
}


def test_names_are_conventional_or_in_the_library_s_namespace():
    others = [name for name in CATALOG if not name.startswith("resilient_io.")]
    assert sorted(others) == sorted(CONVENTIONAL)
    assert {name: CATALOG[name].kind for name in others} == CONVENTIONAL


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("resilient_io.service.ready", ["resilient_io_service_ready"]),
        ("resilient_io.event_loop.stalled", ["resilient_io_event_loop_stalled_seconds_total"]),
        ("resilient_io.redis.io", ["resilient_io_redis_io_bytes_total"]),
        ("resilient_io.producer.buffered", ["resilient_io_producer_buffered_bytes"]),
        ("resilient_io.consumer.lag", ["resilient_io_consumer_lag"]),
        (
            "db.client.operation.duration",
            [f"db_client_operation_duration_seconds_{kind}" for kind in ("bucket", "count", "sum")],
        ),
        ("messaging.client.sent.messages", ["messaging_client_sent_messages_total"]),
    ],
)
def test_prometheus_names_follow_opentelemetry_s_translation(name, samples):
    assert list(CATALOG[name].sample_names) == samples


def test_prometheus_names_are_unique():
    names = [sample for metric in CATALOG.values() for sample in metric.sample_names]
    assert len(names) == len(set(names))


def test_labels_of_a_metric_are_unique():
    for metric in CATALOG.values():
        assert len(set(metric.prometheus_labels)) == len(metric.labels), metric.name


def test_how_to_lists_every_metric(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("metrics_table")
    document = script.PAGE.read_text()
    assert script.rewritten(document) == document, "run scripts/metrics_table.py"
    assert document.count("| `resilient_io.") >= 40
