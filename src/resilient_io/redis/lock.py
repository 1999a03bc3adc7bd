"""redis-py's lock, whose holder learns of its loss and whose waiters are woken.

The key and the scripts are redis-py's, so other holders of the same lock may use plain redis-py.
`lock_keys` watches the keys.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, Literal, Self

from redis.asyncio.lock import Lock, logger
from redis.exceptions import LockError, LockNotOwnedError, RedisError

from resilient_io.deadlines import current_deadline, earlier
from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_number

from .errors import LockLost, RedisDeadlineExceeded, RedisOutcomeUnknown
from .lock_keys import GONE, WATCH_AFTER, Hold
from .scripts import note_all_or_nothing

if TYPE_CHECKING:
    import random
    from types import TracebackType

    from .lock_keys import LockKeys

_ACQUIRE_FENCED = """
local options = {'NX'}
if ARGV[2] ~= '' then
    options = {'NX', 'PX', ARGV[2]}
end
if redis.call('set', KEYS[1], ARGV[1], unpack(options)) then
    return redis.call('incr', KEYS[2])
end
return 0
"""
"""Sets the key as redis-py does, and counts the holders in a second key."""

_FENCED_HASH = hashlib.sha1(_ACQUIRE_FENCED.encode()).hexdigest()  # noqa: S324 (as Redis does)

for _script in (
    _ACQUIRE_FENCED,  # refused, if at all, at its first command
    Lock.LUA_RELEASE_SCRIPT,
    Lock.LUA_EXTEND_SCRIPT,
    Lock.LUA_REACQUIRE_SCRIPT,
):
    note_all_or_nothing(_script)

_SLOW = 0.1
"""Fraction of the timeout. After a slower `acquire`, the server is asked when the key expires."""

_GIVE_UP_EARLY = 0.1
"""Fraction of `sleep` by which a wait ends before `blocking_timeout`, as redis-py's does."""


