"""Locks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.simulation.history import Outcome

if TYPE_CHECKING:
    from .use import Use


async def lock(use: Use) -> None:
    """Acquire a lock, hold it, and release it: two operations."""
    name = f"lock{use.argument('key', 0)}"
    timeout = use.argument("timeout", 10.0)
    held = use.redis.lock(name, timeout=timeout, sleep=0.05)
    acquire = use.operation(kind="acquire", lock=name, timeout=timeout, limit=None)
    blocking = use.argument("blocking", 0.5)
    await use.perform(acquire, lambda: held.acquire(blocking_timeout=blocking))
    if acquire.outcome is not Outcome.OK or not acquire.reply:
        return
    token = held.local.token
    acquire.facts["token"] = token.decode() if isinstance(token, bytes) else token
    await asyncio.sleep(use.argument("hold", 0.05))
    if use.argument("extend"):
        extend = use.operation(kind="extend", offset=1, lock=name, limit=None)
        await use.perform(extend, lambda: held.extend(timeout, replace_ttl=True))
    release = use.operation(kind="release", offset=2, lock=name, limit=None)
    release.facts["token"] = acquire.facts["token"]
    await use.perform(release, held.release)
