"""Iteration over records and batches: what is delivered, held back and delivered again."""

import asyncio

import pytest
from aiokafka import TopicPartition

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


async def test_an_abandoned_batch_is_delivered_again_in_order(world):
    await world.join(A, B)
    batches = world.batches(most=4, max_wait=0.0)
    batch = await anext(batches)
    batch[1].done()
    await batches.aclose()
    rest = [(r.partition, r.offset) for r in batch if not r.handled]
    seen = []
    async for record in world.records():
        seen.append((record.partition, record.offset))
        if len(seen) == 19:
            break
    assert seen[: len(rest)] == rest
    for partition in range(2):
        offsets = [offset for there, offset in seen if there == partition]
        assert offsets == sorted(offsets)


async def test_two_tasks_cannot_share_an_iterator(world):
    world.log[A] = []
    await world.join(A)
    records = world.records()
    waiting = asyncio.create_task(anext(records, None))
    await asyncio.sleep(0.5)
    with pytest.raises(RuntimeError, match="in use by another task"):
        await anext(records)
    world.fetcher.close()
    assert await waiting is None


async def test_closing_ends_waiting_iterators(world):
    world.log[A] = []
    await world.join(A)
    records, batches = world.records(), world.batches()
    waiting = asyncio.create_task(anext(records, None))
    await asyncio.sleep(0.5)
    world.fetcher.close()
    assert await waiting is None
    assert await anext(batches, None) is None
    assert await anext(records, None) is None


@pytest.mark.parametrize("when", ["in hand", "waiting"])
async def test_a_held_iteration_delivers_nothing_and_then_the_next_record(world, when):
    await world.join(A)
    records = world.records(most=4)
    assert (await anext(records)).offset == 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    if when == "in hand":
        world.hold()
    else:  # all records are used up, and the iteration waits for the next
        for _ in range(9):
            await anext(records)
        world.log[A] += range(10, 14)
        loop.call_soon(world.hold)
        world.fetcher.held = True
    loop.call_later(7.0, world.resume)
    following = [(await anext(records)).offset for _ in range(4)]
    assert following == ([1, 2, 3, 4] if when == "in hand" else [10, 11, 12, 13])
    assert loop.time() - began == pytest.approx(7.0)
    assert world.counters.returned == 0
    await records.aclose()


async def test_a_held_record_of_a_lost_partition_is_not_delivered(world):
    instance = await world.join(A)
    records = world.records(most=4)
    record = await anext(records)
    record.done()
    world.hold()
    world.rebalancer.lose(instance)
    await world.rebalancer.lost_partitions_removed()
    world.log[A] = [7]
    world.committed[A] = 7  # by another member
    await world.join(A)
    world.resume()
    assert (await anext(records)).offset == 7
    await records.aclose()


async def test_a_held_iteration_delivers_no_batch_and_then_all_of_it(world):
    await world.join(A)
    batches = world.batches(most=20, max_wait=3.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_later(1.0, world.hold)
    loop.call_later(9.0, world.resume)
    batch = await anext(batches)
    assert [record.offset for record in batch] == list(range(10))
    assert loop.time() - began >= 9.0
    await batches.aclose()


async def test_a_batch_contains_no_record_of_a_partition_lost_meanwhile(world):
    instance = await world.join(A)
    batches = world.batches(most=20, max_wait=3.0)
    loop = asyncio.get_running_loop()

    def lose():
        world.rebalancer.lose(instance)
        world.log[A] = []

    loop.call_later(1.0, lose)
    waiting = asyncio.create_task(anext(batches))
    await asyncio.sleep(10.0)
    assert not waiting.done()
    world.fetcher.close()
    await asyncio.wait([waiting])
    assert isinstance(waiting.exception(), StopAsyncIteration)


@pytest.mark.parametrize(("seconds", "late"), [(0.0, 31), (0.0001, 10), (0.01, 0)])
async def test_few_records_are_delivered_after_the_process_was_stopped_for_a_session(
    world, seconds, late
):
    loop = asyncio.get_running_loop()
    world.log[A] = list(range(1000))
    await world.join(A)
    world.session.confirm(loop.time())
    records = world.records(most=1000)
    for _ in range(300):
        await anext(records)
        loop.block(seconds)  # the handler
    loop.block(2_000_000.0)
    delivered = 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            while True:
                await anext(records)
                delivered += 1
    assert world.session.doubtful
    assert delivered <= late
    assert world.assignment.get(A).buffered[0].offset == 300 + delivered
    await records.aclose()
