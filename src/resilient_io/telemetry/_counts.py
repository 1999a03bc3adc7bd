"""What a client counted, as readings of the catalogue's metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ._totals import Distribution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._clients import Consumer, Kind, Producer, Redis

__all__ = ["COUNTS", "Add"]

_MOST_PARTITIONS = 500
"""Of one consumer, with a series each; the lag of further ones is added up."""

_MOST_OUTCOMES = 50
"""Kinds of errors of one client, with a series each."""

_OTHER = "other"


class Add(Protocol):
    """Takes a reading."""

    def __call__(self, name: str, *labels: str, value: float | Distribution) -> None: ...


def _read_redis(client: str, redis: Redis, add: Add) -> None:
    stats = redis.stats()
    own = (client, redis.health.name)
    add("resilient_io.client.liveness_failure", *own, value=redis.liveness_failure() is not None)
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


def _read_producer(client: str, producer: Producer, add: Add) -> None:
    stats = producer.stats()
    own = (client, producer.health.name)
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
    add("resilient_io.producer.travelling", *own, value=stats.travelling)
    add("resilient_io.producer.waiting", *own, value=stats.waiting)
    add("resilient_io.producer.buffered", *own, value=stats.buffered)
    add("resilient_io.producer.callers_waiting", *own, value=stats.callers_waiting)
    add("resilient_io.kafka.instances", *own, value=stats.instances)
    add("resilient_io.kafka.log_records_dropped", *own, value=stats.log_records_dropped)


def _read_consumer(client: str, consumer: Consumer, add: Add) -> None:
    stats = consumer.stats()
    where = (client, consumer.health.name)
    own = (*where, consumer.group_id or "")
    add(
        "resilient_io.client.liveness_failure",
        *where,
        value=consumer.liveness_failure() is not None,
    )
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
    add("resilient_io.kafka.log_records_dropped", *where, value=stats.log_records_dropped)
    _read_run(add, own, consumer)


def _read_run(add: Add, own: tuple[str, ...], consumer: Consumer) -> None:
    run = consumer.run_stats()
    if run is None:
        return
    add("resilient_io.run.records", *own, "handled", value=run.handled)
    add("resilient_io.run.records", *own, "dead_lettered", value=run.dead_lettered)
    add("resilient_io.run.records", *own, "skipped", value=run.skipped)
    add("resilient_io.run.failures", *own, "record", value=run.failed - run.not_counted)
    add("resilient_io.run.failures", *own, "dependency", value=run.not_counted)
    add("resilient_io.run.retries", *own, value=run.retried)
    add("resilient_io.run.cancelled", *own, value=run.cancelled)
    add("resilient_io.run.pauses", *own, value=run.pauses)
    held = run.in_flight - run.ready - run.backing_off
    add("resilient_io.run.in_flight", *own, "ready", value=run.ready)
    add("resilient_io.run.in_flight", *own, "resting", value=run.backing_off)
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


COUNTS: dict[Kind, Callable[[str, Any, Add], None]] = {
    "redis": _read_redis,
    "producer": _read_producer,
    "consumer": _read_consumer,
}
"""What reads a client: it is given the client's name, the client, and who takes the readings."""
