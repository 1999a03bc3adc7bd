"""What comes after what, and who gets how long: no signal here, only `stop()`."""

import asyncio
import contextlib
import json
import logging
import signal

import pytest

from resilient_io import Closed, ConfigurationError, DeadlineExceeded, deadline
from resilient_io.lifecycle import Lifecycle
from resilient_io.lifecycle._body import Body


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


async def test_a_stop_drains_at_once_waits_for_the_notice_then_ends_sources_body_parts(
    monitor, make, diary
):
    source, redis = make.source("orders", closes=2.0), make.client("redis", closes=1.0)
    async with lifecycle_of(monitor, redis, source, notice=5.0) as lifecycle:
        running = asyncio.create_task(source.run(), name="run of the test")
        await asyncio.sleep(1.0)
        lifecycle.stop("a test")
        assert monitor.draining
        assert not lifecycle.stopping.is_set()
        await running
        assert lifecycle.stopping.is_set()
        await asyncio.sleep(0.5)  # what a body does last still has its redis
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
    assert step(lifecycle, "notice").seconds == pytest.approx(5.0)
    assert lifecycle.report.clean


async def test_sources_are_closed_at_the_same_time(monitor, make):
    sources = [make.source("orders", closes=3.0), make.source("refunds", closes=4.0)]
    async with lifecycle_of(monitor, *sources):
        pass
    assert now() == pytest.approx(4.0)


async def test_a_block_that_ends_by_itself_does_not_wait_for_the_endpoints(monitor, make):
    async with lifecycle_of(monitor, make.part("redis")) as lifecycle:
        await asyncio.sleep(1.0)
    assert now() == pytest.approx(1.0)
    assert lifecycle.report.reason == "the block ended"


async def test_an_error_of_the_body_closes_everything_and_goes_on(monitor, make, what):
    with pytest.raises(LookupError, match="of the body"):
        async with lifecycle_of(monitor, make.part("redis")) as lifecycle:
            raise LookupError("of the body")
    assert what()[-1] == "redis closed"
    assert lifecycle.report.reason == "the block raised LookupError"


async def test_a_body_that_ends_during_the_notice_ends_the_wait(monitor, make):
    async with lifecycle_of(monitor, make.part("redis"), notice=5.0) as lifecycle:
        lifecycle.stop()
        await asyncio.sleep(1.0)
    assert now() == pytest.approx(1.0)


async def test_a_stop_after_the_end_or_before_the_start_changes_nothing(monitor, make):
    lifecycle = lifecycle_of(monitor, make.part("redis"))
    lifecycle.stop()
    async with lifecycle:
        assert lifecycle.phase == "running"
    lifecycle.stop()
    assert lifecycle.phase == "stopped"


async def test_a_lifecycle_is_used_once(monitor, make):
    lifecycle = lifecycle_of(monitor, make.part("redis"))
    async with lifecycle:
        pass
    with pytest.raises(RuntimeError, match="used once"):
        async with lifecycle:
            pass


# --- bodies


async def test_a_body_that_does_not_end_is_cancelled_and_the_block_ends_as_if_it_had(
    monitor, make, what
):
    async with lifecycle_of(monitor, make.part("redis"), notice=0.0, body_timeout=2.0) as lifecycle:
        lifecycle.stop()
        await asyncio.Event().wait()
    assert now() == pytest.approx(2.0)
    assert what()[-1] == "redis closed"
    assert step(lifecycle, "body").outcome == "late"
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0.1)  # nothing of it hits later


async def test_a_body_that_swallows_cancels_is_closed_under_within_the_grace(monitor, make):
    async with lifecycle_of(
        monitor, make.part("redis"), notice=0.0, grace=10.0, body_timeout=2.0
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


async def test_a_body_may_turn_our_cancel_into_an_error_of_its_own(monitor, make):
    with pytest.raises(LookupError, match="instead"):
        async with lifecycle_of(monitor, make.part("redis"), notice=0.0, body_timeout=0.0) as it:
            it.stop()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise LookupError("instead") from None
    assert asyncio.current_task().cancelling() == 0


async def test_a_cancel_from_elsewhere_passes_also_when_ours_came_too(monitor, make):
    entered = asyncio.Event()

    async def serve():
        async with lifecycle_of(
            monitor, make.part("redis"), notice=0.0, body_timeout=1.0
        ) as lifecycle:
            lifecycle.stop()
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asyncio.current_task().cancel()  # somebody else's, in the same moment
                raise

    task = asyncio.create_task(serve(), name="serving")
    await entered.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancel_in_the_same_moment_as_ours_passes(monitor, make, monkeypatch):
    def cut(body):
        original(body)
        body._task.cancel()  # somebody else's, before the body hears of ours

    original = Body.cut
    monkeypatch.setattr(Body, "cut", cut)

    async def serve():
        async with lifecycle_of(monitor, make.part("redis"), notice=0.0, body_timeout=1.0) as it:
            it.stop()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve(), name="serving")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 1


