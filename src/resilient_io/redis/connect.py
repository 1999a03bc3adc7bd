"""Opening a connection: the address, the handshake, and what is wrong if that fails."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from redis import exceptions as driver
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.sentinel import (
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.credentials import CredentialProvider
from redis.driver_info import DriverInfo, resolve_driver_info
from redis.maint_notifications import MaintNotificationsConfig
from redis.utils import SENTINEL as _UNSET

from resilient_io.health import Cause
from resilient_io.tasks import SharedTask
from resilient_io.text import clean_text, format_address

from .addresses import ConfiguredAddress, Place, Places, Race, closed
from .driver_connection import (
    StallTolerantTimeout,
    abort,
    exchange,
    peer_of,
    role_over,
    socket_of,
    text_of,
)
from .errors import ConnectionFailure, connection_failure, remove_secrets
from .sentinel import SentinelAddress
from .tls import (
    PLAIN_PORT,
    PORT_CHECK_TIMEOUT,
    TLS_PORT,
    answers_tls,
    answers_without_tls,
    find_alert,
    load_files,
)
from .wrong_server import (
    HandshakeFacts,
    WrongServer,
    address_of,
    explain_reply,
    no_sentinel,
    sentinel_instead_of_server,
    wrong_database,
    wrong_login,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    from .addresses import AddressMap, AddressSource
    from .sentinel import KnownMaster


async def connect(
    target: RedisTarget,
    *,
    client_name: str | None = None,
    timeout: float,
    user_timeout: float,
    began: Callable[[AbstractConnection], None] | None = None,
) -> AbstractConnection:
    """Open a new connection and complete the handshake within `timeout`.

    `began` is called with each connection before it is opened: there are several if the name of the
    server has several addresses, and the first does not answer.

    If a handshake fails because only one side speaks TLS, it takes another quarter of a second to
    find that out. The text of an exception may contain secrets: use `RedisTarget.failure`.
    """
    await target.check_port()
    connection: AbstractConnection | None = None
    connected = False

    def open_at(place: Place | None) -> Awaitable[AbstractConnection]:
        return _open(target, place, client_name=client_name, began=began)

    try:
        async with StallTolerantTimeout(timeout):
            places = await target.places()
            check_master = target.expect_master()
            if places is None or len(places) == 1:
                connection = await open_at(None if places is None else places[0])
            else:
                connection = await Race(
                    open_at,
                    discard=abort,
                    avoid=target.avoid,
                    final=lambda error: target.failure(error).permanent,
                ).run(places)
        check_master()
        _set_user_timeout(connection, user_timeout)
        connected = target.reached = True
    except (driver.RedisError, OSError) as error:
        await target.explain(error)
        raise
    else:
        return connection
    finally:
        if connection is not None and not connected:
            abort(connection)


async def connect_again(
    target: RedisTarget, known: AbstractConnection, *, timeout: float
) -> AbstractConnection:
    """Open another connection to the server of a known one, wherever the target leads by now."""
    host, port = getattr(known, "host", ""), getattr(known, "port", 0)
    peer = peer_of(known)
    address = str(peer[0]) if isinstance(peer, tuple) else host
    async with StallTolerantTimeout(timeout):
        return await _open(target, Place(host, port, address), client_name=None, began=None)


async def _open(
    target: RedisTarget,
    place: Place | None,
    *,
    client_name: str | None,
    began: Callable[[AbstractConnection], None] | None,
) -> AbstractConnection:
    connection = target.connection(client_name=client_name, connect_timeout=None, place=place)
    if began is not None:
        began(connection)
    facts = HandshakeFacts(connection)
    opened = False
    try:
        load_files(connection)
        with facts:
            await _shake_hands(connection)
        target.check_mode(facts.mode, place)
        await target.check_role(connection)
        opened = True
    except driver.ResponseError:  # a Sentinel has no SELECT, for example
        target.check_mode(facts.mode, place)
        raise
    finally:
        if not opened:
            abort(connection)
    return connection


async def _shake_hands(connection: AbstractConnection) -> None:
    loop = asyncio.get_running_loop()
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    # The boundary to the application's code: its credential provider, or its `redis_connect_func`,
    # may raise anything.
    except Exception as error:
        if loop.is_closed():
            # This attempt is being collected, maybe by a task of another loop. redis-py has turned
            # the GeneratorExit into an error, which must not be taken for a failed attempt.
            raise GeneratorExit from None
        if isinstance(error, (driver.RedisError, OSError)):
            raise
        # Only the type: the message may contain secrets, and so may the traceback of the chain.
        raise driver.ConnectionError(
            f"the credential provider or redis_connect_func raised {type(error).__name__}"
        ) from None


def _set_user_timeout(connection: AbstractConnection, seconds: float) -> None:
    sock = socket_of(connection)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


_EXPLAIN_INTERVAL = 2.0  # seconds between two checks whether TLS is the reason of resets

_POOL_ONLY = ("maint", "orig_", "oss_cluster")
"""Prefixes of the options that redis-py 8.1's pool adds for maintenance notifications."""

