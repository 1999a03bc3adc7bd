"""Reading, awaiting and reporting a dependency's availability."""

import asyncio
import json
import logging
import math
import random
import re
import time

import pytest

from resilient_io.deadlines import deadline
from resilient_io.errors import Closed, ConfigurationError, DeadlineExceeded
from resilient_io.health import Cause, Dependency, FlightRecorder, HealthSettings, State
from resilient_io.health.machine import Machine
from resilient_io.health.subscriptions import Broadcast
from resilient_io.testing import VirtualTimeLoop


@pytest.fixture
async def dependency():
    """Return a dependency without a probe: reports alone decide its state."""
    made = Dependency("redis", rng=random.Random(1))
    yield made
    await made.aclose()


async def pong(suspicious):
    return 0.001


async def never(suspicious):
    await asyncio.Event().wait()


def fell(dependency, cause=Cause.REFUSED, detail="connection refused"):
    dependency.failed(cause, detail, definite=True)


async def test_until_up_returns_immediately_if_it_is_available(dependency):
    dependency.succeeded(0.002)
    await dependency.until_up()
    dependency.refused(Cause.READ_ONLY)
    assert dependency.state is State.DEGRADED
    await dependency.until_up(0)
    assert asyncio.get_running_loop().time() == 0.0


async def test_until_up_returns_as_soon_as_it_is_up(dependency):
    asyncio.get_running_loop().call_later(7.0, dependency.succeeded)
    await dependency.until_up()
    assert asyncio.get_running_loop().time() == 7.0


async def test_until_up_raises_after_the_timeout_with_the_state(dependency):
    fell(dependency)
    with pytest.raises(DeadlineExceeded) as late:
        await dependency.until_up(2.5)
    assert str(late.value) == (
        "redis: until_up: still down: connection refused (not sent, 0 attempts, 2.500 s)"
    )


async def test_until_up_keeps_the_deadline_in_force(dependency):
    with deadline(1.0), pytest.raises(DeadlineExceeded):
        await dependency.until_up(60)
    with deadline(60), pytest.raises(DeadlineExceeded):
        await dependency.until_up(1.0)
    assert asyncio.get_running_loop().time() == 2.0


async def test_until_up_returns_if_it_is_up_at_the_last_moment(dependency):
    asyncio.get_running_loop().call_later(5.0, dependency.succeeded)
    await dependency.until_up(5.0)
    assert asyncio.get_running_loop().time() == 5.0


async def test_cancelled_wait_leaves_nothing_behind(dependency):
    task = asyncio.create_task(dependency.until_up())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not dependency._broadcast._waiters
    dependency.succeeded()


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, "5", True])
async def test_invalid_timeout_is_refused(dependency, timeout):
    with pytest.raises(ConfigurationError, match="timeout="):
        await dependency.until_up(timeout)


async def test_closing_ends_the_wait():
    dependency = Dependency("redis")
    dependency.start(never, last_reply=lambda: -math.inf)
    waiting = asyncio.create_task(dependency.until_up())
    await asyncio.sleep(1)
    await dependency.aclose()
    with pytest.raises(Closed, match="redis: until_up: it was closed"):
        await waiting


async def test_watch_starts_with_the_current_state(dependency):
    watch = dependency.watch()
    first = await anext(watch)
    assert (first.state, first.previous) == (State.UNKNOWN, State.UNKNOWN)
    dependency.succeeded()
    fell(dependency)
    assert (await anext(dependency.watch())).state is State.DOWN


async def test_slow_watcher_sees_only_the_latest_state(dependency):
    watch = dependency.watch()
    await anext(watch)
    for _ in range(1000):
        dependency.refused(Cause.READ_ONLY)
        dependency.accepted()
    fell(dependency)
    assert (await anext(watch)).state is State.DOWN
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await anext(watch)


async def test_fast_watcher_sees_every_change(dependency):
    seen = []

    async def look():
        async for change in dependency.watch():
            seen.append(change.state)  # noqa: PERF401 - seen while the watch goes on

    task = asyncio.create_task(look())
    await asyncio.sleep(1)
    dependency.succeeded()
    await asyncio.sleep(1)
    fell(dependency)
    await asyncio.sleep(1)
    assert seen == [State.UNKNOWN, State.UP, State.DOWN]
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not dependency._broadcast._waiters


