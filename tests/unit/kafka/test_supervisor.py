"""The supervisor on virtual time, with instances that do as they are told."""

import asyncio
import contextlib
import logging
import math
import random
from types import SimpleNamespace

import pytest
from aiokafka import errors as driver

from resilient_io import Cause, Dependency, HealthSettings, RetryPolicy, State, deadline
from resilient_io.errors import DeadlineExceeded
from resilient_io.health import ProbeFailed
from resilient_io.kafka import (
    KafkaAuthenticationFailed,
    KafkaClosed,
    KafkaDeadlineExceeded,
    KafkaUnavailable,
)
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.supervisor import Supervisor
from resilient_io.testing import cancel_everywhere


class Client:
    def __init__(self):
        self._conns = {}
        self._sync_task = None
        self._md_update_fut = None
        self._retry_backoff = 0.0
        self._topics = set()
        self.cluster = SimpleNamespace(partitions_for_topic=lambda _topic: None)
        self.updates = 0
        self.finds = True

    def _on_connection_closed(self, connection, reason):
        self.closed = (connection, reason)

    def force_metadata_update(self):
        self.updates += 1
        future = asyncio.get_running_loop().create_future()
        future.set_result(self.finds)
        return future

    async def _synchronise(self):
        await asyncio.Event().wait()


class Instance:
    """A consumer as far as the supervisor looks."""

    def __init__(self, world):
        self.world = world
        self._client = Client()
        self._coordinator = self._fetcher = None
        self._subscription = SimpleNamespace(_assignment_waiters=[])
        self._closed = False
        self.stopped = False
        world.built.append(self)

    async def start(self):
        self.world.starting += 1
        failure = self.world.start_failures.pop(0) if self.world.start_failures else None
        if isinstance(failure, Exception):
            raise failure
        if failure is not None:
            await asyncio.sleep(failure)
        self._client._sync_task = asyncio.create_task(self._client._synchronise())

    async def stop(self):
        await asyncio.sleep(self.world.stop_takes)
        self._client._sync_task.cancel()
        self.stopped = True
        if self.world.stop_raises is not None:
            raise self.world.stop_raises


class World:
    def __init__(self):
        self.built = []
        self.starting = 0
        self.start_failures = []
        self.stop_takes = 0.0
        self.stop_raises = None
        self.trouble = None
        self.events = []

    async def probe(self, _suspicious):
        if self.trouble is not None:
            raise self.trouble
        return 0.001


@contextlib.asynccontextmanager
async def supervised(world, *, policy=None, start_timeout=5.0, prepare=None, build=None):
    health = Dependency("kafka", settings=HealthSettings(interval=0.5), rng=random.Random(1))
    attachment = health.start(world.probe, last_reply=lambda: -math.inf)
    supervisor = Supervisor(
        role="consumer",
        target=KafkaTarget("127.0.0.1:1"),
        build=build or (lambda: Instance(world)),
        health=health,
        policy=policy or RetryPolicy(backoff=0.1, backoff_cap=1.0, while_down="wait"),
        rng=random.Random(2),
        prepare=prepare,
        on_attached=lambda instance: world.events.append(("attached", world.built.index(instance))),
        on_detached=lambda instance, error: world.events.append(
            ("detached", world.built.index(instance), error)
        ),
        start_timeout=start_timeout,
    )
    supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.aclose(1.0)
        await attachment.detach()
        await health.aclose()


async def test_an_instance_is_built_only_once_the_cluster_answers():
    world = World()
    world.trouble = ProbeFailed(Cause.REFUSED, "nobody", definite=True)
    async with supervised(world) as supervisor:
        await asyncio.sleep(30)
        assert world.built == []
        world.trouble = None
        instance = await supervisor.ready(None, "fetch")
        assert instance is world.built[0]
        assert supervisor.generation == 1
        assert world.events == [("attached", 0)]


async def test_a_broken_instance_is_ended_and_retired_before_the_next_is_built():
    world = World()
    world.stop_takes = 0.3
    built_before_detached = []

    def build():
        built_before_detached.append(len([e for e in world.events if e[0] == "detached"]))
        return Instance(world)

    async with supervised(world, build=build) as supervisor:
        first = await supervisor.ready(None, "fetch")
        error = driver.UnknownProducerId()
        supervisor.driver_failed(first, error)
        supervisor.driver_failed(first, driver.KafkaError("a second report"))
        await asyncio.sleep(0)
        second = await supervisor.ready(asyncio.get_running_loop().time() + 5, "fetch")
        supervisor.driver_failed(first, driver.KafkaError("an old one"))
        await asyncio.sleep(1)
        assert supervisor.driver is second
        assert second is not first
        assert first.stopped
        assert first._closed
        assert world.events == [("attached", 0), ("detached", 0, error), ("attached", 1)]
        assert built_before_detached == [0, 1]
        assert supervisor.generation == 2


