"""Signals sent to this process: which handler is called when, and which is restored."""

import asyncio
import json
import logging
import os
import signal
import threading

import pytest

from resilient_io import Dependency, FlightRecorder, HealthMonitor
from resilient_io.lifecycle import Lifecycle
from resilient_io.lifecycle.signals import SAME_SIGNAL, only_ends_program
from resilient_io.testing import new_virtual_loop


def now():
    return round(asyncio.get_running_loop().time(), 3)


async def run_loop():
    """Wait until the event loop has run the callbacks of a signal."""
    for _ in range(3):
        await asyncio.sleep(0)


async def send(number):
    signal.raise_signal(number)
    await run_loop()


@pytest.fixture
def calls():
    return []


@pytest.fixture
def handler(calls):
    """Install a handler for SIGTERM, as a server does."""

    def note(number, frame):
        calls.append((now(), number))

    before = signal.signal(signal.SIGTERM, note)
    yield note
    signal.signal(signal.SIGTERM, before)


async def test_previous_handler_is_called_after_the_drain_delay_and_restored_at_the_end(
    monitor, make, handler, calls
):
    async with Lifecycle(monitor, make.part("redis"), drain_delay=5.0) as lifecycle:
        await send(signal.SIGTERM)
        assert monitor.draining
        assert lifecycle.phase == "draining"
        assert calls == []
        await lifecycle.stopping.wait()
        await run_loop()
        assert calls == [(5.0, signal.SIGTERM)]
    assert signal.getsignal(signal.SIGTERM) is handler
    assert calls == [(5.0, signal.SIGTERM)]
    assert lifecycle.report.reason == "SIGTERM"


async def test_body_that_a_server_ends_may_use_all_of_the_remaining_time(monitor, make, handler):
    async with Lifecycle(
        monitor, make.part("redis"), grace_period=20.0, drain_delay=5.0, body_timeout=1.0
    ) as lifecycle:
        await send(signal.SIGTERM)
        await asyncio.sleep(15.0)  # like a server that waits for its last requests
        assert lifecycle.report is None
    assert lifecycle.report.clean


async def test_parts_are_closed_within_the_grace_period_if_the_server_does_not_end(
    monitor, make, what, handler
):
    async with Lifecycle(
        monitor, make.part("redis"), grace_period=20.0, drain_delay=5.0
    ) as lifecycle:
        await send(signal.SIGTERM)
        await asyncio.sleep(30.0)
        make.part("body").note("was not cancelled")
    assert what()[-2:] == ["redis closed", "body was not cancelled"]
    assert lifecycle.report.seconds <= 20.0
    assert lifecycle.report.left == ("body: the server had not ended",)


async def test_previous_handler_of_the_event_loop_is_called_after_the_drain_delay_and_restored(
    monitor, make, calls
):
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda what: calls.append((now(), what)), "previous")
    try:
        async with Lifecycle(monitor, make.part("redis"), drain_delay=5.0) as lifecycle:
            await send(signal.SIGTERM)
            await asyncio.sleep(4.9)
            assert calls == []
            await lifecycle.stopping.wait()
            await run_loop()
            assert calls == [(5.0, "previous")]
        await send(signal.SIGTERM)
        await asyncio.sleep(0.01)
        assert calls[1:] == [(5.0, "previous")]
    finally:
        assert loop.remove_signal_handler(signal.SIGTERM)


async def test_second_signal_skips_the_waits_and_bounds_the_rest(monitor, make, caplog):
    redis = make.client("redis", closes=20.0)
    async with Lifecycle(monitor, redis, drain_delay=5.0, body_timeout=5.0) as lifecycle:
        await send(signal.SIGTERM)
        await asyncio.sleep(1.0)
        await send(signal.SIGTERM)
        await asyncio.Event().wait()
    assert lifecycle.report.hurried
    assert lifecycle.report.seconds <= 4.0 + 0.01
    assert "SIGTERM again: closing everything within 3 s" in caplog.text