async def test_a_cancelled_body_has_everything_closed_before_it_leaves(monitor, make, what):
    async def serve():
        async with lifecycle_of(monitor, make.client("redis", closes=1.0)):
            await asyncio.Event().wait()

    task = asyncio.create_task(serve(), name="serving")
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert what()[-1] == "redis closed"


async def test_a_cut_in_the_tick_in_which_the_body_leaves_hits_nobody_else(monitor, make):
    # The body's sleep ends in the same tick as its patience: the cancel finds it on its way out.
    for pause in (0.999, 1.0, 1.001):
        async with lifecycle_of(
            type(monitor)(*monitor.critical),
            make.part("redis", closes=0.1),
            notice=0.0,
            body_timeout=1.0,
        ) as lifecycle:
            lifecycle.stop()
            await asyncio.sleep(pause)
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0.1)
        assert lifecycle.report is not None


# --- time


async def test_each_part_gets_what_is_not_kept_for_those_after_it(monitor, make):
    parts = [make.client("a", closes=99.0), make.client("b", closes=99.0), make.client("c")]
    async with lifecycle_of(monitor, *parts, grace=20.0, notice=0.0) as lifecycle:
        pass
    # 20 s less one each for b, c and the monitor, less an eighth that force may take
    assert parts[0].timeout == pytest.approx(17.0 * 7 / 8)
    # What is left of them, less a quarter for c and the monitor, less an eighth
    assert parts[1].timeout == pytest.approx((20.0 - 17.0 * 7 / 8) * 3 / 4 * 7 / 8)
    assert parts[2].timeout > 1.0
    assert lifecycle.report.seconds <= 20.0
    assert all(found.outcome == "done" for found in lifecycle.report.steps)


async def test_a_part_is_not_given_more_time_than_it_takes_by_itself(monitor, make):
    class Server(type(make.client("server"))):
        async def aclose(self, timeout=1.0):
            self.timeout = timeout

    server = Server([], "server")
    async with lifecycle_of(monitor, servers=[server]):
        pass
    assert server.timeout == 1.0


async def test_a_part_that_does_not_close_is_cut_short_and_the_others_are_closed(
    monitor, make, what
):
    parts = [make.part("db", closes=99.0), make.part("redis")]
    async with lifecycle_of(monitor, *parts, grace=10.0, notice=0.0) as lifecycle:
        pass
    assert what()[-1] == "redis closed"
    assert lifecycle.report.seconds <= 10.0
    assert lifecycle.report.left == ("Part: its closing was cut short",)
    assert step(lifecycle, "Part").outcome == "late"
    assert step(lifecycle, "Part #2").outcome == "done"


async def test_a_part_that_swallows_cancels_is_left_behind_within_the_grace(monitor, make, what):
    stubborn = make.stubborn("db")
    async with lifecycle_of(
        monitor, stubborn, make.part("redis"), grace=10.0, notice=0.0
    ) as lifecycle:
        pass
    assert what()[-1] == "redis closed"
    assert lifecycle.report.seconds <= 10.0
    assert lifecycle.report.left == ("Stubborn: it does not end",)
    await asyncio.sleep(100)  # it ends some day: no task is left for the next test


