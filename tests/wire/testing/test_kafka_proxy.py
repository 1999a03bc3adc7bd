"""The proxy in front of a broker: faults of single requests and of the network."""

import asyncio
import contextlib

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError, NotEnoughReplicasError

from resilient_io.testing import (
    FaultProxy,
    KafkaRequest,
    KafkaServer,
    embedded_kafka,
    free_port,
    produce_error,
)


@pytest.fixture(scope="module")
def behind():
    """A broker that advertises the port of a proxy."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        server = KafkaServer(advertised_port=free_port())
        runner.run(server.start())
        yield server
        runner.run(server.aclose())


@pytest.fixture
async def broker(shared_kafka, behind):  # shared_kafka skips the test without Kafka
    return behind


@pytest.fixture
async def proxy(broker):
    async with FaultProxy(broker.port, port=broker.advertised_port, protocol="kafka") as proxy:
        yield proxy


@pytest.fixture
async def topic(broker, request):
    name = request.node.name[:200].replace("[", "-").replace("]", "")
    await broker.create_topic(name)
    return name


@contextlib.asynccontextmanager
async def producing(proxy, **options):
    producer = AIOKafkaProducer(bootstrap_servers=proxy.bootstrap_servers, **options)
    try:
        await producer.start()
        yield producer
    finally:
        proxy.restore()
        await producer.stop()


async def kept(broker, topic):
    """Return the records in the broker, read without the proxy."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=broker.direct_servers, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        [end] = (await consumer.end_offsets(consumer.assignment())).values()
        async with asyncio.timeout(30):
            return [(await consumer.getone()).value for _ in range(end)]
    finally:
        await consumer.stop()


async def test_requests_are_forwarded_and_counted_by_name(proxy, broker, topic):
    assert proxy.bootstrap_servers == broker.bootstrap_servers != broker.direct_servers
    async with producing(proxy, enable_idempotence=True) as producer:
        for value in (b"1", b"2", b"x" * 300_000):
            await producer.send_and_wait(topic, value)
    assert proxy.requests["Produce"] == 3
    assert proxy.requests["InitProducerId"] >= 1
    assert proxy.requests["ApiVersions"] >= 1
    assert not [name for name in proxy.requests if name.startswith("Api") and name[3:].isdigit()]
    assert [len(value) for value in await kept(broker, topic)] == [1, 1, 300_000]


async def test_consumer_reads_large_replies(proxy, broker, topic):
    async with producing(proxy) as producer:
        for number in range(5):
            await producer.send_and_wait(topic, bytes([number]) * 400_000)
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=proxy.bootstrap_servers,
        auto_offset_reset="earliest",
        group_id=topic,
    )
    await consumer.start()
    async with asyncio.timeout(30):
        got = [(await consumer.getone()).value for _ in range(5)]
    await consumer.stop()
    assert got == [bytes([number]) * 400_000 for number in range(5)]
    assert proxy.requests["JoinGroup"] >= 1
    assert proxy.requests["LeaveGroup"] == 1


async def test_dropped_reply_belongs_to_an_executed_request(proxy, broker, topic):
    async with producing(proxy, request_timeout_ms=1000) as producer:
        fault = proxy.drop_reply("Produce")
        with pytest.raises(KafkaError):
            await producer.send_and_wait(topic, b"lost")
        await fault.happened()
        [struck] = fault.struck
        assert isinstance(struck, KafkaRequest)
        assert struck.name == "Produce"
        assert topic.encode() in struck.raw
    assert (await kept(broker, topic))[:1] == [b"lost"]


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_half_reply_ends_the_connection(proxy, broker, topic, then):
    async with producing(proxy, request_timeout_ms=3000, enable_idempotence=True) as producer:
        fault = proxy.half_reply("produce", then=then)
        record = await producer.send_and_wait(topic, b"once")
        assert fault.spent
        assert record.offset in (0, -1)  # sent again with its sequence number, and recognized
    assert await kept(broker, topic) == [b"once"]


async def test_held_request_reaches_the_broker_when_it_is_released(proxy, broker, topic):
    async with producing(proxy) as producer:
        fault = proxy.hold(lambda request: request.name == "Produce" and b"late" in request.raw)
        sending = asyncio.create_task(producer.send_and_wait(topic, b"late"))
        await fault.happened()
        assert await kept(broker, topic) == []
        assert not sending.done()
        assert fault.release() == 1
        assert (await sending).offset == 0
    assert await kept(broker, topic) == [b"late"]


async def test_held_request_survives_its_client(proxy, broker, topic):
    async with producing(proxy, request_timeout_ms=500) as producer:
        fault = proxy.hold("Produce")
        refused = proxy.reset_on("Produce", nth=2, times=None)
        with pytest.raises(KafkaError):
            await producer.send_and_wait(topic, b"ghost")
        assert await kept(broker, topic) == []
        refused.remove()
        assert fault.release() == 1
        async with asyncio.timeout(10):
            while await kept(broker, topic) == []:  # noqa: ASYNC110 - brokers send no events
                await asyncio.sleep(0.05)
    assert set(await kept(broker, topic)) == {b"ghost"}


