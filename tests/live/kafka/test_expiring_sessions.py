"""Brokers that end each authenticated session after a few seconds (KIP-368).

aiokafka does not authenticate again on an open connection, so the broker closes it, and the clients
must continue on new ones.
"""

import asyncio

import pytest

from resilient_io import State
from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer
from resilient_io.testing import KafkaServer
from tests.live.kafka.tokens import Issuer, Tokens, login, oauth, unsigned

pytestmark = pytest.mark.soak

SESSION = 3.0
SECONDS = 14.0
PASSWORD = "alice-secret"


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


OPTIONS = {"connections.max.reauth.ms": int(SESSION * 1000)}
"""Of a broker. A token that expires earlier ends the session with it."""


@pytest.mark.soak(seconds=25)
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_sessions_of_a_user_with_a_password_end_without_a_failure(name, mechanism):
    scram = mechanism != "PLAIN"
    async with KafkaServer(users={"alice": PASSWORD}, scram=scram, options=OPTIONS) as server:
        await check_sessions(server, name, login(mechanism, PASSWORD))


async def test_sessions_of_expiring_tokens_end_without_a_failure(name):
    tokens = Tokens(lambda: unsigned(SESSION + 1.0))
    async with KafkaServer(oauth=True, options=OPTIONS) as server:
        await check_sessions(server, name, oauth(tokens))
    assert tokens.asked >= 9  # three clients, in more than three sessions


@pytest.mark.parametrize("limit", [SESSION, 60.0], ids=["broker", "token"])
async def test_sessions_of_expiring_signed_tokens_end_without_a_failure(name, tmp_path, limit):
    issuer = Issuer(tmp_path / "issuer")
    tokens = Tokens(lambda: issuer.token(SESSION + 1.0))
    options = issuer.server_options(**{"connections.max.reauth.ms": int(limit * 1000)})
    async with KafkaServer(**options) as server:
        await check_sessions(server, name, oauth(tokens))
    assert tokens.asked >= 9
