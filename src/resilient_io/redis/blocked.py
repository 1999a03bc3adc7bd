"""Calls that wait on the server without a limit, and whether their connection still exists.

The kernel sends keepalive probes on an exclusive connection and closes it if the host does not
answer. Behind a proxy, the host that answers is not the server's. So the server is asked over a
shared connection whether it still has the clients that it sees under another address than ours.
"""

from __future__ import annotations

import asyncio
import re
import socket
from contextvars import Context
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from resilient_io.health import Cause

from .driver_connection import StallTolerantTimeout, abort, identity, socket_of
from .errors import ConnectionFailure, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

    from .connection import MultiplexedConnection
    from .driver_connection import ExclusiveConnection, Query

_KEEPALIVE_INTERVAL = 1  # seconds of silence before a keepalive probe, and between two of them
_KEEPALIVE_TIMEOUT = 3.5  # seconds without an answer after which the kernel closes a connection

_CHECK_INTERVAL = 2.0  # seconds between two checks of the clients of blocked calls
_CHECK_TIMEOUT = 1.0
_MOST_CHECKED = 500  # clients in one request

NOT_ACKNOWLEDGED = ConnectionFailure(
    Cause.UNREACHABLE,
    f"no acknowledgement from the host for {_KEEPALIVE_TIMEOUT:g} s",
    definite=False,
)
_CLOSED_BY_SERVER = ConnectionFailure(
    Cause.CONNECTION_LOST, "the server no longer has this connection", definite=False
)

_CLIENT = re.compile(r"^id=(\d+) addr=(\S*)(?: laddr=\S*)? fd=\S* name=(\S*) ", re.MULTILINE)
_FLAGS = re.compile(r" flags=(\w+) ")


def keep_alive(connection: AbstractConnection) -> None:
    """Have the kernel close a connection whose host answers nothing, although it is idle."""
    sock = socket_of(connection)
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_INTERVAL),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", int(_KEEPALIVE_TIMEOUT)),
        ("TCP_USER_TIMEOUT", int(_KEEPALIVE_TIMEOUT * 1000)),  # counts instead of KEEPCNT on Linux
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class BlockedCalls:
    """The exclusive connections on which calls wait without a limit.

    `find_shared` returns a shared connection over which the server can be asked, or None.
    """

    __slots__ = ("_direct", "_find_shared", "_permitted", "_task", "_waiting")

    def __init__(self, find_shared: Callable[[], MultiplexedConnection | None]) -> None:
        self._find_shared = find_shared
        self._waiting: dict[AbstractConnection, ExclusiveConnection] = {}
        self._direct: list[AbstractConnection] = []  # those without a proxy, as the server said
        self._permitted = True
        self._task: asyncio.Task[None] | None = None

    def add(self, connection: AbstractConnection, known: ExclusiveConnection) -> None:
        """Check a connection from now on. The first one starts the task."""
        if known.client_id is None or not self._permitted:
            return
        self._waiting[connection] = known
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name="resilient-io redis blocked calls", context=Context()
            )

    def remove(self, connection: AbstractConnection) -> None:
        """Stop checking a connection. The task ends with the last one."""
        self._waiting.pop(connection, None)
        if connection in self._direct:
            self._direct.remove(connection)
        if not self._waiting and self._task is not None:
            self._task.cancel()

    async def end_wait(self, known: ExclusiveConnection, until: float | None) -> bool:
        """End the command of a client whose connection was lost, at the latest at `until`.

        Return True if the server confirms that the client was still waiting, so that the command
        did nothing. False proves nothing.
        """
        shared = self._find_shared()
        if shared is None or known.client_id is None:
            return False
        try:
            async with StallTolerantTimeout(_CHECK_TIMEOUT, until=until):
                return await end_wait(shared.query, known)
        except (RedisError, OSError):
            return False

    async def aclose(self) -> None:
        """End the task. Idempotent."""
        self._waiting.clear()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._waiting and self._permitted:
            await asyncio.sleep(_CHECK_INTERVAL)
            shared = self._find_shared()
            asked = [each for each in self._waiting if each not in self._direct][:_MOST_CHECKED]
            if shared is None or not asked:
                continue
            try:
                async with asyncio.timeout(_CHECK_TIMEOUT):
                    ids = [self._waiting[each].client_id for each in asked]
                    text = _text(await shared.query("CLIENT", "LIST", "ID", *ids))
            except ResponseError as error:
                self._permitted = refusal(error) is not None
            except (RedisError, OSError):
                continue  # the shared connections have their own watchdog
            else:
                self._compare(asked, text)

    def _compare(self, asked: list[AbstractConnection], listed: str) -> None:
        clients = {int(number): (addr, name) for number, addr, name in _CLIENT.findall(listed)}
        for connection in asked:
            known = self._waiting.get(connection)
            if known is None:
                continue  # its call has ended meanwhile
            address, name = clients.get(known.client_id or 0, ("", ""))
            if identity(name) != identity(known.name):
                known.failure = _CLOSED_BY_SERVER
                abort(connection)
            elif _is_ours(connection, address):
                self._direct.append(connection)
            else:
                # Those that were asked last are asked first when there are too many.
                self._waiting[connection] = self._waiting.pop(connection)


async def end_wait(query: Query, known: ExclusiveConnection, *, error: bool = False) -> bool:
    """End the command of a client on the server. Return whether it was still waiting.

    With `error`, the client gets an error that `is_ended_wait` recognizes.
    """
    text = _text(await query("CLIENT", "LIST", "ID", known.client_id))
    flags = _FLAGS.search(text)
    if f":{identity(known.name)} " not in text or flags is None or "b" not in flags[1]:
        return False
    how = ("ERROR",) if error else ()
    return bool(await query("CLIENT", "UNBLOCK", known.client_id, *how))


def is_ended_wait(reply: object) -> bool:
    """Return whether a reply says that a wait was ended and nothing was done."""
    return isinstance(reply, ResponseError) and str(reply).startswith("UNBLOCKED")


def _is_ours(connection: AbstractConnection, address: str) -> bool:
    """Return whether the server sees a connection under the address that it has here."""
    sock = socket_of(connection)
    try:
        name = sock.getsockname() if sock is not None else None
    except (OSError, AttributeError):  # a lost connection; a simulated socket
        return False
    if not isinstance(name, tuple):
        return True  # a unix socket, which has no proxy
    host, port = name[:2]
    return address in (f"{host}:{port}", f"[{host}]:{port}")


def _text(reply: Any) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
