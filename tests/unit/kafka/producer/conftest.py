"""The components of a producer over a fake aiokafka producer that answers on demand."""

import asyncio
import contextvars
import random
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import RecordMetadata

from resilient_io import Dependency, RetryPolicy
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.producer.accumulator import Accumulator
from resilient_io.kafka.producer.buffer import BufferMemory
from resilient_io.kafka.producer.bulk import send_many
from resilient_io.kafka.producer.errors import DeliveryErrors
from resilient_io.kafka.producer.metadata import ProducerMetadata
from resilient_io.kafka.producer.options import DeliverySettings
from resilient_io.kafka.producer.partition_queue import fail_waiting
from resilient_io.kafka.producer.records import OVERHEAD
from resilient_io.kafka.producer.sender import Sender
from resilient_io.kafka.producer.transaction_state import TransactionState

TOPIC = "topic"


class FakeCluster:
    """The metadata of one topic."""

    def __init__(self, partitions):
        self.partitions = dict.fromkeys(range(partitions), 1)  # partition: leader
        self.unauthorized_topics = set()
        self.listeners = []

    def add_listener(self, listener):
        self.listeners.append(listener)

    def remove_listener(self, listener):
        self.listeners.remove(listener)

    def partitions_for_topic(self, topic):
        return set(self.partitions) if topic == TOPIC else None

    def available_partitions_for_topic(self, topic):
        return {p for p, leader in self.partitions.items() if leader != -1}

    def leader_for_partition(self, tp):
        return self.partitions.get(tp.partition)


class RecordingBuilder:
    """aiokafka's batch under construction; records the values written into it."""

    def __init__(self, builder):
        self._builder = builder
        self.size = builder.size
        self.values = []

    def append(self, offset, timestamp, key, value, headers):
        added = self._builder.append(offset, timestamp, key, value, headers)
        if added is not None:
            self.values.append(value)
        return added


class FakeDriver:
    """An aiokafka producer as far as the sender uses it.

    Attributes:
        batches: Partition, values and future of each batch.
        answers: Whether batches are confirmed after 10 ms; otherwise call `answer`.
        updates: Number of metadata requests.
    """

    def __init__(self, partitions=2):
        self.cluster = FakeCluster(partitions)
        self.client = SimpleNamespace(
            cluster=self.cluster,
            add_topic=lambda topic: self.update_metadata(),
            set_topics=lambda topics: self.update_metadata(),
            force_metadata_update=self.update_metadata,
        )
        self.updates = 0
        self.batch_size = 10_000
        self.batches = []
        self.offsets = {}
        self.answers = True
        self._txn_manager = None
        self._message_accumulator = SimpleNamespace(_batches={})

    def update_metadata(self):
        self.updates += 1
        for listener in list(self.cluster.listeners):
            listener(self.cluster)
        future = asyncio.get_running_loop().create_future()
        future.set_result(True)
        return future

    def create_batch(self):
        batch = BatchBuilder(self.batch_size, 0)
        batch._builder = RecordingBuilder(batch._builder)
        batch.values = batch._builder.values
        return batch

    async def send_batch(self, batch, topic, *, partition):
        future = asyncio.get_running_loop().create_future()
        self._message_accumulator._batches[TopicPartition(topic, partition)] = [
            SimpleNamespace(retry_count=1)
        ]
        self.batches.append((partition, batch.values, future))
        if self.answers:
            asyncio.get_running_loop().call_later(0.01, self.answer, len(self.batches) - 1)
        return future

    def set_attempts(self, partition, count):
        """Set how many requests contained the newest batch of a partition."""
        (batch,) = self._message_accumulator._batches[TopicPartition(TOPIC, partition)]
        batch.retry_count = count

    def answer(self, number=-1, error=None):
        partition, values, future = self.batches[number]
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
            return
        base = self.offsets.get(partition, 0)
        self.offsets[partition] = base + len(values)
        future.set_result(
            RecordMetadata(TOPIC, partition, TopicPartition(TOPIC, partition), base, -1, 0, 0)
        )


