"""When the place in the group is in doubt, and what of the consumer waits then."""

import asyncio
import random
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition

from resilient_io import Dependency, RetryPolicy
from resilient_io.health import FlightRecorder
from resilient_io.kafka.connect import Target
from resilient_io.kafka.consumer import internals
from resilient_io.kafka.consumer.engine import Engine
from resilient_io.kafka.consumer.fetcher import Reader
from resilient_io.kafka.consumer.housekeeping import Standing
from resilient_io.kafka.consumer.options import ConsumerSettings, subscription_to
from resilient_io.kafka.consumer.stats import Counters

pytestmark = pytest.mark.virtual_time

SESSION = 10.0


class Watched:
    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.moves = []
        self.standing = Standing(SESSION, self._moved)

    def _moved(self):
        self.moves.append((round(self.now, 3), self.standing.doubtful))

    @property
    def now(self):
        return self.loop.time() - self.began


async def test_there_is_no_doubt_before_the_group_was_ever_heard():
    watched = Watched()
    await asyncio.sleep(1000.0)
    assert not watched.standing.doubtful
    assert watched.moves == []


async def test_answers_in_time_raise_no_doubt():
    watched = Watched()
    for _ in range(100):
        watched.standing.confirm(watched.loop.time())
        await asyncio.sleep(SESSION - 0.1)
    assert watched.moves == []
    watched.standing.close()


async def test_the_doubt_begins_a_session_after_the_last_question_that_was_answered():
    watched = Watched()
    asked = watched.loop.time()
    await asyncio.sleep(4.0)
    watched.standing.confirm(asked)
    await asyncio.sleep(50.0)
    assert watched.moves == [(10.0, True)]
    watched.standing.confirm(watched.loop.time())
    assert watched.moves == [(10.0, True), (54.0, False)]
    watched.standing.close()


async def test_an_answer_that_took_a_session_to_come_ends_no_doubt():
    watched = Watched()
    watched.standing.confirm(watched.loop.time())
    asked = watched.loop.time() + 1.0
    await asyncio.sleep(13.0)
    watched.standing.confirm(asked)
    assert watched.standing.doubtful


async def test_after_closing_there_is_neither_doubt_nor_timer():
    watched = Watched()
    watched.standing.confirm(watched.loop.time())
    watched.standing.close()
    watched.standing.close()
    watched.standing.confirm(watched.loop.time())
    await asyncio.sleep(50.0)
    assert watched.moves == []


class Coordinator:
    """As much of aiokafka's as a heartbeat needs."""

    def __init__(self):
        self.generation, self.member_id = 3, "me"
        self.answer = True
        self.then = lambda: None

    async def _do_heartbeat(self):
        await asyncio.sleep(0.5)
        self.then()
        return self.answer


async def test_an_answered_heartbeat_is_told_with_the_time_of_its_question():
    told = []
    coordinator = Coordinator()
    internals.notice_heartbeats(SimpleNamespace(_coordinator=coordinator), told.append)
    asked = asyncio.get_running_loop().time()
    assert await coordinator._do_heartbeat() is True
    assert told == [asked]


async def test_a_heartbeat_that_was_refused_or_of_another_generation_is_not_told():
    told = []
    coordinator = Coordinator()
    internals.notice_heartbeats(SimpleNamespace(_coordinator=coordinator), told.append)
    coordinator.answer = False
    assert await coordinator._do_heartbeat() is False
    coordinator.answer = True
    coordinator.then = lambda: setattr(coordinator, "generation", 4)
    assert await coordinator._do_heartbeat() is True
    assert told == []


async def test_without_a_group_there_are_no_heartbeats_to_notice():
    coordinator = SimpleNamespace()
    internals.notice_heartbeats(SimpleNamespace(_coordinator=coordinator), None)
    assert vars(coordinator) == {}


@pytest.mark.parametrize(("given", "session"), [({}, 10.0), ({"session_timeout_ms": 6000}, 6.0)])
async def test_all_that_takes_records_waits_and_goes_on(given, session):
    counters = Counters()
    health, recorder = Dependency("kafka"), FlightRecorder()
    health.add_recorder(recorder)
    engine = Engine(
        target=Target("localhost:9092", {}),
        subscription=subscription_to(("t",), None, None, "g"),
        options=given,
        policy=RetryPolicy(),
        health=health,
        settings=ConsumerSettings(),
        reader=Reader(None, None, counters),
        counters=counters,
        rng=random.Random(1),
    )
    told = []
    engine.walk = SimpleNamespace(hold=lambda: told.append("walk"))

    def hold(*, held):
        told.append(held)

    engine.processor = SimpleNamespace(hold=hold)
    state = SimpleNamespace(position=0, has_valid_position=True, highwater=None)
    partition = TopicPartition("t", 0)
    assignment = SimpleNamespace(tps=frozenset([partition]), state_value={partition: state}.get)

    async def nothing_committed(_partitions):
        return {}

    coordinator = Coordinator()
    coordinator.fetch_committed_offsets = nothing_committed
    instance = SimpleNamespace(
        _coordinator=coordinator,
        _subscription=SimpleNamespace(subscription=SimpleNamespace(assignment=assignment)),
        subscribe=lambda **_: None,
    )
    await engine._prepare(instance)
    await engine._rebalancing.assign(instance, [partition])
    await asyncio.sleep(session - 0.1)
    assert not engine.feed.held
    await asyncio.sleep(0.2)
    assert engine.feed.held
    assert told == ["walk", True]
    await coordinator._do_heartbeat()
    assert not engine.feed.held
    assert told == ["walk", True, False]
    noted = [each["event"] for each in recorder.events()]
    assert [each for each in noted if "membership" in each] == [
        "membership in doubt",
        "membership confirmed",
    ]
    await asyncio.sleep(session)
    assert engine.feed.held
    await engine._rebalancing.assign(instance, [partition])
    assert not engine.feed.held, "a new assignment confirms, too"
    engine._standing.close()
