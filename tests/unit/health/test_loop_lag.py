"""The watch over the event loop's own stalls."""

import asyncio
import gc
import weakref

import pytest

from resilient_io.health import LoopLag


@pytest.fixture
async def lag():
    watch = LoopLag.acquire()
    yield watch
    watch.release()


def block(seconds):
    asyncio.get_running_loop().block(seconds)


async def test_free_loop_has_no_stall(lag):
    await asyncio.sleep(60)
    assert (lag.stalled, lag.current, lag.worst) == (0.0, 0.0, 0.0)


async def test_stall_is_measured_except_for_at_most_one_timer_interval(lag):
    await asyncio.sleep(1.0)
    block(5.0)
    await asyncio.sleep(1.0)
    assert 4.875 <= lag.stalled <= 5.0
    assert lag.worst == lag.stalled
    assert lag.current == 0.0


async def test_stalls_are_added_up_and_the_worst_is_kept(lag):
    for seconds in (1.0, 3.0, 2.0):
        block(seconds)
        await asyncio.sleep(1.0)
    assert 5.625 <= lag.stalled <= 6.0
    assert 2.875 <= lag.worst <= 3.0


async def test_stall_that_is_just_ending_counts_before_its_timer_runs(lag):
    await asyncio.sleep(0.15)
    block(2.0)
    assert 1.9 <= lag.stalled <= 2.0
    assert lag.current == lag.stalled
    booked = lag.stalled
    await asyncio.sleep(0.01)
    assert lag.stalled == pytest.approx(booked)


async def test_delay_within_the_tolerance_does_not_count(lag):
    for _ in range(50):
        await asyncio.sleep(0.1)
        block(0.015)
    assert lag.stalled == 0.0


async def test_users_of_one_loop_share_one_measurement_and_the_last_release_stops_it(lag):
    twin = LoopLag.acquire()
    assert twin is lag
    twin.release()
    block(1.0)
    await asyncio.sleep(0.2)
    assert lag.stalled >= 0.875


async def test_loop_without_stalls_is_measured_half_as_often_until_the_next_one(lag):
    await asyncio.sleep(10.3)
    block(1.0)
    await asyncio.sleep(1.0)
    assert lag.stalled == pytest.approx(0.8)  # the timer was to run at 10.5
    await asyncio.sleep(0.01)
    for _ in range(8):
        block(0.5)
        await asyncio.sleep(0.3)
    assert lag.stalled >= 0.8 + 8 * 0.375


async def test_nothing_runs_after_the_last_release():
    watch = LoopLag.acquire()
    watch.release()
    watch.release()
    block(9.0)
    await asyncio.sleep(1)
    assert watch.stalled == 0.0
    assert LoopLag.acquire() is not watch
    LoopLag.acquire().release()


def test_closed_loop_without_a_release_is_not_kept_alive_forever():
    loop = asyncio.new_event_loop()

    async def use():
        return weakref.ref(LoopLag.acquire())

    watch = loop.run_until_complete(use())
    loop.close()
    gone = weakref.ref(loop)
    del loop

    async def use_another():
        LoopLag.acquire().release()

    asyncio.run(use_another())
    gc.collect()
    assert gone() is None
    assert watch() is None