async def test_second_signal_applies_to_parts_that_are_closing_already(monitor, make):
    redis = make.client("redis", closes=20.0)
    async with Lifecycle(monitor, redis, drain_delay=0.0) as lifecycle:
        await send(signal.SIGTERM)
        asyncio.get_running_loop().call_later(5.0, signal.raise_signal, signal.SIGTERM)
        await lifecycle.stopping.wait()
    assert lifecycle.report.seconds <= 8.0 + 0.01
    assert lifecycle.report.left == ("Client: its closing was cancelled",)


async def test_part_that_closes_soon_after_a_second_signal_is_not_cancelled(monitor, make):
    redis = make.client("redis", closes=6.0)
    async with Lifecycle(monitor, redis, drain_delay=0.0) as lifecycle:
        await send(signal.SIGTERM)
        asyncio.get_running_loop().call_later(5.0, signal.raise_signal, signal.SIGTERM)
        await lifecycle.stopping.wait()
    assert lifecycle.report.hurried
    assert lifecycle.report.clean


async def test_two_signals_at_the_same_time_count_as_one(monitor, make):
    async with Lifecycle(monitor, make.part("redis"), drain_delay=2.0) as lifecycle:
        await send(signal.SIGTERM)
        await asyncio.sleep(SAME_SIGNAL / 2)
        await send(signal.SIGINT)
        await lifecycle.stopping.wait()
        assert now() == 2.0
    assert not lifecycle.report.hurried


async def test_third_signal_goes_to_the_previous_handler_immediately(monitor, make, handler, calls):
    async with Lifecycle(monitor, make.client("redis", closes=9.0), drain_delay=5.0) as lifecycle:
        await send(signal.SIGTERM)
        await asyncio.sleep(SAME_SIGNAL)
        await send(signal.SIGTERM)
        await asyncio.sleep(SAME_SIGNAL)
        calls.clear()
        signal.raise_signal(signal.SIGTERM)
        assert calls == [(0.5, signal.SIGTERM)]  # in the same tick
    assert lifecycle.report.hurried


async def test_signal_during_a_shutdown_without_one_goes_to_the_previous_handler(
    monitor, make, handler, calls
):
    redis = make.client("redis", closes=5.0)
    async with Lifecycle(monitor, redis) as lifecycle:
        asyncio.get_running_loop().call_later(1.0, signal.raise_signal, signal.SIGTERM)
    assert calls == [(1.0, signal.SIGTERM)]
    assert lifecycle.report.reason == "the block ended"
    assert lifecycle.report.seconds == pytest.approx(5.0)


async def test_ignored_signal_stays_ignored(monitor, make):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        async with Lifecycle(monitor, make.part("redis")) as lifecycle:
            await send(signal.SIGINT)
            assert lifecycle.phase == "running"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


async def test_handler_that_was_installed_meanwhile_stays(monitor, make, handler, calls):
    def later(number, frame):
        calls.append(number)

    async with Lifecycle(monitor, make.part("redis")):
        handler_of_lifecycle = signal.signal(signal.SIGTERM, later)
    assert signal.getsignal(signal.SIGTERM) is later
    # The handler of a lifecycle that has stopped calls the previous one.
    signal.signal(signal.SIGTERM, handler_of_lifecycle)
    await send(signal.SIGTERM)
    assert calls == [(0.0, signal.SIGTERM)]


