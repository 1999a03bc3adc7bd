"""Every public coroutine, cancelled wherever it waits: raised immediately, without leaks."""

import asyncio
import contextlib
import itertools

import pytest

from resilient_io.kafka.consumer import ConsumerSettings, ResilientKafkaConsumer
from resilient_io.kafka.processing import HandlerPolicy
from resilient_io.testing import cancel_everywhere

_names = itertools.count()
SETTLE = 10.0  # closing continues after its cancellation


@pytest.fixture
async def topic(shared_kafka, name, produce):
    await shared_kafka.create_topic(name)
    await produce(shared_kafka, name, range(20), partitions=1)
    return name


def opened(kafka, topic, *, warm):
    """Return a setup with a new consumer for each run, so that everything left over was leaked."""

    @contextlib.asynccontextmanager
    async def setup():
        consumer = ResilientKafkaConsumer(
            topic,
            bootstrap_servers=kafka.bootstrap_servers,
            group_id=f"group-{next(_names)}",
            auto_offset_reset="earliest",
            settings=ConsumerSettings(fetch_records=5, drain_timeout=0.1),
        )
        try:
            if warm:
                async for record in consumer:
                    record.done()
                    break
            yield consumer
        finally:
            await consumer.aclose()

    return setup


async def iterate(consumer):
    count = 0
    async for _ in consumer:
        count += 1
        if count == 12:
            break


async def iterate_over_batches(consumer):
    count = 0
    async for batch in consumer.batches(max_records=4, max_wait=0.01):
        count += len(batch)
        if count >= 12:
            break


async def handle_all(consumer):
    async def handle(record):
        if record.value == b"12":
            raise LookupError  # with on_failure="stop", which is the default, this ends it

    await consumer.run(handle, order="partition", handler_policy=HandlerPolicy(attempts=1))


async def query_offsets(consumer):
    async with consumer:
        (partition,) = consumer.assignment() or [None]
        if partition is not None:
            await consumer.position(partition)
            await consumer.committed(partition)
            ends = await consumer.end_offsets([partition])
            await consumer.offsets_for_times(dict.fromkeys(ends, 0))
            await consumer.seek_to_beginning(partition)


async def open_and_close(consumer):
    async with consumer:
        await asyncio.sleep(0)


WORK = {
    "iterating": iterate,
    "batches": iterate_over_batches,
    "run": handle_all,
    "commit": lambda consumer: consumer.commit(),
    "lag": lambda consumer: consumer.lag(),
    "offsets": query_offsets,
    "aclose": lambda consumer: consumer.aclose(),
    "async with": open_and_close,
}


async def everything_comes(consumer):
    """Check that nothing is skipped after a cancellation."""
    if consumer._closed:
        return
    first = None
    async with asyncio.timeout(20):
        async for record in consumer:
            first = int(record.value) if first is None else first
            if record.value == b"19":
                break
    assert first <= 12, "unhandled records are delivered again"


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("work", WORK)
async def test_a_cancellation_is_raised_immediately_and_leaves_nothing_behind(
    shared_kafka, topic, work, warm
):
    report = await cancel_everywhere(
        WORK[work],
        setup=opened(shared_kafka, topic, warm=warm),
        check=everything_comes,
        raises=LookupError,
        settle=SETTLE,
        max_points=25,
    )
    assert not report.findings, "\n".join(map(str, report.findings))
