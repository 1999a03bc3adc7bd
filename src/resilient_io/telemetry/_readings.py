"""Reads everything at the moment when somebody collects: until then, metrics cost nothing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NamedTuple, cast

from resilient_io.health import HealthMonitor, State

from ._catalogue import CATALOGUE
from ._clients import Consumer, Producer, Redis, kind_of, named, unique
from ._metric import BOUNDARIES, TO_MIDDLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from ._metric import Metric

    class _Add(Protocol):
        def __call__(self, name: str, *labels: str, value: float | Distribution) -> None: ...


__all__ = ["Distribution", "Reading", "Readings", "fold"]

_PATIENCE = 1.0
"""Seconds that another thread waits for the event loop."""

_MOST_PARTITIONS = 500
"""Of one consumer, with a series each; the lag of further ones is added up."""

_MOST_OUTCOMES = 50
"""Kinds of errors of one client, with a series each."""

_OTHER = "other"


class Distribution(NamedTuple):
    """A histogram, read now.

    Attributes:
        counts: Pairs of the most seconds that belong to a bucket, and how many; none is empty.
        total: All seconds together.
    """

    counts: tuple[tuple[float, int], ...]
    total: float


class Reading(NamedTuple):
    """One value of one metric.

    Attributes:
        metric: Which.
        labels: Values of its labels, in the metric's order; "" for one that does not apply.
        value: The value.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: float | Distribution


def fold(counts: tuple[tuple[float, int], ...]) -> list[int]:
    """Return how many took at most as long as each of `BOUNDARIES`, and how many there are.

    A bucket of ours that lies across a boundary counts by its middle.
    """
    found = [
        sum(count for top, count in counts if top * TO_MIDDLE <= boundary)
        for boundary in BOUNDARIES
    ]
    return [*found, sum(count for _, count in counts)]


class Readings:
    """Reads a monitor and clients.

    Args:
        monitor: The service's health.
        clients: Those whose counters are read: a sequence, or a mapping with names.

    Raises:
        ConfigurationError: An argument is of the wrong kind.
    """

    def __init__(self, monitor: HealthMonitor, clients: object) -> None:
        if not isinstance(monitor, HealthMonitor):
            raise TypeError(f"{monitor!r} is no HealthMonitor: write HealthMonitor(redis.health)")
        self._monitor = monitor
        self._clients = named(clients)
        # Each client may have a dependency of its own, of the same name.
        self._dependencies = unique((each.name, each) for each in monitor.dependencies)
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        self._latest: list[Reading] = []

    def collect(self) -> list[Reading]:
        """Read everything; from any thread.

        What is read changes in the event loop, so from another thread the loop is asked to read.
        One that does not come to it within a second is answered for with what was read before.
        """
        loop = self._loop
        with contextlib.suppress(RuntimeError):
            running = asyncio.get_running_loop()
            if loop is None or not loop.is_running():
                loop = self._loop = running
        if loop is None or not loop.is_running() or _runs_here(loop):
            self._latest = self._read()
            return self._latest
        reading = self._answer()
        try:
            answer = asyncio.run_coroutine_threadsafe(reading, loop)
        except RuntimeError:  # it was closed just now
            reading.close()
            return self._latest
        try:
            self._latest = answer.result(_PATIENCE)
        except TimeoutError:
            answer.cancel()
        except Exception:
            if not answer.cancelled():  # as it is when the loop ends just now
                raise
        return self._latest

    async def _answer(self) -> list[Reading]:
        return self._read()

    def _read(self) -> list[Reading]:
        found: list[Reading] = []

        def add(name: str, *labels: str, value: float | Distribution) -> None:
            found.append(Reading(CATALOGUE[name], labels, value))

        self._read_service(add)
        self._read_dependencies(add)
        for name, client in self._clients.items():
            kind = kind_of(client)
            if kind == "redis":
                _read_redis(add, name, cast("Redis", client))
            elif kind == "producer":
                _read_producer(add, name, cast("Producer", client))
            else:
                _read_consumer(add, name, cast("Consumer", client))
        return found

    def _read_service(self, add: _Add) -> None:
        monitor = self._monitor
        add("resilient_io.service.ready", value=monitor.ready)
        add("resilient_io.service.alive", value=monitor.alive)
        add("resilient_io.service.started", value=monitor.started)
        add("resilient_io.service.draining", value=monitor.draining)
        for _, dependency in self._dependencies:
            lag = dependency.lag
            if lag is not None:  # one for the loop, shared by all
                add("resilient_io.event_loop.lag", value=lag.current)
                add("resilient_io.event_loop.stalled", value=lag.stalled)
                break

    def _read_dependencies(self, add: _Add) -> None:
        for name, dependency in self._dependencies:
            role = self._monitor.role_of(dependency)
            now = dependency.snapshot()
            for state in State:
                add(
                    "resilient_io.dependency.state",
                    name,
                    role,
                    state.value,
                    value=dependency.state is state,
                )
            add("resilient_io.dependency.state.age", name, role, value=_number(now["age"]))
            for (state, cause), count in dependency.transitions.items():
                why = "" if cause is None else cause.value
                add(
                    "resilient_io.dependency.transitions",
                    name,
                    role,
                    state.value,
                    why,
                    value=count,
                )
            if dependency.latency is not None:
                add("resilient_io.dependency.latency", name, role, value=dependency.latency)
            probes = cast("Mapping[str, int]", now["probes"])
            for outcome, count in probes.items():
                add("resilient_io.dependency.probes", name, role, outcome, value=count)
            add("resilient_io.dependency.failures", name, role, value=_number(now["failures"]))
            add("resilient_io.dependency.refusals", name, role, value=_number(now["refusals"]))
            lost = cast("list[str]", now["parts_lost"])
            add("resilient_io.dependency.parts_lost", name, role, value=len(lost))


