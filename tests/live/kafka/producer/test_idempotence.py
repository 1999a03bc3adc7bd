"""A broker that does not support idempotent producers: the error and the log name the option."""

import logging

import pytest
from aiokafka.errors import IncompatibleBrokerVersion

from resilient_io.kafka.producer import ResilientKafkaProducer
from resilient_io.testing import embedded_kafka


async def test_the_error_of_a_broker_without_idempotence_names_the_option_to_set(name, caplog):
    caplog.set_level(logging.INFO, "resilient_io")
    async with embedded_kafka() as server:
        await server.create_topic(name)
        async with ResilientKafkaProducer(server.bootstrap_servers) as producer:
            for _ in range(2):
                with pytest.raises(IncompatibleBrokerVersion, match="enable_idempotence=False"):
                    await producer.send_and_wait(name, b"x")
        logged = [r for r in caplog.records if "enable_idempotence=False" in r.getMessage()]
        assert len(logged) == 1
        async with ResilientKafkaProducer(
            server.bootstrap_servers, enable_idempotence=False
        ) as producer:
            assert (await producer.send_and_wait(name, b"x")).offset == 0
        async with ResilientKafkaProducer(
            server.bootstrap_servers, transactional_id=name
        ) as producer:
            with pytest.raises(IncompatibleBrokerVersion, match="leave transactional_id= out"):
                async with producer.transaction():
                    pass
