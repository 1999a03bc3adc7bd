"""The supervisor, with fake drivers on virtual time."""

import asyncio
import contextlib
import logging
import math
import random
import traceback
from types import SimpleNamespace

import pytest
from aiokafka import errors as kafka_errors

from resilient_io import Cause, Dependency, HealthSettings, RetryPolicy, State, deadline
from resilient_io.errors import DeadlineExceeded
from resilient_io.health import FlightRecorder, ProbeFailed
from resilient_io.kafka import (
    KafkaAuthenticationFailed,
    KafkaClosed,
    KafkaDeadlineExceeded,
    KafkaUnavailable,
)
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.supervisor import Supervisor
from resilient_io.testing import cancel_everywhere


class FakeClient:
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

    async def _metadata_update(self, cluster, topics):
        return self.finds

    async def _synchronize(self):
        await asyncio.Event().wait()


class FakeDriver:
    """The parts of a consumer that the supervisor uses."""

    def __init__(self, scenario):
        self.scenario = scenario
        self._client = FakeClient()
        self._coordinator = self._fetcher = None
        self._subscription = SimpleNamespace(_assignment_waiters=[])
        self._closed = False
        self.stopped = False
        scenario.built.append(self)

    async def start(self):
        self.scenario.starting += 1
        failure = self.scenario.start_failures.pop(0) if self.scenario.start_failures else None
        if isinstance(failure, Exception):
            raise failure
        if failure is not None:
            await asyncio.sleep(failure)
        self._client._sync_task = asyncio.create_task(self._client._synchronize())

    async def stop(self):
        await asyncio.sleep(self.scenario.stop_takes)
        self._client._sync_task.cancel()
        self.stopped = True
        if self.scenario.stop_raises is not None:
            raise self.scenario.stop_raises


class Scenario:
    def __init__(self):
        self.built = []
        self.starting = 0
        self.start_failures = []
        self.stop_takes = 0.0
        self.stop_raises = None
        self.failure = None
        self.events = []

    async def probe(self, _suspicious):
        if self.failure is not None:
            raise self.failure
        return 0.001


