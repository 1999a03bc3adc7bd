"""The order and the time limits of a shutdown, started by `stop()`."""

import asyncio
import contextlib
import json
import logging
import signal

import pytest

from resilient_io import Closed, ConfigurationError, DeadlineExceeded, deadline
from resilient_io.lifecycle import Lifecycle
from resilient_io.lifecycle.parts import Body


def lifecycle_of(monitor, *parts, **options):
    return Lifecycle(monitor, *parts, **{"signals": ()} | options)


def now():
    return asyncio.get_running_loop().time()


def step(lifecycle, name):
    (found,) = (step for step in lifecycle.report.steps if step.name == name)
    return found


# --- order


async def test_parts_start_from_the_last_to_the_first_and_close_in_the_order_given(
    monitor, make, what
):
    parts = [make.part("orders"), make.part("producer"), make.part("redis")]
    server = make.part("server")
    async with lifecycle_of(monitor, *parts, servers=[server]) as lifecycle:
        assert lifecycle.phase == "running"
        assert what() == ["server starts", "redis starts", "producer starts", "orders starts"]
    assert what()[4:] == [
        "orders closes", "orders closed",
        "producer closes", "producer closed",
        "redis closes", "redis closed",
        "server closes", "server closed",
    ]  # fmt: skip
    assert lifecycle.phase == "stopped"
    assert lifecycle.report.clean
    assert monitor.draining


async def test_stop_drains_waits_for_the_drain_delay_then_ends_sources_body_and_parts(
    monitor, make, diary
):
    source, redis = make.source("orders", closes=2.0), make.client("redis", closes=1.0)
    async with lifecycle_of(monitor, redis, source, drain_delay=5.0) as lifecycle:
        running = asyncio.create_task(source.run(), name="run of the test")
        await asyncio.sleep(1.0)
        lifecycle.stop("a test")
        assert monitor.draining
        assert not lifecycle.stopping.is_set()
        await running
        assert lifecycle.stopping.is_set()
        await asyncio.sleep(0.5)  # the end of the body can still use redis
    assert diary[2:] == [
        (0.0, "orders runs"),
        (6.0, "orders closes"),
        (8.0, "orders closed"),
        (8.0, "orders ran"),
        (8.5, "redis closes"),
        (9.5, "redis closed"),
    ]
    assert lifecycle.report.reason == "a test"
    assert lifecycle.report.seconds == pytest.approx(8.5)
    assert step(lifecycle, "drain delay").seconds == pytest.approx(5.0)
    assert lifecycle.report.clean


async def test_sources_are_closed_at_the_same_time(monitor, make):
    sources = [make.source("orders", closes=3.0), make.source("refunds", closes=4.0)]
    async with lifecycle_of(monitor, *sources):
        pass
    assert now() == pytest.approx(4.0)


async def test_block_that_ends_without_a_signal_has_no_drain_delay(monitor, make):
    async with lifecycle_of(monitor, make.part("redis")) as lifecycle:
        await asyncio.sleep(1.0)
    assert now() == pytest.approx(1.0)
    assert lifecycle.report.reason == "the block ended"


async def test_error_of_the_body_closes_everything_and_is_raised(monitor, make, what):
    with pytest.raises(LookupError, match="of the body"):
        async with lifecycle_of(monitor, make.part("redis")) as lifecycle:
            raise LookupError("of the body")
    assert what()[-1] == "redis closed"
    assert lifecycle.report.reason == "the block raised LookupError"


async def test_body_that_ends_during_the_drain_delay_ends_the_wait(monitor, make):
    async with lifecycle_of(monitor, make.part("redis"), drain_delay=5.0) as lifecycle:
        lifecycle.stop()
        await asyncio.sleep(1.0)
    assert now() == pytest.approx(1.0)


async def test_stop_before_the_start_or_after_the_end_has_no_effect(monitor, make):
    lifecycle = lifecycle_of(monitor, make.part("redis"))
    lifecycle.stop()
    async with lifecycle:
        assert lifecycle.phase == "running"
    lifecycle.stop()
    assert lifecycle.phase == "stopped"


async def test_lifecycle_in_use_cannot_be_started(monitor, make):
    lifecycle = lifecycle_of(monitor, make.part("redis"))
    async with lifecycle:
        with pytest.raises(RuntimeError, match="is running: it can be started again after it has"):
            async with lifecycle:
                pass


