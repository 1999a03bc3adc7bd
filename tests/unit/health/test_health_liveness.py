"""Liveness: only what a restart would heal makes the process count as stuck."""

import asyncio

import pytest

from resilient_io import Cause, ConfigurationError, Dependency, HealthMonitor, LivenessSettings
from resilient_io.health import loop_lag


class Part:
    why = None

    def liveness_failure(self):
        return self.why


@pytest.fixture
def part():
    return Part()


@pytest.fixture
async def monitor(part):
    async with HealthMonitor(Dependency("redis"), liveness=[part]) as made:
        yield made
    assert not loop_lag._watches


def block(seconds):
    asyncio.get_running_loop().block(seconds)


async def test_no_dependency_makes_it_stuck(monitor):
    (redis,) = monitor.critical
    redis.failed(Cause.REFUSED, definite=True)
    monitor.drain()
    assert not monitor.ready
    assert monitor.alive


async def test_a_vital_part_that_is_stuck_makes_it_stuck(monitor, part):
    part.why = "the consumer has not moved for 301 s"
    assert not monitor.alive
    assert monitor.liveness_failures == ("the consumer has not moved for 301 s",)
    part.why = None
    assert monitor.alive


async def test_a_loop_that_was_blocked_for_most_of_the_time_makes_it_stuck_until_it_is_free(
    monitor,
):
    for _ in range(20):
        block(1.0)
        await asyncio.sleep(0.2)
    assert not monitor.alive
    assert "blocked for" in monitor.liveness_failures[0]
    await asyncio.sleep(30)
    assert monitor.alive


async def test_one_long_stall_within_the_share_is_forgiven(monitor):
    block(10)
    await asyncio.sleep(0.5)
    assert monitor.alive


async def test_a_stall_that_began_before_the_window_counts_for_its_part_within():
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


async def test_lag_is_watched_without_entering_the_monitor_once_it_was_asked():
    monitor = HealthMonitor(Dependency("redis"))
    assert monitor.alive
    for _ in range(20):
        block(1.0)
        await asyncio.sleep(0.2)
    assert not monitor.alive
    await monitor.aclose()
    assert not loop_lag._watches


async def test_who_asks_after_the_end_does_not_begin_the_watch_again(monitor):
    await monitor.aclose()
    assert monitor.alive
    assert not loop_lag._watches


async def test_a_part_that_cannot_say_whether_it_is_stuck_is_told_once_and_does_not_count(caplog):
    class Broken:
        def liveness_failure(self):
            raise KeyError("of its own")

    stuck = Part()
    stuck.why = "its supervisor died"
    async with HealthMonitor(Dependency("redis"), liveness=[Broken(), stuck]) as monitor:
        for _ in range(3):
            assert monitor.liveness_failures == ("its supervisor died",)
    (record,) = caplog.records
    assert (
        record.message
        == "liveness_failure() of Broken raised; further failures of it are not logged"
    )
    assert record.exc_info


def test_it_can_be_asked_outside_of_any_loop(part):
    monitor = HealthMonitor(Dependency("redis"), liveness=[part])
    assert monitor.alive
    assert monitor.snapshot()["alive"] is True


@pytest.mark.parametrize("arguments", [{"window": 0}, {"share": 0}, {"share": -1}, {"share": 50}])
def test_settings_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ConfigurationError):
        LivenessSettings(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"liveness": [3]}, {"recorder": 3}, {"liveness_settings": 3}]
)
def test_parts_of_the_wrong_kind_are_refused(arguments):
    with pytest.raises(TypeError):
        HealthMonitor(Dependency("redis"), **arguments)
