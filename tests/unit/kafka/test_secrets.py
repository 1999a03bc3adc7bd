"""No secret among the options of a producer reaches an error, a log record or a repr."""

import asyncio
import logging
import ssl
import traceback

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.abc import AbstractTokenProvider

from resilient_io import RetryPolicy
from resilient_io.errors import ConfigurationError
from resilient_io.kafka import ResilientKafkaProducer, connect
from resilient_io.kafka.probe import KafkaProbe

CANARY = "canary-s3cret"


class Tokens(AbstractTokenProvider):
    """Returns the canary as token."""

    async def token(self):
        return CANARY

    def __repr__(self):
        return f"Tokens({CANARY})"


class Shown:
    """Shows the canary in its repr."""

    def __repr__(self):
        return f"Shown({CANARY})"


def sasl(mechanism="PLAIN", protocol="SASL_PLAINTEXT", **options):
    return {"security_protocol": protocol, "sasl_mechanism": mechanism, **options}


CREDENTIALS = {"sasl_plain_username": "user", "sasl_plain_password": CANARY}
TLS = {"ssl_context": ssl.create_default_context()}

REJECTED = {
    "credentials in a URL": {"bootstrap_servers": f"kafka://user:{CANARY}@broker:9092"},
    "credentials before a host": {"bootstrap_servers": f"user:{CANARY}@broker:9092"},
    "credentials in a list": {"bootstrap_servers": ["a:1", f"https://user:{CANARY}@broker"]},
    "a password without SASL": {"sasl_plain_password": CANARY},
    "a password without a user": sasl(sasl_plain_password=CANARY),
    "a password without a context": sasl("SCRAM-SHA-256", "SASL_SSL", **CREDENTIALS),
    "a misspelled password": sasl(sasl_plain_username="user", sasl_plain_pasword=CANARY),
    "a password for GSSAPI": sasl("GSSPI", **CREDENTIALS),
    "a token provider without token()": sasl("OAUTHBEARER", sasl_oauth_token_provider=Shown()),
    "a URL as health": {"health": f"kafka://user:{CANARY}@broker:9092"},
    "a serializer that is not a function": {"value_serializer": Shown()},
}

ACCEPTED = {
    "PLAIN": sasl(**CREDENTIALS),
    "SCRAM-SHA-256": sasl("SCRAM-SHA-256", **CREDENTIALS),
    "SCRAM-SHA-512 over TLS": sasl("SCRAM-SHA-512", "SASL_SSL", **CREDENTIALS, **TLS),
    "OAUTHBEARER": sasl("OAUTHBEARER", sasl_oauth_token_provider=Tokens()),
}


@pytest.mark.parametrize("options", REJECTED.values(), ids=REJECTED)
def test_errors_about_options_contain_no_secret(options):
    with pytest.raises((ConfigurationError, TypeError)) as caught:
        ResilientKafkaProducer(**options)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def failure(kind):
    return kind(f"the broker says: wrong password '{CANARY}'")


async def everything_shown(producer, caplog):
    """Return all that a producer shows of itself while its calls fail."""
    shown = []
    calls = (
        lambda: producer.send("topic", b"x"),
        lambda: producer.send_and_wait("topic", b"x"),
        lambda: producer.send_many("topic", [b"x"]),
        lambda: producer.transaction().__aenter__(),
    )
    async with producer:
        for _ in range(2):
            for call in calls:
                with pytest.raises(Exception) as caught:  # noqa: PT011 (any, for its text)
                    await call()
                shown += traceback.format_exception(caught.value)
            await asyncio.sleep(3.0)
        shown += [repr(producer), str(producer.stats()), repr(producer.health)]
        shown += [str(producer.health.detail), repr(producer._target), str(producer._core)]
        shown += [str(event) for event in producer.health.history]
    shown += [record.getMessage() + str(vars(record)) for record in caplog.records]
    return "\n".join(shown)


@pytest.mark.parametrize("kind", [kafka_errors.KafkaConnectionError, OSError, ValueError])
@pytest.mark.parametrize("options", ACCEPTED.values(), ids=ACCEPTED)
async def test_failures_of_the_driver_show_no_secret(options, kind, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)

    async def start(_driver):
        logging.getLogger("aiokafka.conn").debug("SaslAuthenticateRequest(%r)", CANARY)
        logging.getLogger("aiokafka").warning("cannot log in with %s", CANARY)
        raise failure(kind)

    async def probe(_probe, _suspicious):
        return 0.001

    monkeypatch.setattr(AIOKafkaProducer, "start", start)
    monkeypatch.setattr(KafkaProbe, "__call__", probe)
    producer = ResilientKafkaProducer(
        "broker:9092", policy=RetryPolicy(deadline=3.0), transactional_id="id", **options
    )
    provider = producer._target.client_options().get("sasl_oauth_token_provider")
    if provider is not None:
        await provider.token()
    assert CANARY not in await everything_shown(producer, caplog)


@pytest.mark.parametrize("options", ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.parametrize(
    "kind", [kafka_errors.AuthenticationFailedError, kafka_errors.KafkaConnectionError, OSError]
)
async def test_failures_to_connect_show_no_secret(options, kind, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)

    async def create_conn(*_args, sasl_oauth_token_provider=None, **_options):
        if sasl_oauth_token_provider is not None:
            await sasl_oauth_token_provider.token()
        raise failure(kind)

    monkeypatch.setattr(connect, "_create_conn", create_conn)
    producer = ResilientKafkaProducer(
        "broker:9092", policy=RetryPolicy(deadline=3.0), transactional_id="id", **options
    )
    assert CANARY not in await everything_shown(producer, caplog)
