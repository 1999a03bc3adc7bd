"""The lane that policy, health and statistics are measured against.

The same code (`resilient_io.redis.connection.Lane`: one connection, futures, packing, one write a
tick)
under the same command methods of redis-py; what `ResilientRedis` adds is switched off: the gate,
the command table, the deadline, the watchdog's times, latencies, counters, loop lag.
"""

from __future__ import annotations

import asyncio
from typing import Any, Self

import hiredis
import redis.asyncio as driver

from resilient_io.histogram import Latencies
from resilient_io.redis.connect import PoolTarget, dial
from resilient_io.redis.connection import Lane

_get_callback: Any = dict.get


class _Alone:
    """Owns one lane, and wants nothing of it."""

    def lane_lost(self, lane: Lane, unsent: list[Any]) -> None:
        """Do nothing: the run is over."""

    def lane_changed(self, lane: Lane) -> None:
        """Do nothing: there is no other lane."""

    def lane_fell_silent(self, lane: Lane) -> None:
        """Do nothing: nobody waits for health."""


class _NoLag:
    stalled = 0.0


class BareLane(Lane):
    """A lane that only writes, and matches replies with calls."""

    def _written(self, count: int, size: int) -> None:
        """Note nothing."""

    def data_received(self, data: bytes) -> None:
        """Match replies with calls, in order."""
        self._crowded = self._replies.feed(data) > 1


class BareRedis(driver.Redis):
    """redis-py's commands on a bare lane."""

    lane: BareLane

    async def initialize(self) -> Self:
        """Open the lane."""
        loop = asyncio.get_running_loop()
        self.create_future = loop.create_future
        self.pack: Any = hiredis.pack_command
        connection = await dial(
            PoolTarget(self.connection_pool), client_name="bare", timeout=1.0, user_timeout=2.0
        )
        lag: Any = _NoLag()
        self.lane = BareLane(
            connection,
            owner=_Alone(),
            name="bare",
            client_id=None,
            response_timeout=2.0,
            deadline=None,
            limit=2**63,
            latencies=Latencies(),
            lag=lag,
        )
        return self

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command and return its reply, with redis-py's callback applied."""
        data = self.pack(args)
        future: asyncio.Future[Any] = self.create_future()
        self.lane.send(future, data)
        reply = await future
        if isinstance(reply, Exception):
            raise reply
        callback = _get_callback(self.response_callbacks, args[0])
        if callback is None:
            return reply
        options.pop("keys", None)
        return callback(reply, **options)