async def test_a_part_that_fails_to_close_is_logged_and_the_others_are_closed(
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


async def test_a_deadline_around_the_block_does_not_reach_the_closing(monitor, make):
    redis = make.client("redis", closes=9.0)
    with deadline(1.0):
        async with lifecycle_of(monitor, redis, grace=20.0):
            await asyncio.sleep(2.0)
    assert redis.timeout > 10.0


# --- start


async def test_a_start_that_fails_closes_what_was_started_and_says_where(monitor, make, what):
    parts = [make.part("orders"), make.part("producer", fails="start"), make.part("redis")]
    with pytest.raises(ConnectionRefusedError, match="nobody listens") as caught:
        async with lifecycle_of(monitor, *parts):
            pytest.fail("it did not start")
    assert what() == ["redis starts", "producer starts", "redis closes", "redis closed"]
    assert caught.value.__notes__ == ["while the lifecycle started Part #2"]


async def test_a_start_that_hangs_ends_after_its_time(monitor, make, what):
    parts = [make.part("db", starts=99.0), make.part("redis")]
    lifecycle = lifecycle_of(monitor, *parts, start_timeout=3.0)
    with pytest.raises(DeadlineExceeded, match="did not start within 3 s"):
        async with lifecycle:
            pytest.fail("it did not start")
    assert what()[-1] == "redis closed"
    assert now() < 4.0
    assert lifecycle.phase == "stopped"


async def test_a_stop_during_the_start_ends_it_and_says_so(monitor, make, what):
    lifecycle = lifecycle_of(monitor, make.part("db", starts=9.0), make.part("redis"))
    asyncio.get_running_loop().call_later(2.0, lifecycle.stop)
    with pytest.raises(Closed, match="before it had started"):
        async with lifecycle:
            pytest.fail("it did not start")
    assert now() == pytest.approx(2.0)
    assert what()[-1] == "redis closed"
    assert lifecycle.stopping.is_set()


async def test_a_lifespan_whose_start_is_stopped_fails_so_that_the_server_does_not_serve(
    monitor, make
):
    lifecycle = lifecycle_of(monitor, make.part("db", starts=9.0))
    asyncio.get_running_loop().call_later(2.0, lifecycle.stop)
    with pytest.raises(Closed, match="stopped before it had started"):
        async with lifecycle.lifespan(None):
            pytest.fail("it did not start")
    assert lifecycle.phase == "stopped"


async def test_a_part_that_is_entered_after_its_time_is_closed(monitor, make, diary, what):
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


async def test_a_worker_runs_beside_the_body_and_ends_with_its_source(monitor, make, diary):
    source = make.source("orders", closes=1.0)
    lifecycle = lifecycle_of(monitor, source, notice=2.0)

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


async def test_a_worker_that_fails_ends_the_service_and_raises_from_the_block(
    monitor, make, caplog
):
    lifecycle = lifecycle_of(monitor, make.part("redis"), notice=2.0)

    @lifecycle.worker
    async def fails():
        await asyncio.sleep(1.0)
        raise LookupError("of the worker")

    with pytest.raises(LookupError, match="of the worker"):
        async with lifecycle:
            await asyncio.Event().wait()
    assert now() == pytest.approx(3.0)  # the notice, and no patience with the body
    assert lifecycle.report.reason == "the worker fails failed (LookupError)"
    assert "the worker fails failed" in caplog.text


async def test_a_worker_that_does_not_end_is_cancelled(monitor, make):
    lifecycle = lifecycle_of(monitor, make.part("redis"), body_timeout=2.0)

    @lifecycle.worker
    async def forever():
        await asyncio.Event().wait()

    async with lifecycle:
        pass
    assert now() == pytest.approx(2.0)
    assert step(lifecycle, "workers").outcome == "late"


async def test_a_part_that_ends_by_itself_ends_the_service(monitor, make, what, caplog):
    group = asyncio.TaskGroup()

    async def fails():
        await asyncio.sleep(1.0)
        raise LookupError("of a task")

    async with lifecycle_of(monitor, group, make.part("redis"), notice=0.0) as lifecycle:
        group.create_task(fails(), name="a task of the group")
        await lifecycle.stopping.wait()
    assert lifecycle.report.reason == "TaskGroup ended by itself"
    assert "of a task" in caplog.text
    assert what()[-1] == "redis closed"


# --- words


async def test_the_end_is_one_record_with_everything_in_it(monitor, make, caplog):
    caplog.set_level(logging.INFO, "resilient_io.lifecycle")
    async with lifecycle_of(monitor, make.client("redis", closes=1.0), notice=2.0) as lifecycle:
        lifecycle.stop("a test")
        await lifecycle.stopping.wait()
    started, told, ended = caplog.records
    assert started.getMessage() == "started in 0.000 s"
    assert told.getMessage() == (
        "a test: not ready from now on, 2 s for the endpoints to notice, closed within 25 s"
    )
    assert ended.levelno == logging.INFO
    assert ended.getMessage() == (
        "stopped in 3.000 s of 25 s (a test): notice 2.000 s, Client 1.000 s, HealthMonitor 0.000 s"
    )
    assert ended.steps[1] == {"name": "Client", "seconds": 1.0, "outcome": "done", "left": ""}
    assert json.loads(json.dumps(lifecycle.report.as_dict()))["clean"] is True


async def test_the_report_tells_what_was_not_delivered(monitor, make, caplog):
    class Undelivered:
        failures = ("a record", "another")

    class Producer(type(make.client("producer"))):
        async def aclose(self, timeout=None):
            return Undelivered()

    async with lifecycle_of(monitor, Producer([], "producer")) as lifecycle:
        pass
    assert lifecycle.report.left == ("Producer: 2 records not delivered",)
    assert caplog.records[-1].levelno == logging.WARNING


async def test_a_part_is_named_after_its_dependency(monitor, make):
    redis = make.client("redis")
    redis.health = monitor.critical[0]
    async with lifecycle_of(monitor, redis) as lifecycle:
        assert repr(lifecycle) == "<Lifecycle running: Client of redis, HealthMonitor>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grace": 0}, "grace=0 is out of range"),
        ({"notice": -1}, "notice=-1 is out of range"),
        ({"grace": 6.0, "notice": 4.0}, "notice=4 leaves too little of grace=6"),
        ({"start_timeout": "soon"}, "start_timeout='soon' is not a number"),
        ({"body_timeout": float("nan")}, "body_timeout=nan is out of range"),
    ],
)
def test_times_that_cannot_work_are_refused(monitor, options, message):
    with pytest.raises(ConfigurationError, match=message):
        Lifecycle(monitor, **options)


