"""The hierarchy of `resilient_io.errors`, Redis-flavoured: each is also redis-py's own.

```
DependencyUnavailable ─ RedisUnavailable        also redis.ConnectionError
                        └ RedisAuthenticationFailed     also redis.AuthenticationError
OutcomeUnknown ──────── RedisOutcomeUnknown     also redis.ConnectionError and redis.TimeoutError
DeadlineExceeded ────── RedisDeadlineExceeded   also redis.TimeoutError and the builtin TimeoutError
Overloaded ──────────── RedisOverloaded         also redis.MaxConnectionsError
Closed ──────────────── RedisClosed             also redis.ConnectionError
                        RouteRefused            also redis.DataError
```

So `except redis.ConnectionError` and `except redis.TimeoutError` keep working. Mind that a retry
decorator on `redis.ConnectionError` would repeat an `OutcomeUnknown`: let it retry
`DependencyUnavailable` only.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from redis import exceptions as driver

from resilient_io.errors import (
    Closed,
    DeadlineExceeded,
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
)
from resilient_io.health import Cause

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class RedisUnavailable(DependencyUnavailable, driver.ConnectionError):
    """Redis cannot be reached, and nothing was applied."""


class RedisAuthenticationFailed(RedisUnavailable, driver.AuthenticationError):
    """Redis refused the username or password; repeating the call cannot help."""


class RedisOutcomeUnknown(OutcomeUnknown, driver.ConnectionError, driver.TimeoutError):
    """The command was sent, no reply came, and repeating it is not safe.

    Attributes:
        answered: For a batch: the replies that came, in order, from the first command on.
        unanswered: For a batch: the positions of the commands that may have been applied.
    """

    answered: Sequence[object] = ()
    unanswered: Sequence[int] = ()


class RedisDeadlineExceeded(DeadlineExceeded, driver.TimeoutError):
    """The time was used up; nothing was applied."""


class RedisOverloaded(Overloaded, driver.MaxConnectionsError):
    """Too much is in flight already; nothing was sent."""


class RedisClosed(Closed, driver.ConnectionError):
    """The client was closed."""


class RouteRefused(driver.DataError):
    """The command changes its connection, which is shared; the message says what to use."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reply that says: not applied, and worth another attempt later.

    Attributes:
        cause: What health is told.
        degraded: The server answers but refuses writes; else it does not serve at all.
        elsewhere: Another server may accept it: drop the lane and find the address anew.
    """

    cause: Cause
    degraded: bool = False
    elsewhere: bool = False


_BY_CLASS: dict[type[BaseException], Refusal] = {
    driver.BusyLoadingError: Refusal(Cause.LOADING),
    driver.ReadOnlyError: Refusal(Cause.READ_ONLY, degraded=True, elsewhere=True),
    driver.MasterDownError: Refusal(Cause.MASTER_DOWN, degraded=True, elsewhere=True),
    driver.ClusterDownError: Refusal(Cause.OTHER, degraded=True),
    driver.TryAgainError: Refusal(Cause.OVERLOADED),
    driver.OutOfMemoryError: Refusal(Cause.OUT_OF_MEMORY, degraded=True),
}

_BY_PREFIX: dict[str, Refusal] = {
    "MISCONF": Refusal(Cause.DISK_ERROR, degraded=True),
    "NOREPLICAS": Refusal(Cause.NO_REPLICAS, degraded=True),
    "BUSY": Refusal(Cause.OVERLOADED, degraded=True),
}

_MAX_CLIENTS = "max number of clients reached"


def refusal(error: BaseException) -> Refusal | None:
    """Say what an error reply refuses for now.

    Returns None when the reply is final (WRONGTYPE, NOPERM, a syntax error …) or proves nothing.
    """
    found = _BY_CLASS.get(type(error))
    if found is None and type(error) is driver.ResponseError:
        found = _BY_PREFIX.get(str(error).partition(" ")[0])
    if found is None and type(error) is driver.ConnectionError and str(error) == _MAX_CLIENTS:
        found = Refusal(Cause.MAX_CLIENTS)
    return found


def advise(error: BaseException) -> None:
    """Add a note to a final error reply where the reader can do something about it."""
    if isinstance(error, driver.MovedError):
        error.add_note("This server is part of a cluster: use redis.asyncio.RedisCluster.")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connection could not be made, or was lost.

    Attributes:
        cause: For people, logs and metrics.
        detail: One line, without secrets.
        definite: An answer (refused, reset), not mere silence.
        permanent: Somebody has to change something; waiting does not help.
    """

    cause: Cause
    detail: str
    definite: bool = True
    permanent: bool = False


_FAILURES: tuple[tuple[tuple[type[BaseException], ...], Failure], ...] = (
    (
        (driver.AuthenticationError, driver.AuthorizationError, driver.NoPermissionError),
        Failure(Cause.AUTH, "", permanent=True),
    ),
    ((ssl.SSLCertVerificationError,), Failure(Cause.TLS, "", permanent=True)),
    ((ssl.SSLError,), Failure(Cause.TLS, " (is this a TLS port?)", permanent=True)),
    ((socket.gaierror,), Failure(Cause.DNS, "")),
    ((ConnectionRefusedError, FileNotFoundError), Failure(Cause.REFUSED, "")),
    ((PermissionError,), Failure(Cause.REFUSED, "", permanent=True)),
    (
        (ConnectionResetError, BrokenPipeError, ConnectionAbortedError),
        Failure(Cause.RESET, ""),
    ),
    ((driver.TimeoutError, TimeoutError), Failure(Cause.TIMED_OUT, "", definite=False)),
    ((driver.InvalidResponse,), Failure(Cause.PROTOCOL, "", permanent=True)),
)
"""What an exception among the causes of a failed connection means; `detail` is a hint to add."""


def connection_failure(error: BaseException, *, tls: bool = False) -> Failure:
    """Say why dialling or talking to the server failed.

    Args:
        error: What redis-py or asyncio raised; its causes are looked at, too.
        tls: Whether the connection was to be encrypted.
    """
    chain = list(_chain(error))
    detail = _line(error)
    for link in chain:
        for kinds, failure in _FAILURES:
            if isinstance(link, kinds):
                slow_tls = tls and failure.cause is Cause.TIMED_OUT
                hint = " (is this a TLS port?)" if slow_tls else failure.detail
                return replace(failure, detail=detail + hint)
        refused = refusal(link)
        if refused is not None:
            return Failure(refused.cause, detail)
    return _unnamed_failure(error, chain, detail)


def _unnamed_failure(error: BaseException, chain: list[BaseException], detail: str) -> Failure:
    if any(isinstance(link, driver.ResponseError) for link in chain):
        # The handshake (HELLO, SELECT, CLIENT SETNAME) was refused: a wrong database, say.
        cause = Cause.WRONG_DATABASE if "DB index" in detail else Cause.OTHER
        return Failure(cause, detail, permanent=True)
    if any(isinstance(link, OSError) for link in chain):
        return Failure(Cause.UNREACHABLE, detail)
    if isinstance(error, driver.ConnectionError):
        return Failure(Cause.RESET, detail)
    return Failure(Cause.OTHER, f"{type(error).__name__}: {detail}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _line(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__
