"""Addresses of a Kafka cluster, its credentials, and new connections to its brokers."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
from collections import deque
from typing import TYPE_CHECKING, Any

from aiokafka import conn as driver
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from resilient_io.errors import ConfigurationError
from resilient_io.tasks import SharedTask
from resilient_io.text import format_address, quote_url

from .driver import CONNECTION_OPTIONS
from .log_filter import DriverLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .driver import Connection


class TokenFailed(KafkaConnectionError):
    """The OAuth token provider failed, so no connection was made. The next token may be good."""


_driver: Any = driver
_create_conn: Any = driver.create_conn
_collect_hosts: Any = driver.collect_hosts
_OAuthAuthenticator: Any = driver.OAuthAuthenticator

_TOKENS = 4  # how many of the latest tokens to keep, to remove them from error messages

_KEPT = 10.0
"""Seconds for which a token is kept whose attempt to connect had timed out."""

_LONGEST_REQUEST = 30.0
"""Seconds after which a token is requested again, because the first request may have hung."""

_Base: Any = AbstractTokenProvider  # according to its type hints, a token is None


class _TokenProvider(_Base):  # type: ignore[misc]
    """A token provider that raises only errors that aiokafka handles, and that may be slow.

    aiokafka 0.14 expects a KafkaError while it connects (`AIOKafkaClient._get_conn`). Any other
    exception ends its background tasks permanently and without a log record.

    A request for a token goes on when the attempt to connect that made it has timed out. The next
    attempt gets its token. Attempts at the same time share a request.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._request = SharedTask(
            "resilient-io kafka token",
            ended=lambda: TokenFailed("the OAuth token provider cancelled itself"),
            kept=_KEPT,
            longest=_LONGEST_REQUEST,
        )
        self.tokens: deque[str] = deque(maxlen=_TOKENS)

    async def token(self) -> str:
        """Return a token of the application's provider."""
        return await self._request.result(self._ask)

    async def aclose(self) -> None:
        """End a request for a token. A provider that goes on nevertheless is not waited for."""
        await self._request.aclose()

    async def _ask(self) -> str:
        try:
            token = await self._provider.token()
        # The boundary to the application's code: its exceptions must not end the driver.
        except Exception as error:
            name = type(error).__name__
            raise TokenFailed(f"the OAuth token provider raised {name}") from error
        if not isinstance(token, str) or not token:
            # The value may be a secret of another type: name only the type.
            raise TokenFailed(
                f"the OAuth token provider returned {type(token).__name__}, not a non-empty str"
            )
        if token not in self.tokens:
            self.tokens.append(token)
        return token

    def extensions(self) -> dict[str, str]:
        """Return the SASL extensions of the application's provider, if it has any."""
        extensions: Any = getattr(self._provider, "extensions", None)
        if not callable(extensions):
            return {}
        try:
            given: Any = extensions()
            return dict(given)
        # The boundary to the application's code, as above.
        except Exception as error:
            name = type(error).__name__
            raise TokenFailed(f"extensions() of the OAuth token provider raised {name}") from error


class _Authenticator(_OAuthAuthenticator):  # type: ignore[misc]
    """The client's side of an OAUTHBEARER login, up to the broker's verdict.

    A broker answers a bad token with its reason and without an error code, and expects an empty
    response before it fails the login (RFC 7628, section 3.2.3). aiokafka 0.14 sends none and
    takes the connection for authenticated. Brokers answer its later requests with empty metadata.
    """

    _answered = False

    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        """Return what to send next, and whether an answer follows; None at the end."""
        request: tuple[bytes, bool] | None = await super().step(payload)
        guarded = isinstance(self._sasl_oauth_token_provider, _TokenProvider)
        if request is None and payload and guarded and not self._answered:
            self._answered = True
            return b"\x01", True
        return request


def guard_token_provider(provider: object) -> Any:
    """Wrap a token provider so that it raises only errors that aiokafka handles.

    The first call replaces the class with which aiokafka's connections log in, which has no effect
    on connections whose provider is not wrapped.
    """
    if isinstance(provider, _TokenProvider):
        return provider
    if not inspect.iscoroutinefunction(getattr(provider, "token", None)):
        raise ConfigurationError(
            f"sasl_oauth_token_provider must have `async def token(self) -> str`, which "
            f"{type(provider).__name__} does not have: derive it from "
            f"aiokafka.abc.AbstractTokenProvider"
        )
    _driver.OAuthAuthenticator = _Authenticator
    return _TokenProvider(provider)


_NAMED = 3  # maximum number of addresses in the name of a target


