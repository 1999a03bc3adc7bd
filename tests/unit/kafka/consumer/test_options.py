"""Invalid arguments: one clear error each, before anything connects, that says what to use."""

import asyncio
import inspect
import re
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from resilient_io.errors import ConfigurationError
from resilient_io.health import Dependency
from resilient_io.kafka.consumer import ConsumerOptions, ConsumerSettings, ResilientKafkaConsumer
from resilient_io.kafka.consumer.options import GroupTimes, check_subscription

INVALID = [
    ({}, "no topics given: pass at least one topic, pattern= or partitions="),
    ({"topics": ("t",), "pattern": "x.*"}, "topics, pattern= and partitions= are mutually exclu"),
    ({"topics": (7,)}, "a topic must be a non-empty string, not 7"),
    ({"topics": ("",)}, "a topic must be a non-empty string, not ''"),
    ({"topics": ("orders,payments",)}, "'orders,payments' is not the name of a topic"),
    ({"partitions": [("t" * 250, 0)]}, "is not the name of a topic"),
    ({"pattern": "("}, "is not a regular expression"),
    ({"partitions": ["t"]}, "'t' is not a partition: use for example partitions="),
    ({"partitions": [("t", -1)]}, "is not a partition"),
    ({"partitions": [("t", 0)], "group_id": "g"}, "fixed partitions are read without a group"),
    ({"topics": ("t",), "group_id": ""}, "group_id='' must be a non-empty string"),
    ({"topics": ("t",), "name": ""}, "name='' must be a non-empty string"),
    (
        {"topics": ("t",), "session_timeout_ms": 6000, "heartbeat_interval_ms": 6000},
        "is not shorter than session_timeout_ms=6000: use at most a third of it, 2000",
    ),
    ({"topics": ("t",), "enable_auto_commit": True}, "enable_auto_commit= cannot be set; leave"),
    ({"topics": ("t",), "auto_commit_interval_ms": 5}, "ConsumerSettings\\(commit_interval"),
    ({"topics": ("t",), "max_poll_records": 5}, "ConsumerSettings\\(fetch_records"),
    ({"topics": ("t",), "auto_offset_rest": "earliest"}, "did you mean auto_offset_reset="),
    ({"topics": ("t",), "auto_offset_reset": "erliest"}, 'use auto_offset_reset="earliest" or'),
    ({"topics": ("t",), "isolation_level": "x"}, 'use isolation_level="read_uncommitted" or'),
    ({"topics": ("t",), "max_poll_interval_ms": "5"}, "max_poll_interval_ms='5' must be an int"),
    ({"topics": ("t",), "session_timeout_ms": None}, "session_timeout_ms=None must be an int"),
    ({"topics": ("t",), "bootstrap_servers": ""}, "contains no server"),
    (
        {"topics": ("t",), "partition_assignment_strategy": "cooperative-sticky"},
        "must be a list of assignors, for example .CooperativeStickyAssignor.",
    ),
    (
        {"topics": ("t",), "partition_assignment_strategy": ["cooperative-sticky"]},
        "must be a list of assignors",
    ),
]

OF_WRONG_TYPE = [
    ({"settings": {}}, "settings must be a ConsumerSettings, not dict"),
    ({"policy": 3}, "policy must be a RetryPolicy, not int"),
    ({"health": "h"}, "health must be a Dependency, not str"),
    ({"value_deserializer": "json"}, "value_deserializer must be a function, not str"),
    ({"key_deserializer": asyncio.sleep}, "must be a plain function, not a coroutine function"),
]


@pytest.mark.parametrize(("arguments", "message"), INVALID)
def test_consumer_refuses_invalid_values(arguments, message):
    arguments = dict(arguments)
    topics = arguments.pop("topics", ())
    with pytest.raises(ConfigurationError, match=message):
        ResilientKafkaConsumer(*topics, **arguments)


@pytest.mark.parametrize(("arguments", "message"), OF_WRONG_TYPE)
def test_consumer_refuses_objects_of_the_wrong_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        ResilientKafkaConsumer("t", **arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"commit_interval": 0}, "commit_interval=0"),
        ({"commit_timeout": -1}, "commit_timeout=-1"),
        ({"drain_timeout": "5"}, "drain_timeout='5'"),
        ({"close_timeout": 0}, "close_timeout=0"),
        ({"stalled_after": float("nan")}, "stalled_after=nan"),
        ({"fetch_records": 0}, "fetch_records=0"),
    ],
)
def test_consumer_settings_refuse_invalid_values(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ConsumerSettings(**settings)


def test_consumer_options_are_those_of_aiokafka():
    known = set(inspect.signature(AIOKafkaConsumer).parameters)
    of_the_consumer = {"group_id", "bootstrap_servers", "key_deserializer", "value_deserializer"}
    refused = {
        "topics",
        "loop",
        "api_version",
        "enable_auto_commit",
        "auto_commit_interval_ms",
        "max_poll_records",
    }
    assert set(ConsumerOptions.__annotations__) == known - of_the_consumer - refused


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({}, (300.0, 10.0, 10.0, 0.5)),
        ({"session_timeout_ms": 6000, "max_poll_interval_ms": 1000}, (1.0, 6.0, 6.0, 0.5)),
        ({"rebalance_timeout_ms": 7000, "fetch_max_wait_ms": 20}, (300.0, 10.0, 7.0, 0.02)),
        ({"rebalance_timeout_ms": None}, (300.0, 10.0, 10.0, 0.5)),
    ],
)
def test_group_times_follow_the_options(options, times):
    found = GroupTimes.of(options)
    assert (found.max_poll_interval, found.session, found.rebalance, found.fetch) == times