async def test_an_instance_whose_background_task_died_is_replaced():
    world = World()
    async with supervised(world) as supervisor:
        first = await supervisor.ready(None, "fetch")
        first._client._sync_task.cancel()
        await asyncio.sleep(1)
        assert await supervisor.ready(None, "fetch") is not first
        assert isinstance(world.events[1][2], driver.KafkaError)
        assert "metadata task ended" in str(world.events[1][2])


async def test_a_cluster_that_is_away_or_breaks_every_instance_makes_no_supervisor_stuck():
    world = World()
    world.trouble = ProbeFailed(Cause.REFUSED, "nobody", definite=True)
    async with supervised(world) as supervisor:
        await asyncio.sleep(600)
        assert supervisor.liveness_failure() is None
        world.start_failures = [driver.KafkaConnectionError("gone")] * 50
        world.trouble = None
        await asyncio.sleep(20)
        assert supervisor.liveness_failure() is None
    assert supervisor.liveness_failure() is None


async def test_one_that_is_not_to_be_replaced_for_now_makes_no_supervisor_stuck():
    world = World()
    async with supervised(world) as supervisor:
        instance = await supervisor.ready(None, "fetch")
        supervisor.driver_failed(instance, driver.ProducerFenced("another took it"), replace=False)
        await asyncio.sleep(10)
        assert supervisor.driver is None
        assert supervisor.liveness_failure() is None


async def test_a_supervisor_that_died_of_a_bug_is_stuck_until_it_is_closed(caplog):
    world = World()
    async with supervised(world) as supervisor:
        instance = await supervisor.ready(None, "fetch")
        supervisor._backoff.failed = None
        supervisor.driver_failed(instance, driver.KafkaError("gone"))
        await asyncio.sleep(1)
        assert (
            supervisor.liveness_failure()
            == "the consumer's supervisor has ended: it raised TypeError"
        )
        assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    assert supervisor.liveness_failure() is None


async def test_one_that_hangs_in_stop_is_ended_by_force_within_the_bound():
    world = World()
    world.stop_takes = 3600
    async with supervised(world) as supervisor:
        first = await supervisor.ready(None, "fetch")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await supervisor.aclose(2.0)
        assert 2.0 <= loop.time() - began < 2.5
        assert not first.stopped
        assert first._client._sync_task.done()
        assert world.events[-1] == ("detached", 0, None)


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), RuntimeError("bug")])
async def test_what_stop_raises_reaches_nobody(raised):
    world = World()
    world.stop_raises = raised
    async with supervised(world) as supervisor:
        await supervisor.ready(None, "fetch")
        await supervisor.aclose(2.0)
        assert world.events[-1] == ("detached", 0, None)


async def test_closing_without_grace_asks_nothing_of_the_instance():
    world = World()
    world.stop_takes = 1.0
    async with supervised(world) as supervisor:
        first = await supervisor.ready(None, "fetch")
        await supervisor.aclose(5.0, graceful=False)
        assert not first.stopped
        assert first._client._sync_task.done()


async def test_a_start_that_takes_too_long_is_given_up_and_tried_again_with_growing_pauses():
    world = World()
    world.start_failures = [60.0] * 5
    async with supervised(world, start_timeout=2.0) as supervisor:
        instance = await supervisor.ready(None, "fetch")
        assert world.built.index(instance) == 5
        assert all(built._closed for built in world.built[:5])
        # Five starts of 2 s each, and five pauses of at most 0.1 + 0.2 + 0.4 + 0.8 + 1.0 s.
        assert 10.0 < asyncio.get_running_loop().time() < 12.6


async def test_a_failing_preparation_counts_as_a_failing_start():
    world = World()
    failures = [driver.KafkaConnectionError("gone"), None]

    async def prepare(_instance):
        failure = failures.pop(0)
        if failure is not None:
            raise failure

    async with supervised(world, prepare=prepare) as supervisor:
        instance = await supervisor.ready(None, "fetch")
        assert instance is world.built[1]
        assert world.built[0].stopped
        assert world.events == [("attached", 1)]