_SECRET_OPTIONS = ("password", "ssl_password")

_TOKEN_LENGTH = 20
"""A user name of this length may be a token. A shorter one is shown, for example in NOPERM."""

_REMEMBERED = 8  # secrets that are remembered of a credential provider, which may rotate them


@functools.cache
def _driver_version() -> object:
    return DriverInfo().lib_version


def driver_info(
    given: object = _UNSET, name: object = _UNSET, version: object = _UNSET
) -> DriverInfo | None:
    """Return what connections tell the server about their library.

    redis-py 8.1 reads the metadata of its package from disk each time that it is not given.
    """
    if given is _UNSET and version is _UNSET:
        version = _driver_version()
    return resolve_driver_info(given, name, version)


class RedisTarget:
    """The address and settings of a connection pool of redis-py. The pool is only read.

    Sentinel pools work, too: every connect attempt asks the Sentinels for the address again.

    Args:
        pool: The pool.
        source: Where the address comes from, if not from the pool.
        sentinel: Whether the address is that of a Sentinel, not of a server with data.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        source: AddressSource | None = None,
        sentinel: bool = False,
    ) -> None:
        self._sentinel = sentinel
        self._mode: str | None = None  # "standalone", "cluster" or "sentinel", if it said so
        self._source = source
        # Kept: connections of a Sentinel pool hold only a weak reference to it.
        self._pool = pool
        self._class = pool.connection_class
        self._settings: dict[str, Any] = {
            key: value
            for key, value in pool.connection_kwargs.items()
            if not key.startswith(_POOL_ONLY)
        }
        self._static_secrets = tuple(_secrets_of(pool))
        self._provided: list[str] = []
        provider = self._settings.get("credential_provider")
        if provider is not None:
            self._settings["credential_provider"] = _RecordingProvider(provider, self.remember)
        names = ("driver_info", "lib_name", "lib_version")
        self._settings["driver_info"] = driver_info(
            *(self._settings.pop(name, _UNSET) for name in names)
        )
        # redis-py 8.1 makes a dispatcher of 1 KB for each connection that does not get one.
        self._settings.setdefault("event_dispatcher", getattr(pool, "_event_dispatcher", None))
        self._settings.update(
            retry=None,  # one attempt, without a copy of an object that says so
            retry_on_error=[],
            retry_on_timeout=False,
            health_check_interval=0,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            # With a socket_timeout redis-py 8.1 uses asyncio.wait_for, which loses cancellations
            # on Python 3.11; the user of the connection sets time limits.
            socket_timeout=None,
        )
        self.sentinels: Sequence[SentinelNode] = ()
        """The Sentinels that are asked for the address."""
        self.master: SentinelAddress | None = None
        """The address of the master that the Sentinels monitor; None for any other target."""
        self._masters = 0  # how often it has changed
        self._places = self._find_places()
        self.uses_tls = hasattr(self._class, "cert_reqs")
        """Whether connections use TLS."""
        self._mismatch: str | None = None  # that only one side speaks TLS, as was seen last
        self.reached = False
        """Whether a connection has been opened, so that the port speaks what this client does."""
        self._explanation = SharedTask("resilient-io redis TLS check", ended=closed)
        self._explained = -math.inf  # loop time of the latest explanation of a reset
        self._reset_reason: ssl.SSLError | None = None

    def _find_places(self) -> Places | None:
        """Return where connections are opened; None if that is up to the connections."""
        source = self._source
        pool, settings = self._pool, self._settings
        plain = _PLAIN_CLASSES.get(self._class)
        if plain is not None and isinstance(pool, SentinelConnectionPool):
            # Sentinels are asked here, all at the same time, and READONLY remains a reply.
            self._class = plain
            settings.pop("connection_pool", None)
            manager = pool.sentinel_manager
            self.sentinels = [
                SentinelNode(RedisTarget(known.connection_pool, sentinel=True))
                for known in manager.sentinels
            ]
            if source is None:
                source = addresses = SentinelAddress(
                    pool.service_name,
                    [sentinel.ask for sentinel in self.sentinels],
                    replica=not pool.is_master,
                    least_others=manager.min_other_sentinels,
                    forced_host=manager._force_master_ip,
                    address_map=getattr(manager, "address_map", None),
                    role_of=self._role_of,
                )
                if pool.is_master:
                    self.master = addresses
                    addresses.on_change(self._master_changed)
        elif SentinelManagedConnection in getattr(self._class, "__mro__", ()):
            return None  # a class of the application, which asks the Sentinels itself
        elif getattr(self._class, "_connect", None) is Connection._connect:
            # redis-py 8.1 itself opens them, over TCP. A fake has no real host.
            host, port = settings.get("host") or "localhost", settings.get("port", 6379)
            if not isinstance(host, str):
                return None
            source = source or ConfiguredAddress(host, int(port))
        else:
            return None
        return Places(source)

    def _master_changed(self, _before: KnownMaster | None, _after: KnownMaster) -> None:
        self._masters += 1

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

    def with_source(self, source: AddressSource) -> RedisTarget:
        """Return a target with the same settings for another server."""
        return RedisTarget(self._pool, source=source)

    @property
    def address_map(self) -> AddressMap | None:
        """Where servers are reached that are announced at other addresses."""
        manager = getattr(self._pool, "sentinel_manager", None)
        found: AddressMap | None = getattr(manager, "address_map", None)
        return found

    @property
    def client_name(self) -> str | None:
        """The client name in the pool's settings."""
        name: str | None = self._settings.get("client_name")
        return name

    @property
    def secrets(self) -> tuple[str, ...]:
        """All passwords and tokens that may occur in a text of the server or of redis-py."""
        return (*self._static_secrets, *self._provided)

    def remember(self, secret: object) -> None:
        """Add a password or token that a credential provider returned."""
        text = text_of(secret)
        if text and text not in self._provided:
            self._provided = [*self._provided, text][-_REMEMBERED:]

    @contextlib.contextmanager
    def without_secrets(self) -> Iterator[None]:
        """Remove secrets from the exceptions of redis-py that pass through."""
        try:
            yield
        except (driver.RedisError, OSError) as error:
            remove_secrets(error, self.secrets)
            raise

    def failure(self, error: BaseException) -> ConnectionFailure:
        """Return why connecting or talking to this server failed, without secrets."""
        failure = connection_failure(error, tls=self.uses_tls, secrets=self.secrets)
        if failure.cause is Cause.WRONG_DATABASE:
            db = self._settings.get("db")
            failure = replace(failure, detail=wrong_database(db, failure.detail, mode=self._mode))
        elif failure.cause is Cause.AUTH and not self._sentinel:
            gave = bool(self._static_secrets or self._settings.get("credential_provider"))
            failure = replace(failure, detail=wrong_login(failure.detail, gave_password=gave))
        return failure

    def check_mode(self, mode: str | None, place: Place | None) -> None:
        """Raise if a server has said in the handshake that it is a Sentinel, and none is wanted."""
        self._mode = mode
        if mode == "sentinel" and not self._sentinel:
            where = place or (self._settings.get("host"), self._settings.get("port", 6379))
            raise sentinel_instead_of_server(address_of(where[0], where[1]))

    def explain_reply(self, error: Exception, *, known: bool) -> Exception:
        """Return an error reply with a text that says what to use, if another server would help.

        `known` is whether the command is one of Redis.
        """
        where = address_of(self._settings.get("host"), self._settings.get("port", 6379))
        return explain_reply(error, known=known, where=where)

    def expect_master(self) -> Callable[[], None]:
        """Return a function that raises if the Sentinels have named another master since."""
        masters = self._masters

        def check() -> None:
            if self._masters != masters:
                raise driver.ConnectionError("the Sentinels named another master meanwhile")

        return check

    async def check_role(self, connection: AbstractConnection) -> None:
        """Raise if a new connection leads to a replica although the master is wanted."""
        if self.master is not None and await role_over(connection) == "slave":
            raise driver.ReadOnlyError(
                f"the Sentinels name {self.master.known} as the master, but it is a replica"
            )

    async def _role_of(self, address: tuple[str, int]) -> str:
        """Return the role of the server at an address, asked on a new connection."""
        host, port = address
        connection = self.connection(
            client_name=None, connect_timeout=None, place=Place(host, port, host)
        )
        try:
            async with StallTolerantTimeout(_SENTINEL_TIMEOUT):
                load_files(connection)
                await _shake_hands(connection)
                return await role_over(connection)
        except (driver.RedisError, OSError) as error:
            raise driver.ConnectionError(self.failure(error).detail) from None
        finally:
            abort(connection)

    async def check_port(self) -> None:
        """Raise if only one side speaks TLS, as an earlier attempt has found out."""
        if self._mismatch is not None:
            await self._check_for(self._mismatch)

    async def explain(self, error: BaseException) -> None:
        """Raise an `ssl.SSLError` if connecting failed because of TLS, which `error` does not say.

        Redis treats the TLS greeting as the beginning of a command and waits for the rest, so a
        plain port looks like a frozen server. A TLS port closes a plain connection. A server that
        requires the client's certificate says so, but a reset may hide that.
        """
        cause = self.failure(error).cause
        if cause is Cause.TIMED_OUT and self.uses_tls:
            await self._check_for(PLAIN_PORT)
        if cause is not Cause.RESET or (self.reached and not self.uses_tls):
            return
        if asyncio.get_running_loop().time() - self._explained >= _EXPLAIN_INTERVAL:
            # A server that resets connections may also be starting: it is not asked often.
            self._reset_reason = await self._explanation.result(self._explain_reset)
            self._explained = asyncio.get_running_loop().time()
        if self._reset_reason is not None:
            raise self._reset_reason.with_traceback(None)

    async def _explain_reset(self) -> ssl.SSLError | None:
        place = await self._first_place()
        if place is None:
            return None
        if not self.uses_tls:
            if not await answers_tls(place.address, place.port):
                return None
            self._mismatch = TLS_PORT
            return ssl.SSLError(1, TLS_PORT)
        connection: Any = self.connection(client_name=None, connect_timeout=None, place=place)
        load_files(connection)
        return await find_alert(connection._connection_arguments())

    async def _check_for(self, mismatch: str) -> None:
        self._mismatch = None
        check = answers_tls if mismatch == TLS_PORT else answers_without_tls
        place = await self._first_place()
        if place is not None and await check(place.address, place.port):
            self._mismatch = mismatch
            raise ssl.SSLError(1, mismatch)

    async def _first_place(self) -> Place | None:
        """Return the address that would be tried first, if it is found quickly."""
        with contextlib.suppress(driver.RedisError, OSError):
            async with asyncio.timeout(PORT_CHECK_TIMEOUT):
                return next(iter(await self.places() or ()), None)
        return None

    async def places(self) -> Sequence[Place] | None:
        """Return the addresses to try, in this order; None leaves that to the connection."""
        return None if self._places is None else await self._places.find()

    def avoid(self, place: Place) -> None:
        """Try an address last from now on."""
        if self._places is not None:
            self._places.avoid(place.address, place.port)

    def avoid_peer(self, peer: Any) -> None:
        """Try the address of a connection, as its socket names it, last from now on."""
        if self._places is not None and isinstance(peer, tuple):
            self._places.avoid(peer[0], peer[1])

    async def aclose(self) -> None:
        """Cancel the lookup and the check that are in flight."""
        await self._explanation.aclose()
        if self._places is not None:
            await self._places.aclose()

    def connection(
        self, *, client_name: str | None, connect_timeout: float | None, place: Place | None = None
    ) -> AbstractConnection:
        """Return a new connection object that is not connected yet.

        redis-py applies `connect_timeout` to its own connect attempts, None for no limit.

        Every connect attempt needs a new one, because redis-py 8.1 keeps the SSL context in the
        connection.
        """
        options = {"client_name": client_name, "socket_connect_timeout": connect_timeout}
        if place is None:
            return self._class(**self._settings | options)
        options |= {"host": place.host, "port": place.port}
        connection: AbstractConnection = self._class(**self._settings | options)
        if place.address != place.host:
            # redis-py 8.1 passes them to `asyncio.open_connection`, which would look up the name
            # again. TLS verifies the name.
            own = connection._connection_arguments  # type: ignore[attr-defined]
            name = {"server_hostname": place.host} if self.uses_tls else {}

            def arguments() -> Mapping[str, Any]:
                return {**own(), **name, "host": place.address}

            connection._connection_arguments = arguments  # type: ignore[attr-defined]
        return connection


