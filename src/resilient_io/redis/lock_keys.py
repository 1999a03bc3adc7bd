"""The keys of locks: the client watches them, renews them, and releases them in the background.

Redis reports a change of a key that a connection has read (`CLIENT TRACKING`, since Redis 6), also
when another client deleted it or when it expired. So one mechanism tells a holder that its lock is
lost and a waiter that the lock is free, whatever library the other side uses. The report arrives
on the connection that carries the calls, in order with their replies. Where the server does not
report changes, holders ask once a second, and waiters try again after a random pause.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import hiredis
from redis.exceptions import AskError, RedisError, ResponseError

from resilient_io.deadlines import context_without_deadline
from resilient_io.retry import Backoff

from .connection import ConnectionLost
from .errors import LockLost, refusal

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from .connection import MultiplexedConnection
    from .multiplexer import Multiplexer
    from .pool import ExclusivePool

_log = logging.getLogger("resilient_io.redis")

_pack = cast("Callable[[Any], bytes]", hiredis.pack_command)

RELEASE = """
if redis.call('get', KEYS[1]) == ARGV[1] then
    return redis.call('del', KEYS[1])
end
return 0
"""

_TRACK = _pack(("CLIENT", "TRACKING", "ON", "OPTIN")) + _pack(("CLIENT", "CACHING", "YES"))
"""Makes the server report the next change of the key that the following command reads."""

UNDETERMINED = "its state cannot be determined: the server has not answered, and may be replaced"

_UNDETERMINED_AFTER = 10.0
"""Seconds without an answer after which a lock without a timeout counts as lost, if another server
may have taken over: it may not have the lock."""

_CLOSED = "its state cannot be determined: the client was closed"

GONE = "its key was deleted or overwritten, or has expired"

WATCH_AFTER = 0.02
"""Seconds after which a held lock is watched. A lock that is held for less costs no request."""

_ASK_INTERVAL = 1.0  # seconds between questions where the server does not report changes
_CONFIRM_INTERVAL = 5.0  # seconds between questions where it does, in case that a report is lost
_EXPIRY_MARGIN = 0.002  # seconds after its expiry at which a key is certainly gone

_RELEASE_TIMEOUT = 30.0  # seconds to release a lock in the background
_RELEASE_AT_CLOSE = 1.0  # the same, when the client is closed meanwhile
_LEAST_RELEASE = 0.1  # of these, if the blocks of the locks have taken all of them
_PRUNED_ABOVE = 64  # locks to be watched, above which those that were released are forgotten
_MOST_RELEASES = 10_000  # locks that may wait for their release
_UNORDERED_DELAY = 0.2  # seconds after which an abandoned exclusive connection has applied its SET


class Hold:
    """One period during which a lock is held, from its acquisition to its release or loss."""

    def __init__(
        self, name: object, key: bytes, token: bytes, *, expires: float | None, fencing_token: int
    ) -> None:
        self.key = key
        self.token = token
        self.expires = expires
        """Loop time until which the server certainly keeps the key; None for no limit."""
        self.fencing_token = fencing_token
        self.error: LockLost | None = None
        self.ended = False
        self.uncertain = False
        """Whether the lock may still be held although it counts as lost."""
        self.task: asyncio.Task[Any] | None = None
        """The task of the `async with` block, which a loss cancels unless that is not wanted."""
        self.on_loss: Callable[[], bool] | None = None
        """Cancels the block. It returns whether that was possible."""
        self.left: asyncio.Future[None] | None = None
        """The end of the block, if it was cancelled because the client is being closed."""
        self.releasing: asyncio.Future[None] | None = None
        """The release in the background that a cancelled `release` left, if any."""
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self.renewal: asyncio.Task[None] | None = None
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._futures: list[weakref.ref[asyncio.Future[LockLost]]] = []

    @property
    def lost(self) -> asyncio.Future[LockLost]:
        """A new future, which the loss of the lock completes."""
        future: asyncio.Future[LockLost] = self._loop.create_future()
        if self.error is not None:
            future.set_result(self.error)
        self._futures = [known for known in self._futures if known() is not None]
        self._futures.append(weakref.ref(future))
        return future

    def lose(self, reason: str, *, uncertain: bool = False) -> None:
        """Notify the holder that it no longer holds the lock, or may not. Idempotent."""
        if self.ended:
            return
        self.end()
        self.uncertain = uncertain
        self.error = LockLost(reason, lock_name=self._name)
        for reference in self._futures:
            future = reference()
            if future is not None and not future.done():
                future.set_result(self.error)
        if self.on_loss is not None and self.on_loss() and self.uncertain:
            self.left = self._loop.create_future()

    def end(self) -> None:
        """Stop watching and renewing it."""
        self.ended = True
        for timer in self.timers.values():
            timer.cancel()
        if self.renewal is not None:
            self.renewal.cancel()

    def expire_at(self, expires: float | None) -> None:
        """Note until when the server keeps the key, which may be earlier than was known."""
        self.expires = expires
        timer = self.timers.pop("expiry", None)
        if timer is not None:
            timer.cancel()
            self.check_expiry()

    def check_expiry(self) -> None:
        """Lose the lock at the time at which the server may remove its key."""
        if self.ended or self.expires is None:
            return
        if self._loop.time() >= self.expires:
            self.lose("its timeout has passed")
        else:
            self.timers["expiry"] = self._loop.call_at(self.expires, self.check_expiry)


class Waiter:
    """A caller that waits until a lock may be free. It keeps its place while it tries."""

    def __init__(self, keys: LockKeys, key: WatchedKey, sleep: float) -> None:
        self.sleep = sleep
        self._keys = keys
        self._key = key
        self._woken = False
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Make the caller try now, or once more if it is trying."""
        self._woken = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, until: float | None) -> None:
        """Wait until the caller should try again, at most until a loop time."""
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        timer = None if until is None else loop.call_at(until, self.wake)
        try:
            self._keys.look(self._key)
            if not self._woken:
                await self._future
        finally:
            self._woken, self._future = False, None
            if timer is not None:
                timer.cancel()

    def leave(self) -> None:
        """Leave the queue, so that the next caller has its turn."""
        self._key.waiters.remove(self)
        self._keys.look(self._key)


