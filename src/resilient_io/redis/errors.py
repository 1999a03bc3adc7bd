"""The errors of the Redis client, and the meaning of what redis-py and the server report.

Each error of `resilient_io.errors` has a subclass that is also an error of redis-py:

```
DependencyUnavailable ─ RedisUnavailable        also redis.ConnectionError
                        └ RedisAuthenticationFailed     also redis.AuthenticationError
OutcomeUnknown ──────── RedisOutcomeUnknown     also redis.ConnectionError and redis.TimeoutError
DeadlineExceeded ────── RedisDeadlineExceeded   also redis.TimeoutError and the builtin TimeoutError
NotReplicated ───────── RedisNotReplicated      also redis.RedisError
Overloaded ──────────── RedisOverloaded         also redis.MaxConnectionsError
Closed ──────────────── RedisClosed             also redis.ConnectionError
                        RouteRefused            also redis.DataError
                        CrossSlotKeys           also redis.ClusterCrossSlotError
                        LockLost                also redis.LockNotOwnedError
```

`except redis.ConnectionError` and `except redis.TimeoutError` therefore keep working. A retry
decorator on `redis.ConnectionError` would repeat an `OutcomeUnknown`: let it retry only
`DependencyUnavailable`.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from redis import exceptions as driver
from redis.asyncio.sentinel import MasterNotFoundError, SlaveNotFoundError

from resilient_io.errors import (
    Closed,
    DeadlineExceeded,
    DependencyUnavailable,
    NotReplicated,
    OutcomeUnknown,
    Overloaded,
)
from resilient_io.health import Cause
from resilient_io.text import clean_text, describe_error, error_chain

from .tls import TLS_PORT, TLSConfigurationError
from .wrong_server import WrongServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class RedisUnavailable(DependencyUnavailable, driver.ConnectionError):
    """Redis cannot be reached, and nothing was applied."""


class RedisAuthenticationFailed(RedisUnavailable, driver.AuthenticationError):
    """Redis rejected the username or password. Repeating the call cannot help."""


class RedisOutcomeUnknown(OutcomeUnknown, driver.ConnectionError, driver.TimeoutError):
    """The command was sent, no reply arrived, and repeating it is not safe.

    Or it was repeated, and the repeat failed. Or it is a batch of which a part was applied.

    Attributes:
        answered: For a batch: the replies that arrived, in order, starting with the first command.
        unanswered: For a batch: the positions of the other commands, which may have been applied.
        failure: Why no reply arrived. The text adds what that means for the outcome.
    """

    failure: str = ""
    answered: Sequence[object] = ()
    unanswered: Sequence[int] = ()


class RedisNotReplicated(NotReplicated, driver.RedisError):
    """The write was applied, but fewer replicas have it than `durability=` requires.

    The text says how many: "applied, replicated to 0 of 1". Do not repeat the call because of it:
    the write would be applied twice.

    Attributes:
        reply: What the call would have returned; for a pipeline, the list of replies.
        replicas: How many replicas have it, or None if that is unknown.
    """

    reply: object = None
    replicas: int | None = None


class RedisDeadlineExceeded(DeadlineExceeded, driver.TimeoutError):
    """The time ran out, and nothing was applied."""


class RedisOverloaded(Overloaded, driver.MaxConnectionsError):
    """Too many calls or bytes are in flight. Nothing was sent."""


class RedisClosed(Closed, driver.ConnectionError):
    """The client was closed."""


class RouteRefused(driver.DataError):
    """The command changes its connection, which is shared. The message says what to use instead."""


class CrossSlotKeys(driver.ClusterCrossSlotError, driver.CrossSlotTransactionError):
    """A command or transaction has keys of several slots of a cluster. Nothing was sent."""


class LockLost(driver.LockNotOwnedError):
    """The lock was lost while it was held: another caller may hold it by now.

    Its key has expired, or was deleted or overwritten, or is missing on the server that took over.
    Or this cannot be determined, because no server answers or the client was closed.

    Attributes:
        lock_name: The name of the lock.
    """

    def __init__(self, reason: str, lock_name: object = None) -> None:
        super().__init__(reason)
        self.lock_name: Any = lock_name

    def __str__(self) -> str:
        """Return the name of the lock and why it was lost."""
        return f"the lock {self.lock_name!r} was lost: {self.message}"

    def __reduce__(self) -> tuple[type[LockLost], tuple[object, object]]:
        """Pickle with the name of the lock."""
        return type(self), (self.message, self.lock_name)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The meaning of an error reply that says "not applied, try again later"."""

    cause: Cause
    degraded: bool = False  # it answers but refuses writes; otherwise it does not serve at all
    elsewhere: bool = False  # another server may accept the call: resolve the address again
    patient: bool = False  # retried until the deadline, without using up an attempt
    normal: bool = False  # it says nothing about the health of the server


