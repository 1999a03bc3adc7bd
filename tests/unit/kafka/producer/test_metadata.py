"""The metadata of topics: new partitions and deleted topics."""

import asyncio

from aiokafka import errors as driver


async def test_new_partitions_are_noticed_and_keys_are_redistributed(components):
    async with components() as producer:
        topic = producer.topic
        keys = [b"%d" % n for n in range(100)]

        async def places():
            futures = [await producer.send(b"x", None, key) for key in keys]
            return {f.partition for f in await asyncio.gather(*futures)}

        assert await places() == {0, 1}
        producer.driver.cluster.partitions = dict.fromkeys(range(8), 1)
        await producer.driver.update_metadata()
        assert sorted(topic.queues) == list(range(8))
        assert await places() == set(range(8))


async def test_records_for_a_deleted_topic_fail_and_the_topic_is_forgotten(components):
    async with components() as producer:
        producer.driver.cluster.partitions = {}
        futures = [await producer.send(b"x", 0) for _ in range(3)]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {driver.UnknownTopicOrPartitionError}
        assert producer.loop.time() < 5.0
        assert producer.metadata.topics == {}
        assert producer.buffer.used == 0
        assert producer.driver.batches == []
        producer.driver.cluster.partitions = {0: 1}
        assert (await (await producer.send(b"y", 0))).offset == 0


async def test_a_queue_with_a_batch_in_flight_fails_too_when_its_topic_is_deleted(components):
    async with components() as producer:
        producer.driver.answers = False
        in_flight = await producer.send(b"a", 1)
        await asyncio.sleep(0.001)
        waiting = await producer.send(b"b", 1)
        producer.driver.cluster.partitions = {}
        held = await producer.send(b"c", 0)
        await asyncio.wait([held])
        assert isinstance(held.exception(), driver.UnknownTopicOrPartitionError)
        producer.driver.answer(0, driver.UnknownTopicOrPartitionError())
        await asyncio.wait([in_flight, waiting])
        assert isinstance(waiting.exception(), driver.UnknownTopicOrPartitionError)
        assert producer.loop.time() < 6.0
        assert producer.buffer.used == 0
        asked = producer.driver.updates
        await asyncio.sleep(10.0)
        assert producer.driver.updates == asked  # no queue waits for a leader any more


async def test_records_that_waited_for_a_deleted_topic_go_to_the_new_one_of_that_name(components):
    async with components() as producer:
        producer.driver.answers = False
        await producer.send(b"a", 1)
        await asyncio.sleep(0.001)
        waiting = await producer.send(b"b", 1)
        producer.driver.cluster.partitions = {}
        held = await producer.send(b"c", 0)
        await asyncio.wait([held])
        producer.driver.cluster.partitions = {0: 1, 1: 1}
        await producer.driver.update_metadata()
        producer.driver.answers = True
        producer.driver.answer(0, driver.UnknownTopicOrPartitionError())
        await asyncio.wait([waiting], timeout=5.0)
        assert waiting.done()
        assert producer.buffer.used == 0
