"""The search for the server that accepts writes, after a failover behind a name or Sentinels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from resilient_io.retry import Backoff

if TYPE_CHECKING:
    import random

    from .multiplexer import Multiplexer
    from .pool import ExclusivePool

_FIRST_PAUSE = 0.1  # seconds between the first two searches, at most
_LONGEST_PAUSE = 2.0
_LEAST_PAUSE = 0.05
_FORGOTTEN = 5.0  # seconds without a refusal after which a search is the first one again


class MasterSearch:
    """Leaves the connections to a server that refuses writes, so that its address is found again.

    Every connection is left, shared or exclusive. While writes are still refused, the next search
    follows after a growing pause.
    """

    def __init__(self, multiplexer: Multiplexer, pool: ExclusivePool, rng: random.Random) -> None:
        self._multiplexer = multiplexer
        self._pool = pool
        self._pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, rng, floor=_LEAST_PAUSE)
        self._due = self._refused_at = float("-inf")

    def note_refusal(self) -> None:
        """Search, unless the latest search was too recent: a write was refused."""
        now = asyncio.get_running_loop().time()
        if now - self._refused_at > _FORGOTTEN:
            self._pauses.reset()
        self._refused_at = now
        if now < self._due:
            return
        self._due = now + self._pauses.next()
        target = self._multiplexer.target
        for connection in self._multiplexer.connections:
            target.avoid_peer(connection.peer)
            self._multiplexer.retire(connection)
        for peer in self._pool.leave_server():
            target.avoid_peer(peer)
