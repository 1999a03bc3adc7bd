"""aiokafka's options: checked before anything connects, with a message that says what to write."""

import ssl

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from resilient_io import ConfigurationError
from resilient_io.kafka.options import split_options

OWNED = {"enable_auto_commit": "leave it out: offsets are committed once handled"}
LOGIN = {"sasl_plain_username": "me", "sasl_plain_password": "secret-word"}


def test_options_are_split_by_who_takes_them():
    split = split_options(
        {"client_id": "me", "request_timeout_ms": 1000, "fetch_max_wait_ms": 10},
        of=AIOKafkaConsumer,
        owned=OWNED,
    )
    assert split.client == {"client_id": "me", "request_timeout_ms": 1000}
    assert split.own == {"fetch_max_wait_ms": 10}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"enable_auto_commit": True}, "offsets are committed once handled"),
        ({"loop": None}, "starts in the event loop of its first use"),
        ({"api_version": "auto"}, "leave it out"),
        ({"fetch_max_wait": 10}, "did you mean fetch_max_wait_ms=?"),
        ({"xyz": 10}, "it knows auto_commit_interval_ms, "),
        ({"request_timeout_ms": 0}, "integer of at least 1"),
        ({"request_timeout_ms": 1.5}, "integer of at least 1"),
        ({"connections_max_idle_ms": -1}, "integer of at least 1"),
        ({"security_protocol": "TLS"}, "write one of PLAINTEXT, SSL,"),
        ({"security_protocol": "SSL"}, "ssl_context=ssl.create_default_context()"),
        ({"ssl_context": ssl.create_default_context()}, 'write security_protocol="SSL"'),
        (
            {
                "ssl_context": ssl.create_default_context(),
                "security_protocol": "SASL_PLAINTEXT",
                **LOGIN,
            },
            'write security_protocol="SASL_SSL"',
        ),
        (LOGIN, "security_protocol=SASL_PLAINTEXT or SASL_SSL"),
        (
            {"security_protocol": "SASL_PLAINTEXT", "sasl_plain_username": "me"},
            "write sasl_plain_password=",
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
def test_what_cannot_work_is_refused_with_what_to_write(options, said):
    with pytest.raises(ConfigurationError) as caught:
        split_options(options, of=AIOKafkaConsumer, owned=OWNED)
    assert said in str(caught.value)


def test_a_typing_error_never_leads_to_an_option_that_is_refused():
    with pytest.raises(ConfigurationError) as caught:
        split_options({"enable_auto_comit": True}, of=AIOKafkaConsumer, owned=OWNED)
    assert "did you mean enable_auto_commit" not in str(caught.value)


def test_an_option_of_the_other_class_is_unknown():
    with pytest.raises(ConfigurationError, match="no option of AIOKafkaProducer"):
        split_options({"group_id": "g"}, of=AIOKafkaProducer, owned={})


def test_no_secret_is_shown():
    options = {"security_protocol": "SASL_PLAINTEXT", **LOGIN}
    assert "secret-word" not in repr(split_options(options, of=AIOKafkaProducer, owned={}))
    with pytest.raises(ConfigurationError) as caught:
        split_options(LOGIN, of=AIOKafkaProducer, owned={})
    assert "secret-word" not in str(caught.value)


def test_every_security_that_works_passes():
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