class WatchedKey:
    """A key that holders or waiters of this client watch."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.holds: list[Hold] = []
        self.waiters: deque[Waiter] = deque()
        self.connection: MultiplexedConnection | None = None
        """The connection over which the server reports the next change, or None."""
        self.asking = False
        self.confirmed = asyncio.get_running_loop().time()
        """Loop time at which the server last said who holds it."""
        self.timer: asyncio.TimerHandle | None = None

    @property
    def used(self) -> bool:
        """Whether any caller is interested in it."""
        self.holds = [hold for hold in self.holds if not hold.ended]
        return bool(self.holds or self.waiters)

    def wake_next(self) -> None:
        """Wake the caller that has waited longest: only one can get the lock."""
        if self.waiters:
            self.waiters[0].wake()

    def stop_timer(self) -> None:
        """Stop the timer of the next question."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class LockServer(NamedTuple):
    """The connections to the server of a lock's key."""

    multiplexer: Multiplexer
    pool: ExclusivePool


class LockKeys:
    """The keys of all locks that a client and its views hold, wait for or still have to release.

    Args:
        server_of: Returns the server that has a key, or None if none is known at present. In a
            cluster, it changes.
        moved: Called when that server says that it does not have the key.
        rng: Source of jitter.
    """

    def __init__(
        self,
        *,
        server_of: Callable[[bytes], LockServer | None],
        moved: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self._server_of = server_of
        self._moved = moved
        self._rng = rng
        self._keys: dict[bytes, WatchedKey] = {}
        self._watched_soon: dict[Hold, None] = {}
        self._pruned_above = _PRUNED_ABOVE
        self._leaving: list[asyncio.Future[None]] = []
        """The ends of the blocks that were cancelled because the client is being closed."""
        self._reporting: MutableMapping[MultiplexedConnection, bool] | None = None
        """Whether the server reports changes over a connection; None before the first lock."""
        self._renewals: list[asyncio.Task[None]] = []
        self._releases: dict[tuple[bytes, bytes], _Release] = {}
        self._releaser: asyncio.Task[None] | None = None
        self.attempts: dict[tuple[bytes, bytes], None] = {}
        """The key and token of each attempt to acquire a lock that has no result yet."""
        self._closed = self._ended = False

    @property
    def releasing(self) -> bool:
        """Whether locks are being released in the background."""
        return bool(self._releases)

    # -- waiting and holding ---------------------------------------------------------------

    def wait_for(self, name: bytes, sleep: float) -> Waiter:
        """Return a place in the queue of this client's callers that wait for a lock."""
        key = self._key(name)
        waiter = Waiter(self, key, sleep)
        key.waiters.append(waiter)
        return waiter

    def watch(self, hold: Hold, *, after: float = 0.0) -> None:
        """Notify the holder of a loss, from `after` seconds on. A loss before that counts, too."""
        if hold.ended or self._closed:
            return
        if after > 0:
            loop = asyncio.get_running_loop()
            hold.timers["watch"] = loop.call_later(after, self.watch, hold)
            soon = self._watched_soon
            soon[hold] = None
            if len(soon) > self._pruned_above:
                self._watched_soon = soon = {each: None for each in soon if not each.ended}
                self._pruned_above = max(2 * len(soon), _PRUNED_ABOVE)
            return
        self._watched_soon.pop(hold, None)
        key = self._key(hold.key)
        if hold not in key.holds:
            key.holds.append(hold)
            key.confirmed = asyncio.get_running_loop().time()
            hold.check_expiry()
            key.connection = None  # what it reports is about the time before
            self.look(key)

    def renew(self, hold: Hold, timeout: float, renew: Callable[[float], Awaitable[bool]]) -> None:
        """Renew a lock after each third of its timeout, until it is released or lost.

        `renew` gets the seconds within which it must succeed, and returns whether the lock was
        still held.
        """
        loop = asyncio.get_running_loop()

        def start() -> None:
            if hold.ended or self._closed:
                return
            hold.renewal = task = loop.create_task(
                _keep_renewed(hold, timeout, renew),
                name="resilient-io redis renew lock",
                context=context_without_deadline(),
            )
            self._renewals.append(task)
            task.add_done_callback(self._renewals.remove)

        hold.timers["renew"] = loop.call_later(timeout / 3, start)

    # -- asking the server, and hearing from it --------------------------------------------

    def look(self, key: WatchedKey) -> None:
        """Ask for a key unless the server reports its next change. Forget it if it is not used."""
        if not key.used:
            key.stop_timer()
            if self._keys.get(key.name) is key and not key.asking:
                del self._keys[key.name]
            return
        if key.asking or key.connection is not None or self._closed:
            return
        server = self._server_of(key.name)
        connection = None if server is None else server.multiplexer.current
        unusable = server is None or server.multiplexer.bound
        if connection is None or connection.lost is not None or unusable:
            self._check_confirmed(key)
            self._ask_later(key)
            return
        tracked = self._listen(connection) and _is_decodable(key.name, connection)
        if not tracked and not key.holds:
            self._ask_later(key)  # a waiter learns more by trying
            return
        key.asking = True
        data = _TRACK if tracked else b""
        for word in (b"GET", b"PTTL"):
            data += _pack((word, key.name))
        first = 2 if tracked else 0
        sent = asyncio.get_running_loop().time()
        reply = connection.ask(data, count=first + 2, raw=frozenset({first}))
        reply.add_done_callback(partial(self._answered, key, connection, sent))

    def _answered(
        self,
        key: WatchedKey,
        connection: MultiplexedConnection,
        sent: float,
        answered: asyncio.Future[Any],
    ) -> None:
        key.asking = False
        reply = answered.result()
        if isinstance(reply, ConnectionLost):
            self.look(key)
            return
        *tracking, value, remaining = reply
        if isinstance(remaining, Exception):
            if isinstance(remaining, AskError):
                self._moved()
            self._ask_later(key)  # LOADING, for example: nothing is known
            return
        if any(isinstance(each, Exception) for each in tracking):
            self._set_reporting(connection, reporting=False)  # an old server, a proxy, or an ACL
        elif tracking and not (connection.lost or connection.retired):
            key.connection = connection
        key.confirmed = sent
        expires = sent + remaining / 1000 if remaining >= 0 else None
        for hold in list(key.holds):
            if value != hold.token:
                hold.lose(GONE)
            elif remaining != _NO_KEY:
                hold.expire_at(expires)
        if value is None:
            key.wake_next()
        self._ask_later(key, expires)

    def _check_confirmed(self, key: WatchedKey) -> None:
        """Lose the locks without a timeout whose state has been unknown for too long."""
        unknown = asyncio.get_running_loop().time() - key.confirmed
        server = self._server_of(key.name)
        replaced = server is None or server.multiplexer.target.master is not None
        if not replaced or unknown < _UNDETERMINED_AFTER:
            return
        for hold in list(key.holds):
            if hold.expires is None:
                hold.lose(UNDETERMINED)

    def _ask_later(self, key: WatchedKey, expires: float | None = None) -> None:
        """Ask, or let a waiter try, after a pause, and at the latest when the key expires."""
        key.stop_timer()
        if not key.used or self._closed:
            self.look(key)
            return
        if key.connection is not None:
            pause = _CONFIRM_INTERVAL
        elif key.waiters:
            pause = key.waiters[0].sleep * self._rng.uniform(0.5, 1.0)
        else:
            pause = _ASK_INTERVAL
        loop = asyncio.get_running_loop()
        at = loop.time() + pause
        if expires is not None and key.waiters:
            at = min(at, expires + _EXPIRY_MARGIN)
        key.timer = loop.call_at(max(at, loop.time()), self._time_passed, key)

    def _time_passed(self, key: WatchedKey) -> None:
        key.stop_timer()
        key.connection = None
        key.wake_next()
        if key.holds:
            self.look(key)
        elif key.timer is None and not key.asking:
            self._ask_later(key)

    def _set_reporting(self, connection: MultiplexedConnection, *, reporting: bool) -> None:
        if self._reporting is None:
            self._reporting = weakref.WeakKeyDictionary()
        self._reporting[connection] = reporting

    def _listen(self, connection: MultiplexedConnection) -> bool:
        """Return whether the server reports changes over a connection, as far as is known."""
        if self._reporting is not None and connection in self._reporting:
            return self._reporting[connection]
        reporting = str(connection.protocol) == "3"
        self._set_reporting(connection, reporting=reporting)
        loop = asyncio.get_running_loop()
        # Later, in order with the replies, whose callbacks the loop calls later, too.
        connection.listen(lambda push: loop.call_soon(self._pushed, push))
        for end in (connection.closed, connection.retirement):
            end.add_done_callback(lambda _: self._connection_ended(connection))
        return reporting

    def _pushed(self, push: list[Any]) -> None:
        kind, *rest = push
        if kind not in (b"invalidate", "invalidate") or self._closed:
            return
        names = rest[0] if rest and rest[0] is not None else list(self._keys)  # None: FLUSHALL
        for name in names:
            key = self._keys.get(name.encode() if isinstance(name, str) else bytes(name))
            if key is not None:
                self._changed(key)

    def _changed(self, key: WatchedKey) -> None:
        """React to a report: most often, the lock was released.

        The waiter asks again if it does not get the lock. A question before would only make the
        server report the waiter's own acquisition.
        """
        key.connection = None
        key.wake_next()
        if any(not hold.ended for hold in key.holds) or not key.waiters:
            self.look(key)

    def _connection_ended(self, connection: MultiplexedConnection) -> None:
        for key in list(self._keys.values()):
            if key.connection is connection:
                key.connection = None
                for waiter in key.waiters:  # each gets the error that a call gets now
                    waiter.wake()
                self.look(key)

    def server_changed(self) -> None:
        """Ask for the keys again that another server has by now."""
        for key in list(self._keys.values()):
            server, connection = self._server_of(key.name), key.connection
            if server is None or connection is None or connection.owner is not server.multiplexer:
                key.connection = None
                self.look(key)

    def _key(self, name: bytes) -> WatchedKey:
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = WatchedKey(name)
        return key

    # -- releasing in the background -------------------------------------------------------

    def release_later(self, name: bytes, token: bytes) -> asyncio.Future[None]:
        """Release a lock in the background, if it is held with this token.

        Return a future that ends when this is done, or was given up.
        """
        loop = asyncio.get_running_loop()
        release = self._releases.get((name, token))
        if release is not None:
            return release.done
        release = _Release(name, token, loop.time(), loop.create_future())
        if self._ended or len(self._releases) >= _MOST_RELEASES:
            release.give_up("too many locks wait for that, or the client is closed")
            return release.done
        self._releases[name, token] = release
        if self._releaser is None or self._releaser.done():
            self._releaser = loop.create_task(
                self._release_all(),
                name="resilient-io redis release locks",
                context=context_without_deadline(),
            )
        return release.done

    async def _release_all(self) -> None:
        backoff = Backoff(0.02, 1.0, self._rng, floor=0.005)
        loop = asyncio.get_running_loop()
        while self._releases:
            pending = list(self._releases.values())
            results = await asyncio.gather(*map(self._release, pending))
            for release, released in zip(pending, results, strict=True):
                if not released and loop.time() - release.since > _RELEASE_TIMEOUT:
                    release.give_up(f"the server was not available for {_RELEASE_TIMEOUT:g} s")
                if released or release.done.done():
                    release.finish()
                    del self._releases[release.name, release.token]
            if all(results):
                backoff.reset()
            else:
                await asyncio.sleep(backoff.next())

    async def _release(self, release: _Release) -> bool:
        """Release one lock. Return False if that has to be tried again."""
        server = self._server_of(release.name)
        if server is None:
            return False
        multiplexer, pool = server
        command = ("EVAL", RELEASE, 1, release.name, release.token)
        try:
            if multiplexer.unsupported:
                await asyncio.sleep(_UNORDERED_DELAY)
                await pool.query(*command)
                return True
            # On every connection, because one of them may still carry the SET, which comes first.
            # A connection that is lost cannot apply anything any more when it is fenced.
            carriers = multiplexer.carriers
            if not carriers:
                return False
            async with asyncio.timeout(_RELEASE_TIMEOUT):
                await asyncio.gather(*(carrier.query(*command) for carrier in carriers))
        except AskError:
            self._moved()
            return False
        except (RedisError, OSError) as error:
            if not isinstance(error, ResponseError) or refusal(error) is not None:
                return False
            release.give_up(multiplexer.target.failure(error).detail)
        return True

    # -- closing ---------------------------------------------------------------------------

    def close(self) -> None:
        """Watch and renew nothing any more, and wake every waiter: the next call raises.

        The holders of locks are notified, because a loss would not be noticed any more. A task that
        closes the client within its own `async with` block is not.
        """
        if self._closed:
            return
        self._closed = True
        holds = list(self._watched_soon)
        for key in self._keys.values():
            key.stop_timer()
            holds += key.holds
            for waiter in key.waiters:
                waiter.wake()
        self._keys.clear()
        self._watched_soon.clear()
        task = asyncio.current_task()
        for hold in holds:
            if hold.task is None or hold.task is not task:
                hold.lose(_CLOSED, uncertain=True)
            if hold.left is not None:
                self._leaving.append(hold.left)
        for task in self._renewals:
            task.cancel()

    async def aclose(self) -> None:
        """Release what still has to be released, within a second, and end every task.

        A lock that is being acquired counts, too: its caller gets an error. So does one whose block
        was cancelled because of the close: it is released when that block has ended.
        """
        until = asyncio.get_running_loop().time() + _RELEASE_AT_CLOSE
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_RELEASE_AT_CLOSE)
        for name, token in list(self.attempts):
            self.release_later(name, token)
        if self._releaser is not None and not self._releaser.done():
            left = until - asyncio.get_running_loop().time()
            await asyncio.wait([self._releaser], timeout=max(left, _LEAST_RELEASE))
            self._releaser.cancel()
        self._ended = True
        for release in self._releases.values():
            release.give_up("the client was closed")
        self._releases.clear()
        tasks: Iterable[asyncio.Task[None] | None] = (*self._renewals, self._releaser)
        running = [task for task in tasks if task is not None and not task.done()]
        if running:
            await asyncio.wait(running)


