"""The search for the server that accepts writes, after a failover behind a name or Sentinels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from resilient_io.retry import Backoff

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .errors import Refusal

_FIRST_PAUSE = 0.1  # seconds between the first two searches, at most
_LONGEST_PAUSE = 2.0
_LEAST_PAUSE = 0.05
_FORGOTTEN = 5.0  # seconds without a refusal after which a search is the first one again


class MasterSearch:
    """Leaves the connections to a server that refuses writes, so that its address is found again.

    While writes are still refused, the next search follows after a growing pause.

    Args:
        leave: Leaves every connection, shared or exclusive.
        ask: Asks the Sentinels, if there are any.
        rng: Source of jitter.
    """

    __slots__ = ("_ask", "_due", "_leave", "_pauses", "_refused_at")

    def __init__(
        self, leave: Callable[[], None], ask: Callable[[], None], rng: random.Random
    ) -> None:
        self._leave = leave
        self._ask = ask
        self._pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, rng, floor=_LEAST_PAUSE)
        self._due = self._refused_at = float("-inf")

    def note_refusal(self, refusal: Refusal) -> None:
        """Search, unless the latest search was too recent: a write was refused."""
        self._ask()
        if not refusal.elsewhere:
            return
        now = asyncio.get_running_loop().time()
        if now - self._refused_at > _FORGOTTEN:
            self._pauses.reset()
        self._refused_at = now
        if now < self._due:
            return
        self._due = now + self._pauses.next()
        self._leave()
