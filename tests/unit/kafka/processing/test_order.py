"""The order in which records are handled."""

import asyncio
import itertools
import random

import pytest


class Handler:
    """Sleeps as configured, and records which calls ran when."""

    def __init__(self, seconds=lambda record: 0.1):
        self.seconds = seconds
        self.running = []
        self.most = 0
        self.begun = []
        self.done = []
        self.overlaps = []

    async def __call__(self, record):
        key = (record.partition, record.key)
        if key in self.running:
            self.overlaps.append(key)
        self.running.append(key)
        self.most = max(self.most, len(self.running))
        self.begun.append((record.partition, record.offset))
        try:
            await asyncio.sleep(self.seconds(record))
        finally:
            self.running.remove(key)
        self.done.append((record.partition, record.offset))

    def offsets_of(self, source, key, number=0):
        keys = {record.offset: record.key for record in source.log[("t", number)]}
        return [offset for where, offset in self.done if where == number and keys[offset] == key]


async def test_records_of_one_key_are_handled_in_order_and_others_concurrently(scenes, until):
    scene = scenes(order="key", concurrency=8)
    handler = Handler()
    for number in range(40):
        scene.source.put(b"%d" % (number % 4))
    scene.start(handler)
    await until(lambda: len(handler.done) == 40)
    assert handler.overlaps == []
    assert handler.most == 4
    for key in (b"0", b"1", b"2", b"3"):
        assert handler.offsets_of(scene.source, key) == sorted(
            handler.offsets_of(scene.source, key)
        )
    assert asyncio.get_running_loop().time() == pytest.approx(1.0, abs=0.05)


async def test_records_without_a_key_do_not_wait_for_each_other(scenes, until):
    scene = scenes(order="key", concurrency=8)
    handler = Handler()
    for _ in range(16):
        scene.source.put(None)
    scene.start(handler)
    await until(lambda: len(handler.done) == 16)
    assert handler.most == 8


async def test_records_of_one_partition_are_handled_in_order_and_others_concurrently(
    scenes, sources, until
):
    scene = scenes(sources(3), order="partition", concurrency=8)
    handler = Handler()
    for number in range(30):
        scene.source.put(b"%d" % number, number=number % 3)
    scene.start(handler)
    await until(lambda: len(handler.done) == 30)
    assert handler.most == 3
    for number in range(3):
        offsets = [offset for where, offset in handler.done if where == number]
        assert offsets == list(range(10))


async def test_handlers_without_an_order_reach_the_concurrency(scenes, until):
    scene = scenes(order="none", concurrency=5)
    handler = Handler()
    for _ in range(20):
        scene.source.put(b"same")
    scene.start(handler)
    await until(lambda: len(handler.done) == 20)
    assert handler.most == 5


async def test_a_slow_key_delays_only_itself(scenes, until):
    scene = scenes(order="key", concurrency=2)
    handler = Handler(lambda record: 100.0 if record.key == b"slow" else 0.01)
    scene.source.put(b"slow")
    for number in range(50):
        scene.source.put(b"slow" if number % 10 == 0 else b"%d" % number)
    scene.start(handler)
    await until(lambda: len(handler.done) == 45)
    assert asyncio.get_running_loop().time() < 1.0
    assert scene.source.committable() is None  # no later offset may be committed


async def test_only_contiguous_offsets_may_be_committed(scenes, until):
    scene = scenes(order="none", concurrency=10)
    release = [asyncio.Event() for _ in range(4)]

    async def handler(record):
        await release[record.offset].wait()

    for _ in range(4):
        scene.source.put(None)
    scene.start(handler)
    await asyncio.sleep(0.1)
    seen = []
    for offset in (2, 0, 3, 1):
        release[offset].set()
        await asyncio.sleep(0.01)
        seen.append(scene.source.committable())
    assert seen == [None, 1, 1, 4]


async def test_a_busy_key_does_not_starve_the_others_with_one_handler(scenes, until):
    scene = scenes(order="key", concurrency=1)
    handler = Handler(lambda record: 0.01)
    for _ in range(100):
        scene.source.put(b"busy")
    for number in range(5):
        scene.source.put(b"%d" % number)
    scene.start(handler)
    await until(lambda: len(handler.done) == 12)
    assert {offset for _, offset in handler.done} >= set(range(100, 105))


@pytest.mark.parametrize("order", ["key", "partition", "none"])
@pytest.mark.parametrize("seed", range(5))
async def test_each_record_is_handled_once_and_in_order_under_random_load(
    scenes, sources, until, order, seed
):
    rng = random.Random(seed)
    scene = scenes(sources(3), order=order, concurrency=rng.randint(1, 40))
    handler = Handler(lambda record: rng.choice([0, 0, 0.001, 0.05]))
    count = 0

    async def produce():
        nonlocal count
        for _ in range(300):
            key = rng.choice([None, b"a", b"b", b"c", b"%d" % rng.randint(0, 99)])
            scene.source.put(key, number=rng.randint(0, 2))
            count += 1
            if rng.random() < 0.1:
                await asyncio.sleep(rng.random() * 0.05)

    scene.start(handler)
    await produce()
    await until(lambda: len(handler.done) == count)
    await asyncio.sleep(1)
    assert sorted(handler.done) == sorted(
        (record.partition, record.offset) for log in scene.source.log.values() for record in log
    )
    for number in range(3):
        assert scene.source.committable(number) == len(scene.source.log[("t", number)])
        offsets = [offset for where, offset in handler.begun if where == number]
        if order == "partition":
            assert offsets == sorted(offsets)
        if order == "key":
            for key in (b"a", b"b", b"c"):
                mine = handler.offsets_of(scene.source, key, number)
                assert mine == sorted(mine)
    if order == "key":
        assert [key for key in handler.overlaps if key[1] is not None] == []
    assert scene.stats.in_flight == scene.stats.in_flight_bytes == 0
    assert scene.stats.handled == count


async def test_handlers_that_never_wait_let_other_tasks_run(scenes, until):
    scene = scenes(order="none", concurrency=50)
    loop = asyncio.get_running_loop()
    beats = []

    async def handler(record):
        loop.block(0.001)

    async def beat():
        while True:
            beats.append(loop.time())
            await asyncio.sleep(0)

    for _ in range(500):
        scene.source.put(None)
    beating = asyncio.create_task(beat())
    scene.start(handler)
    while scene.stats.handled < 500:  # noqa: ASYNC110 - checks each iteration of the loop
        await asyncio.sleep(0)
    beating.cancel()
    assert max(b - a for a, b in itertools.pairwise(beats)) < 0.0081