@contextlib.asynccontextmanager
async def supervised(
    scenario, *, policy=None, start_timeout=5.0, prepare=None, build=None, target=None
):
    health = Dependency("kafka", settings=HealthSettings(interval=0.5), rng=random.Random(1))
    attachment = health.start(scenario.probe, last_reply=lambda: -math.inf)
    supervisor = Supervisor(
        role="consumer",
        target=target or KafkaTarget("127.0.0.1:1"),
        build=build or (lambda: FakeDriver(scenario)),
        health=health,
        policy=policy or RetryPolicy(backoff=0.1, backoff_cap=1.0, while_down="wait"),
        rng=random.Random(2),
        prepare=prepare,
        on_attached=lambda driver: scenario.events.append(
            ("attached", scenario.built.index(driver))
        ),
        on_detached=lambda driver, error: scenario.events.append(
            ("detached", scenario.built.index(driver), error)
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


async def test_driver_is_built_only_once_the_cluster_answers():
    scenario = Scenario()
    scenario.failure = ProbeFailed(Cause.REFUSED, "connection refused", definite=True)
    async with supervised(scenario) as supervisor:
        await asyncio.sleep(30)
        assert scenario.built == []
        scenario.failure = None
        driver = await supervisor.ready(None, "fetch")
        assert driver is scenario.built[0]
        assert supervisor.generation == 1
        assert scenario.events == [("attached", 0)]


async def test_failed_driver_is_stopped_and_detached_before_the_next_is_built():
    scenario = Scenario()
    scenario.stop_takes = 0.3
    built_before_detached = []

    def build():
        built_before_detached.append(len([e for e in scenario.events if e[0] == "detached"]))
        return FakeDriver(scenario)

    async with supervised(scenario, build=build) as supervisor:
        first = await supervisor.ready(None, "fetch")
        error = kafka_errors.UnknownProducerId()
        supervisor.driver_failed(first, error)
        supervisor.driver_failed(first, kafka_errors.KafkaError("a second report"))
        await asyncio.sleep(0)
        second = await supervisor.ready(asyncio.get_running_loop().time() + 5, "fetch")
        supervisor.driver_failed(first, kafka_errors.KafkaError("an old one"))
        await asyncio.sleep(1)
        assert supervisor.driver is second
        assert second is not first
        assert first.stopped
        assert first._closed
        assert scenario.events == [("attached", 0), ("detached", 0, error), ("attached", 1)]
        assert built_before_detached == [0, 1]
        assert supervisor.generation == 2


async def test_driver_whose_background_task_died_is_replaced():
    scenario = Scenario()
    async with supervised(scenario) as supervisor:
        first = await supervisor.ready(None, "fetch")
        first._client._sync_task.cancel()
        await asyncio.sleep(1)
        assert await supervisor.ready(None, "fetch") is not first
        assert isinstance(scenario.events[1][2], kafka_errors.KafkaError)
        assert "metadata task ended" in str(scenario.events[1][2])


async def test_unavailable_cluster_is_not_a_liveness_failure():
    scenario = Scenario()
    scenario.failure = ProbeFailed(Cause.REFUSED, "connection refused", definite=True)
    async with supervised(scenario) as supervisor:
        await asyncio.sleep(600)
        assert supervisor.liveness_failure() is None
        scenario.start_failures = [kafka_errors.KafkaConnectionError("gone")] * 50
        scenario.failure = None
        await asyncio.sleep(20)
        assert supervisor.liveness_failure() is None
    assert supervisor.liveness_failure() is None


async def test_driver_that_is_not_replaced_is_not_a_liveness_failure():
    scenario = Scenario()
    async with supervised(scenario) as supervisor:
        driver = await supervisor.ready(None, "fetch")
        supervisor.driver_failed(
            driver, kafka_errors.ProducerFenced("another took it"), replace=False
        )
        await asyncio.sleep(10)
        assert supervisor.driver is None
        assert supervisor.liveness_failure() is None


async def test_crashed_supervisor_is_a_liveness_failure_until_it_is_closed(caplog):
    scenario = Scenario()
    async with supervised(scenario) as supervisor:
        driver = await supervisor.ready(None, "fetch")
        supervisor._backoff.failed = None
        supervisor.driver_failed(driver, kafka_errors.KafkaError("gone"))
        await asyncio.sleep(1)
        assert (
            supervisor.liveness_failure()
            == "the consumer's supervisor has ended: it raised TypeError"
        )
        assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    assert supervisor.liveness_failure() is None


async def test_driver_that_hangs_in_stop_is_stopped_by_force_within_the_timeout():
    scenario = Scenario()
    scenario.stop_takes = 3600
    async with supervised(scenario) as supervisor:
        first = await supervisor.ready(None, "fetch")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await supervisor.aclose(2.0)
        assert 2.0 <= loop.time() - began < 2.5
        assert not first.stopped
        assert first._client._sync_task.done()
        assert scenario.events[-1] == ("detached", 0, None)


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), RuntimeError("bug")])
async def test_exception_of_stop_is_not_raised(raised):
    scenario = Scenario()
    scenario.stop_raises = raised
    async with supervised(scenario) as supervisor:
        await supervisor.ready(None, "fetch")
        await supervisor.aclose(2.0)
        assert scenario.events[-1] == ("detached", 0, None)


async def test_forced_close_does_not_call_stop():
    scenario = Scenario()
    scenario.stop_takes = 1.0
    async with supervised(scenario) as supervisor:
        first = await supervisor.ready(None, "fetch")
        await supervisor.aclose(5.0, graceful=False)
        assert not first.stopped
        assert first._client._sync_task.done()


async def test_slow_start_is_aborted_and_repeated_with_growing_pauses():
    scenario = Scenario()
    scenario.start_failures = [60.0] * 5
    async with supervised(scenario, start_timeout=2.0) as supervisor:
        driver = await supervisor.ready(None, "fetch")
        assert scenario.built.index(driver) == 5
        assert all(built._closed for built in scenario.built[:5])
        # Five starts of 2 s each, and five pauses of at most 0.1 + 0.2 + 0.4 + 0.8 + 1.0 s.
        assert 10.0 < asyncio.get_running_loop().time() < 12.6


