"""A Sentinel set-up that fails over quickly, and clients that follow it."""

import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio.sentinel import Sentinel

from resilient_io.redis import ResilientRedis
from resilient_io.testing import SentinelSetup

SERVER = "10.77.0.2"
"""Address of the far servers, which are in another network namespace."""


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


async def look_often(setup: SentinelSetup) -> None:
    """Shorten the periods of the Sentinels of a set-up in which a silent master is down soon."""
    for sentinel in setup.sentinels:
        # A new master must answer before it counts as down, and facts about the replicas, which are
        # at most 1 s old, must be younger than five of the first periods.
        await sentinel.query("SENTINEL", "DEBUG", "ping-period", 250, "info-period", 250)


@pytest.fixture
async def quick_setup() -> AsyncIterator[SentinelSetup]:
    """Return a set-up in which a silent master is down after 0.5 s."""
    async with SentinelSetup(down_after=0.5) as setup:
        await look_often(setup)
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


class Blackhole:
    """Loses the packets of a server, for clients only or for all."""

    def __init__(self, network: Any, port: int, *, everywhere: bool) -> None:
        self._network = network
        self._port = port
        self._everywhere = everywhere

    def _rules(self, action: str) -> None:
        for side in ("--dport", "--sport"):
            rule = ["iptables", action, "INPUT", "-p", "tcp", side, str(self._port), "-j", "DROP"]
            subprocess.run(["ip", "netns", "exec", self._network.server, *rule], check=True)

    def begin(self) -> None:
        """Lose the packets."""
        self._network.forget(self._port)
        if self._everywhere:
            self._rules("-A")

    def end(self) -> None:
        """Lose them no longer."""
        self._network.remember(self._port)
        if self._everywhere:
            self._rules("-D")


@pytest.fixture
async def far(network: Any) -> AsyncIterator[SentinelSetup]:
    """Return a set-up in the server's namespace; the client is in the other one."""
    options: Any = {"protected-mode": "no"}
    with network.inside(network.server):
        setup = SentinelSetup(host=SERVER, options=options, sentinel_options=options)
        await setup.start()
    yield setup
    await setup.aclose()
