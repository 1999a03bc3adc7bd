"""A rate limiter that counts correctly when a reply is lost: `python examples/rate_limiter.py`.

Requests are counted per time window. The counter is a set of request IDs, not a number: an ID
that is added twice is in the set once, so that a command can be repeated after a lost reply
without counting a request twice. While Redis is unavailable, the limiter allows all requests;
`allows` shows how to change that.
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
    """Allows a number of requests per caller and time window.

    Args:
        redis: The client for the Redis that stores the counters.
        limit: Requests allowed per window.
        window: Length of the window in seconds, at least 1.
    """

    def __init__(self, redis: ResilientRedis, *, limit: int, window: int) -> None:
        # A second SADD has no effect, so that it may be repeated after a lost reply.
        self._redis = redis.with_policy(repeat="conditional")
        self._limit = limit
        self._window = window

    async def allows(self, caller: str, request_id: str | None = None) -> bool:
        """Count a request, and return whether it is allowed.

        Args:
            caller: The caller's ID.
            request_id: ID of the request, the same if the caller repeats it; by default a new one.
        """
        request_id = request_id or uuid.uuid4().hex
        try:
            with deadline(0.2):  # the limiter must not slow the service down
                seconds, _ = await self._redis.time()
                key = f"limit:{caller}:{seconds // self._window}"
                await self._redis.sadd(key, request_id)
                await self._redis.expire(key, 2 * self._window)
                return await self._redis.scard(key) <= self._limit
        except (DependencyUnavailable, OutcomeUnknown, Overloaded, TimeoutError):
            # Without Redis, allow the request. Return False instead to protect an expensive
            # resource. In both cases the count is correct: it has the request once or not at all.
            return True


async def main() -> None:
    """Make ten requests, of which five are allowed."""
    url = os.environ.get("REDIS_URL", "redis://localhost:6379")
    async with ResilientRedis.from_url(url) as redis:
        await redis.health.until_up(5)
        limiter = RateLimiter(redis, limit=5, window=60)
        caller = uuid.uuid4().hex
        for number in range(1, 11):
            print(number, "allowed" if await limiter.allows(caller) else "rejected")


if __name__ == "__main__":
    asyncio.run(main())
