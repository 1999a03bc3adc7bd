"""Reads every metric when it is collected; until then, metrics cost nothing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from resilient_io.binding import notify_on_fork
from resilient_io.health import HealthMonitor, State
from resilient_io.text import clean_text
from resilient_io.validation import check_type

from .catalog import BOUNDARIES, CATALOG, TO_MIDDLE
from .clients import kind_of, name_clients, number_duplicates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from resilient_io.health import Dependency
    from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer
    from resilient_io.redis import ResilientRedis

    from .catalog import Metric

_log = logging.getLogger("resilient_io.telemetry")

_LOOP_TIMEOUT = 1.0  # seconds that another thread waits for the event loop
# Partitions of one consumer with a series each; the lag of further ones is summed.
_MAX_PARTITIONS = 500
_MAX_OUTCOMES = 50  # kinds of errors of one client with a series each
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class Distribution:
    """The contents of a histogram: upper bounds of its filled buckets with counts, and the sum."""

    counts: tuple[tuple[float, int], ...]
    total: float

    @property
    def size(self) -> int:
        """The number of values."""
        return sum(count for _, count in self.counts)

    def __lt__(self, other: Distribution) -> bool:
        return self.size < other.size

    def __add__(self, other: Distribution) -> Distribution:
        counts = dict(self.counts)
        for top, count in other.counts:
            counts[top] = counts.get(top, 0) + count
        return Distribution(tuple(sorted(counts.items())), self.total + other.total)

    def cumulative(self) -> list[int]:
        """Return the number of values up to each of `BOUNDARIES`, and the number of all values.

        A bucket that contains a boundary counts by its middle.
        """
        found = [
            sum(count for top, count in self.counts if top * TO_MIDDLE <= boundary)
            for boundary in BOUNDARIES
        ]
        return [*found, self.size]


class Reading(NamedTuple):
    """One value of one metric."""

    metric: Metric
    labels: tuple[str, ...]  # in the metric's order; "" for one that does not apply
    value: float | Distribution


class Readings:
    """Reads a monitor and clients."""

    def __init__(self, monitor: HealthMonitor, clients: object) -> None:
        self._monitor = check_type(
            "monitor", monitor, HealthMonitor, use="HealthMonitor(redis.health)"
        )
        self._clients = {clean_text(name): each for name, each in name_clients(clients).items()}
        # Each client may have its own dependency with the same name.
        self._dependencies = number_duplicates(
            (clean_text(each.name), each) for each in monitor.dependencies
        )
        self._loops = _LoopFinder(monitor.dependencies)
        self._totals = _Totals()
        self._latest: list[Reading] = []
        self._failed: dict[str, str] = {}

    def collect(self) -> list[Reading]:
        """Return the current readings; callable from any thread.

        The values change in the event loop. Another thread therefore asks the event loop to read
        them; if that takes longer than a second, the previous readings are returned. A process
        that was forked while the event loop ran has no readings: the parent counts.
        """
        if self._loops.forked:
            return []
        loop = self._loops.find()
        if loop is None:
            self._latest = self._read()
            return self._latest
        reading = self._read_in_loop()
        try:
            future = asyncio.run_coroutine_threadsafe(reading, loop)
        except RuntimeError:  # the event loop was closed a moment ago
            reading.close()
            return self._latest
        try:
            self._latest = future.result(_LOOP_TIMEOUT)
        except TimeoutError:
            future.cancel()
        except Exception:
            if not future.cancelled():  # cancelled if the event loop ends now
                raise
        return self._latest

    async def _read_in_loop(self) -> list[Reading]:
        return self._read()

    def _read(self) -> list[Reading]:
        found: list[Reading] = []
        for name, read in self._sources():
            source = _SourceReadings(self._totals)
            try:
                read(source)
            # Supervisor boundary: a bug in one source must not hide the metrics of the others.
            except Exception as error:  # noqa: BLE001
                self._log_failure(name, error)
            else:
                found += source.readings
        return found

    def _sources(self) -> Iterator[tuple[str, Callable[[_SourceReadings], None]]]:
        yield "the service", self._read_service
        yield "liveness", self._read_liveness
        for name, dependency in self._dependencies:
            yield name, functools.partial(self._read_dependency, name, dependency)
        for name, client in self._clients.items():
            yield name, functools.partial(_READERS[kind_of(client)], name, client)

    def _log_failure(self, name: str, error: Exception) -> None:
        kind = type(error).__name__
        if self._failed.get(name) != kind:
            self._failed[name] = kind
            _log.error(
                "cannot read the metrics of %s",
                name,
                exc_info=error,
                extra={"event": "metrics_not_read", "part": name, "error": kind},
            )

    def _read_service(self, source: _SourceReadings) -> None:
        monitor = self._monitor
        source.add("resilient_io.service.ready", value=monitor.ready)
        source.add("resilient_io.service.started", value=monitor.started)
        source.add("resilient_io.service.draining", value=monitor.draining)
        # One for the event loop, shared by all dependencies.
        lag = next((each.lag for each in monitor.dependencies if each.lag is not None), None)
        if lag is not None:
            source.add("resilient_io.event_loop.lag", value=lag.current)
            source.add("resilient_io.event_loop.stalled", value=lag.stalled)

    def _read_liveness(self, source: _SourceReadings) -> None:
        source.add("resilient_io.service.alive", value=self._monitor.alive)

    def _read_dependency(self, name: str, dependency: Dependency, source: _SourceReadings) -> None:
        own = (name, self._monitor.role_of(dependency))
        snapshot = cast("Mapping[str, Any]", dependency.snapshot())
        for state in State:
            current = dependency.state is state
            source.add("resilient_io.dependency.state", *own, state.value, value=current)
        source.add("resilient_io.dependency.state.age", *own, value=snapshot["age"])
        for (state, cause), count in dependency.transitions.items():
            why = "" if cause is None else cause.value
            source.add("resilient_io.dependency.transitions", *own, state.value, why, value=count)
        if dependency.latency is not None:
            source.add("resilient_io.dependency.latency", *own, value=dependency.latency)
        for outcome, count in snapshot["probes"].items():
            source.add("resilient_io.dependency.probes", *own, outcome, value=count)
        source.add("resilient_io.dependency.failures", *own, value=snapshot["failures"])
        source.add("resilient_io.dependency.refusals", *own, value=snapshot["refusals"])
        source.add("resilient_io.dependency.parts_lost", *own, value=len(snapshot["parts_lost"]))
        if snapshot["topology"] is not None:
            _read_topology(own, snapshot["topology"], source)
        link = snapshot["link"]
        if link is None:
            return  # nothing is known without an open connection, or on systems other than Linux
        source.add("resilient_io.link.rtt", *own, value=link["rtt"])
        source.add("resilient_io.link.rtt.deviation", *own, value=link["rttvar"])
        source.add("resilient_io.link.timeouts", *own, value=link["retransmits"])
        source.add("resilient_io.link.retransmitted", *own, value=link["retransmitted"])
        if link["segments"] is not None:
            source.add("resilient_io.link.sent", *own, value=link["segments"])
        source.add("resilient_io.link.unacknowledged", *own, value=link["unacked_bytes"])
        age = link["ack_age"] if link["unacked"] else 0.0
        source.add("resilient_io.link.unacknowledged.age", *own, value=age)


def _read_topology(
    own: tuple[str, ...], topology: Mapping[str, Any], source: _SourceReadings
) -> None:
    prefix, servers = "resilient_io.topology", topology["servers"]
    counts = Counter((each["role"], each["state"]) for each in servers)
    for role in ("master", "replica"):
        for state in State:
            value = counts[role, state.value]
            source.add(f"{prefix}.servers", *own, role, state.value, value=value)
    lags = [each["lag"] for each in servers if each["lag"] is not None]
    if lags:
        source.add(f"{prefix}.replica_lag", *own, value=max(lags))
    if topology["master_age"] is not None:
        source.add(f"{prefix}.master_age", *own, value=topology["master_age"])
    for name, word in (("sentinels", "reached"), ("slots", "served")):
        total, good = topology[name], topology[f"{name}_{word}"]
        if total is not None:
            source.add(f"{prefix}.{name}", *own, word, value=good)
            source.add(f"{prefix}.{name}", *own, "lost", value=total - good)
    source.add(f"{prefix}.failing_over", *own, value=topology["failing_over"])
    source.add(f"{prefix}.failovers", *own, value=topology["failovers"])
    source.add(f"{prefix}.failover_time", *own, value=topology["failover_seconds"])
    source.add(f"{prefix}.calls_held", *own, value=topology["calls_held"])


class _SourceReadings:
    """The readings of one source: the service, a dependency or a client."""

    def __init__(self, totals: _Totals) -> None:
        self._totals = totals
        self.readings: list[Reading] = []

    def add(self, name: str, *labels: str, value: float | Distribution) -> None:
        """Add a reading."""
        metric = CATALOG[name]
        if metric.kind in {"counter", "histogram"}:
            value = self._totals.total((name, labels), value)
        self.readings.append(Reading(metric, labels, value))


class _Totals:
    """Makes counters and histograms that only grow from those that restart.

    A client that is opened again and each `run` count from 0. In OpenTelemetry, a counter must not
    decrease; in Prometheus, it may.
    """

    def __init__(self) -> None:
        self._latest: dict[object, Any] = {}
        self._past: dict[object, Any] = {}

    def total(self, key: object, value: Any) -> Any:
        """Return the total of a counter or histogram whose current value is `value`."""
        if key in self._latest and value < (latest := self._latest[key]):
            self._past[key] = self._past[key] + latest if key in self._past else latest
        self._latest[key] = value
        return self._past[key] + value if key in self._past else value


class _LoopFinder:
    """Finds the event loop in which the metrics change: the one that watches the dependencies.

    Until there is one, it is the event loop in which this was created or is first asked.
    """

    def __init__(self, dependencies: Sequence[Dependency]) -> None:
        self._dependencies = tuple(dependencies)
        self._first: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            self._first = asyncio.get_running_loop()
        self.forked = False
        notify_on_fork(self)

    def find(self) -> asyncio.AbstractEventLoop | None:
        """Return the event loop to read in; None to read here, in this thread."""
        here = None
        with contextlib.suppress(RuntimeError):
            here = asyncio.get_running_loop()
        found = self._running()
        if found is None:
            found = self._first = here
        return None if found is here else found

    def _running(self) -> asyncio.AbstractEventLoop | None:
        # Private in resilient_io.health: a Dependency is always used in its event loop.
        loops = [dependency._loop for dependency in self._dependencies]  # noqa: SLF001
        return next((loop for loop in (*loops, self._first) if loop and loop.is_running()), None)

    def note_fork(self) -> None:
        """Note, in a child process, that the parent counts."""
        # The copy of a running event loop says that it is running.
        self.forked = self.forked or self._running() is not None
        self._first = None


# --- the counters of the clients


def _read_redis(name: str, redis: ResilientRedis, source: _SourceReadings) -> None:
    add = source.add
    stats = redis.stats()
    own = (name, clean_text(redis.health.name))
    add("resilient_io.client.liveness_failure", *own, value=redis.liveness_failure() is not None)
    add(
        "db.client.operation.duration",
        "redis",
        *own,
        value=Distribution(stats.latency_counts, stats.latency_total),
    )
    add("db.client.connection.pending_requests", name, value=stats.waiting)
    add("resilient_io.redis.calls", *own, "replied", value=stats.replies)
    for error, count in _bounded(stats.ended).items():
        add("resilient_io.redis.calls", *own, error, value=count)
    add("resilient_io.redis.refused", *own, value=stats.refused)
    add("resilient_io.redis.retries", *own, value=stats.retries)
    add("resilient_io.redis.budget", *own, value=stats.budget)
    add("resilient_io.redis.connections", *own, "multiplexed", value=stats.connections)
    add("resilient_io.redis.connections", *own, "exclusive", value=stats.exclusive)
    add("resilient_io.redis.in_flight", *own, value=stats.in_flight)
    add("resilient_io.redis.io", *own, "transmit", value=stats.bytes_sent)
    add("resilient_io.redis.io", *own, "receive", value=stats.bytes_received)


def _read_producer(name: str, producer: ResilientKafkaProducer, source: _SourceReadings) -> None:
    add = source.add
    stats = producer.stats()
    own = (name, clean_text(producer.health.name))
    sent = ("kafka", "send", *own)
    add("resilient_io.client.liveness_failure", *own, value=producer.liveness_failure() is not None)
    add("messaging.client.sent.messages", *sent, "", value=stats.delivered)
    for error, count in _bounded(stats.ended).items():
        add("messaging.client.sent.messages", *sent, error, value=count)
    add(
        "messaging.client.operation.duration",
        *sent,
        value=Distribution(stats.latency_counts, stats.latency_total),
    )
    add("resilient_io.producer.batches", *own, value=stats.batches)
    add("resilient_io.producer.in_flight", *own, value=stats.in_flight)
    add("resilient_io.producer.waiting", *own, value=stats.waiting)
    add("resilient_io.producer.buffered", *own, value=stats.buffered)
    add("resilient_io.producer.callers_waiting", *own, value=stats.callers_waiting)
    add("resilient_io.kafka.instances", *own, value=stats.instances)
    add("resilient_io.kafka.log_records_dropped", *own, value=stats.log_records_dropped)


def _read_consumer(name: str, consumer: ResilientKafkaConsumer, source: _SourceReadings) -> None:
    add = source.add
    stats = consumer.stats()
    client = (name, clean_text(consumer.health.name))
    own = (*client, consumer.group_id or "")
    add(
        "resilient_io.client.liveness_failure",
        *client,
        value=consumer.liveness_failure() is not None,
    )
    add("messaging.client.consumed.messages", "kafka", "poll", *own, value=stats.records)
    for (topic, partition), lag in _bounded_lag(consumer.known_lag()).items():
        add("resilient_io.consumer.lag", *own, topic, partition, value=lag)
    active = stats.partitions - stats.paused
    add("resilient_io.consumer.partitions", *own, "false", value=active)
    add("resilient_io.consumer.partitions", *own, "true", value=stats.paused)
    add("resilient_io.consumer.outstanding", *own, value=stats.outstanding)
    add("resilient_io.consumer.unreadable", *own, value=stats.unreadable)
    add("resilient_io.consumer.commits", *own, "ok", value=stats.commits)
    add("resilient_io.consumer.commits", *own, "failed", value=stats.commits_failed)
    add("resilient_io.consumer.rebalances", *own, value=stats.rebalances)
    add("resilient_io.consumer.partitions_lost", *own, value=stats.lost)
    add("resilient_io.consumer.gaps", *own, value=stats.gaps)
    add("resilient_io.consumer.records_lost", *own, value=stats.records_lost)
    add("resilient_io.kafka.instances", *client, value=stats.instances)
    add("resilient_io.kafka.log_records_dropped", *client, value=stats.log_records_dropped)
    _read_run(own, consumer, source)


def _read_run(
    own: tuple[str, ...], consumer: ResilientKafkaConsumer, source: _SourceReadings
) -> None:
    add = source.add
    run = consumer.run_stats()
    if run is None:
        return
    add("resilient_io.run.records", *own, "handled", value=run.handled)
    add("resilient_io.run.records", *own, "dead_lettered", value=run.dead_lettered)
    add("resilient_io.run.records", *own, "skipped", value=run.skipped)
    add("resilient_io.run.records", *own, "sent_to_retry", value=run.sent_to_retry)
    add("resilient_io.run.failures", *own, "record", value=run.failed - run.not_counted)
    add("resilient_io.run.failures", *own, "dependency", value=run.not_counted)
    add("resilient_io.run.retries", *own, value=run.retried)
    add("resilient_io.run.cancelled", *own, value=run.cancelled)
    add("resilient_io.run.pauses", *own, value=run.pauses)
    held = run.in_flight - run.ready - run.backing_off
    add("resilient_io.run.in_flight", *own, "ready", value=run.ready)
    add("resilient_io.run.in_flight", *own, "backing_off", value=run.backing_off)
    add("resilient_io.run.in_flight", *own, "held", value=held)
    add("resilient_io.run.in_flight.size", *own, value=run.in_flight_bytes)
    add("resilient_io.run.handlers", *own, value=run.handlers)
    add("resilient_io.run.handlers_allowed", *own, value=run.allowed)


def _bounded(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts with a bounded number of names; the rest is summed."""
    names = list(counts)
    found = {name: counts[name] for name in names[:_MAX_OUTCOMES]}
    if rest := sum(counts[name] for name in names[_MAX_OUTCOMES:]):
        found[_OTHER] = found.get(_OTHER, 0) + rest
    return found


def _bounded_lag(lags: Mapping[Any, int]) -> dict[tuple[str, str], int]:
    """Return the lag of a bounded number of partitions; the rest is summed."""
    found: dict[tuple[str, str], int] = {}
    for (topic, partition), lag in lags.items():
        if len(found) < _MAX_PARTITIONS:
            found[topic, str(partition)] = lag
        else:
            found[_OTHER, _OTHER] = found.get((_OTHER, _OTHER), 0) + lag
    return found


_READERS: dict[str, Callable[[str, Any, _SourceReadings], None]] = {
    "redis": _read_redis,
    "producer": _read_producer,
    "consumer": _read_consumer,
}
