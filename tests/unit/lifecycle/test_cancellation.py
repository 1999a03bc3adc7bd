"""A lifecycle that is cancelled at any point returns immediately, and still closes everything."""

import asyncio
import contextlib

import pytest

from resilient_io import Dependency, HealthMonitor
from resilient_io.lifecycle import Lifecycle
from resilient_io.testing import cancel_everywhere


@pytest.fixture
def scene(make, diary):
    """Return a lifecycle of two slow parts; afterwards everything is closed."""

    @contextlib.asynccontextmanager
    async def scene():
        diary.clear()
        source = make.source("orders", starts=0.2, closes=0.3)
        parts = [source, make.part("redis", starts=0.2, closes=0.3)]
        lifecycle = Lifecycle(
            HealthMonitor(Dependency("redis")), *parts, drain_delay=0.5, signals=()
        )
        lifecycle.worker(source.run)
        yield lifecycle
        await lifecycle.aclose()
        events = [event for _, event in diary]
        for name in ("orders", "redis"):
            # A part whose start was cancelled was never entered.
            assert events.count(f"{name} closes") == events.count(f"{name} closed")
        if lifecycle.phase == "stopped" and "orders runs" in events:
            assert {"orders closed", "redis closed"} <= set(events)
        assert lifecycle.phase in ("new", "stopped")

    return scene


async def run_the_block(lifecycle):
    async with lifecycle:
        await asyncio.sleep(0.1)


async def stop_in_the_block(lifecycle):
    async with lifecycle:
        lifecycle.stop()
        await lifecycle.stopping.wait()


async def close_in_the_block(lifecycle):
    async with lifecycle:
        await lifecycle.aclose()


async def run_as_lifespan(lifecycle):
    async with lifecycle.lifespan(None):
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "body", [run_the_block, stop_in_the_block, close_in_the_block, run_as_lifespan]
)
async def test_cancellation_at_any_point_returns_immediately_and_leaves_nothing_behind(scene, body):
    report = await cancel_everywhere(body, setup=scene)
    assert report.complete
    assert report.points == 3  # the start, the body, the end
    assert [str(found) for found in report.findings if found not in report.late] == []
    # Leaving the body closes everything, even after a cancellation.
    assert {found.point for found in report.late} <= {2}


async def test_closing_is_idempotent_and_allowed_before_the_start(scene):
    async with scene() as lifecycle:
        await lifecycle.aclose()
        assert lifecycle.phase == "new"
        async with lifecycle:
            pass
        await lifecycle.aclose()
        await lifecycle.aclose()
        assert lifecycle.phase == "stopped"


async def test_closing_during_the_start_ends_it(scene):
    async with scene() as lifecycle:
        starting = asyncio.create_task(run_the_block(lifecycle), name="starting")
        await asyncio.sleep(0.1)
        await lifecycle.aclose()
        with pytest.raises(Exception, match="stopped before it had started"):
            await starting
