"""A Sentinel set-up that fails over quickly, and clients that follow it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio.sentinel import Sentinel

from resilient_io.redis import ResilientRedis
from resilient_io.testing import SentinelSetup


class Following:
    """A client of a Sentinel set-up, and the changes of its health."""

    def __init__(self, setup: SentinelSetup, **options: Any) -> None:
        self.setup = setup
        self.sentinel = Sentinel(setup.addresses, force_master_ip=None)
        self.redis: Any = self.sentinel.master_for(
            setup.name, redis_class=ResilientRedis, **options
        )
        self.changes: list[Any] = []
        self.redis.health.on_change(self.changes.append)

    async def aclose(self) -> None:
        """Close the client and the connections to the Sentinels."""
        await self.redis.aclose()
        await self.sentinel.aclose()


@pytest.fixture
async def quick_setup() -> AsyncIterator[SentinelSetup]:
    """Return a set-up in which a silent master is down after 0.5 s."""
    async with SentinelSetup(down_after=0.5) as setup:
        for sentinel in setup.sentinels:
            # A new master must answer before it counts as down, and facts about the replicas, which
            # are at most 1 s old, must be younger than five of the first periods.
            await sentinel.query("SENTINEL", "DEBUG", "ping-period", 250, "info-period", 250)
        yield setup


@pytest.fixture
async def follow(quick_setup: SentinelSetup) -> AsyncIterator[Any]:
    """Return a function that opens a client of the quick set-up."""
    opened: list[Following] = []

    async def follow(setup: SentinelSetup = quick_setup, **options: Any) -> Following:
        following = Following(setup, **options)
        opened.append(following)
        await following.redis.initialize()
        await following.redis.ping()
        return following

    yield follow
    for following in opened:
        await following.aclose()
