"""Background work: commits at intervals, and reports to health when all brokers have answered."""

import asyncio
import contextvars
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition

from resilient_io import State
from resilient_io.kafka.consumer.housekeeping import Housekeeping
from resilient_io.kafka.consumer.options import ConsumerSettings

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


class Scene:
    def __init__(self, interval):
        self.commits = []
        self.answered = []
        self.commit_takes = 0.0
        self.paused = []
        self.assigned = [SimpleNamespace(partition=p, last_answer=None) for p in (A, B)]
        self.coordinator = SimpleNamespace(coordinator_id=1)
        loop = asyncio.get_running_loop()
        self.topics_checked = []
        self.milestone = loop.create_future()
        self.housekeeping = Housekeeping(
            health=SimpleNamespace(state=State.UP),
            supervisor=SimpleNamespace(
                context=contextvars.copy_context,
                driver=SimpleNamespace(_coordinator=self.coordinator),
            ),
            assignment=SimpleNamespace(all=self.assigned),
            fetcher=SimpleNamespace(paused=self.paused.__contains__, received=self.received),
            positions=SimpleNamespace(check_topics=self.topics_checked.append),
            committer=SimpleNamespace(commit=self.commit),
            use=SimpleNamespace(stream=None),
            settings=ConsumerSettings(commit_interval=interval),
            stalled_partitions=None,
            group=None,
            topics=SimpleNamespace(check=lambda _instance, _now: False, close=lambda: None),
            dead_connections=SimpleNamespace(check=lambda instance, now: None, reset=lambda: None),
            all_answered=lambda: self.answered.append(loop.time()),
        )
        self.began = loop.time()
        self.housekeeping.start()

    def received(self, _count):
        if self.milestone.done():
            self.milestone = asyncio.get_running_loop().create_future()
        return self.milestone

    async def commit(self, partitions, timeout):
        self.commits.append(round(asyncio.get_running_loop().time() - self.began, 3))
        await asyncio.sleep(self.commit_takes)
        return True

    async def pass_time(self, seconds, *answering):
        """Simulate leaders of these partitions that answer twice a second."""
        for _ in range(seconds * 2):
            for each in self.assigned:
                if each.partition in answering:
                    each.last_answer = (each.last_answer or 0) + 1
            await asyncio.sleep(0.5)


@pytest.fixture
async def scene(request):
    scene = Scene(getattr(request, "param", 1.0))
    yield scene
    await scene.housekeeping.aclose()


@pytest.mark.parametrize("scene", [0.25], indirect=True)
async def test_commits_are_made_at_intervals(scene):
    await asyncio.sleep(1.1)
    assert scene.commits == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("scene", [3.0], indirect=True)
async def test_commits_are_made_at_long_intervals(scene):
    await asyncio.sleep(9.5)
    assert len(scene.commits) in (3, 4)


@pytest.mark.parametrize("scene", [None], indirect=True)
async def test_no_commit_is_made_without_an_interval(scene):
    await asyncio.sleep(30.0)
    assert scene.commits == []


async def test_commit_soon_commits_immediately(scene):
    await asyncio.sleep(1.2)
    scene.housekeeping.commit_soon()
    await asyncio.sleep(0.1)
    assert scene.commits == [1.0, 1.2]


async def test_a_commit_is_made_when_many_records_have_been_received(scene):
    await asyncio.sleep(1.2)
    scene.milestone.set_result(None)
    await asyncio.sleep(0.1)
    assert scene.commits == [1.0, 1.2]


async def test_a_slow_commit_delays_no_other_work(scene):
    scene.commit_takes = 2.5
    await scene.pass_time(6, A, B)
    assert len(scene.commits) == 2, "one at a time"
    assert len(scene.answered) >= 4


async def test_health_is_notified_when_all_brokers_have_answered(scene):
    await scene.pass_time(5, A, B)
    assert len(scene.answered) >= 4


async def test_a_silent_leader_is_left_to_the_probe(scene):
    await scene.pass_time(2, A, B)
    answered = len(scene.answered)
    await scene.pass_time(5, A)
    assert len(scene.answered) <= answered + 1


async def test_paused_partitions_need_not_answer(scene):
    scene.paused.append(B)
    await scene.pass_time(5, A)
    assert len(scene.answered) >= 4
    scene.paused.append(A)
    await scene.pass_time(2)
    answered = len(scene.answered)
    await scene.pass_time(5)
    assert len(scene.answered) == answered


async def test_a_lost_coordinator_is_left_to_the_probe(scene):
    scene.coordinator.coordinator_id = None
    await scene.pass_time(5, A, B)
    assert scene.answered == []


async def test_a_crashed_task_is_a_liveness_failure_until_it_is_closed(scene, caplog):
    await scene.pass_time(5)
    assert scene.housekeeping.liveness_failure() is None
    scene.housekeeping.supervisor = None
    await scene.pass_time(5)
    assert (
        scene.housekeeping.liveness_failure()
        == "the consumer's housekeeping task has ended: it raised AttributeError"
    )
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    await scene.housekeeping.aclose()
    assert scene.housekeeping.liveness_failure() is None
