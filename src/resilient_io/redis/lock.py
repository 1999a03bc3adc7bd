"""redis-py's lock, which checks its token when a reply was lost."""

from __future__ import annotations

import random
from typing import Any, Literal

from redis.asyncio.lock import Lock
from redis.exceptions import LockNotOwnedError, RedisError

from .errors import RedisOutcomeUnknown


class ResilientLock(Lock):
    """A lock that compares its token when it is unknown whether a request was applied.

    `acquire`, `release`, `reacquire` and `extend(replace_ttl=True)` find out. An ambiguous `extend`
    that adds time raises `RedisOutcomeUnknown` while the lock is still held: it may have been
    extended. So does `acquire` if the owner cannot be read. A lock that was taken then, or by a
    cancelled `acquire`, is freed by its timeout.
    """

    async def acquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """Acquire the lock, as redis-py does, with a token that cannot be guessed.

        Args:
            blocking: Whether to wait for the lock; None for the lock's setting.
            blocking_timeout: Maximum wait in seconds; None for the lock's setting.
            token: Another token, for example one that is compared elsewhere.
        """
        if token is None:
            # redis-py 8.1 `Lock.acquire` uses uuid1: the time and the machine's address.
            source: random.Random = getattr(self.redis, "_tokens", None) or random.SystemRandom()
            token = f"{source.getrandbits(128):032x}"
        return bool(await super().acquire(blocking, blocking_timeout, token))

    async def do_acquire(self, token: str | bytes) -> bool:
        """Make one attempt. Return whether the lock was acquired."""
        try:
            return await super().do_acquire(token)
        except RedisOutcomeUnknown as unknown:
            return await self._holds(token, unknown)

    async def do_release(self, expected_token: bytes) -> None:
        """Release the lock."""
        try:
            await super().do_release(expected_token)
        except RedisOutcomeUnknown as unknown:
            if await self._holds(expected_token, unknown):
                await super().do_release(expected_token)

    async def do_extend(self, additional_time: float, replace_ttl: bool) -> Literal[True]:
        """Extend the lock."""
        try:
            return await super().do_extend(additional_time, replace_ttl)
        except RedisOutcomeUnknown as unknown:
            await self._must_hold(unknown)
            if not replace_ttl:
                raise
            return await super().do_extend(additional_time, replace_ttl)

    async def do_reacquire(self) -> Literal[True]:
        """Reset the timeout of the lock."""
        try:
            return await super().do_reacquire()
        except RedisOutcomeUnknown as unknown:
            await self._must_hold(unknown)
            return await super().do_reacquire()

    async def _must_hold(self, unknown: RedisOutcomeUnknown) -> None:
        if not await self._holds(self.local.token, unknown):
            raise LockNotOwnedError("Cannot extend a lock that's no longer owned") from unknown

    async def _holds(self, token: str | bytes, unknown: RedisOutcomeUnknown) -> bool:
        client: Any = self.redis
        encode = client.connection_pool.get_encoder().encode
        try:
            stored = await client.get(self.name)
        except RedisError:
            raise unknown from None
        return stored is not None and encode(stored) == encode(token)
