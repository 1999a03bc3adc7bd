"""The bare connection against which the cost of policy, health and statistics is measured.

It runs the same code (`resilient_io.redis.connection.MultiplexedConnection`: one connection,
futures, packing, one write per loop tick) under the same command methods of redis-py, without the
executor, the command table, the deadline, the watchdog, latencies, counters and loop lag.
"""

from __future__ import annotations

import asyncio
from typing import Any, Self

import hiredis
import redis.asyncio as driver

from resilient_io.histogram import Latencies
from resilient_io.redis.connect import RedisTarget, connect
from resilient_io.redis.connection import MultiplexedConnection

_get_callback: Any = dict.get


class _Alone:
    """Owns a connection and ignores its changes."""

    def connection_lost(self, connection: MultiplexedConnection, unsent: list[Any]) -> None:
        """Do nothing: the run is over."""

    def connection_changed(self) -> None:
        """Do nothing: there is no other connection."""

    def connection_silent(self, connection: MultiplexedConnection) -> None:
        """Do nothing: there is no health to update."""


class _NoLag:
    stalled = 0.0


class BareConnection(MultiplexedConnection):
    """A connection that only writes, and matches replies with calls."""

    def _written(self, count: int, size: int) -> None:
        """Record nothing."""

    def data_received(self, data: bytes) -> None:
        """Match replies with calls, in order."""
        self._crowded = self._responses.feed(data) > 1


class BareRedis(driver.Redis):
    """redis-py's commands on a bare connection."""

    bare: BareConnection

    async def initialize(self) -> Self:
        """Open the connection."""
        loop = asyncio.get_running_loop()
        self.create_future = loop.create_future
        self.pack: Any = hiredis.pack_command
        connection = await connect(
            RedisTarget(self.connection_pool), client_name="bare", timeout=1.0, user_timeout=2.0
        )
        lag: Any = _NoLag()
        self.bare = BareConnection(
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
        self.bare.send(future, data)
        reply = await future
        if isinstance(reply, Exception):
            raise reply
        callback = _get_callback(self.response_callbacks, args[0])
        if callback is None:
            return reply
        options.pop("keys", None)
        return callback(reply, **options)
