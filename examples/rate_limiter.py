"""A rate limiter that stays honest when a reply is lost: `python examples/rate_limiter.py`.

A request counts in the window in which it came. The count is a set of request ids, not a number:
adding an id twice adds it once, so a lost reply can be repeated without counting a request twice.
While Redis is away the limiter lets requests pass, which is a choice: see `allows`.
"""

from __future__ import annotations

import asyncio
import os
import uuid

from resilient_io import (
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
    ResilientRedis,
    deadline,
)


class RateLimiter:
    """Allows so many requests of one caller in each window.

    Args:
        redis: Where the counts are.
        limit: Requests that are allowed in a window.
        window: Its seconds, at least 1.
    """

    def __init__(self, redis: ResilientRedis, *, limit: int, window: int) -> None:
        # The effect of SADD cannot repeat, so it may be sent again after a lost reply.
        self._redis = redis.with_policy(repeat="conditional")
        self._limit = limit
        self._window = window

    async def allows(self, caller: str, request_id: str | None = None) -> bool:
        """Count a request, and say whether it may go on.

        Args:
            caller: Who asks.
            request_id: The same for a request that its caller sends again; by default a new one.
        """
        request_id = request_id or uuid.uuid4().hex
        try:
            with deadline(0.2):  # a limiter must not be what makes a service slow
                seconds, _ = await self._redis.time()
                key = f"limit:{caller}:{seconds // self._window}"
                await self._redis.sadd(key, request_id)
                await self._redis.expire(key, 2 * self._window)
                return await self._redis.scard(key) <= self._limit
        except (DependencyUnavailable, OutcomeUnknown, Overloaded, TimeoutError):
            # Better to serve too much than to serve nobody. To protect something dear, return
            # False here. Either way the count stays right: this request is in it once or not.
            return True


async def main() -> None:
    """Send ten requests, of which five are allowed."""
    url = os.environ.get("REDIS_URL", "redis://localhost:6379")
    async with ResilientRedis.from_url(url) as redis:
        await redis.health.until_up(5)
        limiter = RateLimiter(redis, limit=5, window=60)
        caller = uuid.uuid4().hex
        for number in range(1, 11):
            print(number, "allowed" if await limiter.allows(caller) else "refused")


if __name__ == "__main__":
    asyncio.run(main())