async def test_closing_ends_every_watch_after_the_last_change():
    dependency = Dependency("redis")
    dependency.start(pong, last_reply=lambda: -math.inf)
    await dependency.until_up()
    seen = []

    async def look():
        async for change in dependency.watch():
            seen.append(change.state)  # noqa: PERF401 - seen while the watch goes on

    tasks = [asyncio.create_task(look()) for _ in range(3)]
    await asyncio.sleep(1.5)
    await dependency.aclose()
    await asyncio.gather(*tasks)
    assert seen == [State.UP] * 3 + [State.UNKNOWN] * 3


async def test_history_contains_the_latest_changes():
    dependency = Dependency("redis", settings=HealthSettings(history=3))
    dependency.succeeded()
    for _ in range(5):
        dependency.part_lost("connection", Cause.RESET)
        dependency.part_back("connection")
    assert [change.state.value for change in dependency.history] == ["up", "degraded", "up"]


async def test_snapshot_is_plain_data(dependency):
    assert dependency.snapshot()["state"] == "unknown"
    dependency.succeeded(0.004)
    dependency.part_lost("connection 1", Cause.CONNECTION_LOST, "reset")
    await asyncio.sleep(2.0)
    assert json.loads(json.dumps(dependency.snapshot())) == {
        "name": "redis",
        "state": "degraded",
        "age": 2.0,
        "cause": "connection lost",
        "detail": "connection 1: reset",
        "latency": 0.004,
        "watched": False,
        "transitions": 2,
        "probes": {"ok": 0, "failed": 0},
        "failures": 0,
        "refusals": 0,
        "parts_lost": ["connection 1"],
        "link": None,
        "topology": None,
        "loop_lag": {"current": 0.0, "worst": 0.0, "stalled": 0.0},
    }


def test_dependency_can_be_created_and_read_without_a_loop():
    dependency = Dependency("redis")
    dependency.on_change(print)
    assert (dependency.state, dependency.available, dependency.since) == (State.UNKNOWN, True, 0.0)
    assert json.dumps(dependency.snapshot())
    assert repr(dependency) == "<Dependency redis: unknown>"
    assert dependency.history == ()


async def test_each_change_is_one_log_record_with_cause_time_and_counts(dependency, caplog):
    caplog.set_level(logging.DEBUG, "resilient_io")
    dependency.part_back("nothing")  # the first report: UNKNOWN since then
    await asyncio.sleep(1)
    dependency.succeeded()
    await asyncio.sleep(3)
    for _ in range(500):
        dependency.failed(Cause.TIMED_OUT, "silent")
        await asyncio.sleep(0.01)
    records = caplog.records
    assert [record.levelname for record in records] == ["INFO", "WARNING"]
    assert records[0].getMessage() == "redis is UP (unknown for 1.00 s)"
    assert records[1].getMessage() == "redis is DOWN: silent (up for 3.01 s; 2 failures reported)"
    assert records[1].name == "resilient_io.health"
    assert (records[1].dependency, records[1].state, records[1].cause) == (
        "redis",
        "down",
        "timed out",
    )
    assert records[1].after == pytest.approx(3.01)


async def test_log_record_contains_refused_writes(dependency, caplog):
    dependency.succeeded()
    dependency.refused(Cause.OUT_OF_MEMORY, "OOM command not allowed")
    assert re.search(
        r"redis is DEGRADED: OOM command not allowed \(up for 0.00 s; 1 write refused\)",
        caplog.text,
    )


@pytest.mark.parametrize("name", ["", None, 7])
def test_dependency_needs_a_name(name):
    with pytest.raises(ConfigurationError, match='for example name="redis"'):
        Dependency(name)


async def test_probe_that_is_not_callable_is_refused(dependency):
    with pytest.raises(TypeError, match=r"probe must be a function, not NoneType: use start\("):
        dependency.start(None, last_reply=lambda: 0.0)
    with pytest.raises(TypeError, match="last_reply must be a function, not int"):
        dependency.start(pong, last_reply=3)
    assert dependency.snapshot()["watched"] is False


def test_dependency_starts_again_in_the_next_loop_when_its_own_was_closed(caplog):
    caplog.set_level(logging.INFO)
    dependency = Dependency("redis")
    seen = []
    dependency.on_change(lambda change: seen.append(change.state))

    async def use(*, close):
        dependency.start(pong, last_reply=lambda: -math.inf)
        assert dependency.state is State.UNKNOWN
        await dependency.until_up(5)
        await asyncio.sleep(0)
        if close:
            await dependency.aclose()

    for close in (False, False, True):
        asyncio.run(use(close=close))
    assert [state.value for state in seen] == ["up"] + ["unknown", "up"] * 2 + ["unknown"]


