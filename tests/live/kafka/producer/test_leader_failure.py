"""Three brokers; the leader of the written partition is killed."""

import asyncio
from collections import Counter

import pytest

from resilient_io import DependencyUnavailable, OutcomeUnknown, RetryPolicy
from resilient_io.errors import DeadlineExceeded
from resilient_io.kafka.producer import ResilientKafkaProducer

SENDERS = 8


@pytest.mark.soak
async def test_no_acknowledged_record_is_lost_or_repeated_when_a_leader_is_killed(
    kafka_cluster, read_all
):
    topic = "led"
    await kafka_cluster.create_topic(topic, partitions=2, replicas=3)
    await kafka_cluster.until_in_sync(topic)
    loop = asyncio.get_running_loop()
    outcomes, acknowledged_at = {}, []
    stop = asyncio.Event()

    async def work(producer, sender):
        number = 0
        while not stop.is_set():
            value = b"%d:%d" % (sender, number)
            number += 1
            try:
                outcomes[value] = await producer.send_and_wait(topic, value, partition=sender % 2)
            except (DependencyUnavailable, OutcomeUnknown, DeadlineExceeded) as error:
                outcomes[value] = error
                await asyncio.sleep(0.02)
            else:
                acknowledged_at.append((loop.time(), sender % 2))

    policy = RetryPolicy(deadline=20.0)
    async with ResilientKafkaProducer(kafka_cluster.bootstrap_servers, policy=policy) as producer:
        await producer.send_and_wait(topic, b"first", partition=0)
        senders = [asyncio.create_task(work(producer, sender)) for sender in range(SENDERS)]
        while len(outcomes) < 1000:  # noqa: ASYNC110 (counters can only be polled)
            await asyncio.sleep(0.01)
        leader = await kafka_cluster.leader_of(topic, 0)
        killed_at = loop.time()
        kafka_cluster.broker(leader).kill()
        async with asyncio.timeout(20):
            while not any(  # noqa: ASYNC110 (counters can only be polled)
                at > killed_at + 0.1 and partition == 0 for at, partition in acknowledged_at
            ):
                await asyncio.sleep(0.01)
        gap = next(at for at, p in acknowledged_at if at > killed_at + 0.1 and p == 0) - killed_at
        assert gap < 5.0 + (producer.health.lag.stalled if producer.health.lag else 0.0)
        goal = len(outcomes) + 1000
        async with asyncio.timeout(20):
            while len(outcomes) < goal:  # noqa: ASYNC110 (counters can only be polled)
                await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*senders)
        assert producer.stats().instances == 1

    written = Counter(record.value for record in await read_all(kafka_cluster, topic))
    acknowledged = [value for value, outcome in outcomes.items() if isinstance(outcome, tuple)]
    assert len(acknowledged) > 1500
    assert [value for value in acknowledged if not written[value]] == []
    assert [value for value, count in written.items() if count > 1] == []