async def test_inner_lifecycle_passes_the_signal_to_the_outer_one(make):
    monitors = [HealthMonitor(Dependency(name)) for name in ("outer", "inner")]
    parts = [make.part("outer"), make.part("inner")]
    async with Lifecycle(monitors[0], parts[0], drain_delay=2.0) as outer:
        async with Lifecycle(monitors[1], parts[1], drain_delay=1.0) as inner:
            await send(signal.SIGTERM)
            assert not outer.monitor.draining
            await inner.stopping.wait()
            await run_loop()
            assert outer.monitor.draining
            await outer.stopping.wait()
        assert now() == pytest.approx(3.0)
    assert inner.report.clean
    assert outer.report.clean
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigint_ends_the_program_like_asyncio_runner_after_everything_is_closed(make, what):
    async def main():
        monitor = HealthMonitor(Dependency("redis"))
        async with Lifecycle(
            monitor, make.client("redis", closes=1.0), drain_delay=2.0
        ) as lifecycle:
            await send(signal.SIGINT)
            await lifecycle.stopping.wait()
            make.part("body").note("ends")
        pytest.fail("the runner cancels what follows")

    async def fails():
        await main()

    with asyncio.Runner(loop_factory=new_virtual_loop) as runner, pytest.raises(KeyboardInterrupt):
        runner.run(main())
    assert what() == ["redis starts", "body ends", "redis closes", "redis closed"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigint_without_a_runner_raises_after_everything_is_closed(make, what):
    async def main():
        monitor = HealthMonitor(Dependency("redis"))
        async with Lifecycle(monitor, make.part("redis"), drain_delay=2.0) as lifecycle:
            await send(signal.SIGINT)
            await lifecycle.stopping.wait()

    loop = new_virtual_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(main())
    finally:
        loop.close()
    assert what()[-1] == "redis closed"


@pytest.mark.parametrize(("number", "error"), [
    (signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt),
])  # fmt: skip
def test_signal_during_the_start_ends_it_and_the_program(make, what, number, error):
    async def main():
        monitor = HealthMonitor(Dependency("redis"))
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, signal.raise_signal, number)
        async with Lifecycle(monitor, make.part("db", starts=9.0), make.part("redis")):
            pytest.fail("it did not start")

    with asyncio.Runner(loop_factory=new_virtual_loop) as runner:
        with pytest.raises(error) as caught:
            runner.run(main())
        if error is SystemExit:
            assert caught.value.code == 128 + signal.SIGTERM
    assert what() == ["redis starts", "db starts", "redis closes", "redis closed"]


def test_signals_are_not_handled_outside_the_main_thread_and_that_is_logged(make, caplog):
    caplog.set_level(logging.INFO, "resilient_io.lifecycle")
    before = signal.getsignal(signal.SIGTERM)

    async def main():
        async with Lifecycle(HealthMonitor(Dependency("redis")), make.part("redis")) as lifecycle:
            assert signal.getsignal(signal.SIGTERM) is before
            lifecycle.stop()
        return lifecycle.report

    reports = []
    thread = threading.Thread(target=lambda: reports.append(asyncio.run(main())))
    thread.start()
    thread.join()
    assert reports[0].clean
    assert "not in the main thread: signals are not handled, call stop() instead" in caplog.text


async def test_no_handler_is_installed_for_an_empty_sequence_of_signals(monitor, make):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    async with Lifecycle(monitor, make.part("redis"), signals=()):
        assert [signal.getsignal(number) for number in numbers] == before


async def test_sigusr1_dumps_the_flight_recorder(make):
    lines = []
    recorder = FlightRecorder(sink=lines.append)
    monitor = HealthMonitor(Dependency("redis"), recorder=recorder)
    async with Lifecycle(monitor, make.part("redis")):
        await send(signal.SIGUSR1)
        first, *rest = map(json.loads, lines)
        assert first["dump"] == "SIGUSR1"
        assert "started" in [line["event"] for line in rest]
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


async def test_forked_child_has_the_previous_handler(monitor, make):
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    try:
        async with Lifecycle(monitor, make.part("redis")) as lifecycle:
            child = os.fork()
            if child == 0:
                signal.raise_signal(signal.SIGTERM)
                os._exit(1)
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222 -- nothing else runs
            assert os.waitstatus_to_exitcode(status) == 7
            assert lifecycle.phase == "running"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handler_of_asyncio_runner_is_recognized():
    async def ask():
        return signal.getsignal(signal.SIGINT)

    with asyncio.Runner() as runner:
        assert only_ends_program(runner.run(ask()))
    assert only_ends_program(signal.default_int_handler)
    assert not only_ends_program(print)


async def test_event_loop_has_the_private_attributes_that_are_used():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, print, "a", "b")
    try:
        handle = loop._signal_handlers[signal.SIGUSR2]
        assert handle._callback is print
        assert handle._args == ("a", "b")
        assert handle._context is not None
    finally:
        loop.remove_signal_handler(signal.SIGUSR2)
