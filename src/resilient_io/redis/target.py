"""Where a connection goes: asked anew at every dial, so that no lane returns to an old address."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Protocol

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import resolve_driver_info
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig
from redis.utils import SENTINEL as _UNSET

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection, ConnectionPool

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
