"""Logins with SCRAM and with signed tokens: refused credentials are one permanent error."""

import asyncio
import logging
import ssl

import pytest

from resilient_io import Cause, Progress, State
from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer
from resilient_io.kafka.errors import KafkaAuthenticationFailed, KafkaUnavailable
from resilient_io.testing import KafkaServer
from tests.live.kafka.tokens import Issuer, SlowTokens, Tokens, login, oauth

SOON = 10.0
PASSWORD = 'alice-"secret"'


async def round_trip(server, topic, options):
    """Write a record with one client and read it with another."""
    servers = server.bootstrap_servers
    consumer = ResilientKafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id=topic,
        auto_offset_reset="earliest",
        **options,
    )
    async with ResilientKafkaProducer(servers, **options) as producer, consumer:
        sent = await producer.send_and_wait(topic, b"x")
        async with asyncio.timeout(SOON):
            record = await anext(aiter(consumer))
    assert (sent.offset, record.offset, record.value) == (0, 0, b"x")


async def refusal(server, topic, options, caplog):
    """Return the error that two clients raise for bad credentials, having checked what they do."""
    caplog.set_level(logging.INFO)
    caplog.clear()
    async with asyncio.timeout(SOON):
        async with ResilientKafkaProducer(server.bootstrap_servers, **options) as producer:
            with pytest.raises(KafkaAuthenticationFailed) as caught:
                await producer.send_and_wait(topic, b"refused")
            assert caught.value.progress is Progress.NOT_SENT
            assert not caught.value.retriable
            assert producer.health.state is State.DOWN
            assert producer.health.cause is Cause.AUTH
            with pytest.raises(KafkaAuthenticationFailed):
                await producer.send_and_wait(topic, b"refused again")
        assert len(caplog.records) <= 3, caplog.text  # DOWN, and what was not delivered
        reader = ResilientKafkaConsumer(
            topic, bootstrap_servers=server.bootstrap_servers, group_id=topic, **options
        )
        async with reader:
            with pytest.raises(KafkaAuthenticationFailed):
                await reader.end_offsets([(topic, 0)])
    assert "secret" not in caplog.text
    return str(caught.value)


async def outage(server, options):
    """Return why a producer with these options takes the server for down."""
    async with ResilientKafkaProducer(server.bootstrap_servers, **options) as producer:
        async with asyncio.timeout(SOON):
            with pytest.raises(KafkaUnavailable) as caught:
                await producer.send_and_wait("any", b"x")
        assert producer.health.state is State.DOWN
    return str(caught.value)


async def test_options_that_do_not_fit_the_port_are_named(shared_kafka):
    tls = {"security_protocol": "SSL", "ssl_context": ssl.create_default_context()}
    assert "is this a port without TLS?" in await outage(shared_kafka, tls)
    found = await outage(shared_kafka, login("PLAIN", PASSWORD))
    assert 'the listener has no login: use security_protocol="PLAINTEXT"' in found
    assert "secret" not in found


async def check_scram(server, topic, caplog):
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
        await server.create_topic(f"{topic}-{mechanism}")
        await round_trip(server, f"{topic}-{mechanism}", login(mechanism, PASSWORD))
        for user in ("alice", "unknown"):
            found = await refusal(server, topic, login(mechanism, "wrong-secret", user), caplog)
            assert f"invalid credentials with SASL mechanism {mechanism}" in found


async def check_tokens(server, topic, issuer, other, caplog):
    bad = {
        "signature": lambda: other.token(60.0),
        "expired": lambda: issuer.token(-60.0),
        "audience": lambda: issuer.token(60.0, aud="another"),
        "unsigned": lambda: issuer.token(60.0).rpartition(".")[0] + ".",
    }
    for fault, make in bad.items():
        tokens = Tokens(make)
        found = await refusal(server, topic, oauth(tokens), caplog)
        assert "invalid_token" in found, fault
        assert make().partition(".")[0] not in found
        assert tokens.asked < 20, fault
    await round_trip(server, topic, oauth(Tokens(lambda: issuer.token(60.0))))

    tokens = Tokens(bad["expired"])
    async with ResilientKafkaProducer(server.bootstrap_servers, **oauth(tokens)) as producer:
        with pytest.raises(KafkaAuthenticationFailed):
            await producer.send_and_wait(topic, b"refused")
        tokens.make = lambda: issuer.token(60.0)
        async with asyncio.timeout(SOON):
            await producer.health.until_up()
            assert (await producer.send_and_wait(topic, b"x")).offset == 1
    # Each token takes longer than a probe may.
    await round_trip(server, f"{topic}-slow", oauth(SlowTokens(lambda: issuer.token(60.0))))


async def test_refused_credentials_are_one_permanent_error_until_they_are_good(
    name, caplog, tmp_path
):
    issuer, other = Issuer(tmp_path / "issuer"), Issuer(tmp_path / "other")
    users = {"alice": PASSWORD}
    async with KafkaServer(users=users, scram=True, **issuer.server_options()) as server:
        await server.create_topic(name)
        await server.create_topic(f"{name}-slow")
        assert "requires TLS or a login?)" in await outage(server, {})
        await check_scram(server, name, caplog)
        await check_tokens(server, name, issuer, other, caplog)