_NO_KEY = -2
"""The reply of PTTL for a key that does not exist; -1 is a key without an expiry."""


def _is_decodable(name: bytes, connection: MultiplexedConnection) -> bool:
    """Return whether a report that names this key can be parsed."""
    encoder = connection.encoder
    if not encoder.decode_responses:
        return True
    try:
        return name.decode(encoder.encoding).encode() == name
    except UnicodeDecodeError:
        return False


class _Release:
    """A lock that is released in the background."""

    def __init__(self, name: bytes, token: bytes, since: float, done: asyncio.Future[None]) -> None:
        self.name = name
        self.token = token
        self.since = since
        self.done = done

    def finish(self) -> None:
        """Notify those that wait for the release."""
        if not self.done.done():
            self.done.set_result(None)

    def give_up(self, why: str) -> None:
        """Log that the lock may stay held until its timeout."""
        _log.warning(
            "a lock whose acquire or release was interrupted could not be released, so it may be "
            "held until its timeout: %s",
            why,
            extra={"event": "lock_not_released", "why": why},
        )
        self.finish()


async def _keep_renewed(
    hold: Hold, timeout: float, renew: Callable[[float], Awaitable[bool]]
) -> None:
    loop = asyncio.get_running_loop()
    while not hold.ended and hold.expires is not None:
        began = loop.time()
        try:
            if not await renew(max(hold.expires - began, 0.001)):
                hold.lose(GONE)
                return
        except (RedisError, OSError):
            pause = timeout / 20  # the next attempt comes long before the timeout
        else:
            hold.expires = max(hold.expires, began + timeout)
            pause = began + timeout / 3 - loop.time()
        await asyncio.sleep(max(pause, 0.0))