@pytest.mark.parametrize("forward", [False, True])
async def test_reset_comes_before_or_after_the_request(proxy, broker, topic, forward):
    async with producing(proxy) as producer:
        fault = proxy.reset_on("Produce", forward=forward)
        await producer.send_and_wait(topic, b"value")  # sent again without idempotence
        assert fault.spent
    # With `forward` the broker receives it, but the reset may come before it is written.
    assert await kept(broker, topic) in ([[b"value"], [b"value"] * 2][: 1 + forward])


async def test_error_in_place_of_the_broker_keeps_the_order_of_replies(proxy, broker, topic):
    async with producing(proxy, retry_backoff_ms=10, request_timeout_ms=3000) as producer:
        passing = proxy.answer("Produce", produce_error(19))
        await producer.send_and_wait(topic, b"again")
        assert passing.spent
        said = proxy.answer("Produce", produce_error(20), forward=True)
        await producer.send_and_wait(topic, b"twice")
        assert said.spent
        proxy.answer("Produce", produce_error(10))
        with pytest.raises(KafkaError, match="MessageSizeTooLarge"):
            await producer.send_and_wait(topic, b"never")
        proxy.answer("Produce", produce_error(19), times=None)
        with pytest.raises((NotEnoughReplicasError, KafkaError)):
            await producer.send_and_wait(topic, b"never")
    assert await kept(broker, topic) == [b"again", b"twice", b"twice"]


async def test_requests_without_a_reply_do_not_confuse_the_proxy(proxy, broker, topic):
    async with producing(proxy, acks=0) as producer:
        for number in range(20):
            await producer.send(topic, b"%d" % number)
            await producer.flush()
        fault = proxy.drop_reply("Metadata")
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(0.5):
                await producer.client.force_metadata_update()
        assert fault.spent
    assert len(await kept(broker, topic)) == 20


async def test_faults_of_the_network_work_for_kafka(proxy, broker, topic):
    loop = asyncio.get_running_loop()
    async with producing(proxy, request_timeout_ms=20_000) as producer:
        await producer.send_and_wait(topic, b"1")
        proxy.latency(requests=0.1, replies=0.1)
        called = loop.time()
        await producer.send_and_wait(topic, b"2")
        assert loop.time() - called >= 0.2
        proxy.latency()

        proxy.bandwidth(requests=200_000)
        called = loop.time()
        await producer.send_and_wait(topic, b"x" * 100_000)
        assert loop.time() - called >= 0.4
        proxy.bandwidth()

        proxy.stall("replies")
        sending = asyncio.create_task(producer.send_and_wait(topic, b"3"))
        async with asyncio.timeout(10):
            while len(await kept(broker, topic)) < 4:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)
        assert not sending.done()
        proxy.resume()
        await sending

        accepted = proxy.accepted
        proxy.reset_after(20_000, "requests")
        sending = asyncio.create_task(producer.send_and_wait(topic, b"y" * 100_000))
        async with asyncio.timeout(10):
            while proxy.accepted == accepted:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)  # until the client reconnects
        assert not sending.done()
        proxy.restore()
        await sending
    assert (await kept(broker, topic))[-1] == b"y" * 100_000


async def test_proxy_refuses_and_accepts_silently(proxy, broker):
    proxy.refuse()
    producer = AIOKafkaProducer(bootstrap_servers=proxy.bootstrap_servers, request_timeout_ms=300)
    with pytest.raises(KafkaConnectionError):
        await producer.start()
    await producer.stop()
    proxy.accept_silently()
    producer = AIOKafkaProducer(bootstrap_servers=proxy.bootstrap_servers, request_timeout_ms=300)
    with pytest.raises(KafkaConnectionError):
        await producer.start()
    await producer.stop()
    assert not proxy.requests


async def test_proxy_works_with_the_stand_in():
    async with (
        embedded_kafka(advertised_port=free_port()) as server,
        FaultProxy(server.port, port=server.advertised_port, protocol="kafka") as proxy,
    ):
        await server.create_topic("t")
        async with producing(proxy) as producer:
            await producer.send_and_wait("t", b"1")
        assert proxy.requests["Produce"] == 1


def test_unknown_request_names_are_rejected():
    proxy = FaultProxy(1, protocol="kafka")
    with pytest.raises(ValueError, match="unknown Kafka request 'SET': use Produce"):
        proxy.drop_reply("SET")
    proxy.drop_reply("joingroup")
    with pytest.raises(ValueError, match="need a protocol"):
        FaultProxy(1, protocol=None).hold()
