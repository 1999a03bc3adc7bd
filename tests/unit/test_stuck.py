"""When a client says that only a new process helps: a task of its own is gone by a bug of ours."""

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
from resilient_io.redis import multiplexer
from resilient_io.redis.multiplexer import Keeper
from resilient_io.tasks import describe_task_end, log_task_death


def clients():
    return [
        ResilientRedis(),
        ResilientKafkaProducer(),
        ResilientKafkaConsumer("orders", group_id="billing"),
    ]


@pytest.mark.parametrize("client", clients(), ids=lambda client: type(client).__name__)
def test_a_client_that_was_not_used_yet_is_not_stuck(client):
    assert client.liveness_failure() is None


def test_every_client_can_be_vital():
    monitor = HealthMonitor(Dependency("redis"), liveness=clients())
    assert monitor.alive


async def ended(work):
    task = asyncio.create_task(work, name="resilient-io the task")
    await asyncio.wait([task])
    return task


async def raising(error):
    raise error


async def test_a_task_that_runs_is_well_and_one_that_ended_says_how():
    assert describe_task_end(None) is None
    running = asyncio.create_task(asyncio.sleep(60))
    assert describe_task_end(running) is None
    running.cancel()
    await asyncio.wait([running])
    assert describe_task_end(running) == "it was cancelled"
    assert describe_task_end(await ended(asyncio.sleep(0))) == "it returned"
    secret = await ended(raising(ValueError("redis://:secret@host")))
    assert describe_task_end(secret) == "it raised ValueError"


async def test_what_ended_because_its_health_was_closed_is_no_bug(caplog):
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


class Kept:
    def __init__(self):
        self.failures = 0

    def dial_failed(self, slot, failure, error):
        self.failures += 1


def keeper_of(kept):
    return Keeper(
        kept,
        make_lane=None,
        target=type("Target", (), {"uses_tls": False})(),
        policy=RetryPolicy(),
        health=Dependency("redis"),
        rng=random.Random(1),
        client_name=None,
    )


async def test_a_server_that_is_away_leaves_the_keeper_at_work(monkeypatch):
    async def dial(*_args, **_options):
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(multiplexer, "dial", dial)
    kept = Kept()
    keeper = keeper_of(kept)
    keeper.start(2)
    await asyncio.sleep(600)
    assert kept.failures > 500
    assert keeper.liveness_failure() is None
    await keeper.aclose()
    assert keeper.liveness_failure() is None


async def test_a_keeper_that_died_is_stuck_until_it_is_closed(monkeypatch, caplog):
    async def dial(*_args, **_options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(multiplexer, "dial", dial)
    keeper = keeper_of(Kept())
    keeper.start(1)
    await asyncio.sleep(1)
    assert keeper.liveness_failure() == "the task of lane 0 is gone: it raised ZeroDivisionError"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    await keeper.aclose()
    assert keeper.liveness_failure() is None