async def test_lifecycle_can_be_started_again_after_it_has_stopped(monitor, make, what):
    lifecycle = lifecycle_of(monitor, make.source("orders"), make.part("redis"), drain_delay=2.0)
    runs = []

    @lifecycle.worker
    async def work():
        runs.append(now())
        await lifecycle.stopping.wait()

    for number in range(2):
        what.clear()
        async with lifecycle:
            assert lifecycle.phase == "running"
            assert not monitor.draining
            assert lifecycle.report is None
            lifecycle.stop(f"stop {number}")
            assert monitor.draining
            await lifecycle.stopping.wait()
        assert lifecycle.report.reason == f"stop {number}"
        assert lifecycle.report.clean
        assert what() == [
            "redis starts", "orders starts",
            "orders closes", "orders closed",
            "redis closes", "redis closed",
        ]  # fmt: skip
    assert runs == pytest.approx([0.0, 2.0])
    assert monitor.draining


async def test_events_taken_before_a_lifespan_are_set_by_it(monitor, make):
    lifecycle = lifecycle_of(monitor, make.part("redis"), drain_delay=0.0)
    stopping = lifecycle.stopping
    async with lifecycle.lifespan():
        lifecycle.stop()
        await stopping.wait()
    assert lifecycle.phase == "stopped"


# --- bodies


async def test_body_that_does_not_end_is_cancelled_and_the_block_ends_without_an_error(
    monitor, make, what
):
    async with lifecycle_of(
        monitor, make.part("redis"), drain_delay=0.0, body_timeout=2.0
    ) as lifecycle:
        lifecycle.stop()
        await asyncio.Event().wait()
    assert now() == pytest.approx(2.0)
    assert what()[-1] == "redis closed"
    assert step(lifecycle, "body").outcome == "late"
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0.1)  # no later cancellation


async def test_parts_are_closed_within_the_grace_period_under_a_body_that_swallows_cancellations(
    monitor, make
):
    async with lifecycle_of(
        monitor, make.part("redis"), drain_delay=0.0, grace_period=10.0, body_timeout=2.0
    ) as lifecycle:
        lifecycle.stop()
        while lifecycle.report is None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.7)
    assert lifecycle.report.seconds < 10.0
    assert "body: it swallows cancellations" in lifecycle.report.left
    assert not lifecycle.report.clean
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0.1)


async def test_body_may_raise_its_own_error_when_it_is_cancelled(monitor, make):
    with pytest.raises(LookupError, match="instead"):
        async with lifecycle_of(
            monitor, make.part("redis"), drain_delay=0.0, body_timeout=0.0
        ) as lifecycle:
            lifecycle.stop()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise LookupError("instead") from None
    assert asyncio.current_task().cancelling() == 0


async def test_cancellation_from_elsewhere_is_raised_even_after_one_by_the_lifecycle(monitor, make):
    entered = asyncio.Event()

    async def serve():
        async with lifecycle_of(
            monitor, make.part("redis"), drain_delay=0.0, body_timeout=1.0
        ) as lifecycle:
            lifecycle.stop()
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asyncio.current_task().cancel()  # another one, at the same time
                raise

    task = asyncio.create_task(serve(), name="serving")
    await entered.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_at_the_same_time_as_one_by_the_lifecycle_is_raised(
    monitor, make, monkeypatch
):
    def cancel_twice(body):
        original(body)
        body._task.cancel()  # another one, before the body receives the first

    original = Body.cancel
    monkeypatch.setattr(Body, "cancel", cancel_twice)

    async def serve():
        async with lifecycle_of(
            monitor, make.part("redis"), drain_delay=0.0, body_timeout=1.0
        ) as lifecycle:
            lifecycle.stop()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve(), name="serving")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 1


async def test_cancelled_body_closes_everything_before_it_leaves(monitor, make, what):
    async def serve():
        async with lifecycle_of(monitor, make.client("redis", closes=1.0)):
            await asyncio.Event().wait()

    task = asyncio.create_task(serve(), name="serving")
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert what()[-1] == "redis closed"


async def test_cancellation_in_the_tick_in_which_the_body_leaves_has_no_later_effect(monitor, make):
    # The body's sleep ends in the same tick as its timeout, so that it is cancelled as it leaves.
    for pause in (0.999, 1.0, 1.001):
        async with lifecycle_of(
            type(monitor)(*monitor.critical),
            make.part("redis", closes=0.1),
            drain_delay=0.0,
            body_timeout=1.0,
        ) as lifecycle:
            lifecycle.stop()
            await asyncio.sleep(pause)
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0.1)
        assert lifecycle.report is not None


# --- time


