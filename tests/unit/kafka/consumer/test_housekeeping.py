"""Background work: commits at intervals, checks, and what a crash of it means."""

import asyncio
import contextvars
from types import SimpleNamespace

import pytest

from resilient_io import State
from resilient_io.kafka.consumer.housekeeping import Housekeeping
from resilient_io.kafka.consumer.options import ConsumerSettings


class Scene:
    def __init__(self, interval):
        self.commits = []
        self.commit_takes = 0.0
        loop = asyncio.get_running_loop()
        self.topics_checked = []
        self.milestone = loop.create_future()
        self.housekeeping = Housekeeping(
            health=SimpleNamespace(state=State.UP),
            supervisor=SimpleNamespace(context=contextvars.copy_context, driver=object()),
            assignment=SimpleNamespace(all=[]),
            fetcher=SimpleNamespace(received=self.received),
            positions=SimpleNamespace(check_topics=self.topics_checked.append),
            committer=SimpleNamespace(commit=self.commit),
            use=SimpleNamespace(stream=None),
            settings=ConsumerSettings(commit_interval=interval),
            stalled_partitions=None,
            group=None,
            topics=SimpleNamespace(check=lambda _instance, _now: False, close=lambda: None),
            dead_connections=SimpleNamespace(check=lambda instance, now: None, reset=lambda: None),
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
    await asyncio.sleep(6.2)
    assert len(scene.commits) == 2, "one at a time"
    assert len(scene.topics_checked) == 2


async def test_a_crashed_task_is_a_liveness_failure_until_it_is_closed(scene, caplog):
    await asyncio.sleep(5.0)
    assert scene.housekeeping.liveness_failure() is None
    scene.housekeeping.supervisor = None
    await asyncio.sleep(5.0)
    assert (
        scene.housekeeping.liveness_failure()
        == "the consumer's housekeeping task has ended: it raised AttributeError"
    )
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    await scene.housekeeping.aclose()
    assert scene.housekeeping.liveness_failure() is None
