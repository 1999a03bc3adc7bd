"""Every exported metric.

The names are OpenTelemetry's: those of the semantic conventions where there is one. The Prometheus
names follow OpenTelemetry's translation (dots become underscores, the unit and `_total` are
appended), so that a dashboard works with both exporters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BOUNDARIES = (0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Of the latency histogram, in seconds: those of the semantic conventions, and three below them."""

TO_MIDDLE = 2.0 ** (-1 / 16)
"""From the upper bound of a bucket of the clients' histograms (eight per power of two) to its
middle."""

_UNITS = {"s": "seconds", "By": "bytes"}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: OpenTelemetry's name.
        kind: A counter only grows; an updown can be summed over clients, a gauge cannot.
        unit: By UCUM; `{call}` and the like for counts.
        help: What the metric means.
        labels: Names of its labels, in OpenTelemetry's form.
    """

    name: str
    kind: Literal["counter", "gauge", "updown", "histogram"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """The family's name in Prometheus, without the `_total` of a counter's samples."""
        unit = _UNITS.get(self.unit)
        name = self.name.replace(".", "_")
        return name if unit is None or name.endswith(unit) else f"{name}_{unit}"

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        """The labels in Prometheus."""
        return tuple(label.replace(".", "_") for label in self.labels)

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names of the samples in Prometheus."""
        name = self.prometheus_name
        if self.kind == "counter":
            return (f"{name}_total",)
        if self.kind == "histogram":
            return (f"{name}_bucket", f"{name}_count", f"{name}_sum")
        return (name,)


_DEPENDENCY = ("dependency", "role")
_CLIENT = ("client", "dependency")
_MESSAGES = ("messaging.system", "messaging.operation.name")
_CONSUMER = (*_CLIENT, "messaging.consumer.group.name")

_SERVICE_METRICS = (
    Metric("resilient_io.service.ready", "gauge", "", "1 while the service should receive work"),
    Metric(
        "resilient_io.service.alive",
        "gauge",
        "",
        "0 while the process needs a restart; an outage of a dependency never makes it 0",
    ),
    Metric("resilient_io.service.started", "gauge", "", "1 once the service has been ready"),
    Metric("resilient_io.service.draining", "gauge", "", "1 once the service is shutting down"),
    Metric("resilient_io.event_loop.lag", "gauge", "s", "Latest measured delay of the event loop"),
    Metric(
        "resilient_io.event_loop.stalled",
        "counter",
        "s",
        "Time for which the event loop was blocked",
    ),
)

_DEPENDENCY_METRICS = (
    Metric(
        "resilient_io.dependency.state",
        "gauge",
        "",
        "1 for the current state, 0 for the others",
        (*_DEPENDENCY, "state"),
    ),
    Metric(
        "resilient_io.dependency.state.age",
        "gauge",
        "s",
        "Time since the latest change of state",
        _DEPENDENCY,
    ),
    Metric(
        "resilient_io.dependency.transitions",
        "counter",
        "{transition}",
        "Changes into a state, by cause",
        (*_DEPENDENCY, "state", "cause"),
    ),
    Metric(
        "resilient_io.dependency.latency",
        "gauge",
        "s",
        "Time of the latest measured answer",
        _DEPENDENCY,
    ),
    Metric(
        "resilient_io.dependency.probes",
        "counter",
        "{probe}",
        "Finished probes, by outcome: ok or failed",
        (*_DEPENDENCY, "outcome"),
    ),
    Metric(
        "resilient_io.dependency.failures",
        "counter",
        "{failure}",
        "Failures reported by clients",
        _DEPENDENCY,
    ),
    Metric(
        "resilient_io.dependency.refusals",
        "counter",
        "{refusal}",
        "Writes that the server refused",
        _DEPENDENCY,
    ),
    Metric(
        "resilient_io.dependency.parts_lost",
        "gauge",
        "{part}",
        "Lost parts of a dependency: connections, partitions",
        _DEPENDENCY,
    ),
    Metric(
        "resilient_io.client.liveness_failure",
        "gauge",
        "",
        "1 while the client needs a restart of the process",
        _CLIENT,
    ),
)

_REDIS_METRICS = (
    Metric(
        "db.client.operation.duration",
        "histogram",
        "s",
        "Time from writing a command to its reply, on the multiplexed connections",
        ("db.system.name", *_CLIENT),
    ),
    Metric(
        "db.client.connection.pending_requests",
        "updown",
        "{request}",
        "Calls that wait for a connection or for buffer memory",
        ("db.client.connection.pool.name",),
    ),
    Metric(
        "resilient_io.redis.calls",
        "counter",
        "{call}",
        "Calls by outcome: replied (each command of a batch), or the name of the error",
        (*_CLIENT, "outcome"),
    ),
    Metric(
        "resilient_io.redis.refused",
        "counter",
        "{reply}",
        "Replies of a server that applied nothing and may accept the call later",
        _CLIENT,
    ),
    Metric(
        "resilient_io.redis.retries", "counter", "{attempt}", "Attempts after the first", _CLIENT
    ),
    Metric(
        "resilient_io.redis.budget", "gauge", "{token}", "Tokens left in the retry budget", _CLIENT
    ),
    Metric(
        "resilient_io.redis.connections",
        "updown",
        "{connection}",
        "Open connections by kind: multiplexed or exclusive",
        (*_CLIENT, "kind"),
    ),
    Metric(
        "resilient_io.redis.in_flight",
        "updown",
        "{call}",
        "Calls without a reply on the multiplexed connections",
        _CLIENT,
    ),
    Metric(
        "resilient_io.redis.io",
        "counter",
        "By",
        "Bytes on the multiplexed connections, by direction: transmit or receive",
        (*_CLIENT, "network.io.direction"),
    ),
)