async def test_each_part_gets_the_time_that_is_not_reserved_for_later_ones(monitor, make):
    parts = [make.client("a", closes=99.0), make.client("b", closes=99.0), make.client("c")]
    async with lifecycle_of(monitor, *parts, grace_period=20.0, drain_delay=0.0) as lifecycle:
        pass
    # 20 s minus half a second each for b, c and the monitor, minus an eighth for a forced close
    assert parts[0].timeout == pytest.approx(18.5 * 7 / 8)
    # The rest, minus 15 % for c and the monitor, minus an eighth
    assert parts[1].timeout == pytest.approx((20.0 - 18.5 * 7 / 8) * 0.85 * 7 / 8)
    assert parts[2].timeout > 0.4
    assert lifecycle.report.seconds <= 20.0
    assert all(found.outcome == "done" for found in lifecycle.report.steps)


async def test_part_gets_no_longer_timeout_than_its_default(monitor, make):
    class Server(type(make.client("server"))):
        async def aclose(self, timeout=1.0):
            self.timeout = timeout

    server = Server([], "server")
    async with lifecycle_of(monitor, servers=[server]):
        pass
    assert server.timeout == 1.0


async def test_part_that_does_not_close_is_cancelled_and_the_others_are_closed(monitor, make, what):
    parts = [make.part("db", closes=99.0), make.part("redis")]
    async with lifecycle_of(monitor, *parts, grace_period=10.0, drain_delay=0.0) as lifecycle:
        pass
    assert what()[-1] == "redis closed"
    assert lifecycle.report.seconds <= 10.0
    assert lifecycle.report.left == ("Part: its closing was cancelled",)
    assert step(lifecycle, "Part").outcome == "late"
    assert step(lifecycle, "Part #2").outcome == "done"


async def test_part_that_swallows_cancellations_is_abandoned_within_the_grace_period(
    monitor, make, what
):
    stubborn = make.stubborn("db")
    async with lifecycle_of(
        monitor, stubborn, make.part("redis"), grace_period=10.0, drain_delay=0.0
    ) as lifecycle:
        pass
    assert what()[-1] == "redis closed"
    assert lifecycle.report.seconds <= 10.0
    assert lifecycle.report.left == ("Stubborn: it does not end",)
    await asyncio.sleep(100)  # it ends, so that no task is left for the next test


async def test_part_that_fails_to_close_is_logged_and_the_others_are_closed(
    monitor, make, what, caplog
):
    parts = [make.part("db", fails="close"), make.part("redis")]
    async with lifecycle_of(monitor, *parts) as lifecycle:
        pass
    assert what()[-1] == "redis closed"
    assert step(lifecycle, "Part").outcome == "failed"
    assert lifecycle.report.left == ("Part: ConnectionResetError",)
    (record,) = (each for each in caplog.records if each.exc_info)
    assert record.getMessage() == "closing Part failed"


async def test_deadline_around_the_block_does_not_apply_to_the_shutdown(monitor, make):
    redis = make.client("redis", closes=9.0)
    with deadline(1.0):
        async with lifecycle_of(monitor, redis, grace_period=20.0):
            await asyncio.sleep(2.0)
    assert redis.timeout > 10.0


# --- start


async def test_failed_start_closes_the_started_parts_and_names_the_failed_one(monitor, make, what):
    parts = [make.part("orders"), make.part("producer", fails="start"), make.part("redis")]
    with pytest.raises(ConnectionRefusedError, match="connection refused") as caught:
        async with lifecycle_of(monitor, *parts):
            pytest.fail("it did not start")
    assert what() == ["redis starts", "producer starts", "redis closes", "redis closed"]
    assert caught.value.__notes__ == ["while the lifecycle started Part #2"]


async def test_start_that_hangs_ends_after_its_timeout(monitor, make, what):
    parts = [make.part("db", starts=99.0), make.part("redis")]
    lifecycle = lifecycle_of(monitor, *parts, start_timeout=3.0)
    with pytest.raises(DeadlineExceeded, match="did not start within 3 s"):
        async with lifecycle:
            pytest.fail("it did not start")
    assert what()[-1] == "redis closed"
    assert now() < 4.0
    assert lifecycle.phase == "stopped"


async def test_stop_during_the_start_ends_it(monitor, make, what):
    lifecycle = lifecycle_of(monitor, make.part("db", starts=9.0), make.part("redis"))
    asyncio.get_running_loop().call_later(2.0, lifecycle.stop)
    with pytest.raises(Closed, match="before it had started"):
        async with lifecycle:
            pytest.fail("it did not start")
    assert now() == pytest.approx(2.0)
    assert what()[-1] == "redis closed"
    assert lifecycle.stopping.is_set()


