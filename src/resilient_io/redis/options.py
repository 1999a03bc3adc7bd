"""The options of the client: their types, their validation, and the policy that they imply."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict
from urllib.parse import urlsplit

import redis.asyncio as redis_py
from redis import exceptions as driver
from redis.asyncio.connection import ConnectionPool
from redis.backoff import ConstantBackoff
from redis.event import (
    AfterPooledConnectionsInstantiationEvent,
    EventDispatcher,
    EventDispatcherInterface,
)
from redis.retry import AbstractRetry

from resilient_io.errors import ConfigurationError
from resilient_io.health import Dependency
from resilient_io.retry import RetryPolicy
from resilient_io.text import clean_text, quote_url
from resilient_io.urls import ENCODE
from resilient_io.validation import check_count, check_seconds, check_type

from .sentinel_options import is_sentinel_url, pool_from_sentinel_url

if TYPE_CHECKING:
    import random
    import ssl
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection
    from redis.asyncio.retry import Retry
    from redis.credentials import CredentialProvider
    from redis.driver_info import DriverInfo
    from redis.maint_notifications import MaintNotificationsConfig

    from .addresses import AddressMap
    from .connect import RedisTarget


_MOST_CONNECTIONS = 16
_LEAST_IN_FLIGHT = 64 * 1024
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """The shared connections of a client.

    Args:
        count: Number of connections that all callers share. One carries the calls; the others take
            over while it is busy with a large value, or when it dies.
        in_flight: Bytes that may be in flight on a connection. Each call counts as its own bytes
            plus 4 KiB, so the default permits 16,384 calls. Further callers wait.
        direct_wakeups: Whether a read continues the tasks whose replies arrived, instead of the
            event loop in its next iteration. It is faster; False is for finding out whether a
            problem is related to it.

    Raises:
        ConfigurationError: A value is out of range.
    """

    count: int = 2
    in_flight: int = 64 * 1024 * 1024
    direct_wakeups: bool = True

    def __post_init__(self) -> None:
        """Reject invalid values."""
        if type(self.count) is not int or not 1 <= self.count <= _MOST_CONNECTIONS:
            raise ConfigurationError(
                f"count={self.count!r} must be an integer from 1 to {_MOST_CONNECTIONS}, for "
                f"example count=2"
            )
        check_count("in_flight", self.in_flight, least=_LEAST_IN_FLIGHT)


DEFAULT_WAIT = 1.0
"""Seconds for which the server waits for replicas, unless less time is left until the deadline.

A replica of the same region acknowledges within milliseconds, so that a second is long. It is half
of the default response timeout.
"""

_LEAST_WAIT = 0.001
_MARGIN = 0.13
"""Seconds before the deadline at which the wait ends: an idle server checks its timeouts ten times
a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """How far a write must have got before its call returns.

    Args:
        replicas: How many replicas must have applied it, or, with `fsync`, have it on disk.
        fsync: Use WAITAOF (Redis 7.2): the server and the replicas must have written it to the
            append-only file and synchronized it. The server needs `appendonly yes`.
        timeout: Seconds for which the server waits; less if the deadline of the call is earlier.

    Raises:
        ConfigurationError: A value is out of range.
    """

    replicas: int = 1
    fsync: bool = False
    timeout: float = DEFAULT_WAIT

    def __post_init__(self) -> None:
        """Reject invalid values."""
        check_count("replicas", self.replicas, least=0 if self.fsync else 1)
        check_seconds("timeout", self.timeout)

    @classmethod
    def of(cls, value: object) -> Durability | None:
        """Return what the option `durability=` means; None for 0 or None.

        Raises:
            ConfigurationError: It is neither a number of replicas nor a `Durability`.
        """
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigurationError(
                f"durability={value!r} is invalid: use the number of replicas that must have a "
                f"write, for example durability=1, or durability=Durability(replicas=1, fsync=True)"
            )
        return cls(replicas=value) if value else None

    def wait_for(self, until: float | None) -> float:
        """Return for how many seconds the server shall wait, so that it replies before `until`."""
        if until is None:
            return self.timeout
        left = until - asyncio.get_running_loop().time()
        return max(min(self.timeout, max(left - _MARGIN, left / 2)), _LEAST_WAIT)

    def command(self, seconds: float) -> tuple[str | int, ...]:
        """Return the words of WAIT or WAITAOF. A timeout of 0 would wait forever."""
        milliseconds = max(round(seconds * 1000), 1)
        if self.fsync:
            return ("WAITAOF", 1, self.replicas, milliseconds)
        return ("WAIT", self.replicas, milliseconds)


