"""In which event loop metrics are read, made before it as they may be; and after a fork."""

import asyncio
import json
import os
import threading
import warnings

from resilient_io import HealthMonitor, ResilientRedis
from resilient_io.telemetry.readings import Readings


def test_what_was_made_before_the_loop_is_read_in_it_and_in_the_next(monkeypatch):
    redis = ResilientRedis(port=1)
    readings = Readings(HealthMonitor(redis.health), [redis])
    stats, threads = redis.stats, []

    def seen():
        threads.append(threading.get_ident())
        return stats()

    monkeypatch.setattr(redis, "stats", seen)

    async def serve():
        async with redis:
            assert await asyncio.to_thread(readings.collect)

    for _ in range(2):
        asyncio.run(serve())
    assert threads == [threading.get_ident()] * 2


def test_a_process_forked_from_the_loop_does_not_count_what_its_parent_counts():
    redis = ResilientRedis(port=1)
    readings = Readings(HealthMonitor(redis.health), [redis])
    reading, writing = os.pipe()

    async def fork():
        async with redis:
            assert readings.collect()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of threads, which the child does not use
                child = os.fork()
            if child == 0:
                os.write(writing, json.dumps(len(readings.collect())).encode())
                os._exit(0)
            os.waitpid(child, 0)  # noqa: ASYNC222 - it ends at once
            assert readings.collect()

    asyncio.run(fork())
    os.close(writing)
    with os.fdopen(reading) as told:
        assert json.load(told) == 0


def test_one_that_was_not_in_use_before_a_fork_is_the_childs_own():
    redis = ResilientRedis(port=1)
    readings = Readings(HealthMonitor(redis.health), [redis])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        os._exit(0 if readings.collect() else 1)
    assert os.waitpid(child, 0)[1] == 0