def _read_redis(add: _Add, client: str, redis: Redis) -> None:
    stats = redis.stats()
    own = (client, redis.health.name)
    add("resilient_io.client.stuck", *own, value=redis.stuck() is not None)
    add(
        "db.client.operation.duration",
        "redis",
        *own,
        value=Distribution(stats.latency_counts, stats.latency_total),
    )
    add("db.client.connection.pending_requests", client, value=stats.waiting)
    add("resilient_io.redis.calls", *own, "replied", value=stats.replies)
    for error, count in _bounded(stats.ended).items():
        add("resilient_io.redis.calls", *own, error, value=count)
    add("resilient_io.redis.refused", *own, value=stats.refused)
    add("resilient_io.redis.retries", *own, value=stats.retries)
    add("resilient_io.redis.budget", *own, value=stats.budget)
    add("resilient_io.redis.connections", *own, "lane", value=stats.lanes)
    add("resilient_io.redis.connections", *own, "dedicated", value=stats.dedicated)
    add("resilient_io.redis.in_flight", *own, value=stats.in_flight)
    add("resilient_io.redis.io", *own, "transmit", value=stats.bytes_sent)
    add("resilient_io.redis.io", *own, "receive", value=stats.bytes_received)


def _read_producer(add: _Add, client: str, producer: Producer) -> None:
    stats = producer.stats()
    own = (client, producer.health.name)
    sent = ("kafka", "send", *own)
    add("resilient_io.client.stuck", *own, value=producer.stuck() is not None)
    add("messaging.client.sent.messages", *sent, "", value=stats.delivered)
    for error, count in _bounded(stats.ended).items():
        add("messaging.client.sent.messages", *sent, error, value=count)
    add(
        "messaging.client.operation.duration",
        *sent,
        value=Distribution(stats.latency_counts, stats.latency_total),
    )
    add("resilient_io.producer.batches", *own, value=stats.batches)
    add("resilient_io.producer.travelling", *own, value=stats.travelling)
    add("resilient_io.producer.waiting", *own, value=stats.waiting)
    add("resilient_io.producer.buffered", *own, value=stats.buffered)
    add("resilient_io.producer.callers_waiting", *own, value=stats.callers_waiting)
    add("resilient_io.kafka.instances", *own, value=stats.instances)
    add("resilient_io.kafka.dropped_logs", *own, value=stats.log_records_dropped)


