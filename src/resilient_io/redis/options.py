"""redis-py's own options for retries and times, translated into a policy or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from redis import exceptions as driver
from redis.asyncio.connection import ConnectionPool
from redis.backoff import ConstantBackoff

from resilient_io.errors import ConfigurationError
from resilient_io.health import Dependency
from resilient_io.retry import RetryPolicy
from resilient_io.validation import check_count, check_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping


_MOST_LANES = 16
_LEAST_IN_FLIGHT = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """How much a client shares.

    Args:
        count: Connections that all callers share. One carries the calls, the others stand by for
            the time when it is busy with a large value or dies.
        in_flight: Bytes that may be in flight on a lane, each call counted as its own bytes and
            4 KiB: so at most 16,384 calls with the default. Past it callers wait.

    Raises:
        ConfigurationError: A value is out of range.
    """

    count: int = 2
    in_flight: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if type(self.count) is not int or not 1 <= self.count <= _MOST_LANES:
            raise ConfigurationError(
                f"count must be an int from 1 to {_MOST_LANES}, not {self.count!r}: write count=2"
            )
        check_count("in_flight", self.in_flight, least=_LEAST_IN_FLIGHT)


_RETRIED_ANYWAY = (
    driver.ConnectionError,
    driver.TimeoutError,
    driver.ReadOnlyError,
    driver.TryAgainError,
    driver.ClusterDownError,
    driver.OutOfMemoryError,
    OSError,
)


def policy_from(options: Mapping[str, Any]) -> RetryPolicy:
    """Read what existing code says about times and retries, as our policy says it.

    Args:
        options: Options of `redis.asyncio.Redis`, or the settings of a connection pool.

    Raises:
        ConfigurationError: An option has no equivalent; the message names what to write.
    """
    changes: dict[str, Any] = {}
    response = options.get("socket_timeout")
    if response is not None:
        changes["response_timeout"] = check_seconds("socket_timeout", response)
    connect = options.get("socket_connect_timeout")
    if connect is not None:
        changes["connect_timeout"] = check_seconds("socket_connect_timeout", connect)
    retry = options.get("retry")
    if retry is not None:
        changes |= _from_retry(retry)
    _check_errors(options.get("retry_on_error") or [])
    default = RetryPolicy()
    if default.deadline is not None:
        # A longer wait for one reply was asked for: the call as a whole may take as long.
        times = (changes.get("response_timeout", 0.0), changes.get("connect_timeout", 0.0))
        changes["deadline"] = max(default.deadline, *times)
    return default.replace(**changes)


def check_given(options: Mapping[str, Any], policy: RetryPolicy | None) -> None:
    """Refuse options, given directly, that contradict a policy or can never work.

    Raises:
        ConfigurationError: Says what to write instead.
    """
    if "socket_timeout" in options and options["socket_timeout"] is None:
        msg = (
            "socket_timeout=None would let a call hang for ever: leave it out, or write "
            "policy=RetryPolicy(response_timeout=600.0, deadline=None)"
        )
        raise ConfigurationError(msg)
    if policy is None:
        return
    equivalents = {
        "socket_timeout": "response_timeout",
        "socket_connect_timeout": "connect_timeout",
        "retry": "attempts, backoff and backoff_cap",
        "retry_on_error": "repeat",
        "retry_on_timeout": "repeat",
    }
    for option, equivalent in equivalents.items():
        if options.get(option):
            msg = f"{option}= beside policy= says it twice: write it in RetryPolicy as {equivalent}"
            raise ConfigurationError(msg)


def _from_retry(retry: Any) -> dict[str, Any]:
    # redis-py 8.1 `AbstractRetry._backoff`; backoffs keep `_base`, `_cap` or `_backoff`.
    retries = retry.get_retries()
    if retries < 0:
        msg = (
            "retry=Retry(..., -1) would retry for ever: write policy=RetryPolicy(attempts=10, "
            "deadline=60.0), or wait with `await redis.health.until_up()`"
        )
        raise ConfigurationError(msg)
    changes: dict[str, Any] = {"attempts": retries + 1}
    backoff: Any = getattr(retry, "_backoff", None)
    if isinstance(backoff, ConstantBackoff):
        changes["backoff"] = changes["backoff_cap"] = float(backoff._backoff)
    elif hasattr(backoff, "_base") and hasattr(backoff, "_cap"):
        changes["backoff_cap"] = float(backoff._cap)
        changes["backoff"] = min(float(backoff._base), changes["backoff_cap"])
    return changes


def _check_errors(errors: list[type[BaseException]]) -> None:
    for error in errors:
        if not issubclass(error, _RETRIED_ANYWAY):
            name = getattr(error, "__name__", repr(error))
            msg = (
                f"retry_on_error=[{name}] cannot be honoured: what is retried follows from the "
                f"command and from how far it got. Leave it out; to repeat more, write "
                f'policy=RetryPolicy(repeat="conditional") or "any"'
            )
            raise ConfigurationError(msg)


def pool_from_url(url: str, options: Mapping[str, Any]) -> ConnectionPool:
    """Let redis-py read a URL.

    Raises:
        ConfigurationError: It cannot; the message says how URLs are written, and not the URL.
    """
    try:
        return ConnectionPool.from_url(url, **options)
    except (ValueError, AttributeError, TypeError) as error:
        said = " ".join(str(error).split()).replace(str(url), "…")
        if "Port" in said:
            said = "what stands for the port is no number"  # it may be a part of the password
    # Here, not above: the driver's error, which may quote the password, must not hang on ours.
    raise ConfigurationError(
        f"the Redis URL cannot be understood ({said}): write "
        "redis://[user[:password]@]host[:port][/db], rediss://… or unix:///path"
    )


def check_types(
    policy: RetryPolicy | None, health: Dependency | None, lanes: ConnectionSettings | None
) -> None:
    """Refuse a policy, dependency or setting of another type.

    Raises:
        ConfigurationError: Says what to write instead.
    """
    for name, value, kind in (
        ("policy", policy, RetryPolicy),
        ("health", health, Dependency),
        ("lanes", lanes, ConnectionSettings),
    ):
        if value is not None and not isinstance(value, cast("type", kind)):
            raise ConfigurationError(
                f"{name} must be a {kind.__name__}, not {value!r}: "
                f"write {name}={kind.__name__}(...)"
            )
