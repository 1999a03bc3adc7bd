"""The options of a producer: invalid ones are rejected when it is created."""

import asyncio

import pytest

from resilient_io import Dependency
from resilient_io.errors import ConfigurationError
from resilient_io.kafka.producer import (
    DeliverySettings,
    ProducerStats,
    ResilientKafkaProducer,
)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"linger_ms": 5}, "DeliverySettings"),
        ({"max_batch_sise": 5}, "max_batch_size"),
        ({"acks": 1, "enable_idempotence": True}, "leave one of them out"),
        ({"acks": 0, "transactional_id": "x"}, "leave them out"),
        ({"acks": 2}, 'acks=2 is unknown: use acks="all", acks=1 or acks=0'),
        ({"acks": "1"}, "acks='1' is unknown"),
        ({"acks": True}, "acks=True is unknown"),
        ({"transactional_id": ""}, 'for example transactional_id="orders-0"'),
        ({"compression_type": "zip"}, "gzip"),
        ({"max_batch_size": 0}, "at least 1"),
        ({"bootstrap_servers": ""}, "contains no server"),
        ({"loop": None}, "leave it out"),
    ],
)
def test_invalid_options_are_rejected(options, says):
    with pytest.raises(ConfigurationError, match=says):
        ResilientKafkaProducer(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"policy": 5}, "RetryPolicy"),
        ({"policy": 0}, "RetryPolicy"),
        ({"settings": {"linger": 1}}, "DeliverySettings"),
        ({"health": "up"}, "Dependency"),
        ({"value_serializer": b"x"}, "must be a function, not bytes"),
        ({"value_serializer": asyncio.sleep}, "not an async one"),
        ({"partitioner": asyncio.sleep}, "not an async one"),
    ],
)
def test_arguments_of_the_wrong_type_are_rejected(options, says):
    with pytest.raises(TypeError, match=says):
        ResilientKafkaProducer(**options)


def test_the_name_is_that_of_the_dependency_unless_one_is_shared():
    assert ResilientKafkaProducer("broker:9092").name == "kafka broker:9092"
    named = ResilientKafkaProducer("broker:9092", name="orders")
    assert (named.name, named.health.name) == ("orders", "orders")
    shared = ResilientKafkaProducer("broker:9092", name="orders", health=Dependency("kafka"))
    assert (shared.name, shared.health.name) == ("orders", "kafka")
    with pytest.raises(ConfigurationError, match='name="orders"'):
        ResilientKafkaProducer("broker:9092", name="")


@pytest.mark.parametrize(
    "settings",
    [
        {"delivery_timeout": 0},
        {"linger": -1},
        {"buffer_bytes": 10},
        {"linger": 5.0, "delivery_timeout": 5.0},
    ],
)
def test_invalid_settings_are_rejected(settings):
    with pytest.raises(ConfigurationError):
        DeliverySettings(**settings)


def test_a_producer_is_created_without_a_running_loop_and_its_repr_shows_no_secret():
    producer = ResilientKafkaProducer(
        "broker:9092",
        health=Dependency("kafka"),
        security_protocol="SASL_PLAINTEXT",
        sasl_plain_username="user",
        sasl_plain_password="s3cret",
    )
    assert repr(producer) == "<ResilientKafkaProducer kafka broker:9092: unknown>"
    assert producer.stats() == ProducerStats()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 10_000),
        ({"request_timeout_ms": 20_000}, 20_000),
        ({"enable_idempotence": False}, None),
        ({"acks": 1}, None),
    ],
)
def test_the_request_timeout_is_short_only_where_a_repeated_request_is_harmless(options, expected):
    producer = ResilientKafkaProducer("broker:9092", **options)
    assert producer._target.client_options().get("request_timeout_ms") == expected
