"""Making a connection: handshake, identity on the server, and the fencing of dead lanes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from typing import TYPE_CHECKING, Any, Protocol

from redis import exceptions as driver
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import resolve_driver_info
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.utils import SENTINEL as _UNSET

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    Ask = Callable[..., Awaitable[Any]]


async def dial(
    target: Target, *, client_name: str | None, timeout: float, user_timeout: float
) -> AbstractConnection:
    """Connect and shake hands, with a new connection object, within `timeout`.

    A quarter of a second more when TLS was not answered: a plain port is told from a frozen one.
    On failure and on cancellation the socket is closed.

    Args:
        target: Where to.
        client_name: What the connection calls itself on the server.
        timeout: Seconds for look-up, TCP, TLS and handshake together.
        user_timeout: Seconds that sent bytes may stay unacknowledged (TCP_USER_TIMEOUT).

    Raises:
        redis.exceptions.RedisError: What redis-py raises for a failed connection.
        OSError: The name could not be looked up, or the time was used up (`TimeoutError`).
        ssl.SSLError: TLS failed, also because the port speaks plain Redis.
    """
    if target.speaks_plainly and await target.look_for_plain_port():
        raise _plain_port()
    connection: AbstractConnection | None = None
    connected = False
    try:
        async with asyncio.timeout(timeout):
            await target.locate()
            connection = target.connection(client_name=client_name, connect_timeout=timeout)
            await _shake_hands(connection)
        _set_user_timeout(connection, user_timeout)
        connected = True
    except (driver.TimeoutError, TimeoutError) as error:
        if target.uses_tls and await target.look_for_plain_port():
            raise _plain_port() from error
        raise
    else:
        return connection
    finally:
        if connection is not None and not connected:
            abort(connection)


async def _shake_hands(connection: AbstractConnection) -> None:
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except (driver.RedisError, OSError):
        raise
    # The boundary to the application's own code: its credential provider, or its
    # `redis_connect_func`, may raise anything, for example while what it asks is away.
    except Exception as error:
        # Its kind only: its words may hold anything.
        raise driver.ConnectionError(
            f"the credential provider, or redis_connect_func, raised {type(error).__name__}"
        ) from error


def _plain_port() -> ssl.SSLError:
    return ssl.SSLError(1, "TLS was not answered, but the port speaks plain Redis")


def abort(connection: AbstractConnection) -> None:
    """Close a connection at once, without waiting and without a farewell."""
    # redis-py 8.1 `AbstractConnection._writer`: a StreamWriter, or None when it is not connected.
    writer = getattr(connection, "_writer", None)
    transport = getattr(writer, "transport", None)
    if transport is not None:
        transport.abort()
        connection._reader = connection._writer = None


def is_lost(connection: AbstractConnection) -> bool:
    """Tell whether a connection is known to be gone, before anything is sent on it.

    redis-py 8.1 would connect anew by itself, without the keys that were watched.
    """
    writer = getattr(connection, "_writer", None)
    if writer is None:
        return not connection.is_connected
    reader: asyncio.StreamReader | None = connection._reader
    return writer.transport.is_closing() or reader is None or reader.at_eof()


def can_be_a_lane(connection: AbstractConnection) -> bool:
    """Tell whether the connection has a real transport that a lane can take over."""
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    # By what it can do: uvloop's transports are no subclasses of `asyncio.Transport`.
    return callable(getattr(transport, "set_protocol", None))


def ask_over(connection: AbstractConnection, timeout: float) -> Ask:
    """Return a function that asks one command over `connection`, within `timeout` seconds."""

    async def ask(*command: object) -> object:
        async with asyncio.timeout(timeout):
            await connection.send_command(*command)
            return await connection.read_response()

    return ask


async def introduce(ask: Ask, name: str) -> int | None:
    """Give our connection a name and ask for its CLIENT ID; None where an ACL forbids either.

    Not in the handshake: there redis-py would take the forbidden name for a failed connection.
    """
    try:
        await ask("CLIENT", "SETNAME", name)
    except ResponseError:
        return None
    return await client_id(ask)


async def client_id(ask: Ask) -> int | None:
    """Ask for our CLIENT ID; None where an ACL forbids the question."""
    try:
        return int(await ask("CLIENT", "ID"))
    except ResponseError:
        return None


async def fence(ask: Ask, *, client_id: int | None, name: str) -> bool:
    """Make sure that nothing that a dead connection sent can be applied from now on.

    The server's connection of that id is killed if it still carries our name: ids start again
    when the server restarts.

    Returns:
        False where the server forbids it, so that nothing is known.
    """
    if client_id is None:
        return False
    try:
        listed = await ask("CLIENT", "LIST", "ID", client_id)
        text = listed.decode() if isinstance(listed, bytes) else str(listed)
        if f" name={name} " in text:
            await ask("CLIENT", "KILL", "ID", client_id)
    except ResponseError as error:
        # It ended between the two questions: just what we wanted.
        return "No such client" in str(error)
    return True


def _set_user_timeout(connection: AbstractConnection, seconds: float) -> None:
    writer = getattr(connection, "_writer", None)
    sock = writer.get_extra_info("socket") if writer is not None else None
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


_PLAIN_ANSWER = 0.25
"""Seconds for a server's answer in the clear."""

_POOL_ONLY = ("maint", "orig_", "oss_cluster")
"""Prefixes of what redis-py 8.1's pool adds to its connections for maintenance notifications."""


