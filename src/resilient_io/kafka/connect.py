"""Where the cluster is and how to log in."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from aiokafka import conn as driver
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from resilient_io.errors import ConfigurationError

from .driver import CONNECTION_OPTIONS
from .log_filter import Tally, quietly

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .protocols import Connection


class TokenFailed(KafkaConnectionError):
    """The token provider raised, so no connection could be made; tried again with the next one."""


_Provider: Any = AbstractTokenProvider  # its hints say that a token is None


class _Guarded(_Provider):  # type: ignore[misc]
    """Lets only errors of Kafka's out of `token()`.

    aiokafka 0.14 expects only those while it connects (`client.py`: `_get_conn`): any other error
    ends its background tasks for ever, without a word.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    async def token(self) -> str:
        """Ask the provider.

        Raises:
            TokenFailed: It raised, cancelled itself, or gave no token.
        """
        task = asyncio.current_task()
        try:
            token = await self._provider.token()
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            raise TokenFailed("the OAuth token provider cancelled itself") from None
        # The boundary between us and code of others: what it raises must not end the driver.
        except Exception as error:
            name = type(error).__name__
            raise TokenFailed(f"the OAuth token provider raised {name}") from error
        if not isinstance(token, str) or not token:
            # The value may be a secret in another type: name its type only.
            raise TokenFailed(f"the OAuth token provider gave no token but {type(token).__name__}")
        return token

    def extensions(self) -> dict[str, str]:
        """Ask the provider for its extensions, if it has any.

        Raises:
            TokenFailed: It raised.
        """
        extensions: Any = getattr(self._provider, "extensions", None)
        if not callable(extensions):
            return {}
        try:
            given: Any = extensions()
            return dict(given)
        # The boundary between us and code of others, as above.
        except Exception as error:
            name = type(error).__name__
            raise TokenFailed(f"extensions() of the OAuth token provider raised {name}") from error


def guarded(provider: object) -> Any:
    """Wrap a token provider so that only errors of Kafka's escape from it.

    Args:
        provider: Has `async def token() -> str`, as `aiokafka.abc.AbstractTokenProvider`.

    Raises:
        ConfigurationError: It has no such method.
    """
    if isinstance(provider, _Guarded):
        return provider
    if not inspect.iscoroutinefunction(getattr(provider, "token", None)):
        raise ConfigurationError(
            f"sasl_oauth_token_provider must have `async def token(self) -> str`, which "
            f"{type(provider).__name__} has not: derive it from aiokafka.abc.AbstractTokenProvider"
        )
    return _Guarded(provider)


_create_conn: Any = driver.create_conn
_collect_hosts: Any = driver.collect_hosts

_NAMED = 3
"""How many addresses a target's name has at most."""


class Target:
    """A Kafka cluster: its bootstrap servers, the brokers last seen, and how to log in.

    Args:
        bootstrap_servers: "host[:port]", several with commas between, or a list of such.
        options: Options for aiokafka's client (security, SASL, client_id, times), checked.

    Attributes:
        name: The address in words, without any secret: "kafka 127.0.0.1:9092".
        bootstrap: Host and port of each bootstrap server.
        tally: Counts the records that the driver wrote for connections made here.

    Raises:
        ConfigurationError: The servers or the token provider cannot be used.
    """

    def __init__(
        self, bootstrap_servers: str | Iterable[str], options: Mapping[str, Any] | None = None
    ) -> None:
        self.bootstrap = _addresses(bootstrap_servers)
        self._options = dict(options or {})
        provider = self._options.get("sasl_oauth_token_provider")
        if provider is not None:
            self._options["sasl_oauth_token_provider"] = guarded(provider)
        if self.logs_in:
            # The default of aiokafka's clients, which `create_conn` does not share.
            self._options.setdefault("sasl_mechanism", "PLAIN")
        named = [_written(host, port) for host, port in self.bootstrap[:_NAMED]]
        more = ",…" if len(self.bootstrap) > _NAMED else ""
        self.name = f"kafka {','.join(named)}{more}"
        self.tally = Tally()
        self._brokers: dict[int, tuple[str, int]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return str(self._options.get("security_protocol", "")).endswith("SSL")

    @property
    def logs_in(self) -> bool:
        """Whether connections give credentials."""
        return str(self._options.get("security_protocol", "")).startswith("SASL")

    @property
    def brokers(self) -> dict[int, tuple[str, int]]:
        """Host and port of the brokers last seen, by node id; empty before the first answer."""
        return dict(self._brokers)

    def saw(self, brokers: Mapping[int, tuple[str, int]]) -> None:
        """Remember the brokers that a broker named; an empty answer is no news."""
        if brokers:
            self._brokers = dict(brokers)

    def addresses(self) -> list[tuple[str, int]]:
        """Give all addresses at which a broker may answer: those last seen, then bootstrap."""
        return list(dict.fromkeys([*self._brokers.values(), *self.bootstrap]))

    def client_options(self) -> dict[str, Any]:
        """Give the options with which an instance is made, the bootstrap servers included."""
        servers = [_written(host, port) for host, port in self.bootstrap]
        return {**self._options, "bootstrap_servers": servers}

    async def dial(self, host: str, port: int, timeout: float) -> Connection:
        """Make one new connection, logged in. The caller closes it (`internals.drop`).

        Cancelling leaves nothing open.

        Args:
            host: Of a broker.
            port: Of a broker.
            timeout: Seconds for all of it.

        Raises:
            TimeoutError: It took longer.
            OSError: It cannot be reached.
            KafkaError: It does not let us in, or hung up.
        """
        options = {
            name: self._options[name] for name in CONNECTION_OPTIONS if name in self._options
        }
        with quietly(self.tally):
            async with asyncio.timeout(timeout):
                connection: Connection = await _create_conn(
                    # A bound of its own for each request, just beyond ours.
                    host,
                    port,
                    request_timeout_ms=int(timeout * 2000) + 1000,
                    **options,
                )
        return connection


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _addresses(servers: str | Iterable[str]) -> list[tuple[str, int]]:
    example = 'write bootstrap_servers="kafka-1:9092,kafka-2:9092" or a list of "host:port"'
    given = servers.split(",") if isinstance(servers, str) else servers
    try:
        names = [name.strip() for name in given]
    except (AttributeError, TypeError):
        raise ConfigurationError(f"bootstrap_servers must be strings: {example}") from None
    if any("@" in name or "/" in name for name in names):
        # Not quoted: what stands before the @ may be a password.
        raise ConfigurationError(
            f"bootstrap_servers are addresses, not URLs: {example}, and credentials as "
            f"sasl_plain_username= and sasl_plain_password="
        )
    if not names or not all(names):
        raise ConfigurationError(f"bootstrap_servers={servers!r} names no server: {example}")
    try:
        found = _collect_hosts(names, randomize=False)
    except (ValueError, IndexError):
        raise ConfigurationError(
            f"bootstrap_servers={servers!r} cannot be understood: {example}"
        ) from None
    for host, port, _ in found:
        if not host or not 0 < port < 1 << 16:
            raise ConfigurationError(
                f"bootstrap_servers={servers!r}: {host}:{port} is no address: {example}"
            )
    return list(dict.fromkeys((host, port) for host, port, _ in found))
