"""A member that the group has thrown out while it could not be told."""

import asyncio
from dataclasses import dataclass, field

import pytest
from aiokafka import AIOKafkaProducer

from resilient_io.kafka.consumer import ConsumerSettings, ResilientKafkaConsumer

pytestmark = pytest.mark.soak

SOON = 60.0
SESSION = 6.0  # the least that a broker allows
RECORDS = 3000


async def produced(kafka, topic):
    async with AIOKafkaProducer(bootstrap_servers=kafka.direct_servers) as producer:
        for number in range(RECORDS):
            await producer.send(topic, b"%d" % number, key=b"%d" % (number % 50), partition=0)


def consumer_of(proxy, topic):
    return ResilientKafkaConsumer(
        topic,
        bootstrap_servers=proxy.bootstrap_servers,
        group_id=topic,
        auto_offset_reset="earliest",
        settings=ConsumerSettings(commit_interval=0.2, drain_timeout=0.5),
        heartbeat_interval_ms=500,
        session_timeout_ms=int(SESSION * 1000),
    )


@dataclass
class Account:
    """What was taken in hand, when, and by the member of which assignment."""

    consumer: ResilientKafkaConsumer
    begun: list = field(default_factory=list)
    hurry: bool = False

    async def take(self, record):
        now = asyncio.get_running_loop().time()
        self.begun.append((now, int(record.value), self.consumer.stats().rebalances))
        await asyncio.sleep(0.0 if self.hurry else 0.01)

    async def until(self, fact, task):
        async with asyncio.timeout(SOON):
            while not fact():
                if task.done():
                    task.result()
                    raise AssertionError("it ended")
                await asyncio.sleep(0.01)

    async def survive(self, proxy, task):
        """Cut the network for longer than the session, and look at what is begun when."""
        loop = asyncio.get_running_loop()
        await self.until(lambda: len(self.begun) >= 100, task)
        proxy.stall()
        cut = loop.time()
        assert self.consumer.stats().rebalances == 1
        await asyncio.sleep(SESSION + 3.0)  # nothing can be waited for: this is the outage
        proxy.resume()
        await self.until(lambda: self.consumer.stats().rebalances == 2, task)
        self.hurry = True
        await self.until(lambda: len({number for _, number, _ in self.begun}) == RECORDS, task)
        old = [at - cut for at, _, assignment in self.begun if assignment == 1]
        assert any(0 < at < SESSION - 1.0 for at in old), "what was fetched is handled at first"
        assert max(old) < SESSION + 0.5, "nobody knows whose they are then"


async def test_no_handler_begins_for_a_member_that_was_thrown_out(proxied_kafka, kafka_proxy, name):
    await proxied_kafka.create_topic(name)
    await produced(proxied_kafka, name)
    async with consumer_of(kafka_proxy, name) as consumer:
        account = Account(consumer)
        run = asyncio.create_task(consumer.run(account.take, concurrency=2))
        await account.survive(kafka_proxy, run)
    await run


async def test_no_record_is_handed_out_to_a_member_that_was_thrown_out(
    proxied_kafka, kafka_proxy, name
):
    await proxied_kafka.create_topic(name)
    await produced(proxied_kafka, name)
    async with consumer_of(kafka_proxy, name) as consumer:
        account = Account(consumer)

        async def iterate():
            async for record in consumer:
                await account.take(record)

        iterating = asyncio.create_task(iterate())
        await account.survive(kafka_proxy, iterating)
    await iterating
