"""What cannot work is refused when the producer is made, with what to write instead."""

import asyncio

import pytest
from aiokafka.errors import MessageSizeTooLargeError

from resilient_io import Dependency, Progress
from resilient_io.errors import ConfigurationError
from resilient_io.kafka.errors import KafkaOutcomeUnknown
from resilient_io.kafka.producer import (
    DeliveryFailure,
    DeliveryReport,
    DeliverySettings,
    ProducerStats,
    ResilientKafkaProducer,
)
from resilient_io.kafka.producer.records import checked, measured


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"linger_ms": 5}, "DeliverySettings"),
        ({"max_batch_sise": 5}, "max_batch_size"),
        ({"acks": 1, "enable_idempotence": True}, "leave one of them out"),
        ({"acks": 0, "transactional_id": "x"}, "leave them out"),
        ({"compression_type": "zip"}, "gzip"),
        ({"max_batch_size": 0}, "at least 1"),
        ({"policy": 5}, "policy=RetryPolicy"),
        ({"settings": {"linger": 1}}, "settings=DeliverySettings"),
        ({"health": "up"}, "health=Dependency"),
        ({"value_serializer": b"x"}, "no function"),
        ({"value_serializer": asyncio.sleep}, "is async"),
        ({"partitioner": asyncio.sleep}, "is async"),
        ({"bootstrap_servers": ""}, "contains no server"),
        ({"loop": None}, "leave it out"),
    ],
)
def test_options_that_cannot_work_are_refused(options, says):
    with pytest.raises(ConfigurationError, match=says):
        ResilientKafkaProducer(**options)


@pytest.mark.parametrize(
    "settings",
    [
        {"delivery_timeout": 0},
        {"linger": -1},
        {"buffer_bytes": 10},
        {"linger": 5.0, "delivery_timeout": 5.0},
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigurationError):
        DeliverySettings(**settings)


def test_it_is_made_without_a_running_loop_and_shows_no_secret():
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
    ("given", "error"),
    [
        (([("name", "text")], None, None), TypeError),
        (([("name",)], None, None), TypeError),
        (([b"name"], None, None), TypeError),
        (([("\ud800", b"")], None, None), ValueError),
        ((None, -1, None), ValueError),
        ((None, True, None), TypeError),
        ((None, "0", None), TypeError),
        ((None, None, 1.5), TypeError),
        ((None, None, -1), ValueError),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_waits(given, error):
    with pytest.raises(error):
        measured(*given)


def test_what_may_change_is_copied():
    data = bytearray(b"abc")
    copy = checked("value", data)
    data[0] = 0
    assert copy == b"abc"
    with pytest.raises(TypeError, match="value_serializer="):
        checked("value", "text")


def test_a_report_says_what_may_be_sent_again_and_raises_when_asked():
    def failure(position, error, progress):
        return DeliveryFailure(
            position=position,
            topic="t",
            partition=0,
            key=None,
            value=b"v",
            headers=None,
            timestamp_ms=None,
            error=error,
            progress=progress,
        )

    unknown = KafkaOutcomeUnknown(
        "lost", dependency="k", operation="send", progress=Progress.MAYBE_APPLIED
    )
    refused = failure(1, MessageSizeTooLargeError(), Progress.REFUSED)
    report = DeliveryReport(
        delivered=1, failures=(failure(0, unknown, unknown.progress), refused), taken=3
    )
    assert not report.ok
    assert report.of(Progress.REFUSED) == [refused]
    for _ in range(2):
        with pytest.raises(KafkaOutcomeUnknown) as caught:
            report.check()
        assert caught.value.__notes__ == ["2 of 3 records failed, this one first"]
    DeliveryReport(delivered=3, taken=3).check()
    assert not DeliveryReport(complete=False).ok


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 10_000),
        ({"request_timeout_ms": 20_000}, 20_000),
        ({"enable_idempotence": False}, None),
        ({"acks": 1}, None),
    ],
)
def test_a_request_is_asked_again_early_only_where_that_is_harmless(options, expected):
    producer = ResilientKafkaProducer("broker:9092", **options)
    assert producer._target.client_options().get("request_timeout_ms") == expected
