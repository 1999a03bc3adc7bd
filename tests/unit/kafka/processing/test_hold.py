"""While the membership in the group is in doubt, no handler begins."""

import asyncio

import pytest

from resilient_io import Cause, Dependency
from resilient_io.kafka.processing import HandlerPolicy, RunLimits


@pytest.fixture
def handle():
    async def handler(record):
        handler.begun.append(record.offset)
        await asyncio.sleep(0.1)
        if record.offset in handler.failing:
            handler.failing.remove(record.offset)
            raise ValueError("at first")

    handler.begun, handler.failing = [], []
    return handler


def offsets(batches):
    """Return the offsets of all batches."""
    return [offset for batch in batches for offset in batch]


async def test_no_handler_begins_while_run_is_held_and_all_do_afterwards(scenes, until, handle):
    scene = scenes(concurrency=4, handler_policy=HandlerPolicy(attempts=2, backoff=0.1))
    for number in range(100):
        scene.source.put(b"%d" % number)
    handle.failing.append(6)  # its retry is due while run is held
    scene.start(handle)
    await asyncio.sleep(0.15)
    scene.processor.hold(held=True)
    begun = len(handle.begun)
    assert scene.stats.handlers == 4
    polls = len(scene.source.polls)
    await asyncio.sleep(60.0)
    assert len(handle.begun) == begun
    assert scene.stats.handlers == 0
    assert scene.stats.allowed == 0
    assert len(scene.source.polls) - polls > 30, "Kafka is polled"
    scene.processor.hold(held=False)
    await until(lambda: scene.source.committable() == 100)
    assert scene.stats.failed == 1
    assert len(handle.begun) == 101


async def test_no_batch_begins_while_run_is_held(scenes, until):
    begun = []

    async def handler(records):
        begun.append([record.offset for record in records])
        await asyncio.sleep(0.1)

    scene = scenes(concurrency=2, batch_size=5)
    for number in range(100):
        scene.source.put(b"%d" % number)
    scene.start(handler)
    await asyncio.sleep(0.15)
    scene.processor.hold(held=True)
    before = len(begun)
    await asyncio.sleep(60.0)
    assert len(begun) == before < 20
    scene.processor.hold(held=False)
    await until(lambda: scene.source.committable() == 100)
    assert sorted(offsets(begun)) == list(range(100))


async def test_a_recovered_dependency_starts_no_handler_while_run_is_held(scenes, until, handle):
    health = Dependency("redis")
    health.succeeded()
    scene = scenes(concurrency=4, requires=[health], limits=RunLimits(slow_start=2.0))
    for number in range(100):
        scene.source.put(b"%d" % number)
    scene.start(handle)
    await asyncio.sleep(0.15)
    health.failed(Cause.REFUSED, definite=True)
    scene.processor.hold(held=True)
    begun = len(handle.begun)
    await asyncio.sleep(1.0)
    health.succeeded()
    await asyncio.sleep(60.0)
    assert len(handle.begun) == begun
    scene.processor.hold(held=False)
    await until(lambda: scene.source.committable() == 100)
    health.failed(Cause.REFUSED, definite=True)
    scene.processor.hold(held=False)
    scene.source.put(b"one more")
    await asyncio.sleep(60.0)
    assert len(handle.begun) == 100, "the dependency is still required"
    await health.aclose()


async def test_held_records_of_a_lost_partition_are_dropped(scenes, sources, until, handle):
    source = sources(2)
    scene = scenes(source, concurrency=2)
    for number in range(40):
        source.put(b"%d" % number, number=number % 2)
    scene.start(handle)
    await asyncio.sleep(0.15)
    scene.processor.hold(held=True)
    await asyncio.sleep(1.0)
    await source.revoke(("t", 0), ("t", 1))
    assert scene.stats.in_flight == 0
    begun = len(handle.begun)
    scene.processor.hold(held=False)
    await asyncio.sleep(5.0)
    assert len(handle.begun) == begun
    source.assign(("t", 0), ("t", 1))
    source.put(b"more")
    await until(lambda: source.committable(0) == 21 and source.committable(1) == 20)


async def test_run_ends_while_it_is_held(scenes, handle):
    scene = scenes(concurrency=2)
    for number in range(40):
        scene.source.put(b"%d" % number)
    run = scene.start(handle)
    await asyncio.sleep(0.15)
    scene.processor.hold(held=True)
    await scene.processor.aclose()
    await run
    begun = len(handle.begun)
    scene.processor.hold(held=False)
    await asyncio.sleep(1.0)
    assert len(handle.begun) == begun < 40
