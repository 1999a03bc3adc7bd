"""Alarms that share timers of the event loop."""

import asyncio
import math

from resilient_io.health import Dependency, HealthSettings
from resilient_io.health.alarm import Alarm, _groups


class Bell:
    """An alarm that records when it rings."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.rung = []
        self.alarm = Alarm(self.loop, lambda: self.rung.append(self.loop.time()))


async def test_alarm_alone_rings_once_at_its_time():
    bell = Bell()
    bell.alarm.set(1.11, 0.05)
    await asyncio.sleep(5)
    assert bell.rung == [1.11]


async def test_alarm_rings_on_the_beat_before_its_time_unless_that_is_too_early():
    loop, on_beat, exact = asyncio.get_running_loop(), Bell(), Bell()
    on_beat.alarm.set(1.3, 0.05)
    exact.alarm.set(1.31, 0.05)
    assert loop.time() == 0.0
    await asyncio.sleep(5)
    assert (on_beat.rung, exact.rung) == ([1.25], [1.31])


async def test_alarms_that_are_due_at_about_the_same_time_ring_with_the_first():
    first, second, later = Bell(), Bell(), Bell()
    second.alarm.set(1.14, 0.05)
    first.alarm.set(1.11, 0.05)
    later.alarm.set(1.16, 0.05)
    await asyncio.sleep(5)
    assert first.rung == second.rung == [1.11]
    assert later.rung == [1.16]


async def test_alarm_that_is_set_again_or_stopped_rings_at_the_new_time_or_never():
    moved, stopped = Bell(), Bell()
    moved.alarm.set(1.11, 0.05)
    stopped.alarm.set(1.12, 0.05)
    moved.alarm.set(2.11, 0.05)
    stopped.alarm.stop()
    stopped.alarm.stop()
    assert list(_groups[moved.loop]) == [(0.05, 2.11 // 0.05)]
    await asyncio.sleep(5)
    assert moved.rung == [2.11]
    assert stopped.rung == []
    assert not _groups[moved.loop]


async def test_alarm_may_be_set_and_stopped_while_others_ring():
    loop, rung = asyncio.get_running_loop(), []
    victim = Alarm(loop, lambda: rung.append("victim"))

    def ring():
        rung.append("first")
        victim.stop()
        again.set(loop.time(), 0.05)

    first, again = Alarm(loop, ring), Alarm(loop, lambda: rung.append("again"))
    first.set(1.11, 0.05)
    victim.set(1.12, 0.05)
    await asyncio.sleep(5)
    assert rung == ["first", "again"]
    assert not _groups[loop]


async def test_probes_of_many_dependencies_share_timers():
    """200 dependencies wake the process at most 20 times a second, and each once per interval."""
    loop, probes = asyncio.get_running_loop(), []

    async def probe(_):
        probes.append(loop.time())
        return 0.0

    dependencies = [Dependency(f"{n}") for n in range(200)]
    for dependency in dependencies:
        dependency.start(probe, last_reply=lambda: -math.inf)
        await asyncio.sleep(0.005)
    await asyncio.sleep(1)
    probes.clear()
    await asyncio.sleep(10)
    assert len(probes) in range(2000, 2120)  # at most 5 % early
    assert len(set(probes)) <= 210
    for dependency in dependencies:
        await dependency.aclose()
    assert not _groups[loop]


async def test_probe_of_a_short_interval_is_early_by_a_part_of_it_only():
    loop, times = asyncio.get_running_loop(), []

    async def probe(_):
        times.append(loop.time())
        return 0.0

    settings = HealthSettings(interval=0.1)
    both = [Dependency("one", settings=settings), Dependency("two", settings=settings)]
    both[0].start(probe, last_reply=lambda: -math.inf)
    await asyncio.sleep(0.05)
    both[1].start(probe, last_reply=lambda: -math.inf)
    await asyncio.sleep(10)
    assert len(times) in range(195, 212)
    for dependency in both:
        await dependency.aclose()