async def test_failed_preparation_counts_as_a_failed_start():
    scenario = Scenario()
    failures = [kafka_errors.KafkaConnectionError("gone"), None]

    async def prepare(_instance):
        failure = failures.pop(0)
        if failure is not None:
            raise failure

    async with supervised(scenario, prepare=prepare) as supervisor:
        driver = await supervisor.ready(None, "fetch")
        assert driver is scenario.built[1]
        assert scenario.built[0].stopped
        assert scenario.events == [("attached", 1)]


async def test_permanent_refusal_is_raised_immediately_and_repeated_rarely():
    scenario = Scenario()
    scenario.start_failures = [kafka_errors.TransactionalIdAuthorizationFailed("t")] * 10_000
    async with supervised(scenario) as supervisor:
        for _ in range(3):
            with pytest.raises(kafka_errors.TransactionalIdAuthorizationFailed) as caught:
                await supervisor.ready(None, "send")
            assert "no consumer can start" in caught.value.__notes__[0]
        await asyncio.sleep(600)
        assert scenario.starting < 80
        scenario.start_failures.clear()
        await asyncio.sleep(31)
        assert await supervisor.ready(None, "send") is scenario.built[-1]


async def test_exception_of_the_constructor_is_raised_by_ready():
    scenario = Scenario()

    def build():
        raise ValueError("Invalid compression type!")

    async with supervised(scenario, build=build) as supervisor:
        with pytest.raises(ValueError, match="compression"):
            await supervisor.ready(None, "send")


async def test_option_that_the_start_refuses_is_raised_by_ready():
    scenario = Scenario()
    scenario.start_failures = [ValueError("Incorrect isolation level x")] * 1_000
    async with supervised(scenario) as supervisor:
        with pytest.raises(ValueError, match="isolation level"):
            await supervisor.ready(None, "send")


async def test_driver_that_is_not_replaced_is_stopped_and_its_error_raised():
    scenario = Scenario()
    async with supervised(scenario) as supervisor:
        first = await supervisor.ready(None, "send")
        supervisor.driver_failed(first, kafka_errors.ProducerFenced(), replace=False)
        with pytest.raises(kafka_errors.ProducerFenced):
            await supervisor.ready(None, "send")
        await asyncio.sleep(60)
        assert len(scenario.built) == 1
        assert first.stopped


async def test_call_while_kafka_is_down_fails_immediately_or_waits():
    scenario = Scenario()
    scenario.failure = ProbeFailed(Cause.REFUSED, "connection refused", definite=True)
    loop = asyncio.get_running_loop()
    async with supervised(scenario, policy=RetryPolicy()) as supervisor:
        with pytest.raises(KafkaUnavailable) as caught:
            await supervisor.ready(None, "send")
        assert not isinstance(caught.value, KafkaAuthenticationFailed)
        assert "Kafka is down: connection refused" in str(caught.value)
        assert loop.time() < 0.1
        with pytest.raises(KafkaDeadlineExceeded) as late:
            await supervisor.ready(loop.time() + 3, "send", while_down="wait")
        assert isinstance(late.value, DeadlineExceeded)
        assert late.value.elapsed == pytest.approx(3)
        with deadline(1.0), pytest.raises(KafkaDeadlineExceeded):
            await supervisor.ready(None, "send", while_down="wait")


async def test_call_that_waited_before_the_outage_may_wait_for_its_end():
    scenario = Scenario()
    async with supervised(scenario, policy=RetryPolicy(backoff=0.1)) as supervisor:
        first = await supervisor.ready(None, "send")
        scenario.failure = ProbeFailed(Cause.RESET, "gone", definite=True)
        supervisor.driver_failed(first, kafka_errors.UnknownProducerId())
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        loop.call_later(2.0, setattr, scenario, "failure", None)
        waiting = asyncio.create_task(supervisor.ready(loop.time() + 5, "send"))
        await waiting
        assert supervisor._health.state is State.UP


