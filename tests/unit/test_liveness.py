"""`liveness_failure()`: a client reports that one of its background tasks crashed."""

import asyncio
import logging
import random

import pytest

from resilient_io import (
    Dependency,
    HealthMonitor,
    ResilientKafkaConsumer,
    ResilientKafkaProducer,
    ResilientRedis,
    RetryPolicy,
)
from resilient_io.errors import Closed
from resilient_io.health import Cause
from resilient_io.redis import multiplexer
from resilient_io.redis.errors import ConnectionFailure
from resilient_io.redis.failover import Failover
from resilient_io.redis.first_connection import FirstConnection
from resilient_io.redis.multiplexer import Reconnector
from resilient_io.redis.session import SessionSettings
from resilient_io.tasks import describe_task_end, log_task_death


def clients():
    return [
        ResilientRedis(),
        ResilientKafkaProducer(),
        ResilientKafkaConsumer("orders", group_id="billing"),
    ]


@pytest.mark.parametrize("client", clients(), ids=lambda client: type(client).__name__)
def test_an_unused_client_has_no_liveness_failure(client):
    assert client.liveness_failure() is None


def test_every_client_can_be_a_liveness_check():
    monitor = HealthMonitor(Dependency("redis"), liveness=clients())
    assert monitor.alive


async def ended(work):
    task = asyncio.create_task(work, name="resilient-io the task")
    await asyncio.wait([task])
    return task


async def raising(error):
    raise error


async def test_describe_task_end_returns_none_for_a_running_task_and_why_another_ended():
    assert describe_task_end(None) is None
    running = asyncio.create_task(asyncio.sleep(60))
    assert describe_task_end(running) is None
    running.cancel()
    await asyncio.wait([running])
    assert describe_task_end(running) == "it was cancelled"
    assert describe_task_end(await ended(asyncio.sleep(0))) == "it returned"
    secret = await ended(raising(ValueError("redis://:secret@host")))
    assert describe_task_end(secret) == "it raised ValueError"


async def test_a_task_that_ended_because_its_health_was_closed_is_not_a_failure(caplog):
    error = Closed("it was closed", dependency="redis", operation="until_up")
    task = await ended(raising(error))
    assert describe_task_end(task) is None
    log_task_death(task)
    assert caplog.records == []


async def test_a_bug_is_logged_with_its_traceback(caplog):
    log_task_death(await ended(raising(ZeroDivisionError("a bug"))))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("resilient-io the task crashed (a bug in resilient-io)")
    assert isinstance(record.exc_info[1], ZeroDivisionError)


class FakeMultiplexer:
    def __init__(self):
        self.failures = 0
        self.first = FirstConnection()
        self.failover = Failover(Dependency("redis").reporter(), "redis")

    def connect_failed(self, slot, failure):
        self.failures += 1


class FakeTarget:
    def expect_master(self):
        return None

    def failure(self, error):
        return ConnectionFailure(Cause.REFUSED, str(error))


def reconnector_of(multiplexer):
    return Reconnector(
        multiplexer,
        target=FakeTarget(),
        policy=RetryPolicy(),
        health=Dependency("redis"),
        rng=random.Random(1),
        token="test",
        session=SessionSettings(None),
    )


async def test_an_unreachable_server_does_not_end_the_reconnector(monkeypatch):
    async def connect(*_args, **_options):
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr(multiplexer, "connect", connect)
    fake = FakeMultiplexer()
    reconnector = reconnector_of(fake)
    reconnector.start(2)
    await asyncio.sleep(600)
    assert fake.failures > 500
    assert reconnector.liveness_failure() is None
    await reconnector.aclose()
    assert reconnector.liveness_failure() is None


async def test_a_crashed_reconnector_is_a_liveness_failure_until_it_is_closed(monkeypatch, caplog):
    async def connect(*_args, **_options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(multiplexer, "connect", connect)
    reconnector = reconnector_of(FakeMultiplexer())
    reconnector.start(1)
    await asyncio.sleep(1)
    assert (
        reconnector.liveness_failure()
        == "the task of connection 0 ended: it raised ZeroDivisionError"
    )
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    await reconnector.aclose()
    assert reconnector.liveness_failure() is None