def test_consumer_is_created_without_an_event_loop_and_describes_itself():
    consumer = ResilientKafkaConsumer("t", "u", group_id="billing", bootstrap_servers="kafka:9092")
    assert repr(consumer) == "<ResilientKafkaConsumer of t, u as billing, kafka kafka:9092>"
    assert consumer.assignment() == ()
    assert consumer.stats().records == 0
    assert consumer.run_stats() is None
    assert consumer.group_id == "billing"
    fixed = ResilientKafkaConsumer(partitions=[TopicPartition("t", 1)])
    assert repr(fixed).startswith("<ResilientKafkaConsumer of t[1], kafka localhost:9092>")


def test_consumer_has_a_name_which_is_also_that_of_its_health():
    unnamed = ResilientKafkaConsumer("t", bootstrap_servers="kafka:9092")
    assert unnamed.name == unnamed.health.name == "kafka kafka:9092"
    named = ResilientKafkaConsumer("t", name="billing")
    assert named.name == named.health.name == "billing"
    shared = ResilientKafkaConsumer("t", name="billing", health=Dependency("kafka"))
    assert (shared.name, shared.health.name) == ("billing", "kafka")


def test_repr_contains_no_secret():
    consumer = ResilientKafkaConsumer(
        "t",
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_plain_username="me",
        sasl_plain_password="hunter2",
    )
    assert "hunter2" not in repr(consumer)


async def test_methods_refuse_invalid_arguments():
    consumer = ResilientKafkaConsumer("t", group_id="billing")
    with pytest.raises(ConfigurationError, match="max_records=0"):
        consumer.batches(max_records=0)
    with pytest.raises(ConfigurationError, match="max_wait=-1"):
        consumer.batches(max_wait=-1)
    with pytest.raises(ConfigurationError, match="is not assigned to this consumer"):
        consumer.seek(("t", 0), 5)
    with pytest.raises(ConfigurationError, match="offset=-1"):
        consumer.seek(("t", 0), -1)
    with pytest.raises(ConfigurationError, match="timeout=0"):
        await consumer.lag(0)
    with pytest.raises(ConfigurationError, match="order='keys' is unknown"):
        await consumer.run(asyncio.sleep, order="keys")
    with pytest.raises(ConfigurationError, match="concurrency=0"):
        await consumer.run(asyncio.sleep, concurrency=0)
    with pytest.raises(TypeError, match="must be a coroutine function, not a plain function"):
        await consumer.run(print)
    await consumer.aclose()


async def test_run_refuses_topics_of_its_own_that_the_pattern_matches():
    consumer = ResilientKafkaConsumer(pattern=r"orders", group_id="billing")
    with pytest.raises(ConfigurationError, match=r"'orders\.dead' is both a topic"):
        await consumer.run(asyncio.sleep, dead_letter="orders.dead")
    with pytest.raises(ConfigurationError, match=r"'orders\.retry\.1m' is both"):
        await consumer.run(asyncio.sleep, dead_letter="dead", retry_topics=["orders.retry.1m"])
    await consumer.aclose()


class Subscribed:
    """What aiokafka's consumer is asked to subscribe to."""

    def subscribe(self, *, topics=(), pattern=None, listener):
        self.topics, self.pattern = topics, pattern


@pytest.mark.parametrize("retry_topics", [(), ("t.retry.1m", "t.retry.10m")])
def test_retry_topics_are_read_besides_the_topics(retry_topics):
    instance = Subscribed()
    of_topics = replace(check_subscription(("t", "u"), None, None, "g"), retry_topics=retry_topics)
    of_topics.apply(instance, None)
    assert instance.topics == ["t", "u", *retry_topics]
    pattern = "t|orders"
    of_pattern = replace(check_subscription((), pattern, None, "g"), retry_topics=retry_topics)
    of_pattern.apply(instance, None)
    for subscription in (of_topics, of_pattern):
        read = ["t", *retry_topics]
        assert all(subscription.reads(topic) for topic in read)
        assert not subscription.reads("payments")
    assert re.match(instance.pattern, "t.retry.1m")
    for topic in ("payments", "p-t.retry.1m"):
        assert not re.match(instance.pattern, topic)
    other = replace(of_pattern, pattern="t$")
    other.apply(instance, None)
    for topic in ("t", *retry_topics):
        assert re.match(instance.pattern, topic)
        assert other.reads(topic)
    for topic in ("t.retry.1mx", "t-retry.1m", "t.retry"):
        assert not re.match(instance.pattern, topic)
        assert not other.reads(topic)