class RedisOptions(TypedDict, total=False):
    """The options that `ResilientRedis` passes to `redis.asyncio.Redis` (redis-py 8.1).

    Without the deprecated `auto_close_connection_pool`.
    """

    host: str
    port: int
    db: str | int
    username: str | None
    password: str | None
    credential_provider: CredentialProvider | None
    client_name: str | None
    socket_timeout: float | None
    socket_connect_timeout: float | None
    socket_read_size: int
    socket_keepalive: bool | None
    socket_keepalive_options: Mapping[int, int | bytes] | None
    unix_socket_path: str | None
    encoding: str
    encoding_errors: str
    decode_responses: bool
    retry: Retry
    retry_on_timeout: bool
    retry_on_error: list[type[Exception]] | None
    ssl: bool
    ssl_keyfile: str | None
    ssl_certfile: str | None
    ssl_cert_reqs: str | ssl.VerifyMode
    ssl_include_verify_flags: list[ssl.VerifyFlags] | None
    ssl_exclude_verify_flags: list[ssl.VerifyFlags] | None
    ssl_ca_certs: str | None
    ssl_ca_data: str | None
    ssl_ca_path: str | None
    ssl_check_hostname: bool
    ssl_min_version: ssl.TLSVersion | None
    ssl_ciphers: str | None
    ssl_password: str | None
    max_connections: int | None
    health_check_interval: float
    lib_name: str | None
    lib_version: str | None
    driver_info: DriverInfo | None
    redis_connect_func: Callable[..., Any] | None
    protocol: int | None
    legacy_responses: bool
    event_dispatcher: EventDispatcher | None
    maint_notifications_config: MaintNotificationsConfig | None


ReadFromName: TypeAlias = Literal["master", "replica", "nearest", "any"]
"""Which server answers reads."""


class _OwnOptions(TypedDict, total=False):
    policy: RetryPolicy | None
    health: Dependency | None
    connections: ConnectionSettings | None
    name: str | None
    rng: random.Random | None
    read_from: ReadFromName
    max_lag: float | None
    durability: Durability | int | None
    reopen: bool


class PoolOptions(_OwnOptions, total=False):
    """The options of `ResilientRedis.from_pool`."""

    single_connection_client: bool


class SentinelOptions(PoolOptions, RedisOptions, total=False):
    """The options of `ResilientRedis.from_sentinel`: those of the client and its connections."""


class UrlOptions(_OwnOptions, RedisOptions, total=False):
    """The options of `ResilientRedis.from_url`, which include those of redis-py's connections.

    Those from `sentinel_kwargs` to `address_map` are for the URL of Sentinels.
    """

    sentinel_kwargs: Mapping[str, Any] | None
    min_other_sentinels: int
    force_master_ip: str | None
    address_map: AddressMap | None

    connection_class: type[AbstractConnection]
    parser_class: type[Any]
    encoder_class: type[Any]
    socket_type: int
    path: str


_NO_TIMEOUT = 600.0
"""Seconds that stand for `socket_timeout=None`: a reply that takes longer is not expected."""

_RETRIED_ANYWAY = (
    driver.ConnectionError,
    driver.TimeoutError,
    driver.ReadOnlyError,
    driver.TryAgainError,
    driver.ClusterDownError,
    driver.OutOfMemoryError,
    OSError,
)


@functools.lru_cache(maxsize=64)
def _policy(**changes: Any) -> RetryPolicy:
    """Return the default policy with changes: one object for all clients with the same options."""
    return RetryPolicy().replace(**changes)


