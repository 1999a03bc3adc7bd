"""A member that the group has expelled while the network was down."""

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from resilient_io.kafka.consumer import ResilientKafkaConsumer

pytestmark = pytest.mark.soak

SOON = 60.0
SESSION = 6.0  # the least that a broker allows
RECORDS = 3000
OPTIONS = {
    "drain_timeout": 0.5,
    "heartbeat_interval_ms": 500,
    "session_timeout_ms": int(SESSION * 1000),
}


@dataclass
class Account:
    """The records taken in hand, with their times and assignments."""

    consumer: ResilientKafkaConsumer
    begun: list = field(default_factory=list)
    hurry: bool = False

    async def take(self, record):
        now = asyncio.get_running_loop().time()
        self.begun.append((now, int(record.value), self.consumer.stats().rebalances))
        await asyncio.sleep(0.0 if self.hurry else 0.01)

    async def take_all(self):
        async for record in self.consumer:
            await self.take(record)

    async def until(self, fact, task):
        async with asyncio.timeout(SOON):
            while not fact():
                if task.done():
                    task.result()
                    raise AssertionError("the consumer ended")
                await asyncio.sleep(0.01)

    async def survive(self, proxy, task):
        """Cut the network for longer than the session, and check when records are taken in hand."""
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
        assert any(0 < at < SESSION - 1.0 for at in old), (
            "records already fetched are handled at first"
        )
        assert max(old) < SESSION + 0.5, "other members may own the partitions then"


async def test_no_handler_begins_for_an_expelled_member(
    proxied_kafka, kafka_proxy, name, produce, consumer_of
):
    await proxied_kafka.create_topic(name)
    await produce(proxied_kafka, name, range(RECORDS), keys=50, partitions=1)
    async with consumer_of(kafka_proxy, name, **OPTIONS) as consumer:
        account = Account(consumer)
        run = asyncio.create_task(consumer.run(account.take, concurrency=2))
        await account.survive(kafka_proxy, run)
    await run


async def test_no_record_is_delivered_to_an_expelled_member(
    proxied_kafka, kafka_proxy, name, produce, consumer_of
):
    await proxied_kafka.create_topic(name)
    await produce(proxied_kafka, name, range(RECORDS), keys=50, partitions=1)
    async with consumer_of(kafka_proxy, name, **OPTIONS) as consumer:
        account = Account(consumer)
        iterating = asyncio.create_task(account.take_all())
        await account.survive(kafka_proxy, iterating)
    await iterating


async def stop_the_process(account, task):
    """Block the event loop for longer than the session, and check what is taken in hand after it.

    That is what a stopped process (SIGSTOP, a frozen container) sees when it continues.
    """
    loop = asyncio.get_running_loop()
    await account.until(lambda: len(account.begun) >= 100, task)
    account.hurry = True
    time.sleep(SESSION + 3.0)
    resumed = loop.time()
    await account.until(lambda: account.consumer.stats().rebalances == 2, task)
    await account.until(lambda: len({number for _, number, _ in account.begun}) == RECORDS, task)
    late = [number for at, number, assignment in account.begun if assignment == 1 and at >= resumed]
    assert not late, f"{len(late)} records were taken in hand that belong to other members"


@pytest.mark.parametrize("way", ["run", "iteration"])
async def test_nothing_is_delivered_after_the_process_was_stopped_for_a_session(
    shared_kafka, name, produce, consumer_of, way
):
    await shared_kafka.create_topic(name)
    await produce(shared_kafka, name, range(RECORDS), keys=50, partitions=1)
    async with consumer_of(shared_kafka, name, **OPTIONS) as consumer:
        account = Account(consumer)
        running = way == "run"
        work = consumer.run(account.take, concurrency=8) if running else account.take_all()
        task = asyncio.create_task(work)
        await stop_the_process(account, task)
    await task
