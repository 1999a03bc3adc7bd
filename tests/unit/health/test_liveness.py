"""Liveness: only failures that a restart cures make the process count as stuck."""

import asyncio

import pytest

from resilient_io import Cause, ConfigurationError, Dependency, HealthMonitor, LivenessSettings
from resilient_io.health import loop_lag


class Check:
    failure = None

    def liveness_failure(self):
        return self.failure


@pytest.fixture
def check():
    return Check()


@pytest.fixture
async def monitor(check):
    async with HealthMonitor(Dependency("redis"), liveness=[check]) as made:
        yield made
    assert not loop_lag._watches


def block(seconds):
    asyncio.get_running_loop().block(seconds)


async def test_unavailable_dependency_does_not_make_the_process_stuck(monitor):
    (redis,) = monitor.critical
    redis.failed(Cause.REFUSED, definite=True)
    monitor.drain()
    assert not monitor.ready
    assert monitor.alive


async def test_failed_liveness_check_makes_the_process_stuck(monitor, check):
    check.failure = "the consumer has not moved for 301 s"
    assert not monitor.alive
    assert monitor.liveness_failures == ("the consumer has not moved for 301 s",)
    check.failure = None
    assert monitor.alive


async def test_loop_that_was_blocked_for_most_of_the_time_makes_the_process_stuck_until_it_is_free(
    monitor,
):
    for _ in range(20):
        block(1.0)
        await asyncio.sleep(0.2)
    assert not monitor.alive
    assert "blocked for" in monitor.liveness_failures[0]
    await asyncio.sleep(30)
    assert monitor.alive


async def test_one_long_stall_within_the_share_does_not_count(monitor):
    block(10)
    await asyncio.sleep(0.5)
    assert monitor.alive


async def test_stall_that_began_before_the_window_counts_for_its_part_within():
    async with HealthMonitor(
        Dependency("redis"), liveness_settings=LivenessSettings(window=10, share=0.5)
    ) as monitor:
        await asyncio.sleep(1)
        block(100)
        await asyncio.sleep(0.2)
        assert not monitor.alive
        await asyncio.sleep(4)
        assert not monitor.alive
        await asyncio.sleep(2)
        assert monitor.alive


async def test_lag_is_measured_from_the_first_read_without_entering_the_monitor():
    monitor = HealthMonitor(Dependency("redis"))
    assert monitor.alive
    for _ in range(20):
        block(1.0)
        await asyncio.sleep(0.2)
    assert not monitor.alive
    await monitor.aclose()
    assert not loop_lag._watches


async def test_read_after_closing_does_not_start_the_measurement_again(monitor):
    await monitor.aclose()
    assert monitor.alive
    assert not loop_lag._watches


async def test_exception_in_a_liveness_check_is_logged_once_and_does_not_count(caplog):
    class Broken:
        def liveness_failure(self):
            raise KeyError("a bug")

    stuck = Check()
    stuck.failure = "its supervisor died"
    async with HealthMonitor(Dependency("redis"), liveness=[Broken(), stuck]) as monitor:
        for _ in range(3):
            assert monitor.liveness_failures == ("its supervisor died",)
    (record,) = caplog.records
    assert (
        record.message
        == "liveness_failure() of Broken raised an exception; further ones are not logged"
    )
    assert record.exc_info


def test_liveness_can_be_read_without_a_loop(check):
    monitor = HealthMonitor(Dependency("redis"), liveness=[check])
    assert monitor.alive
    assert monitor.snapshot()["alive"] is True


@pytest.mark.parametrize("arguments", [{"window": 0}, {"share": 0}, {"share": -1}, {"share": 50}])
def test_invalid_settings_are_refused(arguments):
    with pytest.raises(ConfigurationError):
        LivenessSettings(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"liveness": [3]}, {"recorder": 3}, {"liveness_settings": 3}]
)
def test_arguments_of_the_wrong_type_are_refused(arguments):
    with pytest.raises(TypeError):
        HealthMonitor(Dependency("redis"), **arguments)