def policy_from_options(options: Mapping[str, Any]) -> RetryPolicy:
    """Return the policy that redis-py's options for times and retries imply."""
    changes: dict[str, Any] = {}
    response = options.get("socket_timeout")
    if response is not None:
        changes["response_timeout"] = _check_timeout("socket_timeout", response)
    elif "socket_timeout" in options:
        changes["response_timeout"] = _NO_TIMEOUT
    connect = options.get("socket_connect_timeout")
    if connect is not None:
        changes["connect_timeout"] = _check_timeout("socket_connect_timeout", connect)
    retry = options.get("retry")
    if retry is not None:
        changes |= _from_retry(retry)
    errors = options.get("retry_on_error") or []
    if isinstance(errors, str) or not all(isinstance(error, type) for error in errors):
        raise ConfigurationError(
            f"retry_on_error={errors!r} is not a list of exception classes: omit the option, which "
            f"a URL cannot contain"
        )
    for error in errors:
        # A base class, such as Exception, asks to retry what can be retried.
        if not any(issubclass(error, each) or issubclass(each, error) for each in _RETRIED_ANYWAY):
            name = getattr(error, "__name__", repr(error))
            raise ConfigurationError(
                f"retry_on_error=[{name}] is not supported: whether a call is retried depends on "
                f"the command and on how far it got. Omit the option; to repeat more calls, use "
                f'policy=RetryPolicy(repeat="conditional") or "any"'
            )
    default = _policy()
    if default.deadline is not None:
        # A longer wait for one reply was requested: the whole call may take as long.
        times = (changes.get("response_timeout", 0.0), changes.get("connect_timeout", 0.0))
        changes["deadline"] = max(default.deadline, *times)
    return _policy(**changes)


def _check_timeout(option: str, seconds: float) -> float:
    if seconds == 0 and not isinstance(seconds, bool):
        raise ConfigurationError(
            f"{option}=0 would let every call time out immediately, as it does in redis-py: omit "
            f"it, or use {option}=None for no limit"
        )
    return check_seconds(option, seconds)


def pool_settings(pool: ConnectionPool) -> Mapping[str, Any]:
    """Return the settings of a pool; none for a mock, which would have a value for each name."""
    settings: object = pool.connection_kwargs
    return settings if isinstance(settings, dict) else {}


def probe_interval(seconds: object) -> float:
    """Return the interval of the health probe that `health_check_interval` implies, 0 for ours.

    With a negative one, redis-py checks before every command; the probe does not delay any.
    """
    if not seconds:
        return 0.0
    if isinstance(seconds, int | float) and seconds < 0:
        return 0.0
    return check_seconds("health_check_interval", seconds)


_EQUIVALENTS = {
    "socket_timeout": "response_timeout",
    "socket_connect_timeout": "connect_timeout",
    "retry": "attempts, backoff and backoff_cap",
    "retry_on_error": "repeat",
    "retry_on_timeout": "repeat",
}


def check_conflicts(options: Mapping[str, Any], policy: RetryPolicy | None) -> None:
    """Reject options that contradict the policy or can never work."""
    if policy is None:
        return
    for option, equivalent in _EQUIVALENTS.items():
        if options.get(option):
            raise ConfigurationError(
                f"{option}= and policy= contradict each other: use {equivalent} of RetryPolicy "
                f"instead of {option}="
            )


def _from_retry(retry: Any) -> dict[str, Any]:
    if not isinstance(retry, AbstractRetry):
        raise TypeError(
            f"retry must be a redis.asyncio.retry.Retry, not {type(retry).__name__}: use for "
            f"example policy=RetryPolicy(attempts=3)"
        )
    # redis-py 8.1 `AbstractRetry._backoff`; backoffs keep `_base`, `_cap` or `_backoff`.
    retries = retry.get_retries()
    if retries < 0:
        raise ConfigurationError(
            "retry=Retry(..., -1) would retry forever: use policy=RetryPolicy(attempts=10, "
            "deadline=60.0), or wait with `await redis.health.until_up()`"
        )
    changes: dict[str, Any] = {"attempts": retries + 1}
    backoff: Any = getattr(retry, "_backoff", None)
    if isinstance(backoff, ConstantBackoff):
        changes["backoff"] = changes["backoff_cap"] = float(backoff._backoff)
    elif hasattr(backoff, "_base") and hasattr(backoff, "_cap"):
        changes["backoff_cap"] = float(backoff._cap)
        changes["backoff"] = min(float(backoff._base), changes["backoff_cap"])
    return changes


