"""Every exported metric.

The names are OpenTelemetry's: those of the semantic conventions where there is one. The Prometheus
names follow OpenTelemetry's translation (dots become underscores, the unit and `_total` are
appended), so that a dashboard works with both exporters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind: TypeAlias = Literal["counter", "gauge", "updown", "histogram"]
"""A counter only grows; an updown can be summed over clients, a gauge cannot."""

# Of the latency histogram, in seconds: those of the semantic conventions, and three below them.
BOUNDARIES = (0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
TO_MIDDLE = 2.0 ** (-1 / 16)
"""From the upper bound of a bucket of the clients' histograms (eight per power of two) to its
middle."""

_UNITS = {"s": "seconds", "By": "bytes"}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    kind: Kind
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


_LABELS = {
    "CLIENT": ("client", "dependency"),
    "CONSUMER": ("client", "dependency", "messaging.consumer.group.name"),
    "DEPENDENCY": ("dependency", "role"),
    "MESSAGES": ("messaging.system", "messaging.operation.name"),
    "PARTITION": ("messaging.destination.name", "messaging.destination.partition.id"),
}
"""Labels that occur together; `_TABLE` has one word for them."""

_TABLE = """
resilient_io.service.ready gauge 1
    1 while the service should receive work
resilient_io.service.alive gauge 1
    0 while the process needs a restart; an outage of a dependency never makes it 0
resilient_io.service.started gauge 1
    1 once the service has been ready
resilient_io.service.draining gauge 1
    1 once the service is shutting down
resilient_io.event_loop.lag gauge s
    Latest measured delay of the event loop
resilient_io.event_loop.stalled counter s
    Time for which the event loop was blocked

resilient_io.dependency.state gauge 1 DEPENDENCY state
    1 for the current state, 0 for the others
resilient_io.dependency.state.age gauge s DEPENDENCY
    Time since the latest change of state
resilient_io.dependency.transitions counter {transition} DEPENDENCY state cause
    Changes into a state, by cause
resilient_io.dependency.latency gauge s DEPENDENCY
    Time of the latest measured answer
resilient_io.dependency.probes counter {probe} DEPENDENCY outcome
    Finished probes, by outcome: ok or failed
resilient_io.dependency.failures counter {failure} DEPENDENCY
    Failures reported by clients
resilient_io.dependency.refusals counter {refusal} DEPENDENCY
    Writes that the server refused
resilient_io.dependency.parts_lost gauge {part} DEPENDENCY
    Lost parts of a dependency: connections, partitions
resilient_io.link.rtt gauge s DEPENDENCY
    Round-trip time as the kernel measures it; the longest of the open connections
resilient_io.link.rtt.deviation gauge s DEPENDENCY
    Mean deviation of the round-trip time
resilient_io.link.timeouts gauge {timeout} DEPENDENCY
    Retransmissions in a row without an acknowledgement of the host; 0 on a healthy link
resilient_io.link.retransmitted updown {segment} DEPENDENCY
    Retransmitted segments of the open connections
resilient_io.link.sent updown {segment} DEPENDENCY
    Data segments that the open connections have sent, retransmissions included
resilient_io.link.unacknowledged updown By DEPENDENCY
    Bytes that the host has not acknowledged
resilient_io.link.unacknowledged.age gauge s DEPENDENCY
    Time since the latest acknowledgement while something is not acknowledged, otherwise 0
resilient_io.topology.servers updown {server} DEPENDENCY server.role server.state
    Servers behind Sentinels, or of a cluster, by role (master or replica) and state
resilient_io.topology.replica_lag gauge s DEPENDENCY
    Time since a replica confirmed data to its master; the longest of all replicas
resilient_io.topology.master_age gauge s DEPENDENCY
    Time for which the client has known the current master
resilient_io.topology.sentinels updown {sentinel} DEPENDENCY sentinel.state
    Sentinels to which the client listens (reached), and the others (lost)
resilient_io.topology.slots updown {slot} DEPENDENCY slot.state
    Slots of a cluster whose master is not down (served), and the others (lost)
resilient_io.topology.failing_over gauge 1 DEPENDENCY
    1 while a failover is in progress
resilient_io.topology.failovers counter {failover} DEPENDENCY
    Failovers after which the client continued on another master
resilient_io.topology.failover_time counter s DEPENDENCY
    Time from noticing these failovers until the client was connected to the new master
resilient_io.topology.calls_held counter {call} DEPENDENCY
    Calls that waited for these failovers
resilient_io.client.liveness_failure gauge 1 CLIENT
    1 while the client needs a restart of the process

db.client.operation.duration histogram s db.system.name CLIENT
    Time from writing a command to its reply, on the multiplexed connections
