"""Connections that one call has for itself: for blocking commands, WATCH, and odd drivers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError  # noqa: A004 (redis-py's own name for it)

from resilient_io.deadlines import context_without_deadline

from .dial import abort, ask_over, client_id, dial

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from resilient_io.retry import RetryPolicy

    from .target import Target

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
                raise ConnectionError(_CLOSED)
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
            raise ConnectionError(_CLOSED)
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
