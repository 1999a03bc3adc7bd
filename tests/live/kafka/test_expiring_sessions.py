"""Brokers that end each authenticated session after a few seconds (KIP-368).

aiokafka does not authenticate again on an open connection, so the broker closes it, and the clients
must continue on new ones.
"""

import asyncio
import base64
import json
import time

import pytest
from aiokafka.abc import AbstractTokenProvider

from resilient_io import State
from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer
from resilient_io.testing import KafkaServer

pytestmark = pytest.mark.soak

SESSION = 3.0
SECONDS = 14.0
PLAIN = {
    "security_protocol": "SASL_PLAINTEXT",
    "sasl_mechanism": "PLAIN",
    "sasl_plain_username": "alice",
    "sasl_plain_password": "alice-secret",
}


class ShortTokens(AbstractTokenProvider):
    """Returns tokens that expire soon."""

    def __init__(self):
        self.asked = 0

    async def token(self):
        self.asked += 1
        now = time.time()
        parts = ({"alg": "none"}, {"sub": "alice", "iat": now, "exp": now + SESSION + 1.0})
        encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts)
        return ".".join(each.decode().rstrip("=") for each in encoded) + "."


async def read_until(consumer, numbers, last):
    async for record in consumer:
        numbers.append(int(record.value))
        if last and numbers[-1] == last[0]:
            return


async def check_sessions(server, name, options):
    """Send, commit transactions and read during several sessions; everything arrives once."""
    await server.create_topic(name)
    servers, loop = server.bootstrap_servers, asyncio.get_running_loop()
    numbers, last, changes = [], [], []
    consumer = ResilientKafkaConsumer(
        name,
        bootstrap_servers=servers,
        group_id=name,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        **options,
    )
    producer = ResilientKafkaProducer(servers, **options)
    transactional = ResilientKafkaProducer(servers, transactional_id=name, **options)
    async with consumer, producer, transactional:
        reading = asyncio.create_task(read_until(consumer, numbers, last))
        await producer.send_and_wait(name, b"0")
        for client in (producer, consumer):
            client.health.on_change(changes.append)
        number, until = 0, loop.time() + SECONDS
        while loop.time() < until:
            number += 1
            await producer.send_and_wait(name, b"%d" % number)
            number += 1
            async with transactional.transaction():
                await transactional.send(name, b"%d" % number)
            await asyncio.sleep(0.02)
        last.append(number)
        await producer.send_and_wait(name, b"%d" % number)
        async with asyncio.timeout(20):
            await reading
    assert numbers[:-1] == [*range(number + 1)] or numbers == [*range(number + 1)]
    assert not [change for change in changes if change.state is State.DOWN]


async def test_sessions_of_a_user_with_a_password_end_without_a_failure(name):
    options = {"connections.max.reauth.ms": int(SESSION * 1000)}
    users = {"alice": "alice-secret"}
    async with KafkaServer(users=users, options=options) as server:
        await check_sessions(server, name, PLAIN)


async def test_sessions_of_expiring_tokens_end_without_a_failure(name):
    options = {"connections.max.reauth.ms": int(SESSION * 1000)}
    tokens = ShortTokens()
    async with KafkaServer(oauth=True, options=options) as server:
        login = {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": tokens}
        await check_sessions(server, name, {"security_protocol": "SASL_PLAINTEXT", **login})
    assert tokens.asked >= 9  # three clients, in more than three sessions