def test_what_is_no_part_is_refused(monitor, make):
    with pytest.raises(ConfigurationError, match="no async context manager"):
        Lifecycle(monitor, object())
    redis = make.part("redis")
    with pytest.raises(ConfigurationError, match="given twice"):
        Lifecycle(monitor, redis, servers=[redis])
    with pytest.raises(ConfigurationError, match="is no HealthMonitor"):
        Lifecycle(redis)
    with pytest.raises(ConfigurationError, match="is no async function"):
        Lifecycle(monitor).worker(print)
    for parts in ([redis], type(redis)):
        with pytest.raises(ConfigurationError, match="write each by itself"):
            Lifecycle(monitor, parts)
    with pytest.raises(ConfigurationError, match=r"write servers=\[serve\(monitor, port=8080\)\]"):
        Lifecycle(monitor, servers=redis)


@pytest.mark.parametrize("signals", [signal.SIGTERM, "TERM", ["SIGTERM"], [signal.SIGKILL], [999]])
def test_signals_that_nobody_can_hear_are_refused(monitor, signals):
    with pytest.raises(ConfigurationError, match=r"write signals=\[signal.SIGTERM\]"):
        Lifecycle(monitor, signals=signals)


async def test_a_worker_that_comes_too_late_is_refused(monitor):
    async def handle():
        pass

    async with lifecycle_of(monitor) as lifecycle:
        with pytest.raises(ConfigurationError, match="too late"):
            lifecycle.worker(handle)


async def test_a_worker_that_ends_by_a_cancellation_of_its_own_has_failed(monitor):
    lifecycle = lifecycle_of(monitor, notice=0.0)

    @lifecycle.worker
    async def consume():
        await asyncio.sleep(1.0)
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="the worker consume ended by a cancellation of its own"):
        async with lifecycle:
            await lifecycle.stopping.wait()
    assert lifecycle.report.reason == "the worker consume failed (RuntimeError)"


@pytest.mark.parametrize("count", [1, 3, 12])
async def test_parts_that_never_end_stay_within_the_grace(monitor, count):
    class Hanging:
        async def aclose(self):
            while not over.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(over)

    over = asyncio.get_running_loop().create_future()
    lifecycle = lifecycle_of(monitor, *(Hanging() for _ in range(count)), notice=0.0, grace=5.0)
    async with lifecycle:
        began = now()
    assert now() - began < 5.01
    assert len(lifecycle.report.left) >= count
    if count < 12:
        assert step(lifecycle, "HealthMonitor").outcome == "done"
    over.set_result(None)
    await asyncio.sleep(0.1)


async def test_a_part_that_cannot_tell_its_figures_is_closed_like_any_other(monitor, make, what):
    class Odd:
        def run_stats(self):
            raise KeyError("of its own")

        async def aclose(self):
            await asyncio.sleep(1.0)

    lifecycle = lifecycle_of(monitor, Odd(), make.part("redis"), notice=0.0)
    async with lifecycle:
        pass
    assert what()[-1] == "redis closed"
    assert lifecycle.report.clean
