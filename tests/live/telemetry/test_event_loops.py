"""The event loop in which metrics are read, and forks."""

import asyncio
import json
import os
import threading
import warnings

from resilient_io import HealthMonitor, ResilientRedis
from resilient_io.telemetry.readings import Readings


def test_metrics_created_before_the_event_loop_are_read_in_it_and_in_the_next_one(monkeypatch):
    redis = ResilientRedis(port=1)
    readings = Readings(HealthMonitor(redis.health), [redis])
    stats, threads = redis.stats, []

    def recorded_stats():
        threads.append(threading.get_ident())
        return stats()

    monkeypatch.setattr(redis, "stats", recorded_stats)

    async def serve():
        async with redis:
            assert await asyncio.to_thread(readings.collect)

    for _ in range(2):
        asyncio.run(serve())
    assert threads == [threading.get_ident()] * 2


def test_process_forked_during_the_event_loop_has_no_metrics():
    redis = ResilientRedis(port=1)
    readings = Readings(HealthMonitor(redis.health), [redis])
    reading, writing = os.pipe()

    async def fork():
        async with redis:
            assert readings.collect()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about threads, which the child does not use
                child = os.fork()
            if child == 0:
                os.write(writing, json.dumps(len(readings.collect())).encode())
                os._exit(0)
            os.waitpid(child, 0)  # noqa: ASYNC222 - it ends immediately
            assert readings.collect()

    asyncio.run(fork())
    os.close(writing)
    with os.fdopen(reading) as output:
        assert json.load(output) == 0


def test_metrics_that_were_not_in_use_before_a_fork_work_in_the_child():
    redis = ResilientRedis(port=1)
    readings = Readings(HealthMonitor(redis.health), [redis])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        os._exit(0 if readings.collect() else 1)
    assert os.waitpid(child, 0)[1] == 0