def _read_consumer(add: _Add, client: str, consumer: Consumer) -> None:
    stats = consumer.stats()
    where = (client, consumer.health.name)
    own = (*where, consumer.group_id or "")
    add("resilient_io.client.stuck", *where, value=consumer.stuck() is not None)
    add("messaging.client.consumed.messages", "kafka", "poll", *own, value=stats.records)
    for (topic, partition), lag in _lags(consumer.known_lag()).items():
        add("resilient_io.consumer.lag", *own, topic, partition, value=lag)
    going = stats.partitions - stats.paused
    add("resilient_io.consumer.partitions", *own, "false", value=going)
    add("resilient_io.consumer.partitions", *own, "true", value=stats.paused)
    add("resilient_io.consumer.outstanding", *own, value=stats.outstanding)
    add("resilient_io.consumer.unreadable", *own, value=stats.unreadable)
    add("resilient_io.consumer.commits", *own, "ok", value=stats.commits)
    add("resilient_io.consumer.commits", *own, "failed", value=stats.commits_failed)
    add("resilient_io.consumer.rebalances", *own, value=stats.rebalances)
    add("resilient_io.consumer.partitions_lost", *own, value=stats.lost)
    add("resilient_io.kafka.instances", *where, value=stats.instances)
    add("resilient_io.kafka.dropped_logs", *where, value=stats.dropped_logs)
    _read_run(add, own, consumer)


def _read_run(add: _Add, own: tuple[str, ...], consumer: Consumer) -> None:
    run = consumer.run_stats()
    if run is None:
        return
    add("resilient_io.run.records", *own, "handled", value=run.handled)
    add("resilient_io.run.records", *own, "dead_lettered", value=run.dead_lettered)
    add("resilient_io.run.records", *own, "skipped", value=run.skipped)
    add("resilient_io.run.failures", *own, "record", value=run.failed - run.excused)
    add("resilient_io.run.failures", *own, "dependency", value=run.excused)
    add("resilient_io.run.retries", *own, value=run.retried)
    add("resilient_io.run.cancelled", *own, value=run.cancelled)
    add("resilient_io.run.pauses", *own, value=run.pauses)
    held = run.in_flight - run.ready - run.resting
    add("resilient_io.run.in_flight", *own, "ready", value=run.ready)
    add("resilient_io.run.in_flight", *own, "resting", value=run.resting)
    add("resilient_io.run.in_flight", *own, "held", value=held)
    add("resilient_io.run.in_flight.size", *own, value=run.in_flight_bytes)
    add("resilient_io.run.handlers", *own, value=run.handlers)
    add("resilient_io.run.handlers_allowed", *own, value=run.allowed)


def _bounded(counts: Mapping[str, int]) -> dict[str, int]:
    """Keep so many kinds of errors apart; add up the others."""
    names = list(counts)
    found = {name: counts[name] for name in names[:_MOST_OUTCOMES]}
    if rest := sum(counts[name] for name in names[_MOST_OUTCOMES:]):
        found[_OTHER] = found.get(_OTHER, 0) + rest
    return found


def _lags(lags: Mapping[tuple[str, int], int]) -> dict[tuple[str, str], int]:
    """Keep so many partitions apart; add up the others."""
    found: dict[tuple[str, str], int] = {}
    for (topic, partition), lag in lags.items():
        if len(found) < _MOST_PARTITIONS:
            found[topic, str(partition)] = lag
        else:
            found[_OTHER, _OTHER] = found.get((_OTHER, _OTHER), 0) + lag
    return found


def _number(value: object) -> float:
    return cast("float", value)


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
