"""A partition that has records waiting and does not move makes health DEGRADED."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition

from resilient_io import Cause, Dependency, State
from resilient_io.kafka.consumer.housekeeping import StallWatch

pytestmark = pytest.mark.virtual_time

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


class Scene:
    def __init__(self, health):
        self.health = health
        self.watch = StallWatch(health, 60.0, "billing")
        self.holdings = [
            SimpleNamespace(partition=A, resume=5, end=10),
            SimpleNamespace(partition=B, resume=5, end=5),
        ]
        self.paused = []

    async def pass_time(self, seconds):
        loop = asyncio.get_running_loop()
        for _ in range(int(seconds)):
            await asyncio.sleep(1.0)
            self.watch.look(self.holdings, self.paused.__contains__, loop.time())


@pytest.fixture
async def scene():
    health = Dependency("kafka")

    async def probe(suspicious):
        return 0.001

    attachment = health.start(probe, last_reply=asyncio.get_running_loop().time)
    await health.until_up()
    yield Scene(health)
    await attachment.detach()
    await health.aclose()


async def test_standing_still_with_records_waiting_is_told_after_a_while(scene):
    await scene.pass_time(60)
    assert scene.health.state is State.UP
    await scene.pass_time(3)
    assert scene.health.state is State.DEGRADED
    assert scene.health.cause is Cause.STALLED
    assert "billing: t[0]: it has stood at 5 for 6" in scene.health.detail


async def test_moving_ends_it(scene):
    await scene.pass_time(65)
    scene.holdings[0].resume = 6
    await scene.pass_time(1)
    assert scene.health.state is State.UP
    await scene.pass_time(59)
    assert scene.health.state is State.UP, "the time begins anew"


async def test_waiting_for_nothing_is_no_stall(scene):
    scene.holdings[0].resume = 10
    await scene.pass_time(200)
    assert scene.health.state is State.UP


async def test_what_is_paused_on_purpose_is_no_stall(scene):
    scene.paused.append(A)
    await scene.pass_time(100)
    assert scene.health.state is State.UP
    scene.paused.clear()
    await scene.pass_time(59)
    assert scene.health.state is State.UP
    await scene.pass_time(5)
    assert scene.health.state is State.DEGRADED


async def test_a_partition_that_is_no_longer_ours_is_taken_back(scene):
    await scene.pass_time(65)
    del scene.holdings[0]
    await scene.pass_time(1)
    assert scene.health.state is State.UP


async def test_closing_takes_it_back(scene):
    await scene.pass_time(65)
    scene.watch.close()
    assert scene.health.state is State.UP