async def test_a_refusal_for_good_is_told_at_once_as_the_driver_raised_it_and_not_stormed():
    world = World()
    world.start_failures = [driver.TransactionalIdAuthorizationFailed("t")] * 10_000
    async with supervised(world) as supervisor:
        for _ in range(3):
            with pytest.raises(driver.TransactionalIdAuthorizationFailed) as caught:
                await supervisor.ready(None, "send")
            assert "no consumer can start" in caught.value.__notes__[0]
        await asyncio.sleep(600)
        assert world.starting < 80
        world.start_failures.clear()
        await asyncio.sleep(31)
        assert await supervisor.ready(None, "send") is world.built[-1]


async def test_what_the_constructor_refuses_is_told_too():
    world = World()

    def build():
        raise ValueError("Invalid compression type!")

    async with supervised(world, build=build) as supervisor:
        with pytest.raises(ValueError, match="compression"):
            await supervisor.ready(None, "send")


async def test_a_value_that_the_start_cannot_use_is_told_too():
    world = World()
    world.start_failures = [ValueError("Incorrect isolation level x")] * 1_000
    async with supervised(world) as supervisor:
        with pytest.raises(ValueError, match="isolation level"):
            await supervisor.ready(None, "send")


async def test_halted_it_ends_the_instance_and_lets_none_follow():
    world = World()
    async with supervised(world) as supervisor:
        first = await supervisor.ready(None, "send")
        supervisor.driver_failed(first, driver.ProducerFenced(), replace=False)
        with pytest.raises(driver.ProducerFenced):
            await supervisor.ready(None, "send")
        await asyncio.sleep(60)
        assert len(world.built) == 1
        assert first.stopped


async def test_a_call_while_it_is_down_fails_at_once_or_waits_as_the_policy_says():
    world = World()
    world.trouble = ProbeFailed(Cause.REFUSED, "nobody", definite=True)
    loop = asyncio.get_running_loop()
    async with supervised(world, policy=RetryPolicy()) as supervisor:
        with pytest.raises(KafkaUnavailable) as caught:
            await supervisor.ready(None, "send")
        assert not isinstance(caught.value, KafkaAuthenticationFailed)
        assert "Kafka is down: nobody" in str(caught.value)
        assert loop.time() < 0.1
        with pytest.raises(KafkaDeadlineExceeded) as late:
            await supervisor.ready(loop.time() + 3, "send", while_down="wait")
        assert isinstance(late.value, DeadlineExceeded)
        assert late.value.elapsed == pytest.approx(3)
        with deadline(1.0), pytest.raises(KafkaDeadlineExceeded):
            await supervisor.ready(None, "send", while_down="wait")


async def test_who_was_let_in_before_the_outage_may_wait_for_its_end():
    world = World()
    async with supervised(world, policy=RetryPolicy(backoff=0.1)) as supervisor:
        first = await supervisor.ready(None, "send")
        world.trouble = ProbeFailed(Cause.RESET, "gone", definite=True)
        supervisor.driver_failed(first, driver.UnknownProducerId())
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        loop.call_later(2.0, setattr, world, "trouble", None)
        waiting = asyncio.create_task(supervisor.ready(loop.time() + 5, "send"))
        await waiting
        assert supervisor._health.state is State.UP


async def test_wrong_credentials_are_one_clear_error_even_for_those_who_would_wait():
    world = World()
    world.trouble = ProbeFailed(Cause.AUTH, "bad password", definite=True)
    policy = RetryPolicy(while_down="fail")
    async with supervised(world, policy=policy) as supervisor:
        with pytest.raises(KafkaAuthenticationFailed, match="bad password") as caught:
            await supervisor.ready(None, "send")
        assert isinstance(caught.value, driver.AuthenticationFailedError)
        assert not caught.value.retriable


async def test_an_instance_that_finds_no_broker_while_the_cluster_answers_is_replaced():
    world = World()
    async with supervised(world) as supervisor:
        first = await supervisor.ready(None, "fetch")
        first._client.finds = False
        await asyncio.sleep(20)
        assert await supervisor.ready(None, "fetch") is not first
        assert "finds none of its brokers" in str(world.events[1][2])


async def test_one_that_finds_its_brokers_is_left_alone():
    world = World()
    async with supervised(world) as supervisor:
        first = await supervisor.ready(None, "fetch")
        await asyncio.sleep(300)
        assert supervisor.driver is first
        assert first._client.updates > 0


async def test_during_an_outage_no_instance_is_blamed():
    world = World()
    async with supervised(world) as supervisor:
        first = await supervisor.ready(None, "fetch")
        first._client.finds = False
        world.trouble = ProbeFailed(Cause.REFUSED, "nobody", definite=True)
        await asyncio.sleep(300)
        assert supervisor.driver is first
        first._client.finds = True
        world.trouble = None
        await asyncio.sleep(10)
        assert supervisor.driver is first
        assert len(world.built) == 1