def check_types(
    policy: RetryPolicy | None, health: Dependency | None, connections: ConnectionSettings | None
) -> None:
    """Check the types of the client's own options."""
    for name, value, kind in (
        ("policy", policy, RetryPolicy),
        ("health", health, Dependency),
        ("connections", connections, ConnectionSettings),
    ):
        if value is not None:
            check_type(name, value, kind, use=f"{name}={kind.__name__}(...)")


_FORMS = (
    "redis://[user[:password]@]host[:port][/db], rediss://…, unix:///path or "
    "redis+sentinel://host:26379,host:26379/mymaster"
)

_ADDRESS = re.compile(r"[A-Za-z0-9.-]+(:\d{1,5})?(/\d*)?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?(/\d*)?")
"""An address without a scheme, which contains no credentials and may be quoted."""


class LateEventDispatcher(EventDispatcherInterface):
    """redis-py's dispatcher of events, which is made when it is needed, because it takes 1.4 KB."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: EventDispatcher | None = None

    @property
    def _dispatcher(self) -> EventDispatcher:
        if self._made is None:
            self._made = EventDispatcher()
        return self._made

    def dispatch(self, event: object) -> None:
        """Call the listeners of an event. Those that redis-py adds ignore this one."""
        if self._made is None and isinstance(event, AfterPooledConnectionsInstantiationEvent):
            provider = event.credential_provider
            if provider is None:
                return
        self._dispatcher.dispatch(event)

    async def dispatch_async(self, event: object) -> None:
        """Call the asynchronous listeners of an event."""
        await self._dispatcher.dispatch_async(event)

    def register_listeners(self, mappings: Any) -> None:
        """Add listeners, by the class of the event."""
        self._dispatcher.register_listeners(mappings)

    def unregister_listeners(self, mappings: Any) -> None:
        """Remove listeners."""
        self._dispatcher.unregister_listeners(mappings)


_INVALID_VALUE = re.compile(r"Invalid value for '([a-z_]+)' in connection URL")
_UNKNOWN_OPTION = re.compile(r"unexpected keyword argument '(\w+)'")
_WRONG_PORT = "the port is not a number from 1 to 65535"
_DATABASE = re.compile(r"/?|/\d+/?", re.ASCII)
_OPTION_NAME = re.compile(r"[a-z][a-z_]*")

_DRIVER_OPTIONS = tuple(inspect.signature(redis_py.Redis.__init__).parameters)
"""Found out early: a tracer may replace the constructor by one that takes any arguments."""


def pool_from_url(url: str, options: Mapping[str, Any]) -> ConnectionPool:
    """Return a pool of redis-py for a URL. No error quotes a part that may belong to a password."""
    if not isinstance(url, str):
        raise ConfigurationError(f"a Redis URL must be a str, not {type(url).__name__}")
    if _ADDRESS.fullmatch(url):
        raise ConfigurationError(f"invalid URL {url!r}: no scheme. Did you mean redis://{url}?")
    try:
        mistake = _find_mistake(url)
        if mistake is None and is_sentinel_url(url):
            return pool_from_sentinel_url(url, options)
        if mistake is None:
            return _make_pool(url, options)
    except ConfigurationError:
        raise
    except (ValueError, AttributeError, TypeError) as error:
        mistake = _url_mistake(str(error))
    if "@" in url:
        mistake = f"{mistake}; {ENCODE}"
    # Here, not above: the exception of redis-py may quote the password, so it is not chained.
    raise ConfigurationError(f"invalid Redis URL {quote_url(url)}: {mistake}: use {_FORMS}")


def _find_mistake(url: str) -> str | None:
    """Return what is wrong with a URL if redis-py does not say so, or uses another server."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        return "no scheme"
    if scheme.lower() not in {"redis", "rediss"}:
        return None
    parts = urlsplit(url)
    if "," in parts.netloc.rpartition("@")[2]:
        return "it names several hosts, which only the URL of Sentinels may"
    if parts.port == 0:
        return _WRONG_PORT
    # redis-py 8.1 `parse_url` would use database 0 instead, and for "/1/2" database 12.
    if not _DATABASE.fullmatch(parts.path):
        return "the database, after the host, is not a number"
    return None


