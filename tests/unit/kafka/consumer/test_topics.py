"""Topics that Kafka hides, and topics that do not exist, with metadata of a fake instance."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka.errors import TopicAuthorizationFailedError

from resilient_io import Cause, State
from resilient_io.kafka.consumer.topics import TopicDetector


class Scene:
    def __init__(self, health):
        self.health = health
        self.detector = TopicDetector(health)
        self.known = ["a"]
        cluster = SimpleNamespace(
            unauthorized_topics=set(),
            partitions_for_topic=lambda topic: {0} if topic in self.known else None,
        )
        self.client = SimpleNamespace(cluster=cluster, _topics={"a", "b"})
        self.instance = SimpleNamespace(
            _client=self.client,
            subscription=lambda: frozenset({"a", "b"}),
            assignment=frozenset,
        )
        self.now = 0.0

    def answer(self, *hidden):
        """Receive metadata that hides these topics."""
        self.client.cluster.unauthorized_topics = set(hidden)
        return self.check()

    def check(self):
        self.now += 1.0
        return self.detector.check(self.instance, self.now)

    async def until(self, state):
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
            while self.health.state is not state:  # noqa: ASYNC110 - states can only be polled
                await asyncio.sleep(0.1)


@pytest.fixture
async def scene(answering):
    return Scene(answering)


async def test_two_answers_that_hide_a_topic_are_an_error_until_one_names_it(scene):
    assert not scene.answer("b")
    assert not scene.check(), "the same answer does not count twice"
    assert scene.detector.failure() is None
    assert scene.answer("b"), "reading fails from now on"
    assert not scene.answer("b")
    with pytest.raises(TopicAuthorizationFailedError, match="b"):
        raise scene.detector.failure()
    await scene.until(State.DEGRADED)
    assert scene.health.cause is Cause.AUTH
    assert "topic b: the user may not see it" in scene.health.detail
    scene.known.append("b")
    scene.answer()
    assert scene.detector.failure() is None
    await scene.until(State.UP)


async def test_a_hidden_topic_of_another_member_is_no_error_for_the_leader(scene):
    scene.client._topics.add("c")
    scene.known.append("b")
    for _ in range(3):
        assert not scene.answer("c")
    assert scene.detector.failure() is None
    await scene.until(State.DEGRADED)
    assert "other members of the group read it" in scene.health.detail


async def test_a_missing_topic_is_logged_once_after_a_while(scene, caplog):
    for _ in range(4):
        scene.answer()
    assert caplog.records == []
    for _ in range(4):
        scene.answer()
    assert [record.topic for record in caplog.records] == ["b"]
    scene.known.append("b")
    scene.answer()
    scene.known.remove("b")
    for _ in range(8):
        scene.answer()
    assert [record.topic for record in caplog.records] == ["b", "b"], "it was deleted again"


async def test_closing_withdraws_the_report(scene):
    for _ in range(2):
        scene.answer("b")
    await scene.until(State.DEGRADED)
    scene.detector.close()
    await scene.until(State.UP)