async def test_closing_tells_those_who_wait_and_comes_twice_without_harm():
    world = World()
    world.trouble = ProbeFailed(Cause.REFUSED, "nobody", definite=True)
    async with supervised(world) as supervisor:
        waiting = asyncio.create_task(supervisor.ready(None, "send"))
        await asyncio.sleep(1)
        await asyncio.gather(supervisor.aclose(1.0), supervisor.aclose(1.0))
        with pytest.raises(KafkaClosed) as caught:
            await waiting
        assert isinstance(caught.value, driver.ProducerClosed)
        with pytest.raises(KafkaClosed):
            await supervisor.ready(None, "send")


async def test_closing_in_the_middle_of_a_start_leaves_nothing():
    world = World()
    world.start_failures = [60.0]
    async with supervised(world, start_timeout=100.0) as supervisor:
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        await supervisor.aclose(5.0)
        assert asyncio.get_running_loop().time() - began < 1
        assert world.built[0]._closed
        assert world.events == []


async def test_a_cancelled_wait_leaves_at_once_and_harms_nobody():
    world = World()
    world.trouble = ProbeFailed(Cause.REFUSED, "nobody", definite=True)
    async with supervised(world) as supervisor:
        waiting = asyncio.create_task(supervisor.ready(None, "send"))
        await asyncio.sleep(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert supervisor._waiters == []


async def test_a_hundred_replacements_in_a_row_are_a_few_records_and_no_storm(caplog):
    world = World()
    caplog.set_level(logging.INFO)
    async with supervised(world) as supervisor:
        loop = asyncio.get_running_loop()
        for _ in range(100):
            instance = await supervisor.ready(None, "fetch")
            supervisor.driver_failed(instance, driver.UnknownProducerId())
            await asyncio.sleep(0)
        assert loop.time() > 30
    ours = [record for record in caplog.records if record.name == "resilient_io.kafka"]
    assert len(ours) <= 20


async def test_during_an_outage_the_instance_makes_no_connection_of_its_own():
    world = World()
    async with supervised(world) as supervisor:
        instance = await supervisor.ready(None, "fetch")
        open_connection = SimpleNamespace(connected=lambda: True, _requests=[])
        instance._client._conns[(1, 0)] = open_connection
        world.trouble = ProbeFailed(Cause.REFUSED, "nobody", definite=True)
        await asyncio.sleep(5)
        assert supervisor._health.state is State.DOWN
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await instance._client._get_conn(2) is None
        assert loop.time() - began >= 0.049  # so that whoever asks again at once does not spin
        assert await instance._client._get_conn(1) is open_connection
        world.trouble = None
        await asyncio.sleep(5)
        assert supervisor._health.state is State.UP
        with pytest.raises(AttributeError):  # its own again, which this one has not
            _ = instance._client._get_conn
        instance._client._conns.clear()


async def test_a_shared_health_that_is_closed_ends_it_with_a_clear_error():
    world = World()
    world.trouble = ProbeFailed(Cause.REFUSED, "nobody", definite=True)
    async with supervised(world) as supervisor:
        waiting = asyncio.create_task(supervisor.ready(None, "send"))
        await asyncio.sleep(1)
        await supervisor._health.aclose()
        with pytest.raises(KafkaClosed, match="its health was closed"):
            await waiting


async def test_waiting_and_closing_can_be_cancelled_anywhere():
    world = World()
    world.stop_takes = 0.5

    async with supervised(world) as supervisor:
        report = await cancel_everywhere(lambda: supervisor.ready(None, "send"))
        assert report.complete
        await supervisor.ready(None, "send")
        closing = await cancel_everywhere(lambda: supervisor.aclose(2.0), max_points=1)
        assert closing.swallowed == closing.late == []


async def test_topics_that_are_not_there_yet_are_asked_for_again_and_less_and_less_often():
    world = World()
    async with supervised(world) as supervisor:
        instance = await supervisor.ready(None, "fetch")
        instance._client._conns[(1, 0)] = SimpleNamespace(connected=lambda: True, _requests=[])
        await asyncio.sleep(60)
        assert instance._client.updates == 0
        instance._client._topics.add("later")
        await asyncio.sleep(3)
        assert instance._client.updates >= 2
        await asyncio.sleep(600)
        assert 50 < instance._client.updates < 80
        instance._client.cluster.partitions_for_topic = lambda _topic: {0}
        seen = instance._client.updates
        await asyncio.sleep(60)
        assert instance._client.updates == seen
        instance._client._conns.clear()