class ResilientLock(Lock):
    """A lock that notifies its holder when it is lost, and compares its token when in doubt.

    `acquire`, `release`, `reacquire` and `extend(replace_ttl=True)` find out whether a request was
    applied whose reply was lost. An ambiguous `extend` that adds time raises `RedisOutcomeUnknown`
    while the lock is still held: it may have been extended. So does `acquire` if the owner cannot
    be read. What a cancelled or ambiguous `acquire` may have taken is released in the background.

    In `async with`, the body is cancelled when the lock is lost, and the block raises `LockLost`.
    Outside, await `lost`. Both also happen when the client is closed. A waiting `acquire` is woken
    when the key is deleted or expires.

    Args:
        redis: The client, a `ResilientRedis` or a `ResilientRedisCluster`.
        name: The name of the key.
        timeout: Seconds after which the server releases the lock; None for never.
        sleep: Seconds between attempts where the server does not report that the key has changed
            (before Redis 6, with RESP2, without permission for `CLIENT TRACKING`). Each pause is
            50 to 100 % of it.
        blocking: Whether `acquire` waits for the lock.
        blocking_timeout: Maximum wait in seconds; None for no limit.
        thread_local: Whether the token belongs to the thread that acquired the lock.
        raise_on_release_error: Whether `async with` raises if the lock was no longer held at its
            end. If False, it logs a warning.
        renew: Renew the lock after each third of its timeout, until it is released. If no renewal
            succeeds within the timeout, the lock is lost.
        fencing: Count the holders, for `fencing_token`.
        cancel_on_loss: Whether losing the lock cancels the body of `async with`.

    Raises:
        ConfigurationError: `renew=True` without a timeout.
        TypeError: `redis` is another client.
    """

    def __init__(  # noqa: PLR0917 (redis-py's signature)
        self,
        redis: Any,
        name: str | bytes | memoryview,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        thread_local: bool = True,
        raise_on_release_error: bool = True,
        *,
        renew: bool = False,
        fencing: bool = False,
        cancel_on_loss: bool = True,
    ) -> None:
        if not hasattr(redis, "_runtime"):
            raise TypeError(
                f"ResilientLock needs a ResilientRedis or ResilientRedisCluster, not "
                f"{type(redis).__name__}: use ResilientRedis(...).lock(...)"
            )
        check_number("sleep", sleep)
        if timeout is not None:
            check_number("timeout", timeout)
        if not isinstance(blocking_timeout, int | float | None):  # a negative one tries once
            check_number("blocking_timeout", blocking_timeout)
        if renew and not timeout:
            raise ConfigurationError(
                "renew=True needs a timeout, which is how long the lock outlives a crash of its "
                "holder: use lock(name, timeout=30, renew=True)"
            )
        if redis._policy.repeat in ("conditional", "any"):
            # The second reply of a repeated request would say that another caller holds the lock.
            redis = redis.with_policy(repeat="idempotent")
        super().__init__(
            redis,
            name,
            timeout=timeout,
            sleep=sleep,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            thread_local=thread_local,
            raise_on_release_error=raise_on_release_error,
        )
        self.renew = renew
        self.fencing = fencing
        self.cancel_on_loss = cancel_on_loss
        self._encode = redis.get_encoder().encode
        self._key: bytes = self._encode(name)
        self._scopes: list[_Scope] = []
        # redis-py 8.1 `Lock.register_scripts` registers them with the first client only.
        scripts = redis._runtime.scripts
        for script in (self.lua_release, self.lua_extend, self.lua_reacquire):
            scripts.remember(script.script)  # type: ignore[attr-defined]
        if fencing:
            scripts.remember(_ACQUIRE_FENCED)

    # -- what the holder learns ------------------------------------------------------------

    @property
    def lost(self) -> asyncio.Future[LockLost]:
        """A future that ends, with a `LockLost` as its result, when the lock is lost.

        It does not end when the lock is released. Each access returns a new future.

        Raises:
            redis.exceptions.LockError: The lock is not held.
        """
        hold = self._hold
        if hold is None:
            raise LockError("The lock is not held", lock_name=self._text)
        self._locks.watch(hold)
        return hold.lost

    @property
    def fencing_token(self) -> int:
        """The number of this holder, which is greater than that of each earlier one.

        Pass it along with every write to the protected resource, which rejects a lower number than
        the highest it has seen. It is counted in a second key without an expiry, whose name is
        `{name}:fencing`. All holders must use `fencing=True`. After a failover that lost
        acknowledged writes, a number may be repeated.

        Raises:
            redis.exceptions.LockError: The lock is not held, or was made without `fencing=True`.
        """
        hold = self._hold
        if hold is None or not self.fencing:
            why = "The lock is not held" if self.fencing else "The lock needs fencing=True"
            raise LockError(why, lock_name=self._text)
        return hold.fencing_token

    # -- acquiring -------------------------------------------------------------------------

    async def acquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """Acquire the lock, as redis-py does, with a token that cannot be guessed.

        The waiting callers of one client are woken in the order of their calls. Cancelling returns
        immediately; what the call may have taken is released in the background.

        Args:
            blocking: Whether to wait for the lock; None for the lock's setting.
            blocking_timeout: Maximum wait in seconds; None for the lock's setting.
            token: Another token, for example one that is compared elsewhere.

        Raises:
            DeadlineExceeded: A `with deadline(...)` around the call has expired.
        """
        return await self._acquire(blocking, blocking_timeout, token) is not None

    async def _acquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> Hold | None:
        if token is None:
            # redis-py 8.1 `Lock.acquire` uses uuid1: the time and the machine's address.
            source: random.Random = self.redis._rng  # type: ignore[union-attr]
            token = f"{source.getrandbits(128):032x}"
        secret: bytes = self._encode(token)
        blocking = self.blocking if blocking is None else blocking
        if blocking_timeout is None:
            blocking_timeout = self.blocking_timeout
        time = asyncio.get_running_loop().time
        started = time()
        until = None
        if blocking_timeout is not None:
            early = _GIVE_UP_EARLY * min(self.sleep, blocking_timeout)
            until = started + blocking_timeout - early
        waiter = None
        try:
            while True:
                began = time()
                fencing_token = await self._attempt(secret)
                if fencing_token:
                    return self._begin(secret, began, int(fencing_token))
                if not blocking or (until is not None and time() >= until):
                    return None
                limit = current_deadline()
                if limit is not None and time() >= limit:
                    raise self._deadline_exceeded(time() - started)
                if waiter is None:
                    waiter = self._locks.wait_for(self._key, self.sleep)
                await waiter.wait(earlier(until, limit))
        finally:
            if waiter is not None:
                waiter.leave()

    def _deadline_exceeded(self, elapsed: float) -> RedisDeadlineExceeded:
        client: Any = self.redis
        return RedisDeadlineExceeded(
            f"the deadline passed while the call waited for the lock {self._text!r}",
            dependency=client.health.name,
            operation="lock",
            elapsed=elapsed,
        )

    async def _attempt(self, token: bytes) -> int:
        client: Any = self.redis
        if client._is_closed:
            await client._ensure_open("lock")
        locks, attempt = self._locks, (self._key, token)
        locks.attempts[attempt] = None
        settled = False
        try:
            acquired = await self.do_acquire(token)
            settled = True
        except RedisOutcomeUnknown:
            raise
        except (RedisError, OSError):
            settled = True  # nothing was applied
            raise
        finally:
            locks.attempts.pop(attempt, None)
            if not settled:
                locks.release_later(*attempt)
        if acquired:
            executor = client._runtime.executor
            if executor.closed:  # a closing client releases the lock
                raise executor.closed_error("lock")
        return acquired

    async def do_acquire(self, token: str | bytes) -> int:  # type: ignore[override]
        """Make one attempt. Return the number of the holder, or True, or 0 without success."""
        milliseconds = int(self.timeout * 1000) if self.timeout else None
        client: Any = self.redis
        try:
            if self.fencing:
                keys = (self.name, self._fencing_key)
                expiry = "" if milliseconds is None else milliseconds
                return int(await client.evalsha(_FENCED_HASH, 2, *keys, token, expiry))
            options = () if milliseconds is None else ("PX", milliseconds)
            reply = await client.execute_command("SET", self.name, token, "NX", *options)
        except RedisOutcomeUnknown as unknown:
            return await self._number(token, unknown)
        return bool(reply)

    def _begin(self, token: bytes, began: float, fencing_token: int) -> Hold:
        expires = None
        if self.timeout:
            now = asyncio.get_running_loop().time()
            slow = now - began > _SLOW * self.timeout
            expires = (now if slow else began) + self.timeout
        hold = Hold(self._text, self._key, token, expires=expires, fencing_token=fencing_token)
        self.local.token, self.local.hold = token, hold
        if self.renew and self.timeout:
            self._locks.renew(hold, self.timeout, self._renewal(token, self.timeout))
        return hold

    # -- releasing and renewing ------------------------------------------------------------

    async def release(self) -> None:
        """Release the lock.

        After a cancellation, it is released in the background.

        Raises:
            redis.exceptions.LockNotOwnedError: The lock was lost.
            redis.exceptions.LockError: The lock is not held.
        """
        token = self.local.token
        if token is None:
            raise LockError(
                "Cannot release a lock that's not owned or is already unlocked.",
                lock_name=self._text,
            )
        await self._release(token, self._hold)

    async def _release(self, token: bytes, hold: Hold | None) -> None:
        if hold is not None:
            hold.end()
            if hold.releasing is not None:
                await asyncio.wait([hold.releasing])
                self._forget(token)
                return
        done = False
        try:
            await self.do_release(token)
            done = True
        except LockNotOwnedError:
            done = True
            raise
        except (RedisError, OSError):
            raise  # the token is kept, so that the caller can release again
        except asyncio.CancelledError:
            releasing = self._locks.release_later(self._key, token)
            if hold is not None:
                hold.releasing = releasing
            raise
        finally:
            if done:
                self._forget(token)

    def _forget(self, token: bytes) -> None:
        if self.local.token == token:
            self.local.token = self.local.hold = None

    async def do_release(self, expected_token: bytes) -> None:
        """Release the lock."""
        hold = self._hold
        try:
            await super().do_release(expected_token)
        except RedisOutcomeUnknown as unknown:
            if await self._holds(expected_token, unknown):
                await super().do_release(expected_token)
            elif hold is not None and hold.error is not None and not hold.uncertain:
                # It was lost before the request, which therefore has not released it.
                raise LockNotOwnedError(str(hold.error), lock_name=self._text) from unknown

    async def do_extend(self, additional_time: float, replace_ttl: bool) -> Literal[True]:
        """Extend the lock."""
        hold, began = self._hold, asyncio.get_running_loop().time()
        try:
            extended = await self._do_extend(additional_time, replace_ttl)
        except LockNotOwnedError:
            _note_loss(hold)
            raise
        if hold is not None and hold.expires is not None:
            hold.expire_at((began if replace_ttl else hold.expires) + additional_time)
        return extended

    async def _do_extend(self, additional_time: float, replace_ttl: bool) -> Literal[True]:
        try:
            return await super().do_extend(additional_time, replace_ttl)
        except RedisOutcomeUnknown as unknown:
            await self._must_hold(unknown)
            if not replace_ttl:
                raise
            return await super().do_extend(additional_time, replace_ttl)

    async def do_reacquire(self) -> Literal[True]:
        """Reset the timeout of the lock."""
        hold, began = self._hold, asyncio.get_running_loop().time()
        try:
            reacquired = await self._do_reacquire()
        except LockNotOwnedError:
            _note_loss(hold)
            raise
        if hold is not None and self.timeout:
            hold.expire_at(began + self.timeout)
        return reacquired

    async def _do_reacquire(self) -> Literal[True]:
        try:
            return await super().do_reacquire()
        except RedisOutcomeUnknown as unknown:
            await self._must_hold(unknown)
            return await super().do_reacquire()

    def _renewal(self, token: bytes, timeout: float) -> Any:
        """Return a function that resets the timeout of the key if it still has this token."""

        async def renew(within: float) -> bool:
            # Repeating it is harmless: it compares the token, and the last execution counts.
            client: Any = self.redis
            patient = client.with_policy(repeat="any", while_down="wait", deadline=within)
            milliseconds = int(timeout * 1000)
            script: Any = self.lua_reacquire
            reply = await script(keys=[self.name], args=[token, milliseconds], client=patient)
            return bool(reply)

        return renew

    # -- async with ------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Acquire the lock. Its loss cancels the body, unless `cancel_on_loss=False`.

        Raises:
            redis.exceptions.LockError: It was not acquired within `blocking_timeout`.
        """
        hold = await self._acquire()
        if hold is None:
            raise LockError("Unable to acquire lock within the time specified", self._text)
        scope = _Scope(hold)
        self._scopes.append(scope)
        hold.task = scope.task
        if self.cancel_on_loss:
            hold.on_loss = scope.cancel
        after = WATCH_AFTER if self.timeout is None else min(WATCH_AFTER, self.timeout / 4)
        self._locks.watch(hold, after=after)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the lock. If that is not possible now, it is tried again in the background.

        An exception of the body is raised in any case.

        Raises:
            LockLost: The lock was lost during the block.
        """
        scope = self._leave()
        hold = scope.hold
        cancelled = scope.leave(exc_type)
        if hold.error is not None and (hold.left is not None or not hold.uncertain):
            if hold.left is not None:
                self._locks.release_later(self._key, hold.token)
                hold.left.set_result(None)
            self._forget(hold.token)
            if cancelled or (exc_type is None and self.raise_on_release_error):
                raise hold.error from None
            if exc_type is None:
                logger.warning("%s", hold.error)
            return
        try:
            await self._release(hold.token, hold)
        except LockNotOwnedError:
            if exc_type is None and self.raise_on_release_error:
                raise LockLost(GONE, lock_name=self._text) from None
            logger.warning("Lock was unlocked or no longer owned when exiting context manager.")
        except (RedisError, OSError):
            self._locks.release_later(self._key, hold.token)
            self._forget(hold.token)
            if exc_type is None:
                raise

    def _leave(self) -> _Scope:
        """Return the scope of this task. Several tasks may use one lock object."""
        task = asyncio.current_task()
        scope = next((each for each in self._scopes if each.task is task), self._scopes[-1])
        self._scopes.remove(scope)
        return scope

    # -- internal --------------------------------------------------------------------------

    @property
    def _locks(self) -> LockKeys:
        client: Any = self.redis
        locks: LockKeys = client._runtime.locks  # another one after the client was reopened
        return locks

    @property
    def _hold(self) -> Hold | None:
        hold: Hold | None = getattr(self.local, "hold", None)
        return hold if hold is not None and hold.token == self.local.token else None

    @property
    def _text(self) -> str:
        return self._key.decode("utf-8", "backslashreplace")

    @property
    def _fencing_key(self) -> bytes:
        # In a cluster, both keys must have the same hash slot.
        name = self._key if b"{" in self._key else b"{%b}" % self._key
        return name + b":fencing"

    async def _must_hold(self, unknown: RedisOutcomeUnknown) -> None:
        if not await self._holds(self.local.token, unknown):
            raise LockNotOwnedError("Cannot extend a lock that's no longer owned") from unknown

    async def _holds(self, token: str | bytes, unknown: RedisOutcomeUnknown) -> bool:
        return bool(await self._number(token, unknown))

    async def _number(self, token: str | bytes, unknown: RedisOutcomeUnknown) -> int:
        """Return the number of the holder with this token, or True, or 0 if it does not hold it.

        Only an acquisition increases the number, so it belongs to the current holder.
        """
        client: Any = self.redis
        keys = (self.name, self._fencing_key) if self.fencing else (self.name,)
        try:
            stored, *number = await client.mget(keys)
        except RedisError:
            raise unknown from None
        if stored is None or self._encode(stored) != self._encode(token):
            return False
        return int(number[0]) if number else True


class _Scope:
    """An `async with` block, whose task is cancelled when the lock is lost."""

    def __init__(self, hold: Hold) -> None:
        self.hold = hold
        self.task = asyncio.current_task()
        self._cancelling = 0 if self.task is None else self.task.cancelling()
        self._cancelled = self._left = False

    def cancel(self) -> bool:
        """Cancel the body, unless the body itself has found out. Return whether it is cancelled."""
        task = self.task
        if self._left or task is None or task is asyncio.current_task():
            return False
        self._cancelled = True
        task.cancel("the lock was lost")
        return True

    def leave(self, kind: type[BaseException] | None) -> bool:
        """End the block. Return whether its exception is the cancellation because of the loss."""
        self._left = True
        if not self._cancelled or self.task is None:
            return False
        # As `asyncio.Timeout`: a cancellation from outside goes first.
        outside = self.task.uncancel() > self._cancelling
        return kind is asyncio.CancelledError and not outside


def _note_loss(hold: Hold | None) -> None:
    if hold is not None:
        hold.lose(GONE)
