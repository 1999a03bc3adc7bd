"""Cancellation of every public coroutine of health at each of its await points."""

import asyncio
import contextlib
import math

import pytest

from resilient_io.health import Dependency, HealthMonitor
from resilient_io.testing import cancel_everywhere


@contextlib.asynccontextmanager
async def scene():
    """Yield a dependency with a slow probe, a running callback and a monitor."""
    dependency = Dependency("redis")

    async def probe(suspicious):
        await asyncio.sleep(0.3)
        return 0.3

    async def busy(change):
        await asyncio.sleep(0.05)

    dependency.on_change(busy)
    attachment = dependency.start(probe, last_reply=lambda: -math.inf)
    monitor = HealthMonitor(dependency)
    yield dependency, attachment, monitor
    await monitor.aclose()
    await attachment.detach()
    await dependency.aclose()


async def close_while_busy(dependency):
    dependency.succeeded()
    await asyncio.sleep(0)
    await dependency.aclose()


COROUTINES = {
    "until_up": lambda made: made[0].until_up(5),
    "watch": lambda made: take_two(made[0].watch()),
    "detach": lambda made: made[1].detach(),
    "aclose": lambda made: close_while_busy(made[0]),
    "until_ready": lambda made: made[2].until_ready(5),
    "watch of the monitor": lambda made: take_two(made[2].watch()),
}


async def take_two(watch):
    return [await anext(watch), await anext(watch)]


@pytest.mark.parametrize("name", COROUTINES)
async def test_cancellation_at_any_point_propagates_immediately_and_leaves_nothing_behind(name):
    async def starts_again(made):
        dependency, attachment, _ = made
        if name in ("detach", "aclose"):
            await attachment.detach()
            fresh = dependency.start(lambda suspicious: answer(), last_reply=lambda: -math.inf)
            await dependency.until_up(5)
            await fresh.detach()
        else:
            await dependency.until_up(5)

    async def answer():
        return 0.0

    report = await cancel_everywhere(COROUTINES[name], setup=scene, check=starts_again)
    report.assert_clean()