REPLICA = Refusal(Cause.READ_ONLY, degraded=True, elsewhere=True)
"""The server is a replica."""

_BY_CLASS: dict[type[BaseException], Refusal] = {
    driver.BusyLoadingError: Refusal(Cause.LOADING),
    driver.ReadOnlyError: REPLICA,
    driver.MasterDownError: Refusal(Cause.MASTER_DOWN, degraded=True, elsewhere=True),
    driver.ClusterDownError: Refusal(Cause.OTHER, degraded=True),
    driver.TryAgainError: Refusal(Cause.OVERLOADED),
    driver.OutOfMemoryError: Refusal(Cause.OUT_OF_MEMORY, degraded=True),
}

REDIRECTED = Refusal(Cause.OTHER, elsewhere=True, patient=True, normal=True)
"""MOVED and ASK: another node of the cluster has the key."""

_IN_A_CLUSTER: dict[type[BaseException], Refusal] = {
    driver.TryAgainError: Refusal(Cause.OTHER, patient=True, normal=True),
    driver.ClusterDownError: Refusal(
        Cause.CLUSTER_DOWN, degraded=True, elsewhere=True, patient=True
    ),
    driver.BusyLoadingError: Refusal(Cause.LOADING, elsewhere=True, patient=True),
    driver.ReadOnlyError: Refusal(Cause.READ_ONLY, elsewhere=True, patient=True, normal=True),
    driver.MasterDownError: Refusal(Cause.MASTER_DOWN, elsewhere=True, patient=True, normal=True),
}


def refusal_in_cluster(error: BaseException) -> Refusal | None:
    """Return the meaning of an error reply to a call that another node may answer, or None.

    It is retried until the deadline: the cluster moves the slot, or elects another master.
    """
    if isinstance(error, driver.AskError):  # also MOVED
        return REDIRECTED
    return _IN_A_CLUSTER.get(type(error))


_BY_PREFIX: dict[str, Refusal] = {
    "MISCONF": Refusal(Cause.DISK_ERROR, degraded=True),
    "NOREPLICAS": Refusal(Cause.NO_REPLICAS, degraded=True),
    "BUSY": Refusal(Cause.OVERLOADED, degraded=True),
}

_DEMOTED = "instance state changed"
"""Part of the UNBLOCKED that ends a wait on a master that becomes a replica.

The other UNBLOCKED is final: CLIENT UNBLOCK ... ERROR ended the wait.
"""

_REFUSAL = "_resilient_io_refusal"

_MAX_CLIENTS = "max number of clients reached"


def refusal(error: BaseException) -> Refusal | None:
    """Return the meaning of an error reply that refuses a call for now.

    Return None if the reply is final (WRONGTYPE, NOPERM, a syntax error) or proves nothing.
    """
    found = _BY_CLASS.get(type(error)) or getattr(error, _REFUSAL, None)
    if found is None and type(error) is driver.ResponseError:
        prefix, _, text = str(error).partition(" ")
        demoted = prefix == "UNBLOCKED" and _DEMOTED in text
        found = REPLICA if demoted else _BY_PREFIX.get(prefix)
    if found is None and type(error) is driver.ConnectionError and str(error) == _MAX_CLIENTS:
        found = Refusal(Cause.MAX_CLIENTS)
    return found


