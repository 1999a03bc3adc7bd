"""Every metric that is exported.

The names are those of OpenTelemetry, by its semantic conventions where there is one. Those of
Prometheus follow by OpenTelemetry's own rule (dots become underscores, the unit and `_total` are
appended), so a dashboard works with either way of getting them there.
"""

from __future__ import annotations

from ._kafka_metrics import KAFKA_METRICS
from ._metric import Metric

__all__ = ["CATALOGUE"]

_DEPENDENCY = ("dependency", "role")
_REDIS = ("client", "dependency")

_SERVICE = (
    Metric("resilient_io.service.ready", "gauge", "", "1 while the service should be given work"),
    Metric(
        "resilient_io.service.alive",
        "gauge",
        "",
        "0 while only a restart helps; a dependency that is away never makes it 0",
    ),
    Metric("resilient_io.service.started", "gauge", "", "1 once it has been ready"),
    Metric("resilient_io.service.draining", "gauge", "", "1 once it was told to stop"),
    Metric(
        "resilient_io.event_loop.lag",
        "gauge",
        "s",
        "How late the event loop was at the latest look",
    ),
    Metric(
        "resilient_io.event_loop.stalled",
        "counter",
        "s",
        "Time for which the event loop was blocked",
    ),
)

_DEPENDENCIES = (
    Metric(
        "resilient_io.dependency.state",
        "gauge",
        "",
        "1 for the state that it is in, 0 for the others",
        (*_DEPENDENCY, "state"),
    ),
    Metric(
        "resilient_io.dependency.state.age",
        "gauge",
        "s",
        "Time since it came into its state",
        _DEPENDENCY,
    ),
    Metric(
        "resilient_io.dependency.transitions",
        "counter",
        "{transition}",
        "How often it came into a state, by the cause that it had then",
        (*_DEPENDENCY, "state", "cause"),
    ),
    Metric(
        "resilient_io.dependency.latency",
        "gauge",
        "s",
        "Time that the latest measured answer took",
        _DEPENDENCY,
    ),
    Metric(
        "resilient_io.dependency.probes",
        "counter",
        "{probe}",
        "Probes that ended, by outcome: ok or failed",
        (*_DEPENDENCY, "outcome"),
    ),
    Metric(
        "resilient_io.dependency.failures",
        "counter",
        "{failure}",
        "Failures that clients saw and reported",
        _DEPENDENCY,
    ),
    Metric(
        "resilient_io.dependency.refusals",
        "counter",
        "{refusal}",
        "Writes that it refused",
        _DEPENDENCY,
    ),
    Metric(
        "resilient_io.dependency.parts_lost",
        "gauge",
        "{part}",
        "Parts that are lost: connections, partitions",
        _DEPENDENCY,
    ),
    Metric(
        "resilient_io.client.liveness_failure",
        "gauge",
        "",
        "1 while only a restart helps this client",
        ("client", "dependency"),
    ),
)

_REDIS_CLIENT = (
    Metric(
        "db.client.operation.duration",
        "histogram",
        "s",
        "Time from writing a command to its reply, over lanes",
        ("db.system.name", *_REDIS),
    ),
    Metric(
        "db.client.connection.pending_requests",
        "updown",
        "{request}",
        "Calls that wait for a connection or for room",
        ("db.client.connection.pool.name",),
    ),
    Metric(
        "resilient_io.redis.calls",
        "counter",
        "{call}",
        "Calls by outcome: replied (each command of a batch, over lanes), or the error's name",
        (*_REDIS, "outcome"),
    ),
    Metric(
        "resilient_io.redis.refused",
        "counter",
        "{reply}",
        "Replies that said: not applied, for now",
        _REDIS,
    ),
    Metric(
        "resilient_io.redis.retries", "counter", "{attempt}", "Attempts beyond the first", _REDIS
    ),
    Metric("resilient_io.redis.budget", "gauge", "{token}", "Tokens left for retries", _REDIS),
    Metric(
        "resilient_io.redis.connections",
        "updown",
        "{connection}",
        "Open connections by kind: lane (shared) or dedicated (of single calls)",
        (*_REDIS, "kind"),
    ),
    Metric(
        "resilient_io.redis.in_flight",
        "updown",
        "{call}",
        "Calls on the lanes without a reply yet",
        _REDIS,
    ),
    Metric(
        "resilient_io.redis.io",
        "counter",
        "By",
        "Bytes over lanes, by direction: transmit or receive",
        (*_REDIS, "network.io.direction"),
    ),
)

CATALOGUE: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_SERVICE,
        *_DEPENDENCIES,
        *_REDIS_CLIENT,
        *KAFKA_METRICS,
    )
}
"""All of them, by name."""
