"""redis-py's lock, asking for the truth where an answer was lost."""

from __future__ import annotations

from typing import Any, Literal

from redis.asyncio.lock import Lock
from redis.exceptions import LockNotOwnedError, RedisError

from .errors import RedisOutcomeUnknown


class ResilientLock(Lock):
    """A lock that compares its token when it cannot know whether a request was applied.

    Acquiring, releasing and `reacquire` (and `extend` with `replace_ttl=True`) find out. An
    ambiguous `extend` that adds time raises `RedisOutcomeUnknown` while the lock is still ours: it
    may have been extended. Cancelling `acquire` may leave the lock taken until its timeout.
    """

    async def do_acquire(self, token: str | bytes) -> bool:
        """Try once; True if the lock is ours.

        Raises:
            RedisOutcomeUnknown: Neither the answer nor the truth could be had. If it was taken,
                its timeout frees it.
        """
        try:
            return await super().do_acquire(token)
        except RedisOutcomeUnknown as unknown:
            return await self._holds(token, unknown)

    async def do_release(self, expected_token: bytes) -> None:
        """Release it.

        Raises:
            LockNotOwnedError: It is somebody else's by now.
        """
        try:
            await super().do_release(expected_token)
        except RedisOutcomeUnknown as unknown:
            if await self._holds(expected_token, unknown):
                await super().do_release(expected_token)

    async def do_extend(self, additional_time: float, replace_ttl: bool) -> Literal[True]:
        """Extend it."""
        try:
            return await super().do_extend(additional_time, replace_ttl)
        except RedisOutcomeUnknown as unknown:
            await self._must_hold(unknown)
            if not replace_ttl:
                raise
            return await super().do_extend(additional_time, replace_ttl)

    async def do_reacquire(self) -> Literal[True]:
        """Set its time anew."""
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