_PLAIN_CLASSES: dict[type, type[Connection]] = {
    SentinelManagedConnection: Connection,
    SentinelManagedSSLConnection: SSLConnection,
}

_SENTINEL_TIMEOUT = 0.5  # seconds that one Sentinel may take, from connecting to its last reply


class SentinelNode:
    """One Sentinel: how to ask it, and how to subscribe to what it publishes."""

    def __init__(self, target: RedisTarget) -> None:
        self._target = target

    @property
    def name(self) -> str:
        """Its address without secrets."""
        return clean_text(self._target.name.rpartition("/")[0])

    async def ask(self, *commands: Sequence[str]) -> list[Any]:
        """Send commands on a new connection and return their replies."""
        connection: AbstractConnection | None = None
        try:
            async with StallTolerantTimeout(_SENTINEL_TIMEOUT):
                connection = await self._connect()
                replies = await exchange(connection, *commands)
            wrong = [no_sentinel(reply, self.name) for reply in replies]
            if wrong[0] is not None:
                raise wrong[0]
        except WrongServer:
            raise
        except (driver.RedisError, OSError) as error:
            failure = self.failure(error)
            if failure.cause is Cause.AUTH:
                use = "sentinel_kwargs={'password': …}, or ?sentinel_password=… in a URL"
                raise driver.AuthenticationError(
                    f"the Sentinel {self.name} refuses the login: use {use} ({failure.detail})"
                ) from None
            raise driver.ConnectionError(f"{self.name}: {failure.detail}") from None
        else:
            return replies
        finally:
            if connection is not None:
                abort(connection)

    async def subscribe(self, channels: Sequence[str]) -> AbstractConnection:
        """Return a new connection on which the Sentinel publishes these channels."""
        subscribed = False
        connection: AbstractConnection | None = None
        try:
            async with StallTolerantTimeout(_SENTINEL_TIMEOUT):
                connection = await self._connect()
                await connection.send_command("SUBSCRIBE", *channels)
                for _ in channels:
                    await connection.read_response(push_request=True)
            subscribed = True
            return connection
        finally:
            if connection is not None and not subscribed:
                abort(connection)

    def failure(self, error: BaseException) -> ConnectionFailure:
        """Return why it does not answer, without secrets."""
        return self._target.failure(error)

    async def _connect(self) -> AbstractConnection:
        places = await self._target.places() or (None,)
        return await _open(self._target, places[0], client_name=None, began=None)


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
        if secret := text_of(options.get(key)):
            yield secret
    if _is_token(options.get("username")):
        yield text_of(options["username"])
    credentials, _, _ = str(options.get("host") or "").rpartition("@")
    if credentials:
        yield credentials.rpartition("/")[2].partition(":")[2] or credentials


def _is_token(username: object) -> bool:
    return len(text_of(username)) >= _TOKEN_LENGTH
