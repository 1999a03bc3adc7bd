"""The two clients: how each is made, and what it tells its callers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import redis
import redis.asyncio

from resilient_io.demo.told import Told, told_by
from resilient_io.redis import ResilientRedis

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import Change

HOST = "127.0.0.1"


class PlainSide:
    """redis-py with its defaults."""

    key = "plain"
    name = "plain redis-py"

    def __init__(self, port: int, socket_timeout: float | None) -> None:
        """Make the client; nothing is connected yet."""
        self.client = (
            redis.asyncio.Redis(host=HOST, port=port)
            if socket_timeout is None
            else redis.asyncio.Redis(host=HOST, port=port, socket_timeout=socket_timeout)
        )
        self.title = f"{self.name} {redis.__version__}"

    def told(self, error: Exception) -> Told:
        """Say what the error says about a write: nothing, whatever it is."""
        del error  # its type is the same whether the server executed the write or not
        return Told.UNKNOWN

    def state(self, now: float) -> str:
        """Say how the server is, as far as the client knows."""
        del now
        return "not told: callers find out by waiting"

    def retries(self) -> int | None:
        """Return how often it sent something again: it does not tell."""
        return None

    def on_change(self, callback: Callable[[Change], object]) -> None:
        """Accept the callback that will never be called: it watches nothing."""


class OurSide:
    """`ResilientRedis` with its defaults."""

    key = "resilient"
    name = "ResilientRedis"

    def __init__(self, port: int, socket_timeout: float | None) -> None:
        """Make the client; nothing is connected yet."""
        self.client = (
            ResilientRedis(host=HOST, port=port)
            if socket_timeout is None
            else ResilientRedis(host=HOST, port=port, socket_timeout=socket_timeout)
        )
        self.title = self.name

    def told(self, error: Exception) -> Told:
        """Say what the error says about a write."""
        return told_by(error)

    def state(self, now: float) -> str:
        """Say how the server is, as far as the client knows."""
        health = self.client.health
        why = f" ({health.cause.value})" if health.cause is not None else ""
        return f"{health.state.name}{why} for {now - health.since:.1f} s"

    def retries(self) -> int | None:
        """Return how often it sent something again."""
        return self.client.stats().retries

    def on_change(self, callback: Callable[[Change], object]) -> None:
        """Call back at each change of the server's state."""
        self.client.health.on_change(callback)


Side = PlainSide | OurSide
SIDES: Final[tuple[Callable[[int, float | None], Side], ...]] = (PlainSide, OurSide)
