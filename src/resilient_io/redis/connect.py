"""Opening a connection: the address, the handshake, and the fencing of dead connections."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import math
import socket
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from redis import exceptions as driver
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.driver_info import resolve_driver_info
from redis.exceptions import ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.utils import SENTINEL as _UNSET

from resilient_io.health import LoopLag
from resilient_io.text import clean_text, format_address

from .errors import ConnectionFailure, connection_failure, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from types import TracebackType

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    Query = Callable[..., Awaitable[Any]]


_SECOND_CHECK = 0.005  # seconds in which data that is already in the socket is read
_RESOLUTION = 1e-6  # seconds below which no time is left


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
        self._lag = LoopLag.acquire()
        self._began, self._stalled = asyncio.get_running_loop().time(), self._lag.stalled
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._wait()

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

    def _left(self) -> float:
        now = asyncio.get_running_loop().time()
        left = self._seconds - (now - self._began - (self._lag.stalled - self._stalled))
        return left if self._until is None else min(left, self._until - now)

    def _wait(self) -> None:
        left = self._left()
        if left < math.inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(left, 0.0), self._check)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        if self._left() > _RESOLUTION:
            self._suspicious = False
            self._wait()
        elif not self._suspicious:
            self._suspicious = True
            self._timer = loop.call_later(_SECOND_CHECK, self._check)
        else:
            self._timeout.reschedule(loop.time())


_PLAIN_PORT = "TLS was not answered, but the port speaks plain Redis"


async def connect(
    target: RedisTarget,
    *,
    client_name: str | None = None,
    timeout: float,
    user_timeout: float,
    began: Callable[[AbstractConnection], None] | None = None,
) -> AbstractConnection:
    """Open a new connection and complete the handshake within `timeout`.

    `began` is called with the connection before it is opened.

    If the TLS handshake is not answered, it takes another quarter of a second to tell a plain port
    from a frozen server. The text of an exception may contain secrets: use `RedisTarget.failure`.
    """
    if target.speaks_plainly and await target.check_plain_port():
        raise ssl.SSLError(1, _PLAIN_PORT)
    connection: AbstractConnection | None = None
    connected = False
    try:
        async with StallTolerantTimeout(timeout):
            await target.resolve()
            connection = target.connection(client_name=client_name, connect_timeout=None)
            if began is not None:
                began(connection)
            await _shake_hands(connection)
        _set_user_timeout(connection, user_timeout)
        connected = True
    except (driver.TimeoutError, TimeoutError):
        if target.uses_tls and await target.check_plain_port():
            raise ssl.SSLError(1, _PLAIN_PORT) from None
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
    # The boundary to the application's code: its credential provider, or its `redis_connect_func`,
    # may raise anything.
    except Exception as error:  # noqa: BLE001
        # Only the type: the message may contain secrets, and so may the traceback of the chain.
        raise driver.ConnectionError(
            f"the credential provider or redis_connect_func raised {type(error).__name__}"
        ) from None


def abort(connection: AbstractConnection) -> None:
    """Close a connection immediately, without waiting."""
    # redis-py 8.1 `AbstractConnection._writer`: a StreamWriter, or None when it is not connected.
    writer: Any = getattr(connection, "_writer", None)
    if writer is None:
        return
    transport = getattr(writer, "transport", None)
    # The transport of a fake (fakeredis 2.41 `FakeTransport`) can only be closed by its writer.
    getattr(transport, "abort", writer.close)()
    connection._reader = connection._writer = None


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


async def identify(query: Query, name: str, *, protocol: int) -> int | None:
    """Set the client name of a connection. Return its CLIENT ID, or None if that is not permitted.

    This is not a part of the handshake, where redis-py would treat a forbidden name as a failed
    connection. An error that may pass is raised: a connection without a name can never be fenced.
    """
    try:
        await query("CLIENT", "SETNAME", name)
        return int(await query("CLIENT", "ID"))
    except ResponseError as error:
        if refusal(error) is None:
            return None  # NOPERM, or a server without these commands
    # While a script runs, Redis refuses CLIENT (BUSY), but not HELLO, which does the same.
    said = await query("HELLO", protocol, "SETNAME", name)
    facts = said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=True))
    return int(facts.get(b"id") or facts["id"])


class Fenceable(Protocol):
    """A connection, multiplexed or exclusive, whose client on the server can be ended."""

    name: str
    client_id: int | None

    fenced: asyncio.Future[bool]
    """Whether the server can no longer apply anything that this connection sent."""


class ExclusiveConnection:
    """How the server knows an exclusive connection, and whether it may still apply a write of it.

    A connection without a CLIENT ID cannot be fenced: the server forbids to name it.
    """

    __slots__ = ("client_id", "failure", "fenced", "lost", "name", "unanswered")

    def __init__(self, name: str, client_id: int | None) -> None:
        self.name = name
        self.client_id = client_id
        self.unanswered = False
        """Whether a write was sent that has no reply yet."""
        self.lost = False
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
        if f" name={name} " in text:
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


def _set_user_timeout(connection: AbstractConnection, seconds: float) -> None:
    sock = socket_of(connection)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


_PLAIN_PORT_TIMEOUT = 0.25  # seconds to wait for a server's answer without TLS

_POOL_ONLY = ("maint", "orig_", "oss_cluster")
"""Prefixes of the options that redis-py 8.1's pool adds for maintenance notifications."""