def test_use_in_a_second_running_loop_is_refused():
    dependency = Dependency("redis")
    loop = asyncio.new_event_loop()

    async def start():
        dependency.start(pong, last_reply=lambda: -math.inf)
        await dependency.until_up(5)

    loop.run_until_complete(start())
    with pytest.raises(RuntimeError, match="create one Dependency per loop"):
        asyncio.run(start())
    assert dependency.state is State.UP
    loop.run_until_complete(dependency.aclose())
    asyncio.run(start())  # the first loop no longer uses it
    loop.close()


def test_closing_after_the_loop_was_closed_does_nothing():
    dependency = Dependency("redis")
    loop = asyncio.new_event_loop()

    async def start():
        return dependency.start(pong, last_reply=lambda: -math.inf)

    attachment = loop.run_until_complete(start())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    async def close():
        await attachment.detach()
        await dependency.aclose()

    asyncio.run(close())
    assert dependency.snapshot()["watched"] is False


def test_times_of_two_loops_are_not_mixed():
    dependency = Dependency("redis")

    async def use(seconds):
        await asyncio.sleep(seconds)
        dependency.start(pong, last_reply=lambda: -math.inf)
        await dependency.until_up()

    for seconds in (1000.0, 10.0):
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(use(seconds))
    assert [change.after for change in dependency.history] == [0.0, 0.0, 0.0]
    assert dependency.since == 10.0


def test_change_that_a_closed_loop_never_delivered_does_not_block_the_next_one():
    dependency = Dependency("redis")
    seen = []
    dependency.on_change(lambda change: seen.append(change.state))

    async def report():
        dependency.succeeded()
        asyncio.get_running_loop().stop()  # in this very step: what is due soon never runs

    loop = asyncio.new_event_loop()
    task = loop.create_task(report())
    loop.run_forever()
    loop.close()
    assert task.done()
    assert seen == []

    async def go_on():
        dependency.refused(Cause.READ_ONLY)
        await asyncio.sleep(0.01)

    asyncio.run(go_on())
    assert seen[-1] is State.DEGRADED


def test_waiter_of_a_closed_loop_does_not_break_the_broadcast():
    broadcast = Broadcast("old")

    async def begin():
        task = asyncio.ensure_future(broadcast.wait())
        await asyncio.sleep(0)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin())
    loop.close()
    task._log_destroy_pending = False  # intended here
    broadcast.publish("new")
    assert broadcast.latest == "new"


def test_settings_of_another_type_are_refused():
    with pytest.raises(TypeError, match="settings must be a HealthSettings, not Dependency: use"):
        Dependency("redis", settings=Dependency("other"))


def test_name_that_is_a_url_shows_no_credentials():
    dependency = Dependency("redis://ann:s3cret@cache:6379")
    assert "s3cret" not in repr(dependency) + str(dependency.snapshot()) + dependency.name
    assert dependency.name.endswith("@cache:6379")


@pytest.mark.parametrize("report", ["failed", "refused", "part_lost"])
async def test_reported_detail_is_bounded_and_clean_everywhere(dependency, report, caplog):
    recorder = FlightRecorder()
    dependency.add_recorder(recorder)
    dependency.succeeded()
    detail = "line\r\n\x1b[2J redis://ann:s3cret@cache " + "://" * 100_000
    began = time.process_time()
    if report == "failed":
        dependency.failed(Cause.OTHER, detail, definite=True)
    elif report == "refused":
        dependency.refused(Cause.OTHER, detail)
    else:
        dependency.part_lost("connection 1", Cause.OTHER, detail)
    assert time.process_time() - began < 0.25
    assert dependency.state in (State.DOWN, State.DEGRADED)
    assert len(dependency.detail) <= 300
    for text in (
        json.dumps(dependency.snapshot()),
        json.dumps(recorder.events()),
        repr(dependency),
        repr(dependency.history),
        caplog.text,
        repr([getattr(dependency._machine, name) for name in Machine.__slots__]),
    ):
        assert "s3cret" not in text
        assert "\x1b" not in text
        assert "\\u001b" not in text
        assert "\\x1b" not in text
        assert len(text) < 5000


def test_cause_and_state_are_strings():
    assert f"{State.UP} {Cause.REFUSED}" == "up refused"