def _make_pool(url: str, options: Mapping[str, Any]) -> ConnectionPool:
    if options.get("event_dispatcher") is not None:
        return ConnectionPool.from_url(url, **options)
    pool = ConnectionPool.from_url(url, **{**options, "event_dispatcher": LateEventDispatcher()})
    # It is an attribute of the pool. Not all classes of connections have this option.
    pool.connection_kwargs.pop("event_dispatcher", None)
    return pool


def _url_mistake(message: str) -> str:
    """Return what is wrong with a URL, from the message of redis-py or urllib, without quoting."""
    if "schemes" in message:
        return "unknown scheme"
    if "Port" in message:
        return _WRONG_PORT
    invalid = _INVALID_VALUE.search(message)
    if invalid is not None:
        return f"invalid value for {invalid[1]!r}"
    return "the host cannot be parsed"


def check_address(settings: Mapping[str, Any]) -> None:
    """Check the host, the port and the database of redis-py's options. A fake may have others."""
    host, port, db = settings.get("host"), settings.get("port"), settings.get("db")
    if isinstance(host, str):
        if "/" in host or "@" in host:
            raise ConfigurationError(
                f"host={quote_url(host)} is not a host name: pass a URL to from_url()"
            )
        name, colon, number = host.partition(":")
        if colon and number.isdecimal() and ":" not in number:
            raise ConfigurationError(
                f"host={host!r} contains a port: use host={name!r}, port={number}"
            )
    if isinstance(port, int | str) and not _is_number(port, least=1, most=_LAST_PORT):
        raise ConfigurationError(
            f"port={port!r} is not a number from 1 to {_LAST_PORT}, for example port=6379"
        )
    if isinstance(db, int | str) and not _is_number(db, least=0):
        raise ConfigurationError(f"db={db!r} is not the number of a database, for example db=0")


def _is_number(value: int | str, *, least: int, most: int | None = None) -> bool:
    try:
        number = int(value)
    except ValueError:
        return False
    return not isinstance(value, bool) and least <= number and (most is None or number <= most)


def check_target(target: RedisTarget) -> None:
    """Build a connection object and drop it, so that an invalid option is reported immediately."""
    name: object = target.client_name
    # Redis refuses such a name, and a connection without a name cannot be fenced.
    if name is not None and not (
        isinstance(name, str) and all("!" <= character <= "~" for character in name)
    ):
        raise ConfigurationError(
            "client_name must be a str of printable ASCII characters without spaces, for example "
            'client_name="orders-worker"'
        )
    with explain_options(target.secrets):
        target.connection(client_name=None, connect_timeout=1.0)


@contextlib.contextmanager
def explain_options(secrets: Sequence[str] = ()) -> Iterator[None]:
    """Convert redis-py's errors about invalid options into clear ones without secrets."""
    try:
        yield
    except (TypeError, ValueError, driver.RedisError) as error:
        if isinstance(error, ConfigurationError):
            raise
        message = str(error)
        unknown = _UNKNOWN_OPTION.search(message)
        why = (
            _describe_unknown(unknown[1])
            if unknown is not None
            else f"invalid connection options: {clean_text(message, secrets=secrets)}"
        )
        raise ConfigurationError(f"{why}; see redis.asyncio.Redis") from None


def _describe_unknown(option: str) -> str:
    # A name from a URL may be a part of a password that contains "&": then it is not quoted.
    if not _OPTION_NAME.fullmatch(option):
        return "unknown option"
    if option in _OwnOptions.__annotations__:
        return (
            f"{option!r} is an option of the client, not of its connections: use "
            f"ResilientRedis.from_sentinel(..., {option}=...) or from_pool(pool, {option}=...)"
        )
    if option in RetryPolicy.__dataclass_fields__:
        return f"unknown option {option!r}: use policy=RetryPolicy({option}=...)"
    if option == "ssl" or option.startswith("ssl_"):
        return f"{option!r} needs TLS: use a URL with rediss://"
    if option in _DRIVER_OPTIONS:
        return f"{option!r} is not an option of this kind of connection"
    known = [*_DRIVER_OPTIONS, *PoolOptions.__annotations__]
    close = difflib.get_close_matches(option, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown option {option!r}{hint}"
