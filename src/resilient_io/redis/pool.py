"""Connections that one call has for itself: for blocking commands, WATCH, and odd drivers."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from redis import exceptions
from redis.exceptions import RedisError

from resilient_io.deadlines import context_without_deadline

from .connect import abort, ask_over, client_id, dial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.retry import RetryPolicy

    from .attempt import Command
    from .connect import Target
    from .multiplexer import Lanes


_CLOSED = "the client was closed"
_KEPT_IDLE = 8
"""Idle connections that are kept for the next call."""


class DedicatedConnections:
    """Lends connections, each to one caller at a time.

    It also looks like a redis-py pool to redis-py's own `Pipeline`, which uses it for WATCH.
    """

    def __init__(self, *, target: Target, policy: RetryPolicy, limit: int, like: Any) -> None:
        """Prepare; nothing is opened before the first call.

        Args:
            target: Where to dial, asked at every dial.
            policy: Its connect timeout holds for dialling.
            limit: Connections that may be open at once; further callers wait.
            like: The redis-py pool whose encoder and settings are shown.
        """
        self._target = target
        self._policy = policy
        self._like = like
        self._room = asyncio.Semaphore(limit)
        self._idle: list[AbstractConnection] = []
        self._identities: dict[AbstractConnection, int | None] = {}
        self._lent: list[AbstractConnection] = []
        self._dials: list[asyncio.Task[AbstractConnection]] = []
        self._closed = False

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._idle) + len(self._lent)

    @property
    def crowded(self) -> bool:
        """Whether all that may be open are lent."""
        return self._room.locked()

    async def acquire(self) -> AbstractConnection:
        """Lend a connection that is shaken hands with, clean and alive.

        Cancelling leaves at once; a dial that is under way ends by itself and is kept as idle.

        Raises:
            redis.exceptions.RedisError: It cannot be made (also `OSError`, `TimeoutError`), or the
                client is closed meanwhile.
        """
        await self._room.acquire()
        lent = False
        try:
            if self._closed:
                raise exceptions.ConnectionError(_CLOSED)
            connection = await self._clean_idle() or await self._dial()
            self._lent.append(connection)
            lent = True
            return connection
        finally:
            if not lent:
                self._room.release()

    async def identify(self, connection: AbstractConnection) -> None:
        """Ask a lent connection's CLIENT ID, once, while it is still free to answer."""
        if connection not in self._identities:
            ask = ask_over(connection, self._policy.response_timeout)
            self._identities[connection] = await client_id(ask)

    def identity(self, connection: AbstractConnection) -> int | None:
        """Return the CLIENT ID that `identify` was told; None where the server forbids it."""
        return self._identities.get(connection)

    async def _clean_idle(self) -> AbstractConnection | None:
        while self._idle:
            connection = self._idle.pop()
            # Anything to read on an idle connection is a farewell or somebody else's reply.
            if connection.is_connected and not await connection.can_read():
                return connection
            self._discard(connection)
        return None

    async def _dial(self) -> AbstractConnection:
        policy = self._policy
        # In a task of its own: a connect function of the user's may not survive a cancel cleanly.
        task = asyncio.get_running_loop().create_task(
            dial(
                self._target,
                client_name=getattr(self._target, "client_name", None),
                timeout=policy.connect_timeout,
                user_timeout=policy.response_timeout,
            ),
            name="resilient-io dedicated dial",
            context=context_without_deadline(),
        )
        self._dials.append(task)
        task.add_done_callback(self._dials.remove)
        taken = False
        try:
            await asyncio.wait([task])
            taken = True
        finally:
            if not taken:
                task.add_done_callback(self._keep_orphan)
        if task.cancelled():
            raise exceptions.ConnectionError(_CLOSED)
        return task.result()

    def _keep_orphan(self, task: asyncio.Task[AbstractConnection]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._keep(task.result())

    def _keep(self, connection: AbstractConnection) -> None:
        if self._closed or len(self._idle) >= _KEPT_IDLE or not connection.is_connected:
            self._discard(connection)
        else:
            self._idle.append(connection)

    def _discard(self, connection: AbstractConnection) -> None:
        self._identities.pop(connection, None)
        abort(connection)

    def give_back(self, connection: AbstractConnection, *, clean: bool) -> None:
        """Take a lent connection back; one that is not clean is closed."""
        if connection not in self._lent:
            return
        self._lent.remove(connection)
        self._room.release()
        if clean:
            self._keep(connection)
        else:
            self._discard(connection)

    def drop_all(self) -> None:
        """Close every connection: the dependency went down, so nobody waits on it for ever."""
        for connection in [*self._idle, *self._lent]:
            self._discard(connection)
        self._idle.clear()

    async def aclose(self) -> None:
        """Close every connection and wait for dials under way; doing it twice is fine."""
        self._closed = True
        self.drop_all()
        self._room.release()  # who waits for room wakes, sees that it is over, and wakes the next
        dials = list(self._dials)
        for task in dials:
            task.cancel()
        if dials:
            await asyncio.wait(dials)

    # -- what redis-py 8.1's Pipeline asks of a pool ----------------------------------------

    @property
    def connection_kwargs(self) -> dict[str, Any]:
        """The settings of the pool that the client was made from."""
        settings: dict[str, Any] = self._like.connection_kwargs
        return settings

    def get_encoder(self) -> Any:
        """Return the encoder of the pool that the client was made from."""
        return self._like.get_encoder()

    async def get_connection(self) -> AbstractConnection:
        """Lend a connection, as `acquire` does."""
        return await self.acquire()

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back; it is clean if it is still connected."""
        self.give_back(connection, clean=connection.is_connected)


_log = logging.getLogger("resilient_io.redis")

GRACE = 1.0
"""Seconds within which it has to be over; then the connection is closed."""


class Losses:
    """Elements that may have been lost: the first is logged, more are counted until it works again.

    In an outage every cancelled pop may lose one.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._count = 0

    def add(self, operation: str, error: Exception) -> None:
        """Note that a cancelled pop could not be ended cleanly."""
        self._count += 1
        if self._count == 1:
            _log.warning(
                "a cancelled %s could not be ended cleanly, so an element may be lost; "
                "more are counted until one can: %s",
                operation,
                str(error) or type(error).__name__,
                extra={"event": "element_perhaps_lost", "operation": operation},
            )

    def over(self) -> None:
        """Note that one could be ended, or that there will be none any more."""
        if self._count > 1:
            _log.warning(
                "%d more cancelled pops could not be ended cleanly meanwhile, so as many elements "
                "may be lost",
                self._count - 1,
                extra={"event": "elements_perhaps_lost", "count": self._count - 1},
            )
        self._count = 0


async def salvage(
    connection: AbstractConnection,
    command: Command,
    *,
    lanes: Lanes,
    dedicated: DedicatedConnections,
    losses: Losses,
) -> None:
    """End a blocking command that nobody waits for any more, and put back what it popped.

    Args:
        connection: The lent connection on which it blocks.
        command: The command.
        lanes: Where the server is asked.
        dedicated: Where the connection is given back.
        losses: Where it is noted when that fails.
    """
    clean = False
    try:
        async with asyncio.timeout(GRACE):
            await _ask(lanes, "CLIENT", "UNBLOCK", dedicated.identity(connection))
            # As bytes: what cannot be decoded has to go back as it was, too.
            reply: Any = await connection.read_response(disable_decoding=True)
            clean = True
            if reply is not None:
                for restoring in _RESTORE[command.spec.name](reply):
                    await _ask(lanes, *restoring)
    except (RedisError, OSError) as error:
        losses.add(command.spec.name, error)
    else:
        losses.over()
    finally:
        dedicated.give_back(connection, clean=clean)


def can_be_salvaged(command: Command) -> bool:
    """Tell whether the command pops elements that can be put back."""
    return command.spec.name in _RESTORE


async def _ask(lanes: Lanes, *words: Any) -> object:
    lane = lanes.current
    if lane is None:
        raise ConnectionResetError("there is no open lane to ask over")
    return await lane.ask(*words)


def _push(end: str) -> Callable[[Any], list[Sequence[Any]]]:
    def restore(reply: Any) -> list[Sequence[Any]]:
        key, element = reply
        return [(end, key, element)]

    return restore


def _add_back(reply: Any) -> list[Sequence[Any]]:
    key, member, score = reply
    return [("ZADD", key, "NX", score, member)]


_RESTORE: dict[str, Callable[[Any], list[Sequence[Any]]]] = {
    "BLPOP": _push("LPUSH"),
    "BRPOP": _push("RPUSH"),
    "BZPOPMIN": _add_back,
    "BZPOPMAX": _add_back,
}
"""How each pop is undone, from its raw reply."""
