"""Errors of the Kafka clients, and the meaning of aiokafka's errors.

```
DependencyUnavailable ─ KafkaUnavailable        also aiokafka's KafkaConnectionError
                        └ KafkaAuthenticationFailed     also aiokafka's AuthenticationFailedError
OutcomeUnknown ──────── KafkaOutcomeUnknown     also aiokafka's KafkaError
DeadlineExceeded ────── KafkaDeadlineExceeded   also aiokafka's KafkaTimeoutError, TimeoutError
Overloaded ──────────── KafkaOverloaded         also aiokafka's KafkaTimeoutError
Closed ──────────────── KafkaClosed             also ProducerClosed and ConsumerStoppedError
```

So `except KafkaError` keeps working, and so does `except KafkaTimeoutError` for a full buffer. A
retry decorator on `KafkaError` would repeat an `OutcomeUnknown`. Retry on `DependencyUnavailable`.
Permanent refusals by the broker (an unknown topic, a missing permission, a record that is too
large) are raised as aiokafka raises them.
"""

from __future__ import annotations

import copy
import re
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aiokafka import errors as driver

from resilient_io.errors import (
    Closed,
    DeadlineExceeded,
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
)
from resilient_io.health import Cause
from resilient_io.text import clean_text, describe_error, error_chain

from .connect import TokenFailed
from .driver import DriverClosed
from .error_codes import ADDED

if TYPE_CHECKING:
    from collections.abc import Iterable


class KafkaUnavailable(DependencyUnavailable, driver.KafkaConnectionError):
    """Kafka is unreachable. Nothing was applied."""


class KafkaAuthenticationFailed(KafkaUnavailable, driver.AuthenticationFailedError):
    """Kafka refused the credentials. Repeating the call does not help."""

    retriable = False


def unavailable_because_of(cause: Cause | None) -> type[KafkaUnavailable]:
    """Return the class of the error of a call that is not tried because Kafka is down."""
    return KafkaAuthenticationFailed if cause is Cause.AUTH else KafkaUnavailable


class KafkaOutcomeUnknown(OutcomeUnknown, driver.KafkaError):
    """The request may have been applied, and repeating it is not safe."""


class KafkaDeadlineExceeded(DeadlineExceeded, driver.KafkaTimeoutError):
    """The deadline expired. Nothing was applied."""


class KafkaOverloaded(Overloaded, driver.KafkaTimeoutError):
    """A limit of this client was reached. Nothing was sent."""


class KafkaClosed(Closed, driver.ProducerClosed, driver.ConsumerStoppedError):
    """The client was closed."""


Kind = Literal["refused", "ambiguous", "permanent", "fatal", "transient", "rebalance"]
"""What follows from an error:

- "refused": the broker did not apply the request; it may succeed later.
- "ambiguous": may have been applied, unless something else proves that it was not sent.
- "permanent": refused permanently; waiting does not help.
- "fatal": may have been applied, and the aiokafka instance is unusable and must be replaced.
- "transient": nothing was sent; it may succeed later.
- "rebalance": the group continued without this member; never repeat the request.
"""


@dataclass(frozen=True, slots=True)
class Classification:
    """The meaning of an error of aiokafka."""

    kind: Kind
    cause: Cause = Cause.OTHER

    @property
    def fatal(self) -> bool:
        """Whether the aiokafka instance must be replaced."""
        return self.kind == "fatal"


