"""A partition with records to read that makes no progress makes health DEGRADED."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from resilient_io import Cause, State
from resilient_io.kafka.consumer.housekeeping import StalledPartitionDetector
from resilient_io.kafka.consumer.membership import GroupDetector
from resilient_io.kafka.log_filter import DriverLog

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


class Scene:
    def __init__(self, health):
        self.health = health
        self.log = DriverLog()
        self.detector = StalledPartitionDetector(
            health, 60.0, "billing", fetch=2.0, driver_log=self.log
        )
        common = {"resume_offset": 5, "open_transaction": None, "last_answer": 0}
        self.assigned = [
            SimpleNamespace(partition=A, end_offset=10, **common),
            SimpleNamespace(partition=B, end_offset=5, **common),
        ]
        self.paused = []
        self.silent = []

    async def pass_time(self, seconds):
        loop = asyncio.get_running_loop()
        for _ in range(int(seconds)):
            await asyncio.sleep(1.0)
            for each in self.assigned:
                if each.partition not in self.silent:
                    each.last_answer += 1
            self.detector.check(self.assigned, self.paused.__contains__, loop.time())


@pytest.fixture
async def scene(answering):
    return Scene(answering)


async def test_a_position_that_does_not_move_is_reported_after_a_while(scene):
    await scene.pass_time(60)
    assert scene.health.state is State.UP
    await scene.pass_time(3)
    assert scene.health.state is State.DEGRADED
    assert scene.health.cause is Cause.STALLED
    assert "billing: t[0]: stalled at offset 5 for 6" in scene.health.detail


async def test_progress_ends_the_stall(scene):
    await scene.pass_time(65)
    scene.assigned[0].resume_offset = 6
    await scene.pass_time(1)
    assert scene.health.state is State.UP
    await scene.pass_time(59)
    assert scene.health.state is State.UP, "the time starts again"


async def test_a_partition_without_records_to_read_is_not_stalled(scene):
    scene.assigned[0].resume_offset = 10
    await scene.pass_time(200)
    assert scene.health.state is State.UP


@pytest.mark.parametrize("known", [True, False])
async def test_a_partition_whose_fetches_fail_is_reported_with_aiokafkas_reason(scene, known):
    scene.assigned[0].resume_offset = 10
    if not known:
        scene.assigned[1].resume_offset = scene.assigned[1].end_offset = None
    await scene.pass_time(100)
    assert scene.health.state is State.UP
    scene.silent.append(B)
    scene.log.last_message = "Unexpected error while fetching data: KafkaStorageError"
    await scene.pass_time(60)
    assert scene.health.state is State.UP
    await scene.pass_time(5)
    assert scene.health.cause is Cause.STALLED
    assert "billing: t[1]: no fetch has succeeded for 6" in scene.health.detail
    assert "KafkaStorageError" in scene.health.detail
    scene.silent.clear()
    await scene.pass_time(1)
    assert scene.health.state is State.UP


async def test_an_open_transaction_that_hides_records_is_named(scene):
    scene.assigned[1].open_transaction = 5
    scene.assigned[0].resume_offset = 10
    await scene.pass_time(59)
    assert scene.health.state is State.UP
    await scene.pass_time(5)
    assert scene.health.cause is Cause.OPEN_TRANSACTION
    assert (
        "billing: t[1]: an open transaction at offset 5 has hidden records" in scene.health.detail
    )
    scene.assigned[1].open_transaction = None
    await scene.pass_time(1)
    assert scene.health.state is State.UP


async def test_a_rebalance_that_does_not_end_is_reported(scene):
    group = GroupDetector(scene.health, 60.0, "billing")
    subscription = SimpleNamespace(reassignment_in_progress=True)
    instance = SimpleNamespace(_subscription=subscription, _coordinator=None)
    loop = asyncio.get_running_loop()
    for _ in range(61):
        group.check(instance, loop.time())
        assert scene.health.state is State.UP
        await asyncio.sleep(1.0)
    group.check(instance, loop.time())
    await asyncio.sleep(0.1)  # the probe first checks the whole cluster
    assert scene.health.cause is Cause.REBALANCING
    assert "'billing' has been rebalancing for 6" in scene.health.detail
    subscription.reassignment_in_progress = False
    group.check(instance, loop.time())
    assert scene.health.state is State.UP
    group.close()


async def test_a_full_group_is_reported_until_the_member_joins(scene):
    group = GroupDetector(scene.health, None, "billing")
    group.instance_failed(KafkaError("GroupMaxSizeReachedError()"))
    await asyncio.sleep(0.1)
    assert scene.health.cause is Cause.OVERLOADED
    assert "the group 'billing': full (group.max.size of the brokers)" in scene.health.detail
    subscription = SimpleNamespace(reassignment_in_progress=False)
    instance = SimpleNamespace(_subscription=subscription, _coordinator=None)
    group.check(instance, 0.0)
    assert scene.health.state is State.UP
    group.instance_failed(KafkaError("its fetching task ended"))
    assert scene.health.state is State.UP
    group.close()


async def test_a_paused_partition_is_not_stalled(scene):
    scene.paused.append(A)
    await scene.pass_time(100)
    assert scene.health.state is State.UP
    scene.paused.clear()
    await scene.pass_time(59)
    assert scene.health.state is State.UP
    await scene.pass_time(5)
    assert scene.health.state is State.DEGRADED


async def test_the_stall_of_a_revoked_partition_is_withdrawn(scene):
    await scene.pass_time(65)
    del scene.assigned[0]
    await scene.pass_time(1)
    assert scene.health.state is State.UP


async def test_closing_withdraws_the_stall(scene):
    await scene.pass_time(65)
    scene.detector.close()
    assert scene.health.state is State.UP