async def test_lifespan_stopped_during_its_start_fails_so_that_the_server_does_not_serve(
    monitor, make
):
    lifecycle = lifecycle_of(monitor, make.part("db", starts=9.0))
    asyncio.get_running_loop().call_later(2.0, lifecycle.stop)
    with pytest.raises(Closed, match="stopped before it had started"):
        async with lifecycle.lifespan(None):
            pytest.fail("it did not start")
    assert lifecycle.phase == "stopped"


async def test_part_that_is_entered_after_its_timeout_is_closed(monitor, make, diary, what):
    class Late(type(make.part("late"))):
        async def __aenter__(self):
            try:
                await asyncio.sleep(99.0)
            except asyncio.CancelledError:
                await asyncio.sleep(0.5)
            self.note("started")

    with pytest.raises(DeadlineExceeded):
        async with lifecycle_of(monitor, Late(diary, "late"), start_timeout=1.0):
            pytest.fail("it did not start")
    assert what() == ["late started", "late closes", "late closed"]


# --- workers


async def test_worker_runs_beside_the_body_and_ends_with_its_source(monitor, make, diary):
    source = make.source("orders", closes=1.0)
    lifecycle = lifecycle_of(monitor, source, drain_delay=2.0)

    @lifecycle.worker
    async def handle():
        await source.run()
        await asyncio.sleep(0.5)

    async with lifecycle:
        lifecycle.stop()
        await lifecycle.stopping.wait()
    assert (3.0, "orders ran") in diary
    assert step(lifecycle, "workers").seconds == pytest.approx(0.5)
    assert lifecycle.report.clean


async def test_worker_that_fails_shuts_down_the_service_and_raises_from_the_block(
    monitor, make, caplog
):
    lifecycle = lifecycle_of(monitor, make.part("redis"), drain_delay=2.0)

    @lifecycle.worker
    async def fails():
        await asyncio.sleep(1.0)
        raise LookupError("of the worker")

    with pytest.raises(LookupError, match="of the worker"):
        async with lifecycle:
            await asyncio.Event().wait()
    assert now() == pytest.approx(3.0)  # the drain delay; the body is cancelled immediately
    assert lifecycle.report.reason == "the worker fails failed (LookupError)"
    assert "the worker fails failed" in caplog.text


async def test_worker_that_does_not_end_is_cancelled(monitor, make):
    lifecycle = lifecycle_of(monitor, make.part("redis"), body_timeout=2.0)

    @lifecycle.worker
    async def forever():
        await asyncio.Event().wait()

    async with lifecycle:
        pass
    assert now() == pytest.approx(2.0)
    assert step(lifecycle, "workers").outcome == "late"


async def test_part_that_ends_unexpectedly_shuts_down_the_service(monitor, make, what, caplog):
    group = asyncio.TaskGroup()

    async def fails():
        await asyncio.sleep(1.0)
        raise LookupError("of a task")

    async with lifecycle_of(monitor, group, make.part("redis"), drain_delay=0.0) as lifecycle:
        group.create_task(fails(), name="a task of the group")
        await lifecycle.stopping.wait()
    assert lifecycle.report.reason == "TaskGroup ended unexpectedly"
    assert "of a task" in caplog.text
    assert what()[-1] == "redis closed"


# --- words


async def test_shutdown_is_one_log_record_with_every_step(monitor, make, caplog):
    caplog.set_level(logging.INFO, "resilient_io.lifecycle")
    async with lifecycle_of(
        monitor, make.client("redis", closes=1.0), drain_delay=2.0
    ) as lifecycle:
        lifecycle.stop("a test")
        await lifecycle.stopping.wait()
    started, stopping, ended = caplog.records
    assert started.getMessage() == "started in 0.000 s"
    assert stopping.getMessage() == (
        "shutting down (a test): not ready from now on, drain delay 2 s, grace period 25 s"
    )
    assert ended.levelno == logging.INFO
    assert ended.getMessage() == (
        "stopped in 3.000 s of 25 s (a test): drain delay 2.000 s, Client 1.000 s, "
        "HealthMonitor 0.000 s"
    )
    assert ended.steps[1] == {"name": "Client", "seconds": 1.0, "outcome": "done", "left": ""}
    assert json.loads(json.dumps(lifecycle.report.as_dict()))["clean"] is True