class FakeSupervisor:
    """Has a driver in service until it is reported as broken."""

    def __init__(self, driver):
        self.driver = driver
        self.permanent_error = None
        self.errors = []

    def context(self):
        return contextvars.copy_context()

    async def ready(self, until, operation):
        return self.driver

    def driver_failed(self, driver, error):
        self.errors.append(error)
        if driver is self.driver:
            self.driver = None


class FakeProbe:
    """Records when a client's answers made a probe unnecessary."""

    def __init__(self, loop):
        self.loop = loop
        self.replied_at = []

    def note_reply(self):
        self.replied_at.append(self.loop.time())


class Components:
    """All components of a producer except the supervisor and the driver."""

    def __init__(
        self, driver=None, *, policy=None, target=None, burst=1 << 20, full=1 << 20, **settings
    ):
        self.loop = asyncio.get_running_loop()
        self.driver = driver or FakeDriver()
        self.health = Dependency("kafka")
        self.supervisor = FakeSupervisor(self.driver)
        self.transaction = TransactionState(transactional=False)
        self.errors = DeliveryErrors(
            target=target or KafkaTarget("broker:9092"),
            health=self.health,
            loop=self.loop,
            supervisor=self.supervisor,
            transaction=self.transaction,
        )
        self.settings = DeliverySettings(**settings)
        self.buffer = BufferMemory(self.settings.buffer_bytes, burst)
        self.metadata = ProducerMetadata(
            supervisor=self.supervisor,
            rng=random.Random(1),
            partitioner=None,
            sticky_bytes=full,
        )
        self.probe = FakeProbe(self.loop)
        self.sender = Sender(
            supervisor=self.supervisor,
            metadata=self.metadata,
            buffer=self.buffer,
            health=self.health,
            errors=self.errors,
            probe=self.probe,
            transaction=self.transaction,
        )
        self.accumulator = Accumulator(
            metadata=self.metadata,
            buffer=self.buffer,
            sender=self.sender,
            health=self.health,
            errors=self.errors,
            transaction=self.transaction,
            policy=policy or RetryPolicy(),
            settings=self.settings,
            max_request_size=1 << 20,
            max_batch_size=full,
        )
        self.metadata.attach(self.driver)

    async def __aenter__(self):
        await self.metadata.find(TOPIC, None)
        self.driver.updates = 0
        return self

    async def __aexit__(self, *_):
        self.accumulator.close()
        self.sender.fail_in_flight()
        fail_waiting(self.metadata.queues, self.errors, self.buffer, self.errors.closed)
        await self.metadata.aclose()
        await self.sender.aclose()
        self.accumulator.cancel_timers()

    @property
    def topic(self):
        return self.metadata.topics[TOPIC]

    async def send(self, value, partition=0, key=None, lifetime=None):
        record = (TOPIC, key, value, partition, None, None, len(value) + OVERHEAD)
        lifetime = lifetime or self.settings.delivery_timeout
        future = self.accumulator.append(*record, lifetime)
        if future is None:
            future = await self.accumulator.append_when_ready(*record, lifetime, "send")
        return future

    async def send_many(self, records, timeout=None, serialize_value=None):
        return await send_many(
            self.accumulator,
            TOPIC,
            records,
            timeout=timeout,
            serialize_key=None,
            serialize_value=serialize_value,
        )

    async def replace_driver(self, error=None):
        """End the driver and put another one into service, as the supervisor would."""
        old = self.driver
        self.supervisor.driver = None
        self.metadata.detach()
        self.sender.driver_closed(old, error)
        self.driver = self.supervisor.driver = FakeDriver()
        self.metadata.attach(self.driver)
        self.sender.resume()
        await asyncio.sleep(0)


@pytest.fixture
def components():
    """The components of a producer: `async with components(linger=0.5) as producer:`."""
    return Components


@pytest.fixture
def fake_driver():
    """A fake aiokafka producer: `fake_driver(partitions)`."""
    return FakeDriver