_SECRET_OPTIONS = ("password", "ssl_password")

_TOKEN_LENGTH = 20
"""A user name of this length may be a token. A shorter one is shown, for example in NOPERM."""

_REMEMBERED = 8  # secrets that are remembered of a credential provider, which may rotate them


class RedisTarget:
    """The address and settings of a connection pool of redis-py. The pool is only read.

    Sentinel pools work, too: every connect attempt asks for the address again.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        # Kept: connections of a Sentinel pool hold only a weak reference to it.
        self._pool = pool
        self._class = pool.connection_class
        self._settings: dict[str, Any] = {
            key: value
            for key, value in pool.connection_kwargs.items()
            if not key.startswith(_POOL_ONLY)
        }
        self._static_secrets = tuple(_secrets_of(pool))
        self._provided: deque[str] = deque(maxlen=_REMEMBERED)
        provider = self._settings.get("credential_provider")
        if provider is not None:
            self._settings["credential_provider"] = _RecordingProvider(provider, self.remember)
        # redis-py 8.1 reads package metadata from disk for every connection without driver_info.
        names = ("driver_info", "lib_name", "lib_version")
        self._settings["driver_info"] = resolve_driver_info(
            *(self._settings.pop(name, _UNSET) for name in names)
        )
        self._settings.update(
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            retry_on_timeout=False,
            health_check_interval=0,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            # With a socket_timeout redis-py 8.1 uses asyncio.wait_for, which loses cancellations
            # on Python 3.11; the user of the connection sets time limits.
            socket_timeout=None,
        )
        self._lookup: asyncio.Task[object] | None = None
        self.speaks_plainly = False
        """Whether TLS is configured, but the server was seen to answer without TLS."""

    @property
    def name(self) -> str:
        """The address without secrets."""
        settings = self._settings
        if settings.get("path"):
            return clean_text(f"unix://{settings['path']}")
        service = getattr(self._pool, "service_name", None)
        port = settings.get("port", 6379)
        # An application may have passed a URL, or user:password@host, as the host.
        credentials, at, host = str(settings.get("host", "localhost")).rpartition("@")
        where = service or format_address(f"…{at}{host}" if credentials else host, port)
        return clean_text(f"{where}/{settings.get('db') or 0}")

    @property
    def client_name(self) -> str | None:
        """The client name in the pool's settings."""
        name: str | None = self._settings.get("client_name")
        return name

    @property
    def uses_tls(self) -> bool:
        """Whether connections use TLS."""
        return hasattr(self._class, "cert_reqs")

    @property
    def secrets(self) -> tuple[str, ...]:
        """All passwords and tokens that may occur in a text of the server or of redis-py."""
        return (*self._static_secrets, *self._provided)

    def remember(self, secret: object) -> None:
        """Add a password or token that a credential provider returned."""
        text = _text(secret)
        if text and text not in self._provided:
            self._provided.append(text)

    def failure(self, error: BaseException) -> ConnectionFailure:
        """Return why connecting or talking to this server failed, without secrets."""
        return connection_failure(error, tls=self.uses_tls, secrets=self.secrets)

    async def check_plain_port(self) -> bool:
        """Return whether a server that ignored a TLS handshake answers without TLS.

        Redis treats the TLS greeting as the beginning of a command and waits for the rest, so a
        plain port looks like a frozen server.
        """
        host, port = self._settings.get("host"), self._settings.get("port")
        plain = False
        if isinstance(host, str):
            with contextlib.suppress(OSError):
                async with asyncio.timeout(_PLAIN_PORT_TIMEOUT):
                    plain = await _answers_without_tls(host, int(port or 6379))
        self.speaks_plainly = plain
        return plain

    async def resolve(self) -> None:
        """Look up the host name, with at most one lookup in flight.

        A hanging resolver then occupies one thread instead of one per connect attempt. Cancelling
        the wait leaves the lookup running for the next caller.
        """
        host = self._settings.get("host")
        if not isinstance(host, str) or _is_address(host) or self._settings.get("path"):
            return
        lookup = self._lookup
        if lookup is None or lookup.done():
            loop = asyncio.get_running_loop()
            port = int(self._settings.get("port") or 6379)
            lookup = self._lookup = loop.create_task(
                _look_up(loop, host, port), name="resilient-io redis name lookup"
            )
            # The caller may be gone before the lookup fails; asyncio would log that.
            lookup.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([lookup])
        if not lookup.cancelled() and (error := lookup.exception()) is not None:
            raise error

    async def aclose(self) -> None:
        """Cancel a lookup that is in flight."""
        if self._lookup is not None and not self._lookup.done():
            self._lookup.cancel()
            await asyncio.wait([self._lookup])

    def connection(
        self, *, client_name: str | None, connect_timeout: float | None
    ) -> AbstractConnection:
        """Return a new connection object that is not connected yet.

        redis-py applies `connect_timeout` to its own connect attempts, None for no limit.

        Every connect attempt needs a new one: redis-py 8.1 keeps the SSL context in the connection,
        and asks Sentinel only in a connection that was never connected.
        """
        return self._class(
            **self._settings
            | {"client_name": client_name, "socket_connect_timeout": connect_timeout}
        )