async def test_wrong_credentials_raise_an_authentication_error():
    scenario = Scenario()
    scenario.failure = ProbeFailed(Cause.AUTH, "bad password", definite=True)
    policy = RetryPolicy(while_down="fail")
    async with supervised(scenario, policy=policy) as supervisor:
        with pytest.raises(KafkaAuthenticationFailed, match="bad password") as caught:
            await supervisor.ready(None, "send")
        assert isinstance(caught.value, kafka_errors.AuthenticationFailedError)
        assert not caught.value.retriable


async def test_driver_that_finds_no_broker_while_the_cluster_answers_is_replaced():
    scenario = Scenario()
    async with supervised(scenario) as supervisor:
        first = await supervisor.ready(None, "fetch")
        first._client.finds = False
        await asyncio.sleep(20)
        assert await supervisor.ready(None, "fetch") is not first
        assert "finds none of its brokers" in str(scenario.events[1][2])


async def test_driver_that_finds_its_brokers_is_kept():
    scenario = Scenario()
    async with supervised(scenario) as supervisor:
        first = await supervisor.ready(None, "fetch")
        await asyncio.sleep(300)
        assert supervisor.driver is first
        assert first._client.updates > 0


async def test_driver_is_kept_during_an_outage():
    scenario = Scenario()
    async with supervised(scenario) as supervisor:
        first = await supervisor.ready(None, "fetch")
        first._client.finds = False
        scenario.failure = ProbeFailed(Cause.REFUSED, "connection refused", definite=True)
        await asyncio.sleep(300)
        assert supervisor.driver is first
        first._client.finds = True
        scenario.failure = None
        await asyncio.sleep(10)
        assert supervisor.driver is first
        assert len(scenario.built) == 1


async def test_closing_raises_in_waiting_calls_and_is_idempotent():
    scenario = Scenario()
    scenario.failure = ProbeFailed(Cause.REFUSED, "connection refused", definite=True)
    async with supervised(scenario) as supervisor:
        waiting = asyncio.create_task(supervisor.ready(None, "send"))
        await asyncio.sleep(1)
        await asyncio.gather(supervisor.aclose(1.0), supervisor.aclose(1.0))
        with pytest.raises(KafkaClosed) as caught:
            await waiting
        assert isinstance(caught.value, kafka_errors.ProducerClosed)
        with pytest.raises(KafkaClosed):
            await supervisor.ready(None, "send")


async def test_closing_during_a_start_leaves_nothing():
    scenario = Scenario()
    scenario.start_failures = [60.0]
    async with supervised(scenario, start_timeout=100.0) as supervisor:
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        await supervisor.aclose(5.0)
        assert asyncio.get_running_loop().time() - began < 1
        assert scenario.built[0]._closed
        assert scenario.events == []