class KafkaTarget:
    """A Kafka cluster: its bootstrap servers, the brokers last seen, and the credentials."""

    def __init__(
        self, bootstrap_servers: str | Iterable[str], options: Mapping[str, Any] | None = None
    ) -> None:
        self.bootstrap = _addresses(bootstrap_servers)
        self._options = dict(options or {})
        provider = self._options.get("sasl_oauth_token_provider")
        if provider is not None:
            self._options["sasl_oauth_token_provider"] = guard_token_provider(provider)
        if self.uses_sasl:
            # The default of aiokafka's clients, which `create_conn` does not share.
            self._options.setdefault("sasl_mechanism", "PLAIN")
        named = [format_address(host, port) for host, port in self.bootstrap[:_NAMED]]
        more = ",…" if len(self.bootstrap) > _NAMED else ""
        self.name = f"kafka {','.join(named)}{more}"
        self.driver_log = DriverLog(self.secrets)
        self.brokers: dict[int, tuple[str, int]] = {}  # last seen, by node id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return str(self._options.get("security_protocol", "")).endswith("SSL")

    @property
    def uses_sasl(self) -> bool:
        """Whether connections authenticate with SASL."""
        return str(self._options.get("security_protocol", "")).startswith("SASL")

    async def aclose(self) -> None:
        """End what runs in the background. The target may be used again."""
        provider = self._options.get("sasl_oauth_token_provider")
        if provider is not None:
            await provider.aclose()

    def secrets(self) -> tuple[str, ...]:
        """Return the password and the latest tokens, to remove them from texts of the driver."""
        provider = self._options.get("sasl_oauth_token_provider")
        tokens = provider.tokens if provider is not None else ()
        password = self._options.get("sasl_plain_password")
        return (password, *tokens) if isinstance(password, str) else (*tokens,)

    def update_brokers(self, brokers: Mapping[int, tuple[str, int]]) -> None:
        """Remember the brokers of new metadata. Empty metadata is ignored."""
        if brokers:
            self.brokers = dict(brokers)

    def addresses(self) -> list[tuple[str, int]]:
        """Return all addresses of the cluster: the brokers last seen, then the bootstrap servers.

        aiokafka itself never returns to the bootstrap servers (`AIOKafkaClient._metadata_update`).
        """
        return list(dict.fromkeys([*self.brokers.values(), *self.bootstrap]))

    def client_options(self) -> dict[str, Any]:
        """Return the options of a new aiokafka client, including the bootstrap servers."""
        servers = [format_address(host, port) for host, port in self.bootstrap]
        return {**self._options, "bootstrap_servers": servers}

    async def connect(self, host: str, port: int, timeout: float) -> Connection:
        """Return a new authenticated connection, which the caller closes (`abort_connection`).

        Cancelling the call leaves no connection open.
        """
        options = {
            name: self._options[name] for name in CONNECTION_OPTIONS if name in self._options
        }
        with self.driver_log.filtering():
            async with asyncio.timeout(timeout):
                connection: Connection = await _create_conn(
                    host,
                    port,
                    # Limits each request of the handshake; ours, which is shorter, limits all.
                    request_timeout_ms=int(timeout * 2000) + 1000,
                    **options,
                )
        return connection


def _addresses(servers: str | Iterable[str]) -> list[tuple[str, int]]:
    example = 'use bootstrap_servers="kafka-1:9092,kafka-2:9092" or a list of "host:port"'
    given = servers.split(",") if isinstance(servers, str) else servers
    try:
        names = [name.strip() for name in given]
    except (AttributeError, TypeError):
        raise ConfigurationError(
            f"bootstrap_servers must be a string or a list of strings, not "
            f"{type(servers).__name__}: {example}"
        ) from None
    for name in names:
        if "@" in name or "/" in name:
            raise ConfigurationError(
                f"bootstrap_servers must be addresses, not URLs such as {quote_url(name)}: pass a "
                f"URL with kafka:// to from_url(), or {example}, and credentials as "
                f"sasl_plain_username= and sasl_plain_password="
            )
    if not names or not all(names):
        raise ConfigurationError(f"bootstrap_servers={servers!r} contains no server: {example}")
    try:
        found = _collect_hosts(names, randomize=False)
    except (ValueError, IndexError):
        raise ConfigurationError(f"bootstrap_servers={servers!r} is invalid: {example}") from None
    for host, port, _ in found:
        if not 0 < port < 1 << 16 or not _is_host(host):
            raise ConfigurationError(
                f"bootstrap_servers={servers!r}: {host}:{port} is not a valid address: {example}"
            )
    return list(dict.fromkeys((host, port) for host, port, _ in found))


def _is_host(host: str) -> bool:
    """Return whether `host` is a name or an address; aiokafka takes "one:9092:1" for IPv6."""
    if ":" not in host:
        return bool(host)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