_CLASSIFICATIONS: dict[type[BaseException], Classification] = {
    # Nothing was sent.
    driver.KafkaTimeoutError: Classification("transient", Cause.OVERLOADED),
    driver.TooManyInFlightRequests: Classification("transient", Cause.OVERLOADED),
    driver.NoBrokersAvailable: Classification("transient", Cause.UNREACHABLE),
    driver.MetadataEmptyBrokerList: Classification("transient", Cause.UNREACHABLE),
    driver.StaleMetadata: Classification("transient", Cause.UNREACHABLE),
    driver.KafkaUnavailableError: Classification("transient", Cause.UNREACHABLE),
    driver.ProducerClosed: Classification("transient", Cause.CLOSED),
    TokenFailed: Classification("transient", Cause.AUTH),
    # A response is missing.
    driver.KafkaConnectionError: Classification("ambiguous", Cause.RESET),
    # Not sent in this attempt, but a batch that expires with it may have been sent before.
    driver.NodeNotReadyError: Classification("ambiguous", Cause.UNREACHABLE),
    driver.RequestTimedOutError: Classification("ambiguous", Cause.TIMED_OUT),
    driver.NotEnoughReplicasAfterAppendError: Classification("ambiguous", Cause.NO_REPLICAS),
    driver.KafkaProtocolError: Classification("ambiguous", Cause.PROTOCOL),
    driver.Cancelled: Classification("ambiguous", Cause.CLOSED),
    driver.UnknownError: Classification("ambiguous"),
    # The broker did not apply the request, for now.
    driver.LeaderNotAvailableError: Classification("refused", Cause.NO_LEADER),
    driver.NotLeaderForPartitionError: Classification("refused", Cause.NO_LEADER),
    driver.ReplicaNotAvailableError: Classification("refused", Cause.NO_LEADER),
    driver.BrokerNotAvailableError: Classification("refused", Cause.UNREACHABLE),
    driver.NotEnoughReplicasError: Classification("refused", Cause.NO_REPLICAS),
    driver.KafkaStorageError: Classification("refused", Cause.DISK_ERROR),
    driver.LogDirNotFound: Classification("refused", Cause.DISK_ERROR),
    driver.CorruptRecordException: Classification("refused", Cause.PROTOCOL),
    driver.NotControllerError: Classification("refused", Cause.NO_LEADER),
    driver.GroupLoadInProgressError: Classification("refused", Cause.NO_COORDINATOR),
    driver.GroupCoordinatorNotAvailableError: Classification("refused", Cause.NO_COORDINATOR),
    driver.NotCoordinatorForGroupError: Classification("refused", Cause.NO_COORDINATOR),
    driver.ConcurrentTransactions: Classification("refused"),
    driver.OperationNotAttempted: Classification("refused"),
    driver.ReassignmentInProgress: Classification("refused"),
    driver.FetchSessionIdNotFound: Classification("refused"),
    driver.InvalidFetchSessionEpoch: Classification("refused"),
    driver.ListenerNotFound: Classification("refused", Cause.UNREACHABLE),
    # The group continued without this member.
    driver.CommitFailedError: Classification("rebalance"),
    driver.IllegalGenerationError: Classification("rebalance"),
    driver.UnknownMemberIdError: Classification("rebalance"),
    driver.RebalanceInProgressError: Classification("rebalance"),
    driver.MemberIdRequired: Classification("rebalance"),
    # The driver instance is unusable.
    driver.ProducerFenced: Classification("fatal", Cause.FENCED),
    driver.InvalidProducerEpoch: Classification("fatal", Cause.FENCED),
    driver.TransactionCoordinatorFenced: Classification("fatal", Cause.FENCED),
    driver.OutOfOrderSequenceNumber: Classification("fatal"),
    driver.UnknownProducerId: Classification("fatal"),
    driver.InvalidProducerIdMapping: Classification("fatal"),
    driver.InvalidTxnState: Classification("fatal"),
    driver.ConsumerStoppedError: Classification("fatal", Cause.CLOSED),
    driver.IllegalStateError: Classification("fatal"),
    # Needs a change of configuration or permissions.
    driver.AuthenticationFailedError: Classification("permanent", Cause.AUTH),
    driver.AuthenticationMethodNotSupported: Classification("permanent", Cause.AUTH),
    driver.SaslAuthenticationFailed: Classification("permanent", Cause.AUTH),
    driver.UnsupportedSaslMechanismError: Classification("permanent", Cause.AUTH),
    driver.IllegalSaslStateError: Classification("permanent", Cause.AUTH),
    driver.TopicAuthorizationFailedError: Classification("permanent", Cause.AUTH),
    driver.GroupAuthorizationFailedError: Classification("permanent", Cause.AUTH),
    driver.ClusterAuthorizationFailedError: Classification("permanent", Cause.AUTH),
    driver.TransactionalIdAuthorizationFailed: Classification("permanent", Cause.AUTH),
    driver.SecurityDisabled: Classification("permanent", Cause.AUTH),
    driver.UnsupportedVersionError: Classification("permanent", Cause.PROTOCOL),
    driver.IncompatibleBrokerVersion: Classification("permanent", Cause.PROTOCOL),
    driver.UnrecognizedBrokerVersion: Classification("permanent", Cause.PROTOCOL),
}
_CAUSES_OF_CODES = {
    81: Cause.OVERLOADED,  # group max size reached
    82: Cause.FENCED,  # another member has the same group_instance_id
    89: Cause.OVERLOADED,  # throttling quota exceeded
}
_REFUSED_FOR_NOW = (81, 120)  # group max size reached; transaction abortable
for _code, _kind in ADDED.items():
    _refused = _kind.retriable or _code in _REFUSED_FOR_NOW
    _CLASSIFICATIONS.setdefault(
        _kind,
        Classification(
            "refused" if _refused else "permanent", _CAUSES_OF_CODES.get(_code, Cause.OTHER)
        ),
    )
