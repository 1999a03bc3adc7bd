"""What a consumer does by itself: commits in time, and tells health who has answered."""

import asyncio
import contextvars
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition

from resilient_io import State
from resilient_io.kafka.consumer.housekeeping import Upkeep
from resilient_io.kafka.consumer.options import ConsumerSettings

pytestmark = pytest.mark.virtual_time

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


class Scene:
    def __init__(self, interval):
        self.commits = []
        self.heard = []
        self.commit_takes = 0.0
        self.paused = []
        self.holdings = [SimpleNamespace(partition=p, answered=None) for p in (A, B)]
        self.coordinator = SimpleNamespace(coordinator_id=1)
        engine = SimpleNamespace(
            settings=ConsumerSettings(commit_interval=interval),
            supervisor=SimpleNamespace(
                context=contextvars.copy_context,
                instance=SimpleNamespace(_coordinator=self.coordinator),
            ),
            walk=None,
            holdings=SimpleNamespace(all=self.holdings),
            feed=SimpleNamespace(paused=self.paused.__contains__),
            health=SimpleNamespace(state=State.UP),
            commit_due=self.commit_due,
        )
        silence = SimpleNamespace(look=lambda instance, now: None, forget=lambda: None)
        loop = asyncio.get_running_loop()
        self.upkeep = Upkeep(engine, None, silence, lambda: self.heard.append(loop.time()))
        self.began = loop.time()
        self.upkeep.start()

    async def commit_due(self):
        self.commits.append(round(asyncio.get_running_loop().time() - self.began, 3))
        await asyncio.sleep(self.commit_takes)
        return True

    async def pass_time(self, seconds, *answering):
        """These partitions' leaders answer twice a second."""
        for _ in range(seconds * 2):
            for holding in self.holdings:
                if holding.partition in answering:
                    holding.answered = (holding.answered or 0) + 1
            await asyncio.sleep(0.5)


@pytest.fixture
async def scene(request):
    scene = Scene(getattr(request, "param", 1.0))
    yield scene
    await scene.upkeep.aclose()


@pytest.mark.parametrize("scene", [0.25], indirect=True)
async def test_it_commits_at_intervals(scene):
    await asyncio.sleep(1.1)
    assert scene.commits == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("scene", [3.0], indirect=True)
async def test_it_commits_at_long_intervals(scene):
    await asyncio.sleep(9.5)
    assert len(scene.commits) in (3, 4)


@pytest.mark.parametrize("scene", [None], indirect=True)
async def test_it_never_commits_when_it_is_not_to(scene):
    await asyncio.sleep(30.0)
    assert scene.commits == []


async def test_leaving_commits_at_once(scene):
    await asyncio.sleep(1.2)
    scene.upkeep.commit_soon()
    await asyncio.sleep(0.1)
    assert scene.commits == [1.0, 1.2]


async def test_a_commit_that_takes_long_holds_up_nothing(scene):
    scene.commit_takes = 2.5
    await scene.pass_time(6, A, B)
    assert len(scene.commits) == 2, "one at a time"
    assert len(scene.heard) >= 4


async def test_health_hears_when_all_have_answered(scene):
    await scene.pass_time(5, A, B)
    assert len(scene.heard) >= 4


async def test_one_silent_leader_is_left_to_the_probe(scene):
    await scene.pass_time(2, A, B)
    heard = len(scene.heard)
    await scene.pass_time(5, A)
    assert len(scene.heard) <= heard + 1


async def test_what_is_paused_is_not_waited_for(scene):
    scene.paused.append(B)
    await scene.pass_time(5, A)
    assert len(scene.heard) >= 4
    scene.paused.append(A)
    await scene.pass_time(2)
    heard = len(scene.heard)
    await scene.pass_time(5)
    assert len(scene.heard) == heard


async def test_a_lost_coordinator_is_left_to_the_probe(scene):
    scene.coordinator.coordinator_id = None
    await scene.pass_time(5, A, B)
    assert scene.heard == []


async def test_an_upkeep_that_died_of_a_bug_is_stuck_until_it_is_closed(scene, caplog):
    await scene.pass_time(5)
    assert scene.upkeep.liveness_failure() is None
    scene.upkeep._engine.supervisor = None
    await scene.pass_time(5)
    assert (
        scene.upkeep.liveness_failure() == "the task that commits is gone: it raised AttributeError"
    )
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    await scene.upkeep.aclose()
    assert scene.upkeep.liveness_failure() is None