def keep_refusal(error: BaseException) -> None:
    """Keep what `refusal` returns for an error whose text is about to be changed."""
    found = refusal(error)
    if found is not None:
        setattr(error, _REFUSAL, found)


_OF_THE_SERVER = (
    "is loading the dataset in memory",
    "is busy running a",
    "when used memory > 'maxmemory'",
    "against a read only replica",
    "on readonly replica",
    "with MASTER is down",
    "Not enough good replicas",
    "is configured to save RDB snapshots",
    "is configured to persist data to AOF",
    "Errors writing to the AOF file",
    _DEMOTED,
)
"""Parts of the texts of refusals. A script may return an error with the same code, such as BUSY."""


def server_refuses(error: BaseException) -> bool:
    """Return whether the error of any command, a script for example, is the server's own refusal.

    That shows how the server is, although a script may have changed something before.
    """
    text = str(error)
    return refusal(error) is not None and any(part in text for part in _OF_THE_SERVER)


def remove_secrets(error: BaseException, secrets: Iterable[str]) -> None:
    """Remove secrets from the text of an exception of redis-py, and of those that caused it.

    Such an exception reaches the caller as redis-py raised it. A server without HELLO or AUTH
    quotes the arguments of the handshake, which include the password. An exception of the
    application, which the caller may be handling, is not changed.
    """
    known = tuple(secrets)
    for link in error_chain(error):
        text = str(link)
        quotes = "AUTH" in text and "with args" in text
        if not isinstance(link, driver.RedisError) or not link.args:
            continue
        if quotes or any(secret in text for secret in known):
            link.args = (clean_text(text, secrets=known),)


@dataclass(frozen=True, slots=True)
class ConnectionFailure:
    """Why a connection could not be opened, or was lost. The only description of that failure."""

    cause: Cause
    detail: str  # one line without secrets and without the address
    definite: bool = True  # there was an answer (refused, reset) and not merely silence
    permanent: bool = False  # waiting does not help: a setting has to be changed


CLOSED = ConnectionFailure(Cause.CLOSED, "the client was closed")
REPLACED = ConnectionFailure(Cause.CLOSED, "replaced")

_TLS_HINT = " (is this a TLS port?)"

_TLS_ALERTS = {
    "CERTIFICATE_REQUIRED": ": pass ssl_certfile and ssl_keyfile",
    "UNKNOWN_CA": ": the server does not accept the client certificate",
    "ALERT_BAD_CERTIFICATE": ": the server does not accept the client certificate",
    "ALERT_CERTIFICATE_": ": the server does not accept the client certificate",
    "ALERT_HANDSHAKE_FAILURE": " (it may require ssl_certfile and ssl_keyfile)",
}
"""Parts of the reasons of `ssl.SSLError` that the server gives, and what they mean."""

_LIMITS = {
    errno.EMFILE: "this process has no file descriptor left{limit}: raise `ulimit -n`",
    errno.ENFILE: "this host has no file descriptor left: raise fs.file-max",
    errno.ENOBUFS: "this host has no memory for another socket",
    errno.ENOMEM: "this host has no memory for another socket",
    errno.EADDRNOTAVAIL: "this host has no free local port or address for another connection",
}
"""Errors of the operating system that are the fault of this process or host, and in words."""

