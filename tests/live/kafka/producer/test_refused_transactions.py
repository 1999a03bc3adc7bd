"""Transactions of which a broker refuses a part."""

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError

from resilient_io.kafka.producer import ResilientKafkaProducer
from resilient_io.testing import KafkaServer
from tests.live.kafka.permissions import allow
from tests.live.kafka.tokens import login


async def test_refused_transaction_is_aborted_and_stays_invisible_after_the_next_commit(
    read_all, caplog
):
    """aiokafka takes a transaction that failed for empty, and sends no request to abort it."""
    async with KafkaServer(users={"alice": "alice-secret"}, superusers=["admin"]) as server:
        for topic in ("in", "out", "forbidden"):
            await server.create_topic(topic)
        for operation, kind, name in (
            ("write", "topic", "out"),
            ("describe", "topic", "forbidden"),
            ("read", "topic", "in"),
            ("read", "group", "permitted"),
            ("write", "transactional id", "id"),
        ):
            await allow(server, "alice", operation, kind, name)
        async with ResilientKafkaProducer(
            server.bootstrap_servers,
            transactional_id="id",
            **login("PLAIN", "alice-secret", "alice"),
        ) as producer:
            with pytest.raises(GroupAuthorizationFailedError):
                async with producer.transaction() as transaction:
                    await producer.send_and_wait("out", b"without offsets")
                    await transaction.send_offsets({TopicPartition("in", 0): 1}, "group")
            async with producer.transaction():
                await producer.send_and_wait("out", b"1")
            with pytest.raises(TopicAuthorizationFailedError):
                async with producer.transaction():
                    await producer.send_and_wait("out", b"without the other")
                    await producer.send_and_wait("forbidden", b"the other")
            async with producer.transaction():
                await producer.send_and_wait("out", b"2")
            assert producer.stats().instances == 1
            # aiokafka's sender task ends, and its error does not say why.
            with pytest.raises(TopicAuthorizationFailedError):
                async with producer.transaction() as transaction:
                    await producer.send_and_wait("out", b"without the offset of the other")
                    await transaction.send_offsets({TopicPartition("forbidden", 0): 1}, "permitted")
            async with producer.transaction():
                await producer.send_and_wait("out", b"3")
        records = await read_all(server, "out", "read_committed")
        assert [record.value for record in records] == [b"1", b"2", b"3"]
    assert not [record for record in caplog.records if record.name == "asyncio"]