class _RecordingProvider(CredentialProvider):
    """The credential provider of the application, whose secrets are recorded."""

    def __init__(self, provider: Any, remember: Callable[[object], None]) -> None:
        self._provider = provider
        self._remember = remember

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the application's provider, which a connection may use."""
        return getattr(self._provider, name)

    def get_credentials(self) -> Any:
        return self._record(self._provider.get_credentials())

    async def get_credentials_async(self) -> Any:
        return self._record(await self._provider.get_credentials_async())

    def _record(self, credentials: Any) -> Any:
        if isinstance(credentials, (tuple, list)) and credentials:
            *user, password = credentials
            self._remember(password)
            for name in user:
                if _is_token(name):
                    self._remember(name)
        return credentials


def _secrets_of(pool: ConnectionPool) -> Iterator[str]:
    """Yield the secrets in the settings of a pool, and of the Sentinels that it asks."""
    settings: list[Mapping[str, Any]] = [pool.connection_kwargs]
    manager = getattr(pool, "sentinel_manager", None)  # redis-py 8.1 `SentinelConnectionPool`
    if manager is not None:
        settings.append(manager.sentinel_kwargs)
        settings += [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
    for options in settings:
        yield from secrets_in(options)


def secrets_in(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the passwords and tokens in connection options."""
    for key in _SECRET_OPTIONS:
        if secret := _text(options.get(key)):
            yield secret
    if _is_token(options.get("username")):
        yield _text(options["username"])
    credentials, _, _ = str(options.get("host") or "").rpartition("@")
    if credentials:
        yield credentials.rpartition("/")[2].partition(":")[2] or credentials


def _text(secret: object) -> str:
    if isinstance(secret, bytes):
        return secret.decode("utf-8", "replace")
    return "" if secret is None else str(secret)


def _is_token(username: object) -> bool:
    return len(_text(username)) >= _TOKEN_LENGTH


async def _answers_without_tls(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"PING\r\n")
        return await reader.read(1) in (b"+", b"-")
    finally:
        writer.transport.abort()


async def _look_up(loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
    await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)


@functools.lru_cache(maxsize=64)
def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