async def test_cancelled_wait_leaves_nothing():
    scenario = Scenario()
    scenario.failure = ProbeFailed(Cause.REFUSED, "connection refused", definite=True)
    async with supervised(scenario) as supervisor:
        waiting = asyncio.create_task(supervisor.ready(None, "send"))
        await asyncio.sleep(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert supervisor._waiters == []


async def test_hundred_replacements_are_a_few_log_records_and_no_storm(caplog):
    scenario = Scenario()
    caplog.set_level(logging.INFO)
    async with supervised(scenario) as supervisor:
        loop = asyncio.get_running_loop()
        for _ in range(100):
            driver = await supervisor.ready(None, "fetch")
            supervisor.driver_failed(driver, kafka_errors.UnknownProducerId())
            await asyncio.sleep(0)
        assert loop.time() > 30
    ours = [record for record in caplog.records if record.name == "resilient_io.kafka"]
    assert len(ours) <= 20


async def test_driver_makes_no_connection_during_an_outage():
    scenario = Scenario()
    async with supervised(scenario) as supervisor:
        driver = await supervisor.ready(None, "fetch")
        open_connection = SimpleNamespace(connected=lambda: True, _requests=[])
        driver._client._conns[(1, 0)] = open_connection
        scenario.failure = ProbeFailed(Cause.REFUSED, "connection refused", definite=True)
        await asyncio.sleep(5)
        assert supervisor._health.state is State.DOWN
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await driver._client._get_conn(2) is None
        assert loop.time() - began >= 0.049  # so that an immediate retry does not block the loop
        assert await driver._client._get_conn(1) is open_connection
        scenario.failure = None
        await asyncio.sleep(5)
        assert supervisor._health.state is State.UP
        with pytest.raises(AttributeError):  # the original again, which this fake does not have
            _ = driver._client._get_conn
        driver._client._conns.clear()


async def test_closed_shared_health_ends_the_supervisor_with_a_clear_error():
    scenario = Scenario()
    scenario.failure = ProbeFailed(Cause.REFUSED, "connection refused", definite=True)
    async with supervised(scenario) as supervisor:
        waiting = asyncio.create_task(supervisor.ready(None, "send"))
        await asyncio.sleep(1)
        await supervisor._health.aclose()
        with pytest.raises(KafkaClosed, match="its health was closed"):
            await waiting


async def test_waiting_and_closing_can_be_cancelled_at_any_point():
    scenario = Scenario()
    scenario.stop_takes = 0.5

    async with supervised(scenario) as supervisor:
        report = await cancel_everywhere(lambda: supervisor.ready(None, "send"))
        assert report.complete
        await supervisor.ready(None, "send")
        closing = await cancel_everywhere(lambda: supervisor.aclose(2.0), max_points=1)
        assert closing.swallowed == closing.late == []


async def test_metadata_of_missing_topics_is_requested_less_and_less_often():
    scenario = Scenario()
    async with supervised(scenario) as supervisor:
        driver = await supervisor.ready(None, "fetch")
        driver._client._conns[(1, 0)] = SimpleNamespace(connected=lambda: True, _requests=[])
        await asyncio.sleep(60)
        assert driver._client.updates == 0
        driver._client._topics.add("later")
        await asyncio.sleep(3)
        assert driver._client.updates >= 2
        await asyncio.sleep(600)
        assert 50 < driver._client.updates < 80
        driver._client.cluster.partitions_for_topic = lambda _topic: {0}
        seen = driver._client.updates
        await asyncio.sleep(60)
        assert driver._client.updates == seen
        driver._client._conns.clear()


SECRET = "canary-passw0rd"


@pytest.mark.parametrize("where", ["start", "build", "use"])
async def test_error_that_quotes_the_password_is_cleaned_wherever_it_is_seen(where, caplog):
    caplog.set_level(logging.DEBUG)
    options = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_plain_username": "me",
        "sasl_plain_password": SECRET,
    }
    target = KafkaTarget("127.0.0.1:1", options)
    scenario = Scenario()
    refused = kafka_errors.SaslAuthenticationFailed(f"no user me with password {SECRET}")
    refused.__cause__ = ValueError(SECRET)

    def build():
        if where == "build":
            raise refused
        return FakeDriver(scenario)

    if where == "start":
        scenario.start_failures = [refused] * 1000
    recorder = FlightRecorder()
    async with supervised(scenario, build=build, target=target) as supervisor:
        supervisor._health.add_recorder(recorder)
        with target.driver_log.filtering():
            logging.getLogger("aiokafka").error("login of me with %s failed", SECRET)
        if where == "use":
            driver = await supervisor.ready(None, "send")
            supervisor.driver_failed(driver, refused, replace=False)
            await asyncio.sleep(0.1)
        with pytest.raises(kafka_errors.SaslAuthenticationFailed) as caught:
            await supervisor.ready(None, "send")
        seen = "".join(traceback.format_exception(caught.value))
        seen += "".join(repr(event) for event in scenario.events)
        seen += repr(recorder.events()) + repr(supervisor._health.snapshot()) + caplog.text
        assert "SaslAuthenticationFailed" in seen
        assert SECRET not in seen
        assert target.driver_log.last_message == "login of me with … failed"
