"""Fixtures for tests on real brokers: supervised drivers, closed after the test."""

import asyncio
import contextlib
import random
import uuid
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from resilient_io import Dependency, HealthSettings, RetryPolicy
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.consumer import ConsumerSettings, ResilientKafkaConsumer
from resilient_io.kafka.probe import GROUP, KafkaProbe
from resilient_io.kafka.supervisor import Supervisor
from resilient_io.testing import FaultProxy, KafkaServer, free_port


@pytest.fixture
def name():
    """Return a unique name for topics, groups and transactional ids on a shared broker."""
    return f"t{uuid.uuid4().hex[:12]}"


@dataclass(kw_only=True)
class Supervised:
    """A supervised driver and its parts."""

    target: KafkaTarget
    health: Dependency
    probe: KafkaProbe
    supervisor: Supervisor
    detached: list = field(default_factory=list)


@pytest_asyncio.fixture
async def supervise():
    """Start supervisors: `await supervise("producer", "127.0.0.1:9092", **aiokafka's options)`.

    Options for the cluster (security and so on) go into `cluster=`; `topics=` is what a consumer
    subscribes to, `settings=` are those of its own health. Supervisors that the test did not close
    are closed after it.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def begin(
            role,
            servers,
            *,
            cluster=None,
            topics=(),
            policy=None,
            health=None,
            settings=None,
            **options,
        ):
            target = KafkaTarget(servers, cluster)
            shared = health is not None
            health = health or Dependency(target.name, settings=settings or HealthSettings())
            group = options.get("group_id")
            probe = KafkaProbe(
                target=target,
                timeout=health.settings.timeout,
                coordinator=(GROUP, group) if group else None,
            )
            detached = []

            def build():
                if role == "producer":
                    settings = {"enable_idempotence": True, **options}
                    return AIOKafkaProducer(**target.client_options(), **settings)
                settings = {"enable_auto_commit": False, **options}
                return AIOKafkaConsumer(**target.client_options(), **settings)

            async def subscribe(instance):
                if topics:
                    instance.subscribe(list(topics))

            supervisor = Supervisor(
                role=role,
                target=target,
                build=build,
                health=health,
                policy=policy or RetryPolicy(),
                rng=random.Random(7),
                prepare=subscribe,
                on_detached=lambda driver, error: detached.append((driver, error)),
            )
            attachment = health.start(probe, last_reply=probe.last_reply)
            if not shared:
                stack.push_async_callback(health.aclose)
            stack.callback(probe.close)
            stack.push_async_callback(attachment.detach)
            stack.push_async_callback(supervisor.aclose, 2.0)
            supervisor.start()
            return Supervised(
                target=target,
                health=health,
                probe=probe,
                supervisor=supervisor,
                detached=detached,
            )

        yield begin


@pytest.fixture
def members():
    """Return the state and the members of a group: `await members(server, group)`."""

    async def describe(server, group):
        admin = AIOKafkaAdminClient(bootstrap_servers=server.direct_servers)
        await admin.start()
        try:
            (answer,) = await admin.describe_consumer_groups([group])
        finally:
            await admin.close()
        ((_, _, state, _, _, found, *_),) = answer.groups
        return state, [member[0] for member in found]

    return describe


@pytest.fixture(scope="session")
def _proxied_of_session():
    port = free_port()
    server = KafkaServer(advertised_port=port)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(server.start())
        yield server, port
        runner.run(server.aclose())


@pytest.fixture
def proxied_kafka(_proxied_of_session):
    """Return a broker that all tests share and that advertises the address of `kafka_proxy`."""
    return _proxied_of_session[0]


@pytest_asyncio.fixture
async def kafka_proxy(_proxied_of_session):
    """Yield the proxy in front of `proxied_kafka`, without faults at the start of each test."""
    server, port = _proxied_of_session
    async with FaultProxy(server.port, port=port, protocol="kafka") as proxy:
        yield proxy


@pytest.fixture
def read_all():
    """Read a whole topic past all proxies: `await read_all(server, topic, "read_committed")`."""

    async def read(server, topic, isolation="read_uncommitted"):
        reader = AIOKafkaConsumer(
            bootstrap_servers=server.direct_servers,
            enable_auto_commit=False,
            isolation_level=isolation,
        )
        await reader.start()
        records = []
        try:
            await reader._client._wait_on_metadata(topic)
            partitions = [
                TopicPartition(topic, partition) for partition in reader.partitions_for_topic(topic)
            ]
            reader.assign(partitions)
            await reader.seek_to_beginning()
            ends = await reader.end_offsets(partitions)
            while any([await reader.position(tp) < end for tp, end in ends.items()]):
                for found in (await reader.getmany(timeout_ms=200)).values():
                    records += found
        finally:
            await reader.stop()
        return records

    return read


@pytest.fixture
def produce():
    """Write numbers as records past all proxies: `await produce(kafka, topic, range(100))`.

    Without `keys=`, a number decides the partition of its record. With `keys=`, it decides the key,
    which decides the partition, so that the numbers of a key ascend. `partitions=None` lets
    aiokafka choose the partition.
    """

    async def write(kafka, topic, numbers, *, keys=None, partitions=2, value=b"%d", **options):
        async with AIOKafkaProducer(bootstrap_servers=kafka.direct_servers, **options) as producer:
            for number in numbers:
                key = None if keys is None else number % keys
                of = number if key is None else key
                await producer.send(
                    topic,
                    value % number,
                    key=None if key is None else b"%d" % key,
                    partition=None if partitions is None else of % partitions,
                )

    return write


@pytest.fixture
def committed():
    """Read committed offsets past all proxies: `await committed(kafka, topic, group)`.

    Returns one offset per partition; None for a partition without one.
    """

    async def read(kafka, topic, group, partitions=2):
        async with AIOKafkaConsumer(
            bootstrap_servers=kafka.direct_servers, group_id=group
        ) as reader:
            return [await reader.committed(TopicPartition(topic, n)) for n in range(partitions)]

    return read


@pytest.fixture
def consumer_of():
    """Create consumers with short times: `consumer_of(kafka, topic, group_id=...)`.

    The group is named like the topic unless `group_id=` is given.
    """

    def create(kafka, topic, *, commit_interval=0.2, drain_timeout=1.0, **options):
        options = {
            "group_id": topic,
            "auto_offset_reset": "earliest",
            "settings": ConsumerSettings(
                commit_interval=commit_interval, drain_timeout=drain_timeout
            ),
            "heartbeat_interval_ms": 300,
            "session_timeout_ms": 6000,
        } | options
        topics = () if topic is None else (topic,)
        return ResilientKafkaConsumer(*topics, bootstrap_servers=kafka.bootstrap_servers, **options)

    return create