"""By class; the nearest base class counts. An error without an entry is a permanent refusal."""


_QUOTED = re.compile(r"(\w+)\(")
_BY_NAME = {kind.__name__: kind for kind in driver.kafka_errors.values()}


def quoted_error(error: BaseException) -> BaseException:
    """Return the error of the broker that a bare `KafkaError` quotes, or the error itself.

    aiokafka 0.14 raises `KafkaError(repr(error))` for answers of the group coordinator that it does
    not expect.
    """
    if type(error) is driver.KafkaError:
        for name in _QUOTED.findall(str(error)):
            if name in _BY_NAME:
                return _BY_NAME[name]()
    return error


def is_connection_refusal(error: BaseException) -> bool:
    """Return whether a broker refused the authentication of a connection.

    An instance that has worked before may be refused when its session ends or a secret is rotated:
    that is an outage, which the next connection may end.
    """
    return isinstance(
        quoted_error(error),
        (
            driver.AuthenticationFailedError,
            driver.AuthenticationMethodNotSupported,
            driver.SaslAuthenticationFailed,
            driver.UnsupportedSaslMechanismError,
            driver.IllegalSaslStateError,
        ),
    )


def classify_error(error: BaseException) -> Classification:
    """Return the meaning of an error that aiokafka raised.

    aiokafka 0.14 raises a bare `KafkaError` ("Unexpected error during …") after one of its
    background tasks died. An exception that is not a KafkaError (an assertion after fencing, a bug)
    leaves the instance in an unknown state. Both are fatal.
    """
    if isinstance(error, DriverClosed):
        return Classification("ambiguous" if error.sent else "transient", Cause.CLOSED)
    error = quoted_error(error)
    kind = type(error)
    if kind is driver.KafkaError or not isinstance(error, driver.KafkaError):
        if isinstance(error, (OSError, TimeoutError)):
            return Classification("ambiguous", connection_failure(error).cause)
        return _CLASSIFICATIONS.get(kind, Classification("fatal"))
    for base in kind.__mro__:
        found = _CLASSIFICATIONS.get(base)
        if found is not None:
            return found
    return Classification("permanent")


@dataclass(frozen=True, slots=True)
class ConnectionFailure:
    """Why a connection to a broker could not be made, was lost, or was useless.

    Attributes:
        detail: The cause in words: one line, without secrets.
        definite: Whether one failure is proof (refused, reset) or must repeat (a timeout).
        permanent: Whether waiting does not help: the configuration must change.
    """

    cause: Cause
    detail: str
    definite: bool = True
    permanent: bool = False


_CAUSES: tuple[tuple[tuple[type[BaseException], ...], Cause], ...] = (
    ((ssl.SSLError,), Cause.TLS),
    ((socket.gaierror,), Cause.DNS),
    ((ConnectionRefusedError, PermissionError), Cause.REFUSED),
    ((ConnectionResetError, BrokenPipeError, ConnectionAbortedError, EOFError), Cause.RESET),
    ((driver.RequestTimedOutError, TimeoutError), Cause.TIMED_OUT),
    ((OSError,), Cause.UNREACHABLE),
)
"""By class, of an exception in the chain of a failed connection; the first match counts."""


