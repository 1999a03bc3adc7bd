"""The metrics of producers, of consumers, and of `run`."""

from __future__ import annotations

from ._metric import Metric

__all__ = ["KAFKA_METRICS"]

_MESSAGES = ("messaging.system", "messaging.operation.name")
_PRODUCER = ("client", "dependency")
_CONSUMER = ("client", "dependency", "messaging.consumer.group.name")

_PRODUCER_CLIENT = (
    Metric(
        "messaging.client.sent.messages",
        "counter",
        "{message}",
        "Records that have an outcome: without an error.type Kafka confirmed them",
        (*_MESSAGES, *_PRODUCER, "error.type"),
    ),
    Metric(
        "messaging.client.operation.duration",
        "histogram",
        "s",
        "Time from handing over a batch to its confirmation",
        (*_MESSAGES, *_PRODUCER),
    ),
    Metric(
        "resilient_io.producer.batches",
        "counter",
        "{batch}",
        "Batches that were handed over",
        _PRODUCER,
    ),
    Metric(
        "resilient_io.producer.travelling",
        "updown",
        "{batch}",
        "Batches that were handed over and are not settled",
        _PRODUCER,
    ),
    Metric(
        "resilient_io.producer.waiting",
        "updown",
        "{record}",
        "Records that wait to be handed over",
        _PRODUCER,
    ),
    Metric("resilient_io.producer.buffered", "updown", "By", "Bytes of records held", _PRODUCER),
    Metric(
        "resilient_io.producer.callers_waiting",
        "updown",
        "{call}",
        "Callers that wait for room",
        _PRODUCER,
    ),
    Metric(
        "resilient_io.kafka.instances",
        "counter",
        "{instance}",
        "aiokafka instances that were put in service; those beyond 1 replaced another",
        ("client", "dependency"),
    ),
    Metric(
        "resilient_io.kafka.log_records_dropped",
        "counter",
        "{record}",
        "Log records of aiokafka that were counted instead of written",
        ("client", "dependency"),
    ),
)

_CONSUMER_CLIENT = (
    Metric(
        "messaging.client.consumed.messages",
        "counter",
        "{message}",
        "Records that came from Kafka, those that came again included",
        (*_MESSAGES, *_CONSUMER),
    ),
    Metric(
        "resilient_io.consumer.lag",
        "gauge",
        "{record}",
        "Offsets between what is committed and the end that the latest fetch saw",
        (*_CONSUMER, "messaging.destination.name", "messaging.destination.partition.id"),
    ),
    Metric(
        "resilient_io.consumer.partitions",
        "updown",
        "{partition}",
        "Partitions that are ours, by whether they are paused",
        (*_CONSUMER, "paused"),
    ),
    Metric(
        "resilient_io.consumer.outstanding",
        "updown",
        "{record}",
        "Records that came and are not handled yet",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.consumer.unreadable",
        "counter",
        "{record}",
        "Records that a deserialiser could not read",
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
        "Times that the group gave us partitions",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.consumer.partitions_lost",
        "counter",
        "{partition}",
        "Partitions that were lost without a chance to commit",
        _CONSUMER,
    ),
)

_RUN = (
    Metric(
        "resilient_io.run.records",
        "counter",
        "{record}",
        "Records that run() is done with, by outcome: handled, dead_lettered or skipped",
        (*_CONSUMER, "outcome"),
    ),
    Metric(
        "resilient_io.run.failures",
        "counter",
        "{failure}",
        "Times that a handler raised, by what is to blame: record or dependency",
        (*_CONSUMER, "blamed"),
    ),
    Metric(
        "resilient_io.run.retries",
        "counter",
        "{call}",
        "Calls of the handler beyond the first of a record",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.run.cancelled",
        "counter",
        "{call}",
        "Handlers that were cancelled because a rebalance, or the end, did not wait",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.run.pauses",
        "counter",
        "{pause}",
        "How often a required dependency was down",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.run.in_flight",
        "updown",
        "{record}",
        "Records in memory: ready, resting (backoff), or held: in hand, or behind another",
        (*_CONSUMER, "place"),
    ),
    Metric(
        "resilient_io.run.in_flight.size",
        "updown",
        "By",
        "Bytes of the keys and values of the records in memory",
        _CONSUMER,
    ),
    Metric(
        "resilient_io.run.handlers", "updown", "{handler}", "Handlers that are running", _CONSUMER
    ),
    Metric(
        "resilient_io.run.handlers_allowed",
        "updown",
        "{handler}",
        "Handlers that may run; 0 while a required dependency is down",
        _CONSUMER,
    ),
)

KAFKA_METRICS = (*_PRODUCER_CLIENT, *_CONSUMER_CLIENT, *_RUN)