_FAILURES: tuple[tuple[tuple[type[BaseException], ...], ConnectionFailure], ...] = (
    (
        (driver.AuthenticationError, driver.AuthorizationError, driver.NoPermissionError),
        ConnectionFailure(Cause.AUTH, "", permanent=True),
    ),
    ((ssl.SSLCertVerificationError,), ConnectionFailure(Cause.TLS, "", permanent=True)),
    ((TLSConfigurationError,), ConnectionFailure(Cause.TLS, "", permanent=True)),
    ((ssl.SSLError,), ConnectionFailure(Cause.TLS, _TLS_HINT, permanent=True)),
    ((WrongServer,), ConnectionFailure(Cause.WRONG_SERVER, "", permanent=True)),
    ((MasterNotFoundError, SlaveNotFoundError), ConnectionFailure(Cause.UNREACHABLE, "")),
    ((socket.gaierror,), ConnectionFailure(Cause.DNS, "")),
    ((ConnectionRefusedError, FileNotFoundError), ConnectionFailure(Cause.REFUSED, "")),
    ((PermissionError,), ConnectionFailure(Cause.REFUSED, "", permanent=True)),
    (
        (ConnectionResetError, BrokenPipeError, ConnectionAbortedError),
        ConnectionFailure(Cause.RESET, ""),
    ),
    ((driver.TimeoutError, TimeoutError), ConnectionFailure(Cause.TIMED_OUT, "", definite=False)),
    ((driver.InvalidResponse,), ConnectionFailure(Cause.PROTOCOL, "", permanent=True)),
)
"""The meaning of an exception among the causes of a failed connection. `detail` is a suffix."""


def connection_failure(
    error: BaseException, *, tls: bool = False, secrets: Iterable[str] = ()
) -> ConnectionFailure:
    """Return why connecting or talking to the server failed. The causes of `error` count, too."""
    chain = list(error_chain(error))
    limit = _own_limit(chain)
    if limit is not None:
        return ConnectionFailure(Cause.PROCESS_LIMIT, limit)
    detail = describe_error(error, secrets=secrets)
    known = (_known_failure(link, detail, tls=tls) for link in chain)
    found = next((failure for failure in known if failure is not None), None)
    if found is not None:
        return found
    if any(isinstance(link, driver.ResponseError) for link in chain):
        # The server refused a part of the handshake (HELLO, SELECT): a wrong database, for example.
        wrong = "DB index" in detail or "SELECT is not allowed" in detail
        cause = Cause.WRONG_DATABASE if wrong else Cause.OTHER
        return ConnectionFailure(cause, detail, permanent=True)
    if any(isinstance(link, OSError) for link in chain):
        return ConnectionFailure(Cause.UNREACHABLE, detail)
    if isinstance(error, driver.ConnectionError):
        return ConnectionFailure(Cause.RESET, detail)
    return ConnectionFailure(Cause.OTHER, f"{type(error).__name__}: {detail}")


def _known_failure(error: BaseException, detail: str, *, tls: bool) -> ConnectionFailure | None:
    for kinds, failure in _FAILURES:
        if isinstance(error, kinds):
            slow_tls = tls and failure.cause is Cause.TIMED_OUT
            hint = _TLS_HINT if slow_tls else failure.detail
            if isinstance(error, ssl.SSLError) and hint:
                hint = _explain_alert(error)
            return replace(failure, detail=detail + hint)
    refused = refusal(error)
    return None if refused is None else ConnectionFailure(refused.cause, detail)


def _explain_alert(error: ssl.SSLError) -> str:
    """Return what a reader can do about a failed TLS handshake, as the end of a sentence."""
    reason = str(getattr(error, "reason", None) or "")
    if str(error.args[-1]) == TLS_PORT:
        return ""
    return next((hint for part, hint in _TLS_ALERTS.items() if part in reason), _TLS_HINT)


def _own_limit(chain: Iterable[BaseException]) -> str | None:
    """Return which limit of this process or host prevents a connection, or None."""
    for link in chain:
        number = link.errno if isinstance(link, OSError) else None
        if isinstance(link, socket.gaierror):
            # The resolver needs a descriptor, too, and does not say that it got none.
            number = _descriptor_problem()
        if number in _LIMITS:
            return _LIMITS[number].format(limit=_descriptor_limit())
    return None


def _descriptor_problem() -> int | None:
    """Return the error that opening a file raises if no descriptor is left, or None."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno
    return None


def _descriptor_limit() -> str:
    try:
        import resource  # noqa: PLC0415 (not on Windows)
    except ModuleNotFoundError:
        return ""
    return f" (limit {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