db.client.connection.pending_requests updown {request} db.client.connection.pool.name
    Calls that wait for a connection or for buffer memory
resilient_io.redis.calls counter {call} CLIENT outcome
    Calls by outcome: replied (each command of a batch), or the name of the error
resilient_io.redis.refused counter {reply} CLIENT
    Replies of a server that applied nothing and may accept the call later
resilient_io.redis.retries counter {attempt} CLIENT
    Attempts after the first
resilient_io.redis.budget gauge {token} CLIENT
    Tokens left in the retry budget
resilient_io.redis.connections updown {connection} CLIENT kind
    Open connections by kind: multiplexed or exclusive
resilient_io.redis.in_flight updown {call} CLIENT
    Calls without a reply on the multiplexed connections
resilient_io.redis.io counter By CLIENT network.io.direction
    Bytes on the multiplexed connections, by direction: transmit or receive

messaging.client.sent.messages counter {message} MESSAGES CLIENT error.type
    Records with an outcome; Kafka confirmed those without an error.type
messaging.client.operation.duration histogram s MESSAGES CLIENT
    Time from passing a batch to the driver until its confirmation
resilient_io.producer.batches counter {batch} CLIENT
    Batches passed to the driver
resilient_io.producer.in_flight updown {batch} CLIENT
    Batches passed to the driver without an outcome yet
resilient_io.producer.waiting updown {record} CLIENT
    Records that wait to be passed to the driver
resilient_io.producer.buffered updown By CLIENT
    Bytes of buffered records
resilient_io.producer.callers_waiting updown {call} CLIENT
    Callers that wait for buffer memory
resilient_io.kafka.instances counter {instance} CLIENT
    aiokafka instances that were started; every one after the first replaced another
resilient_io.kafka.log_records_dropped counter {record} CLIENT
    Log records of aiokafka that were counted instead of written

messaging.client.consumed.messages counter {message} MESSAGES CONSUMER
    Records received from Kafka, redelivered records included
resilient_io.consumer.lag gauge {record} CONSUMER PARTITION
    Offsets between the committed offset and the end of the partition at the latest fetch
resilient_io.consumer.partitions updown {partition} CONSUMER paused
    Assigned partitions, by whether they are paused
resilient_io.consumer.outstanding updown {record} CONSUMER
    Records that were received and are not handled yet
resilient_io.consumer.unreadable counter {record} CONSUMER
    Records that a deserializer could not read
resilient_io.consumer.commits counter {commit} CONSUMER outcome
    Commits by outcome: ok or failed
resilient_io.consumer.rebalances counter {rebalance} CONSUMER
    Assignments of partitions by the group
resilient_io.consumer.partitions_lost counter {partition} CONSUMER
    Partitions that were lost before their offsets could be committed
resilient_io.consumer.gaps counter {gap} CONSUMER
    Gaps: how often records were lost that Kafka no longer has
resilient_io.consumer.records_lost counter {record} CONSUMER
    Offsets that were skipped by gaps, as far as their number is known

resilient_io.run.records counter {record} CONSUMER outcome
    Finished records of run(), by outcome: handled, sent_to_retry, dead_lettered or skipped
resilient_io.run.failures counter {failure} CONSUMER blamed
    Exceptions of the handler, by what they count against: record or dependency
resilient_io.run.retries counter {call} CONSUMER
    Calls of the handler after the first one for a record
resilient_io.run.cancelled counter {call} CONSUMER
    Handlers that were cancelled because a rebalance or the shutdown did not wait for them
resilient_io.run.pauses counter {pause} CONSUMER
    Outages of a required dependency that paused the partitions
resilient_io.run.in_flight updown {record} CONSUMER place
    Records in memory: ready, backing_off, or held (being handled, or behind another record)
resilient_io.run.in_flight.size updown By CONSUMER
    Bytes of the keys and values of the records in memory
resilient_io.run.handlers updown {handler} CONSUMER
    Running handlers
resilient_io.run.handlers_allowed updown {handler} CONSUMER
    Handlers that may run; 0 while a required dependency is down
"""
"""For each metric: the name, the kind, the unit ("1" for none) and the labels; then the help."""


def _parse(table: str) -> Iterator[Metric]:
    lines = [line for line in table.splitlines() if line]
    for head, text in zip(lines[::2], lines[1::2], strict=True):
        name, kind, unit, *words = head.split()
        labels = tuple(label for word in words for label in _LABELS.get(word, (word,)))
        yield Metric(name, cast("Kind", kind), "" if unit == "1" else unit, text.strip(), labels)


CATALOG = {metric.name: metric for metric in _parse(_TABLE)}  # all metrics by name