_SASL_ADVICE: dict[type[BaseException], str] = {
    driver.IllegalSaslStateError: (
        'the listener has no login: use security_protocol="PLAINTEXT" or "SSL", or the port of a '
        "listener with SASL"
    ),
    driver.UnsupportedSaslMechanismError: (
        "the broker does not support this sasl_mechanism=: use one of its sasl.enabled.mechanisms"
    ),
}
"""What aiokafka's errors mean whose messages contain only the address."""


def connection_failure(
    error: BaseException, *, tls: bool = False, secrets: Iterable[str] = ()
) -> ConnectionFailure:
    """Return why connecting to a broker, or a request to it, failed."""
    detail = describe_driver_error(error, secrets=secrets)
    for link in error_chain(error):
        if isinstance(link, driver.KafkaError):
            meaning = classify_error(link)
            if isinstance(link, TokenFailed):
                # Its own causes are the provider's, not Kafka's. The next token may be good.
                return ConnectionFailure(meaning.cause, detail)
            if meaning.kind == "permanent":
                return ConnectionFailure(meaning.cause, detail, permanent=meaning.cause.permanent)
        for kinds, cause in _CAUSES:
            if isinstance(link, kinds):
                certificate = isinstance(link, ssl.SSLCertVerificationError)
                if (cause is Cause.TLS and not certificate) or (cause is Cause.TIMED_OUT and tls):
                    detail += " (is this a TLS port?)"
                return ConnectionFailure(
                    cause,
                    detail,
                    definite=cause is not Cause.TIMED_OUT,
                    permanent=cause is Cause.TLS or isinstance(link, PermissionError),
                )
    if isinstance(error, driver.KafkaError) and type(error) is not driver.KafkaError:
        return ConnectionFailure(classify_error(error).cause, detail)
    return ConnectionFailure(Cause.OTHER, detail)


def describe_driver_error(error: BaseException, *, secrets: Iterable[str] = ()) -> str:
    """Return what an error of aiokafka says, in one clean line.

    The name of the class is part of it where the message alone says little. An error number is not.
    """
    if not isinstance(error, driver.KafkaError):
        return describe_error(error, secrets=secrets)
    if not isinstance(error, TokenFailed):  # whose causes are the provider's
        for link in error_chain(error):
            if isinstance(link, OSError):
                return describe_error(link, secrets=secrets)
    name = type(error).__name__
    if type(error) in _SASL_ADVICE:
        return f"{name}: {_SASL_ADVICE[type(error)]}"
    said = clean_text(", ".join(str(each) for each in error.args), secrets=secrets)
    if type(error) in (driver.KafkaError, driver.KafkaConnectionError, DriverClosed, TokenFailed):
        return said or name
    return f"{name}: {said}" if said else name


def without_secrets(error: Exception, secrets: Iterable[str]) -> Exception:
    """Return an error of the driver that is safe to raise to the application.

    An error whose message, or a cause whose message, quotes a secret is replaced by a copy of the
    same type with a clean message and without a cause: a traceback shows the whole chain.
    """
    known = tuple(secrets)
    try:
        quotes = any(_quotes(str(link), known) for link in error_chain(error))
    # The boundary to an exception class of the application: its __str__ may raise anything.
    except Exception:  # noqa: BLE001
        return driver.KafkaError(type(error).__name__)
    if not quotes:
        return error
    clean = copy.copy(error)
    clean.args = tuple(
        clean_text(each, secrets=known) if isinstance(each, str) else each for each in error.args
    )
    clean.__cause__ = clean.__context__ = clean.__traceback__ = None
    if _quotes(str(clean), known):  # in an argument that is not a string
        return driver.KafkaError(clean_text(str(error), secrets=known))
    return clean


def _quotes(text: str, secrets: Iterable[str]) -> bool:
    """Return whether a text contains a secret, by the rules of `clean_text`."""
    limit = len(text) + 1
    return clean_text(text, limit=limit) != clean_text(text, limit=limit, secrets=secrets)


def copy_with_note(error: Exception, note: str) -> Exception:
    """Return a copy of an error, with a note that the original does not have."""
    own = copy.copy(error)
    own.__notes__ = [*getattr(error, "__notes__", ()), note]
    own.__cause__ = error.__cause__
    return own
