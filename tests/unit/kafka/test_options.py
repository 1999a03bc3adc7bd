"""Options of aiokafka: validated before anything connects."""

import ssl

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from resilient_io import ConfigurationError
from resilient_io.kafka import ResilientKafkaProducer
from resilient_io.kafka.options import split_options
from resilient_io.kafka.producer import options as producer_options

OWNED = {"enable_auto_commit": "leave it out: offsets are committed once handled"}
LOGIN = {"sasl_plain_username": "me", "sasl_plain_password": "secret-word"}


def test_options_are_split_by_receiver():
    split = split_options(
        {"client_id": "me", "request_timeout_ms": 1000, "fetch_max_wait_ms": 10},
        of=AIOKafkaConsumer,
        owned=OWNED,
    )
    assert split.client == {"client_id": "me", "request_timeout_ms": 1000}
    assert split.own == {"fetch_max_wait_ms": 10}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_auto_commit": True}, "offsets are committed once handled"),
        ({"loop": None}, "starts in the event loop of its first use"),
        ({"api_version": "auto"}, "leave it out"),
        ({"fetch_max_wait": 10}, "did you mean fetch_max_wait_ms=?"),
        ({"xyz": 10}, "use one of auto_commit_interval_ms, "),
        ({"request_timeout_ms": 0}, "integer of at least 1"),
        ({"request_timeout_ms": 1.5}, "integer of at least 1"),
        ({"connections_max_idle_ms": -1}, "integer of at least 1"),
        ({"security_protocol": "TLS"}, "use one of PLAINTEXT, SSL,"),
        ({"security_protocol": "SSL"}, "ssl_context=ssl.create_default_context()"),
        ({"ssl_context": ssl.create_default_context()}, 'use security_protocol="SSL"'),
        (
            {
                "ssl_context": ssl.create_default_context(),
                "security_protocol": "SASL_PLAINTEXT",
                **LOGIN,
            },
            'use security_protocol="SASL_SSL"',
        ),
        (LOGIN, "security_protocol=SASL_PLAINTEXT or SASL_SSL"),
        (
            {"security_protocol": "SASL_PLAINTEXT", "sasl_plain_username": "me"},
            "set sasl_plain_password=",
        ),
        (
            {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM", **LOGIN},
            "SCRAM-SHA-512",
        ),
        (
            {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"},
            "sasl_oauth_token_provider=",
        ),
    ],
)
def test_invalid_option_raises_an_error_that_names_the_alternative(options, message):
    with pytest.raises(ConfigurationError) as caught:
        split_options(options, of=AIOKafkaConsumer, owned=OWNED)
    assert message in str(caught.value)


def test_suggestion_for_a_typing_error_is_never_an_option_that_cannot_be_set():
    with pytest.raises(ConfigurationError) as caught:
        split_options({"enable_auto_comit": True}, of=AIOKafkaConsumer, owned=OWNED)
    assert "did you mean enable_auto_commit" not in str(caught.value)


def test_option_of_the_other_class_is_unknown():
    with pytest.raises(ConfigurationError, match="AIOKafkaProducer has no option group_id="):
        split_options({"group_id": "g"}, of=AIOKafkaProducer, owned={})


def test_options_and_errors_show_no_secret():
    options = {"security_protocol": "SASL_PLAINTEXT", **LOGIN}
    assert "secret-word" not in repr(split_options(options, of=AIOKafkaProducer, owned={}))
    with pytest.raises(ConfigurationError) as caught:
        split_options(LOGIN, of=AIOKafkaProducer, owned={})
    assert "secret-word" not in str(caught.value)


def test_every_valid_security_configuration_is_accepted():
    context = ssl.create_default_context()
    for options in (
        {},
        {"security_protocol": "SSL", "ssl_context": context},
        {"security_protocol": "SASL_SSL", "ssl_context": context, **LOGIN},
        {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-256", **LOGIN},
        {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "GSSAPI"},
        {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "OAUTHBEARER",
            "sasl_oauth_token_provider": object(),
        },
    ):
        assert split_options(options, of=AIOKafkaProducer, owned={}).client == options


@pytest.mark.parametrize("name", ["snappy", "lz4", "zstd"])
def test_a_codec_whose_library_is_missing_is_rejected_with_the_extra_to_install(name, monkeypatch):
    checks = dict.fromkeys(producer_options._LIBRARY_CHECKS, lambda: False)
    monkeypatch.setattr(producer_options, "_LIBRARY_CHECKS", checks)
    with pytest.raises(ConfigurationError, match=rf'pip install "aiokafka\[{name}\]"'):
        ResilientKafkaProducer("localhost:9092", compression_type=name)
