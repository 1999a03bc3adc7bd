"""redis-py's connections: sending on them directly, naming, fencing and closing them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import ResponseError

from resilient_io.health import LoopLag

from .errors import ConnectionFailure, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from redis.asyncio.connection import AbstractConnection

    Query = Callable[..., Awaitable[Any]]


_SECOND_CHECK = 0.005  # seconds in which data that is already in the socket is read
_RESOLUTION = 1e-6  # seconds below which no time is left


TRUSTED_IDLE = 1.0  # seconds; a connection that was idle for longer must answer a PING first
PROMPT_ANSWER = 0.25  # seconds that this answer may take


class StallTolerantTimeout:
    """Like `asyncio.timeout`, but time during which our own event loop was blocked does not count.

    When the time is over, data that is already in the socket is read before the wait ends.

    Args:
        seconds: Longest wait for the server, without the stalls of the loop; None for no limit.
        until: Absolute loop time at which the wait ends, whatever the loop did; None for no limit.
    """

    __slots__ = (
        "_began",
        "_lag",
        "_seconds",
        "_stalled",
        "_suspicious",
        "_timeout",
        "_timer",
        "_until",
    )

    def __init__(self, seconds: float | None, *, until: float | None = None) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._until = until
        self._suspicious = False
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._lag = lag = LoopLag.acquire(loop)
        self._began = now = loop.time()
        self._stalled = lag.stalled_at(now)
        self._timeout = asyncio.Timeout(None)
        await self._timeout.__aenter__()
        self._wait(loop, now)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._lag.release()
        await self._timeout.__aexit__(kind, error, traceback)

    def _left(self, now: float) -> float:
        left = self._seconds - (now - self._began - (self._lag.stalled_at(now) - self._stalled))
        return left if self._until is None else min(left, self._until - now)

    def _wait(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        left = self._left(now)
        if left < math.inf:
            self._timer = loop.call_later(max(left, 0.0), self._check)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._left(now) > _RESOLUTION:
            self._suspicious = False
            self._wait(loop, now)
        elif not self._suspicious:
            self._suspicious = True
            self._timer = loop.call_later(_SECOND_CHECK, self._check)
        else:
            self._timeout.reschedule(loop.time())


def abort(connection: AbstractConnection) -> None:
    """Close a connection immediately, without waiting."""
    # redis-py 8.1 `AbstractConnection._writer`: a StreamWriter, or None when it is not connected.
    writer: Any = getattr(connection, "_writer", None)
    if writer is None:
        return
    transport = getattr(writer, "transport", None)
    # The transport of a fake (fakeredis 2.41 `FakeTransport`) can only be closed by its writer.
    with contextlib.suppress(RuntimeError):  # the event loop was closed
        getattr(transport, "abort", writer.close)()
    connection._reader = connection._writer = None


def take_writer(connection: Any) -> object:
    """Take the transport of a connection for good, so that nothing else of it has to be kept.

    Return its writer. Where that is collected, it closes the transport.
    """
    # redis-py 8.1 `AbstractConnection` and CPython 3.11 to 3.13 `asyncio.StreamWriter`.
    writer, parser = connection._writer, connection._parser
    writer._reader = writer._protocol = None
    connection._reader = connection._writer = parser._stream = parser._reader = None
    return writer


def is_lost(connection: AbstractConnection) -> bool:
    """Return whether a connection is known to be gone, before anything is sent on it.

    redis-py 8.1 would reconnect by itself, without the keys that were watched.
    """
    writer = getattr(connection, "_writer", None)
    if writer is None:
        return not connection.is_connected
    is_closing = getattr(writer.transport, "is_closing", None)
    if is_closing is None:  # a fake
        return not connection.is_connected
    reader: asyncio.StreamReader | None = connection._reader
    return is_closing() or reader is None or reader.at_eof()


def is_multiplexable(connection: AbstractConnection) -> bool:
    """Return whether a connection has a real transport, which can be taken over."""
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    # Not `isinstance`: uvloop's transports are not subclasses of `asyncio.Transport`.
    return callable(getattr(transport, "set_protocol", None))


def query_over(connection: AbstractConnection, timeout: float) -> Query:
    """Return a function that sends one command and returns its reply within `timeout` seconds."""

    async def query(*command: object) -> object:
        async with StallTolerantTimeout(timeout):
            await connection.send_command(*command)
            return await connection.read_response()

    return query


async def role_over(connection: AbstractConnection) -> str:
    """Return the role of a connection's server: "master", "slave", or "" if that is not permitted.

    HELLO says it, too: where an ACL forbids ROLE, and while a script runs.
    """
    (role,) = await exchange(connection, ("ROLE",))
    if not isinstance(role, ResponseError):
        return text_of(role[0])
    (said,) = await exchange(connection, ("HELLO", connection.protocol))
    if isinstance(said, ResponseError):
        return ""
    facts = said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=True))
    role = text_of(facts.get(b"role") or facts.get("role"))
    return "slave" if role == "replica" else role


async def exchange(connection: AbstractConnection, *commands: Sequence[Any]) -> list[Any]:
    """Send commands in one write, and return their replies. An error reply is one of them."""
    packed = [connection.pack_command(*command) for command in commands]
    await connection.send_packed_command([part for parts in packed for part in parts])
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except ResponseError as error:
            replies.append(error)
    return replies


async def identify(connection: AbstractConnection, name: str, *, timeout: float) -> int | None:
    """Set the client name of a connection. Return its CLIENT ID, or None if that is not permitted.

    This is not a part of the handshake, where redis-py would treat a forbidden name as a failed
    connection. An error that may pass is raised: a connection without a name can never be fenced.
    """
    async with StallTolerantTimeout(timeout):
        named, number = await exchange(connection, ("CLIENT", "SETNAME", name), ("CLIENT", "ID"))
        errors = [reply for reply in (named, number) if isinstance(reply, ResponseError)]
        if not errors:
            return int(number)
        if refusal(errors[0]) is None:
            return None  # NOPERM, or a server without these commands
        # While a script runs, Redis refuses CLIENT (BUSY), but not HELLO, which does the same.
        hello = ("HELLO", connection.protocol, "SETNAME", name)
        (said,) = await exchange(connection, hello)
    if isinstance(said, ResponseError):
        raise said
    facts = said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=True))
    return int(facts.get(b"id") or facts["id"])


def identity(name: str) -> str:
    """Return the part of a connection's name that no other connection has.

    What comes before it may change while the connection is open (CLIENT SETNAME).
    """
    return name.rpartition(":")[2]


class Fenceable(Protocol):
    """A connection, multiplexed or exclusive, whose client on the server can be ended."""

    name: str
    client_id: int | None
    peer: object

    @property
    def fenced(self) -> asyncio.Future[bool]:
        """Whether the server can no longer apply anything that this connection sent."""
        ...


@dataclass(frozen=True, slots=True)
class DeadConnection:
    """A connection that died with unanswered calls, which the server may still apply.

    The server at `peer` knows its client by `client_id` and `name`. `fenced` is the result for the
    calls that wait until that client has ended.
    """

    name: str
    client_id: int | None
    peer: object
    fenced: asyncio.Future[bool]

    def settle(self, *, fenced: bool) -> None:
        """Notify the waiting calls whether the server can no longer apply anything."""
        if not self.fenced.done():
            self.fenced.set_result(fenced)


class ExclusiveConnection:
    """How the server knows an exclusive connection, and whether it may still apply a write of it.

    A connection without a CLIENT ID cannot be fenced: the server forbids to name it.
    """

    __slots__ = (
        "blocking",
        "client_id",
        "failure",
        "fenced",
        "left",
        "lost",
        "name",
        "opened",
        "peer",
        "unanswered",
        "version",
    )

    def __init__(
        self, name: str, client_id: int | None, version: int = 0, peer: object = None
    ) -> None:
        self.name = name
        self.client_id = client_id
        self.peer = peer
        """The address of the server."""
        self.version = version
        """The version of the session settings that it has."""
        self.unanswered = False
        """Whether a write was sent that has no reply yet."""
        self.blocking = False
        """Whether its call waits for something to happen on the server."""
        self.left = False
        """Whether another server has taken over: a reply that arrives now proves nothing."""
        self.lost = False
        self.opened = asyncio.get_running_loop().time()
        self.failure: ConnectionFailure | None = None
        """Why this client closed the connection under its call, if it did."""
        self.fenced: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def pay_for_repeats(self, spend: Callable[[], bool]) -> bool:
        """Return whether the budget covers repeating the one call that this connection lost."""
        return spend()


async def fence(query: Query, *, client_id: int | None, name: str) -> bool:
    """Ensure that the server applies nothing more that a dead connection sent.

    The server's client with that ID is killed if it still has our name: IDs start again when the
    server restarts. Return False if the server forbids that. An error that may pass is raised.
    """
    if client_id is None:
        return False
    try:
        listed = await query("CLIENT", "LIST", "ID", client_id)
        text = listed.decode() if isinstance(listed, bytes) else str(listed)
        if f":{identity(name)} " in text:
            await query("CLIENT", "KILL", "ID", client_id)
    except ResponseError as error:
        if refusal(error) is not None:
            raise  # BUSY, for example: ask again
        # The client ended between the two commands, which is what we wanted.
        return "No such client" in str(error)
    return True


def socket_of(connection: AbstractConnection) -> Any:
    """Return the socket of a connection, or None if it has none (a fake) or is not connected."""
    get_extra_info = getattr(getattr(connection, "_writer", None), "get_extra_info", None)
    return get_extra_info("socket") if get_extra_info is not None else None


def peer_of(connection: AbstractConnection) -> object:
    """Return the address of a connection's server, as its socket names it, or None."""
    get_extra_info = getattr(getattr(connection, "_writer", None), "get_extra_info", None)
    return get_extra_info("peername") if get_extra_info is not None else None


def text_of(secret: object) -> str:
    """Return text, bytes or None as text."""
    if isinstance(secret, bytes):
        return secret.decode("utf-8", "replace")
    return "" if secret is None else str(secret)
