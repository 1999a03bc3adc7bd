"""What type checkers know of ResilientKafkaProducer. Never executed; mypy and pyright check it."""

from __future__ import annotations

from asyncio import Future
from typing import assert_type

from aiokafka.structs import RecordMetadata

from resilient_io.health import Dependency
from resilient_io.kafka import (
    DeliveryReport,
    DeliverySettings,
    ProducerStats,
    ResilientKafkaProducer,
    Transaction,
)


def options() -> None:
    ResilientKafkaProducer("broker:9092", name="orders", acks="all", compression_type="lz4")
    ResilientKafkaProducer(settings=DeliverySettings(linger=0.005), transactional_id="orders-1")
    ResilientKafkaProducer(
        security_protocol="SASL_SSL", sasl_plain_username="user", sasl_plain_password="password"
    )
    ResilientKafkaProducer(max_batch_sise=1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    ResilientKafkaProducer(linger_ms=5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    ResilientKafkaProducer(acks=2)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ResilientKafkaProducer(compression_type="zip")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def sending(producer: ResilientKafkaProducer) -> None:
    assert_type(await producer.send("topic", b"value"), Future[RecordMetadata])
    assert_type(await producer.send_and_wait("topic", b"value", key=b"key"), RecordMetadata)
    assert_type(await producer.send_many("topic", [b"value"]), DeliveryReport)
    async with producer.transaction() as transaction:
        assert_type(transaction, Transaction)


async def inspecting(producer: ResilientKafkaProducer) -> None:
    async with producer as same:
        assert_type(same, ResilientKafkaProducer)
    assert_type(producer.name, str)
    assert_type(producer.health, Dependency)
    assert_type(producer.stats(), ProducerStats)
    assert_type(producer.liveness_failure(), str | None)
    assert_type(await producer.aclose(), DeliveryReport)
