"""Bad input: one clear error each, that says what to write instead, before anything connects."""

import asyncio

import pytest
from aiokafka import TopicPartition

from resilient_io.errors import ConfigurationError
from resilient_io.kafka.consumer import ConsumerSettings, ResilientKafkaConsumer

BAD = [
    ({}, "to read nothing: write ResilientKafkaConsumer"),
    ({"topics": ("t",), "pattern": "x.*"}, "topics, pattern= or partitions= together"),
    ({"topics": (7,)}, "a topic is a name, not 7"),
    ({"topics": ("",)}, "a topic is a name, not ''"),
    ({"pattern": "("}, "is no regular expression"),
    ({"partitions": ["t"]}, "'t' is no partition: write partitions="),
    ({"partitions": [("t", -1)]}, "is no partition"),
    ({"partitions": [("t", 0)], "group_id": "g"}, "fixed partitions are read without a group"),
    ({"topics": ("t",), "group_id": ""}, "group_id='' must be a string"),
    ({"topics": ("t",), "enable_auto_commit": True}, "enable_auto_commit= cannot be given: leave"),
    ({"topics": ("t",), "auto_commit_interval_ms": 5}, "ConsumerSettings\\(commit_interval"),
    ({"topics": ("t",), "max_poll_records": 5}, "ConsumerSettings\\(fetch_records"),
    ({"topics": ("t",), "auto_offset_rest": "earliest"}, "did you mean auto_offset_reset="),
    ({"topics": ("t",), "auto_offset_reset": "erliest"}, 'write auto_offset_reset="earliest"$'),
    ({"topics": ("t",), "isolation_level": "x"}, 'write isolation_level="read_uncommitted" or'),
    ({"topics": ("t",), "max_poll_interval_ms": "5"}, "max_poll_interval_ms='5' must be an integer"),
    ({"topics": ("t",), "session_timeout_ms": None}, "session_timeout_ms=None must be an integer"),
    ({"topics": ("t",), "settings": {}}, "settings must be a ConsumerSettings, not {}"),
    ({"topics": ("t",), "policy": 3}, "policy must be a RetryPolicy, not 3"),
    ({"topics": ("t",), "health": "h"}, "health must be a Dependency"),
    ({"topics": ("t",), "value_deserializer": "json"}, "value_deserializer='json' is no function"),
    ({"topics": ("t",), "key_deserializer": asyncio.sleep}, "is async, and would give coroutines"),
    ({"topics": ("t",), "bootstrap_servers": ""}, "names no server"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_it_is_refused_when_it_is_made(given, message):
    given = dict(given)
    topics = given.pop("topics", ())
    with pytest.raises(ConfigurationError, match=message):
        ResilientKafkaConsumer(*topics, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"commit_interval": 0}, "commit_interval=0"),
        ({"commit_timeout": -1}, "commit_timeout=-1"),
        ({"drain_timeout": "5"}, "drain_timeout='5'"),
        ({"close_timeout": 0}, "close_timeout=0"),
        ({"stalled_after": float("nan")}, "stalled_after=nan"),
        ({"fetch_records": 0}, "fetch_records=0"),
    ],
)
def test_settings_are_checked(given, message):
    with pytest.raises(ConfigurationError, match=message):
        ConsumerSettings(**given)


def test_it_is_made_without_a_loop_and_says_what_it_is():
    consumer = ResilientKafkaConsumer("t", "u", group_id="billing", bootstrap_servers="kafka:9092")
    assert repr(consumer) == "<ResilientKafkaConsumer of t, u as billing, kafka kafka:9092>"
    assert consumer.assignment() == ()
    assert consumer.stats().records == 0
    assert consumer.run_stats() is None
    assert consumer.group_id == "billing"
    fixed = ResilientKafkaConsumer(partitions=[TopicPartition("t", 1)])
    assert repr(fixed).startswith("<ResilientKafkaConsumer of t[1], kafka localhost:9092>")


def test_no_secret_is_in_its_representation():
    consumer = ResilientKafkaConsumer(
        "t",
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_plain_username="me",
        sasl_plain_password="hunter2",
    )
    assert "hunter2" not in repr(consumer)


async def test_what_is_asked_of_it_is_checked():
    consumer = ResilientKafkaConsumer("t", group_id="billing")
    with pytest.raises(ConfigurationError, match="max_records=0"):
        consumer.batches(max_records=0)
    with pytest.raises(ConfigurationError, match="max_wait=-1"):
        consumer.batches(max_wait=-1)
    with pytest.raises(ConfigurationError, match="is not ours now"):
        consumer.seek(("t", 0), 5)
    with pytest.raises(ConfigurationError, match="offset=-1"):
        consumer.seek(("t", 0), -1)
    with pytest.raises(ConfigurationError, match="timeout=0"):
        await consumer.lag(0)
    with pytest.raises(ConfigurationError, match="order='keys' is unknown"):
        await consumer.run(asyncio.sleep, order="keys")
    with pytest.raises(ConfigurationError, match="concurrency=0"):
        await consumer.run(asyncio.sleep, concurrency=0)
    await consumer.aclose()