_PRODUCER_METRICS = (
    Metric(
        "messaging.client.sent.messages",
        "counter",
        "{message}",
        "Records with an outcome; Kafka confirmed those without an error.type",
        (*_MESSAGES, *_CLIENT, "error.type"),
    ),
    Metric(
        "messaging.client.operation.duration",
        "histogram",
        "s",
        "Time from passing a batch to the driver until its confirmation",
        (*_MESSAGES, *_CLIENT),
    ),
    Metric(
        "resilient_io.producer.batches",
        "counter",
        "{batch}",
        "Batches passed to the driver",
        _CLIENT,
    ),
    Metric(
        "resilient_io.producer.in_flight",
        "updown",
        "{batch}",
        "Batches passed to the driver without an outcome yet",
        _CLIENT,
    ),
    Metric(
        "resilient_io.producer.waiting",
        "updown",
        "{record}",
        "Records that wait to be passed to the driver",
        _CLIENT,
    ),
    Metric("resilient_io.producer.buffered", "updown", "By", "Bytes of buffered records", _CLIENT),
    Metric(
        "resilient_io.producer.callers_waiting",
        "updown",
        "{call}",
        "Callers that wait for buffer memory",
        _CLIENT,
    ),
    Metric(
        "resilient_io.kafka.instances",
        "counter",
        "{instance}",
        "aiokafka instances that were started; every one after the first replaced another",
        _CLIENT,
    ),
    Metric(
        "resilient_io.kafka.log_records_dropped",
        "counter",
        "{record}",
        "Log records of aiokafka that were counted instead of written",
        _CLIENT,
    ),
)

_CONSUMER_METRICS = (
    Metric(
        "messaging.client.consumed.messages",
        "counter",
        "{message}",
        "Records received from Kafka, redelivered records included",
        (*_MESSAGES, *_CONSUMER),
    ),
    Metric(
        "resilient_io.consumer.lag",
        "gauge",
        "{record}",
        "Offsets between the committed offset and the end of the partition at the latest fetch",
        (*_CONSUMER, "messaging.destination.name", "messaging.destination.partition.id"),
    ),
    Metric(
        "resilient_io.consumer.partitions",
        "updown",
        "{partition}",
        "Assigned partitions, by whether they are paused",
        (*_CONSUMER, "paused"),
    ),
    Metric(
        "resilient_io.consumer.outstanding",
        "updown",
        "{record}",
        "Records that were received and are not handled yet",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.consumer.unreadable",
        "counter",
        "{record}",
        "Records that a deserializer could not read",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.consumer.commits",
        "counter",
        "{commit}",
        "Commits by outcome: ok or failed",
        (*_CONSUMER, "outcome"),
    ),
    Metric(
        "resilient_io.consumer.rebalances",
        "counter",
        "{rebalance}",
        "Assignments of partitions by the group",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.consumer.partitions_lost",
        "counter",
        "{partition}",
        "Partitions that were lost before their offsets could be committed",
        _CONSUMER,
    ),
)

_RUN_METRICS = (
    Metric(
        "resilient_io.run.records",
        "counter",
        "{record}",
        "Finished records of run(), by outcome: handled, dead_lettered or skipped",
        (*_CONSUMER, "outcome"),
    ),
    Metric(
        "resilient_io.run.failures",
        "counter",
        "{failure}",
        "Exceptions of the handler, by what they count against: record or dependency",
        (*_CONSUMER, "blamed"),
    ),
    Metric(
        "resilient_io.run.retries",
        "counter",
        "{call}",
        "Calls of the handler after the first one for a record",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.run.cancelled",
        "counter",
        "{call}",
        "Handlers that were cancelled because a rebalance or the shutdown did not wait for them",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.run.pauses",
        "counter",
        "{pause}",
        "Outages of a required dependency that paused the partitions",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.run.in_flight",
        "updown",
        "{record}",
        "Records in memory: ready, backing_off, or held (being handled, or behind another record)",
        (*_CONSUMER, "place"),
    ),
    Metric(
        "resilient_io.run.in_flight.size",
        "updown",
        "By",
        "Bytes of the keys and values of the records in memory",
        _CONSUMER,
    ),
    Metric("resilient_io.run.handlers", "updown", "{handler}", "Running handlers", _CONSUMER),
    Metric(
        "resilient_io.run.handlers_allowed",
        "updown",
        "{handler}",
        "Handlers that may run; 0 while a required dependency is down",
        _CONSUMER,
    ),
)

CATALOG: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_SERVICE_METRICS,
        *_DEPENDENCY_METRICS,
        *_REDIS_METRICS,
        *_PRODUCER_METRICS,
        *_CONSUMER_METRICS,
        *_RUN_METRICS,
    )
}
"""All metrics by name."""