class Target(Protocol):
    """An address that may change: a URL here; a Sentinel's master or a cluster's node later."""

    @property
    def name(self) -> str:
        """The address in words, without any secret."""
        raise NotImplementedError

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        raise NotImplementedError

    speaks_plainly: bool
    """Whether connections should be encrypted, and the server was seen to answer in the clear."""

    async def look_for_plain_port(self) -> bool:
        """Ask a server that was silent in a TLS handshake whether it answers in the clear."""
        raise NotImplementedError

    async def locate(self) -> None:
        """Make sure that the address can be found now.

        Raises:
            OSError: It cannot, for example `socket.gaierror`.
        """

    def connection(self, *, client_name: str | None, connect_timeout: float) -> AbstractConnection:
        """Build a new connection object that is not connected yet."""
        raise NotImplementedError


class PoolTarget:
    """The address and settings that a redis-py connection pool holds. The pool is only read."""

    def __init__(self, pool: ConnectionPool) -> None:
        """Copy the settings of `pool`.

        Args:
            pool: Any asyncio pool of redis-py, that of Sentinel included.
        """
        # Kept: connections of a Sentinel pool hold only a weak reference to it.
        self._pool = pool
        self._class = pool.connection_class
        self._settings: dict[str, Any] = {
            key: value
            for key, value in pool.connection_kwargs.items()
            if not key.startswith(_POOL_ONLY)
        }
        # redis-py 8.1 reads package metadata from disk for every connection that is not given it.
        self._settings["driver_info"] = resolve_driver_info(
            *(
                self._settings.pop(key, default)
                for key, default in (
                    ("driver_info", _UNSET),
                    ("lib_name", _UNSET),
                    ("lib_version", _UNSET),
                )
            )
        )
        self._settings.update(
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            retry_on_timeout=False,
            health_check_interval=0,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            # With a socket_timeout redis-py 8.1 uses asyncio.wait_for, which loses cancels on
            # Python 3.11; whoever uses the connection sets its own time limits.
            socket_timeout=None,
        )
        self._lookup: asyncio.Task[object] | None = None
        self.speaks_plainly = False

    def check(self) -> None:
        """Build a connection object and drop it, so that a wrong option is refused right away.

        Raises:
            ConfigurationError: The connection class does not know an option.
        """
        try:
            self.connection(client_name=None, connect_timeout=1.0)
        except (TypeError, ValueError, RedisError) as error:
            raise ConfigurationError(
                f"these connection options cannot work: {error}; see redis.asyncio.Redis"
            ) from error

    @property
    def name(self) -> str:
        """The address in words, without any secret."""
        settings = self._settings
        if settings.get("path"):
            return f"unix://{settings['path']}"
        service = getattr(self._pool, "service_name", None)
        where = service or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"
        return f"{where}/{settings.get('db') or 0}"

    @property
    def client_name(self) -> str | None:
        """The client name that the pool's connections would have."""
        name: str | None = self._settings.get("client_name")
        return name

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return hasattr(self._class, "cert_reqs")

    async def look_for_plain_port(self) -> bool:
        """Ask a server that was silent in a TLS handshake whether it answers in the clear.

        Redis takes a TLS greeting for the beginning of a command and waits for its end: a plain
        port looks like a frozen server until it is asked.
        """
        host, port = self._settings.get("host"), self._settings.get("port")
        plain = False
        if isinstance(host, str):
            with contextlib.suppress(OSError):
                async with asyncio.timeout(_PLAIN_ANSWER):
                    plain = await _answers_in_the_clear(host, int(port or 6379))
        self.speaks_plainly = plain
        return plain

    async def locate(self) -> None:
        """Look the host's name up, with at most one look-up in flight.

        A resolver that hangs holds one thread of the loop's executor, not one for each dial.
        Cancelling the wait leaves the look-up running for the next one who asks.

        Raises:
            OSError: The name cannot be resolved (`socket.gaierror`).
        """
        host = self._settings.get("host")
        if not isinstance(host, str) or _is_address(host) or self._settings.get("path"):
            return
        lookup = self._lookup
        if lookup is None or lookup.done():
            loop = asyncio.get_running_loop()
            port = int(self._settings.get("port") or 6379)
            lookup = self._lookup = loop.create_task(
                _look_up(loop, host, port), name=f"resilient-io look up {host}"
            )
            # Whoever asked may have gone before it fails: asyncio would complain of that.
            lookup.add_done_callback(_take_note)
        await asyncio.wait([lookup])
        if not lookup.cancelled() and (error := lookup.exception()) is not None:
            raise error

    async def aclose(self) -> None:
        """Give up a look-up that is still in flight."""
        if self._lookup is not None and not self._lookup.done():
            self._lookup.cancel()
            await asyncio.wait([self._lookup])

    def connection(self, *, client_name: str | None, connect_timeout: float) -> AbstractConnection:
        """Build a new connection object that is not connected yet.

        New for every dial: redis-py 8.1 keeps the SSL context in the connection, and Sentinel is
        asked only by a connection that was never connected.
        """
        return self._class(
            **self._settings
            | {"client_name": client_name, "socket_connect_timeout": connect_timeout}
        )


async def _answers_in_the_clear(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"PING\r\n")
        return await reader.read(1) in (b"+", b"-")
    finally:
        writer.transport.abort()


async def _look_up(loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
    await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _take_note(lookup: asyncio.Task[object]) -> None:
    if not lookup.cancelled():
        lookup.exception()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
