"""The session watch, and what waits while the membership in the group is in doubt."""

import asyncio
import random
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition

from resilient_io import Dependency, RetryPolicy
from resilient_io.health import FlightRecorder
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.consumer import internals
from resilient_io.kafka.consumer.fetcher import RecordDeserializer
from resilient_io.kafka.consumer.membership import SessionWatch
from resilient_io.kafka.consumer.options import ConsumerSettings, check_subscription
from resilient_io.kafka.consumer.runtime import ConsumerRuntime
from resilient_io.kafka.processing import Processor
from resilient_io.kafka.stats import ConsumerCounters

SESSION = 10.0


class Watched:
    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.changes = []
        self.session = SessionWatch(SESSION, self._changed)

    def _changed(self):
        self.changes.append((round(self.now, 3), self.session.doubtful))

    @property
    def now(self):
        return self.loop.time() - self.began


async def test_membership_is_not_in_doubt_before_the_first_confirmation():
    watched = Watched()
    await asyncio.sleep(1000.0)
    assert not watched.session.doubtful
    assert watched.changes == []


async def test_confirmations_in_time_prevent_doubt():
    watched = Watched()
    for _ in range(100):
        watched.session.confirm(watched.loop.time())
        await asyncio.sleep(SESSION - 0.1)
    assert watched.changes == []
    watched.session.close()


async def test_doubt_begins_one_session_after_the_last_answered_request():
    watched = Watched()
    requested_at = watched.loop.time()
    await asyncio.sleep(4.0)
    watched.session.confirm(requested_at)
    await asyncio.sleep(50.0)
    assert watched.changes == [(10.0, True)]
    watched.session.confirm(watched.loop.time())
    assert watched.changes == [(10.0, True), (54.0, False)]
    watched.session.close()


async def test_check_begins_the_doubt_if_the_loop_was_blocked_beyond_the_timer(monkeypatch):
    watched = Watched()
    watched.session.confirm(watched.loop.time())
    watched.session.check()
    assert watched.changes == []
    time = watched.loop.time
    monkeypatch.setattr(watched.loop, "time", lambda: time() + 50.0)  # no timer was called since
    watched.session.check()
    assert watched.changes == [(50.0, True)]
    watched.session.check()
    assert len(watched.changes) == 1
    watched.session.close()


async def test_an_answer_older_than_a_session_does_not_end_the_doubt():
    watched = Watched()
    watched.session.confirm(watched.loop.time())
    requested_at = watched.loop.time() + 1.0
    await asyncio.sleep(13.0)
    watched.session.confirm(requested_at)
    assert watched.session.doubtful


async def test_a_closed_session_watch_has_no_doubt_and_no_timer():
    watched = Watched()
    watched.session.confirm(watched.loop.time())
    watched.session.close()
    watched.session.close()
    watched.session.confirm(watched.loop.time())
    await asyncio.sleep(50.0)
    assert watched.changes == []


class FakeCoordinator:
    """The parts of aiokafka's coordinator that a heartbeat needs."""

    def __init__(self):
        self.generation, self.member_id = 3, "me"
        self.known = True
        self.then = lambda: None

    async def _do_heartbeat(self):
        await asyncio.sleep(0.5)
        self.then()
        return self.known


async def test_an_answered_heartbeat_is_reported_with_the_time_of_its_request():
    confirmed = []
    coordinator = FakeCoordinator()
    internals.on_heartbeat(SimpleNamespace(_coordinator=coordinator), confirmed.append)
    requested_at = asyncio.get_running_loop().time()
    assert await coordinator._do_heartbeat() is True
    assert confirmed == [requested_at]


async def test_a_refused_or_outdated_heartbeat_is_not_reported():
    confirmed = []
    coordinator = FakeCoordinator()
    internals.on_heartbeat(SimpleNamespace(_coordinator=coordinator), confirmed.append)
    coordinator.known = False
    assert await coordinator._do_heartbeat() is False
    coordinator.known = True
    coordinator.then = lambda: setattr(coordinator, "generation", 4)
    assert await coordinator._do_heartbeat() is True
    assert confirmed == []


async def test_a_consumer_without_a_group_has_no_heartbeats():
    coordinator = SimpleNamespace()
    internals.on_heartbeat(SimpleNamespace(_coordinator=coordinator), None)
    assert vars(coordinator) == {}


class HeldProcessor(Processor):
    """The processor of a `run`, reduced to a list of calls of `hold`."""

    retry_topics = ()

    def __init__(self, calls):
        self._calls = calls

    def hold(self, *, held):
        self._calls.append(held)

    def assigned(self, partitions):
        """Nothing to do."""


@pytest.mark.parametrize("kind", ["loop", "run"])
@pytest.mark.parametrize(("options", "session"), [({}, 10.0), ({"session_timeout_ms": 6000}, 6.0)])
async def test_doubt_holds_the_fetcher_and_the_current_user(options, session, kind):
    counters = ConsumerCounters()
    health, recorder = Dependency("kafka"), FlightRecorder()
    health.add_recorder(recorder)
    runtime = ConsumerRuntime(
        target=KafkaTarget("localhost:9092", {}),
        subscription=check_subscription(("t",), None, None, "g"),
        options=options,
        policy=RetryPolicy(),
        health=health,
        settings=ConsumerSettings(),
        on_gap="continue",
        deserializer=RecordDeserializer(None, None, counters),
        counters=counters,
        rng=random.Random(1),
    )
    held = []
    stream = SimpleNamespace(hold=lambda: held.append(True), retry_topics=())
    await runtime.use.acquire(stream if kind == "loop" else HeldProcessor(held))
    state = SimpleNamespace(position=0, has_valid_position=True, highwater=None)
    partition = TopicPartition("t", 0)
    assignment = SimpleNamespace(tps=frozenset([partition]), state_value={partition: state}.get)

    async def nothing_committed(_partitions):
        return {}

    coordinator = FakeCoordinator()
    coordinator.fetch_committed_offsets = nothing_committed

    async def without_topic_ids(_node, _request):
        raise NotImplementedError

    instance = SimpleNamespace(
        _client=SimpleNamespace(
            cluster=SimpleNamespace(partitions_for_topic=lambda _topic: {0}),
            get_random_node=lambda: 0,
            send=without_topic_ids,
        ),
        _fetcher=SimpleNamespace(
            _isolation_level=0,
            request_offset_reset=lambda *_: asyncio.get_running_loop().create_future(),
        ),
        subscription=lambda: {"t"},
        _coordinator=coordinator,
        _subscription=SimpleNamespace(subscription=SimpleNamespace(assignment=assignment)),
        subscribe=lambda **_: None,
    )
    await runtime._prepare(instance)
    await runtime._rebalancer.assign(instance, [partition])
    await asyncio.sleep(session - 0.1)
    assert not runtime.fetcher.held
    await asyncio.sleep(0.2)
    assert runtime.fetcher.held
    assert held == [True]
    await coordinator._do_heartbeat()
    assert not runtime.fetcher.held
    assert held == ([True] if kind == "loop" else [True, False])
    noted = [each["event"] for each in recorder.events()]
    assert [each for each in noted if "membership" in each] == [
        "membership in doubt",
        "membership confirmed",
    ]
    await asyncio.sleep(session)
    assert runtime.fetcher.held
    await runtime._rebalancer.assign(instance, [partition])
    assert not runtime.fetcher.held, "a new assignment confirms, too"
    runtime._session.close()
