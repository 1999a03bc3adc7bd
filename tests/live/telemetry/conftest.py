"""A small service with a real Redis and a real Kafka, after an outage and failed records."""

import asyncio
import contextlib
import math
import uuid
from dataclasses import dataclass

import pytest_asyncio

from resilient_io import (
    ConsumerSettings,
    DeadLetter,
    Dependency,
    HandlerPolicy,
    HealthMonitor,
    HealthSettings,
    ResilientKafkaConsumer,
    ResilientKafkaProducer,
    ResilientRedis,
)
from resilient_io.errors import ResilientIOError
from resilient_io.health import Topology, TopologyServer

SOON = 40.0


@dataclass(kw_only=True)
class Service:
    """The parts of the service."""

    monitor: HealthMonitor
    redis: ResilientRedis
    producer: ResilientKafkaProducer
    consumer: ResilientKafkaConsumer
    topic: str
    running: asyncio.Task

    @property
    def clients(self):
        return [self.redis, self.producer, self.consumer]

    async def until(self, fact):
        async with asyncio.timeout(SOON):
            while not fact():
                if self.running.done():
                    self.running.result()
                await asyncio.sleep(0.01)


async def _answers(_suspicious):
    return 0.001


def _topology():
    """Return all that the clients of Sentinels and of clusters show, together."""
    return Topology(
        servers=(
            TopologyServer(address="a:1", role="master", state="up", slots=9),
            TopologyServer(address="b:1", role="replica", state="up", lag=0.5),
        ),
        master_since=asyncio.get_running_loop().time(),
        sentinels=3,
        sentinels_reached=2,
        slots=10,
        slots_served=9,
    )


@pytest_asyncio.fixture
async def service(redis_server, shared_kafka):
    """Handle records, some of which fail, while Redis is killed and restarted."""
    topic = f"t{uuid.uuid4().hex[:12]}"
    for name in (topic, f"{topic}.dead"):
        await shared_kafka.create_topic(name, partitions=2)
    servers = shared_kafka.bootstrap_servers
    kafka = Dependency("kafka", settings=HealthSettings(interval=0.5))
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(ResilientRedis.from_url(redis_server.url))
        producer = await stack.enter_async_context(ResilientKafkaProducer(servers, health=kafka))
        consumer = await stack.enter_async_context(
            ResilientKafkaConsumer(
                topic,
                bootstrap_servers=servers,
                group_id=topic,
                health=kafka,
                settings=ConsumerSettings(commit_interval=0.2),
                auto_offset_reset="earliest",
            )
        )
        several = Dependency("several servers")
        attachment = several.start(_answers, last_reply=lambda: -math.inf, topology=_topology)
        stack.push_async_callback(attachment.detach)
        monitor = await stack.enter_async_context(
            HealthMonitor(
                redis.health,
                shared=[kafka],
                optional=[several],
                liveness=[redis, producer, consumer],
            )
        )
        await monitor.until_ready(SOON)

        async def handle(record):
            if record.value == b"poison":
                raise ValueError(record.value)
            await redis.incr("handled")

        running = asyncio.create_task(
            consumer.run(
                handle,
                requires=[redis.health],
                handler_policy=HandlerPolicy(attempts=2, backoff=0.01),
                dead_letter=DeadLetter(topic=f"{topic}.dead", producer=producer),
            ),
            name="run of the test",
        )
        made = Service(
            monitor=monitor,
            redis=redis,
            producer=producer,
            consumer=consumer,
            topic=topic,
            running=running,
        )
        for number in range(100):
            value = b"poison" if number % 50 == 0 else b"%d" % number
            await producer.send_and_wait(topic, value, key=b"%d" % number)
        await made.until(lambda: consumer.run_stats().handled == 98)
        await made.until(lambda: consumer.run_stats().dead_lettered == 2)
        redis_server.kill()
        await made.until(lambda: not redis.health.available)
        with contextlib.suppress(ResilientIOError):
            await redis.get("key")
        await redis_server.restart()
        await redis.health.until_up(SOON)
        await redis.set("key", "value")
        yield made
        await consumer.aclose()
        await running
