"""Clients of a deleted topic send few requests, and continue when it exists again."""

import asyncio

import pytest
import pytest_asyncio
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest

from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer
from resilient_io.testing import KafkaServer

SECONDS = 2.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server():
    async with KafkaServer(options={"auto.create.topics.enable": False}) as server:
        yield server


@pytest.fixture
def metadata_requests(monkeypatch):
    """Return the list of the metadata requests that all aiokafka clients have sent."""
    sent, send = [], AIOKafkaConnection.send

    def counting(connection, request, *args, **options):
        if isinstance(request, MetadataRequest):
            sent.append(request)
        return send(connection, request, *args, **options)

    monkeypatch.setattr(AIOKafkaConnection, "send", counting)
    return sent


async def test_producer_with_a_batch_for_a_deleted_topic_sends_few_requests(
    server, name, metadata_requests
):
    """aiokafka alone requests metadata as often as the broker answers: 800 times a second."""
    await server.create_topic(name)
    async with ResilientKafkaProducer(server.bootstrap_servers) as producer:
        await producer.send_and_wait(name, b"0")
        await server.delete_topic(name)
        future = await producer.send(name, b"1")
        await asyncio.sleep(0.5)
        metadata_requests.clear()
        await asyncio.sleep(SECONDS)
        assert not future.done()
        assert 1 <= len(metadata_requests) <= 6 * SECONDS
        await server.create_topic(name)
        assert (await asyncio.wait_for(future, 5)).offset == 0


async def test_consumer_of_partitions_of_a_deleted_topic_sends_few_requests(
    server, name, metadata_requests
):
    await server.create_topic(name)
    values = asyncio.Queue()

    async def read(consumer):
        async for record in consumer:
            values.put_nowait(record.value)

    async with (
        ResilientKafkaProducer(server.bootstrap_servers) as producer,
        ResilientKafkaConsumer(
            partitions=[(name, 0)],
            bootstrap_servers=server.bootstrap_servers,
            auto_offset_reset="earliest",
        ) as consumer,
    ):
        reading = asyncio.create_task(read(consumer))
        await producer.send_and_wait(name, b"0")
        assert await asyncio.wait_for(values.get(), 20) == b"0"
        await server.delete_topic(name)
        await asyncio.sleep(0.5)
        metadata_requests.clear()
        await asyncio.sleep(SECONDS)
        assert 1 <= len(metadata_requests) <= 6 * SECONDS
        await server.create_topic(name)
        await asyncio.sleep(1.0)
        await producer.send_and_wait(name, b"1")
        assert await asyncio.wait_for(values.get(), 20) == b"1"
    await reading