async def test_report_contains_what_was_not_delivered(monitor, make, caplog):
    class Undelivered:
        failures = ("a record", "another")

    class Producer(type(make.client("producer"))):
        async def aclose(self, timeout=None):
            return Undelivered()

    async with lifecycle_of(monitor, Producer([], "producer")) as lifecycle:
        pass
    assert lifecycle.report.left == ("Producer: 2 records not delivered",)
    assert caplog.records[-1].levelno == logging.WARNING


async def test_part_is_named_after_its_dependency(monitor, make):
    redis = make.client("redis")
    redis.health = monitor.critical[0]
    async with lifecycle_of(monitor, redis) as lifecycle:
        assert repr(lifecycle) == "<Lifecycle running: Client of redis, HealthMonitor>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grace_period": 0}, "grace_period=0 is out of range"),
        ({"drain_delay": -1}, "drain_delay=-1 is out of range"),
        ({"grace_period": 6.0, "drain_delay": 4.0}, "drain_delay=4 leaves too little of"),
        ({"start_timeout": "soon"}, "start_timeout='soon' is not a number"),
        ({"body_timeout": float("nan")}, "body_timeout=nan is out of range"),
    ],
)
def test_times_that_cannot_work_are_rejected(monitor, options, message):
    with pytest.raises(ConfigurationError, match=message):
        Lifecycle(monitor, **options)


def test_objects_of_the_wrong_type_are_rejected(monitor, make):
    with pytest.raises(TypeError, match="must be an async context manager"):
        Lifecycle(monitor, object())
    redis = make.part("redis")
    with pytest.raises(ConfigurationError, match="passed twice"):
        Lifecycle(monitor, redis, servers=[redis])
    with pytest.raises(TypeError, match="must be a HealthMonitor, not Part"):
        Lifecycle(redis)
    with pytest.raises(TypeError, match="must be an async function"):
        Lifecycle(monitor).worker(print)
    for parts in ([redis], type(redis)):
        with pytest.raises(TypeError, match="pass each part as an argument"):
            Lifecycle(monitor, parts)
    with pytest.raises(TypeError, match=r"use servers=\[serve\(monitor, port=8080\)\]"):
        Lifecycle(monitor, servers=redis)


@pytest.mark.parametrize(
    ("signals", "error"),
    [
        (signal.SIGTERM, TypeError),
        ("TERM", TypeError),
        (["SIGTERM"], TypeError),
        ([signal.SIGKILL], ConfigurationError),
        ([999], ConfigurationError),
    ],
)
def test_signals_that_cannot_be_handled_are_rejected(monitor, signals, error):
    with pytest.raises(error, match=r"use signals=\[signal.SIGTERM\]"):
        Lifecycle(monitor, signals=signals)


async def test_worker_is_rejected_after_the_start(monitor):
    async def handle():
        pass

    async with lifecycle_of(monitor) as lifecycle:
        with pytest.raises(ConfigurationError, match="has started already"):
            lifecycle.worker(handle)


async def test_worker_that_cancels_itself_has_failed(monitor):
    lifecycle = lifecycle_of(monitor, drain_delay=0.0)

    @lifecycle.worker
    async def consume():
        await asyncio.sleep(1.0)
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="the worker consume cancelled itself"):
        async with lifecycle:
            await lifecycle.stopping.wait()
    assert lifecycle.report.reason == "the worker consume failed (RuntimeError)"


@pytest.mark.parametrize("count", [1, 3, 12])
async def test_parts_that_never_end_stay_within_the_grace_period(monitor, count):
    class Hanging:
        async def aclose(self):
            while not over.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(over)

    over = asyncio.get_running_loop().create_future()
    lifecycle = lifecycle_of(
        monitor, *(Hanging() for _ in range(count)), drain_delay=0.0, grace_period=5.0
    )
    async with lifecycle:
        began = now()
    assert now() - began < 5.01
    assert len(lifecycle.report.left) >= count
    if count < 12:
        assert step(lifecycle, "HealthMonitor").outcome == "done"
    over.set_result(None)
    await asyncio.sleep(0.1)


async def test_part_whose_statistics_raise_is_closed_like_any_other(monitor, make, what):
    class Odd:
        def run_stats(self):
            raise KeyError("a bug")

        async def aclose(self):
            await asyncio.sleep(1.0)

    lifecycle = lifecycle_of(monitor, Odd(), make.part("redis"), drain_delay=0.0)
    async with lifecycle:
        pass
    assert what()[-1] == "redis closed"
    assert lifecycle.report.clean
