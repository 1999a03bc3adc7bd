"""The hierarchy of `resilient_io.errors`, Kafka-flavoured: each is also aiokafka's own.

```
DependencyUnavailable ─ KafkaUnavailable        also aiokafka's KafkaConnectionError
                        └ KafkaAuthenticationFailed     also aiokafka's AuthenticationFailedError
OutcomeUnknown ──────── KafkaOutcomeUnknown     also aiokafka's KafkaError
DeadlineExceeded ────── KafkaDeadlineExceeded   also aiokafka's KafkaTimeoutError, TimeoutError
Overloaded ──────────── KafkaOverloaded         also aiokafka's KafkaTimeoutError
Closed ──────────────── KafkaClosed             also ProducerClosed and ConsumerStoppedError
```

So `except KafkaError` keeps working, and so does `except KafkaTimeoutError` for a full buffer. Mind
that a retry decorator on `KafkaError` would repeat an `OutcomeUnknown`: let it retry
`DependencyUnavailable` only. What the broker refuses for good (an unknown topic, a missing
permission, a record that is too large) passes as aiokafka raises it.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, replace
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

from .connect import TokenFailed
from .driver import InstanceEnded

if TYPE_CHECKING:
    from collections.abc import Iterator


class KafkaUnavailable(DependencyUnavailable, driver.KafkaConnectionError):
    """Kafka cannot be reached, and nothing was applied."""


class KafkaAuthenticationFailed(KafkaUnavailable, driver.AuthenticationFailedError):
    """Kafka refused the credentials; repeating the call cannot help."""

    retriable = False


class KafkaOutcomeUnknown(OutcomeUnknown, driver.KafkaError):
    """It was handed over, no answer proves what became of it, and repeating it is not safe."""


class KafkaDeadlineExceeded(DeadlineExceeded, driver.KafkaTimeoutError):
    """The time was used up; nothing was applied."""


class KafkaOverloaded(Overloaded, driver.KafkaTimeoutError):
    """Too much is waiting already; nothing was sent."""


class KafkaClosed(Closed, driver.ProducerClosed, driver.ConsumerStoppedError):
    """The client was closed."""


Kind = Literal["refused", "perhaps", "permanent", "fatal", "transient", "rebalance"]
"""What follows from an error:

- "refused": the broker answered that it did not apply it; worth another attempt later.
- "perhaps": it may have been applied, unless something else proves that it was never sent.
- "permanent": refused for good; waiting does not help.
- "fatal": the aiokafka instance cannot go on and must be replaced; may have been applied.
- "transient": nothing was sent; worth another attempt.
- "rebalance": the group moved on without this member; never repeated.
"""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an error of aiokafka means.

    Attributes:
        kind: What follows from it.
        cause: What health is told, if it is told.
    """

    kind: Kind
    cause: Cause = Cause.OTHER

    @property
    def fatal(self) -> bool:
        """Whether the instance must be replaced."""
        return self.kind == "fatal"


_OTHERWISE = Meaning("permanent")

_MEANINGS: dict[type[BaseException], Meaning] = {
    # Nothing was sent.
    driver.KafkaTimeoutError: Meaning("transient", Cause.OVERLOADED),
    driver.TooManyInFlightRequests: Meaning("transient", Cause.OVERLOADED),
    driver.NoBrokersAvailable: Meaning("transient", Cause.UNREACHABLE),
    driver.MetadataEmptyBrokerList: Meaning("transient", Cause.UNREACHABLE),
    driver.StaleMetadata: Meaning("transient", Cause.UNREACHABLE),
    driver.KafkaUnavailableError: Meaning("transient", Cause.UNREACHABLE),
    driver.ProducerClosed: Meaning("transient", Cause.CLOSED),
    TokenFailed: Meaning("transient", Cause.AUTH),
    # An answer is missing.
    driver.KafkaConnectionError: Meaning("perhaps", Cause.RESET),
    # Of one attempt it says "not sent"; a batch that expires with it may have been sent before.
    driver.NodeNotReadyError: Meaning("perhaps", Cause.UNREACHABLE),
    driver.RequestTimedOutError: Meaning("perhaps", Cause.TIMED_OUT),
    driver.NotEnoughReplicasAfterAppendError: Meaning("perhaps", Cause.NO_REPLICAS),
    driver.KafkaProtocolError: Meaning("perhaps", Cause.PROTOCOL),
    driver.Cancelled: Meaning("perhaps", Cause.CLOSED),
    driver.UnknownError: Meaning("perhaps"),
    # The broker said "not applied, for now".
    driver.LeaderNotAvailableError: Meaning("refused", Cause.NO_LEADER),
    driver.NotLeaderForPartitionError: Meaning("refused", Cause.NO_LEADER),
    driver.ReplicaNotAvailableError: Meaning("refused", Cause.NO_LEADER),
    driver.BrokerNotAvailableError: Meaning("refused", Cause.UNREACHABLE),
    driver.NotEnoughReplicasError: Meaning("refused", Cause.NO_REPLICAS),
    driver.KafkaStorageError: Meaning("refused", Cause.DISK_ERROR),
    driver.LogDirNotFound: Meaning("refused", Cause.DISK_ERROR),
    driver.CorruptRecordException: Meaning("refused", Cause.PROTOCOL),
    driver.NotControllerError: Meaning("refused", Cause.NO_LEADER),
    driver.GroupLoadInProgressError: Meaning("refused", Cause.NO_COORDINATOR),
    driver.GroupCoordinatorNotAvailableError: Meaning("refused", Cause.NO_COORDINATOR),
    driver.NotCoordinatorForGroupError: Meaning("refused", Cause.NO_COORDINATOR),
    driver.ConcurrentTransactions: Meaning("refused"),
    driver.OperationNotAttempted: Meaning("refused"),
    driver.ReassignmentInProgress: Meaning("refused"),
    driver.FetchSessionIdNotFound: Meaning("refused"),
    driver.InvalidFetchSessionEpoch: Meaning("refused"),
    driver.ListenerNotFound: Meaning("refused", Cause.UNREACHABLE),
    # The group moved on.
    driver.CommitFailedError: Meaning("rebalance"),
    driver.IllegalGenerationError: Meaning("rebalance"),
    driver.UnknownMemberIdError: Meaning("rebalance"),
    driver.RebalanceInProgressError: Meaning("rebalance"),
    driver.MemberIdRequired: Meaning("rebalance"),
    # The instance is done for.
    driver.ProducerFenced: Meaning("fatal", Cause.FENCED),
    driver.InvalidProducerEpoch: Meaning("fatal", Cause.FENCED),
    driver.TransactionCoordinatorFenced: Meaning("fatal", Cause.FENCED),
    driver.OutOfOrderSequenceNumber: Meaning("fatal"),
    driver.UnknownProducerId: Meaning("fatal"),
    driver.InvalidProducerIdMapping: Meaning("fatal"),
    driver.InvalidTxnState: Meaning("fatal"),
    driver.ConsumerStoppedError: Meaning("fatal", Cause.CLOSED),
    driver.IllegalStateError: Meaning("fatal"),
    # Somebody has to change something.
    driver.AuthenticationFailedError: Meaning("permanent", Cause.AUTH),
    driver.AuthenticationMethodNotSupported: Meaning("permanent", Cause.AUTH),
    driver.SaslAuthenticationFailed: Meaning("permanent", Cause.AUTH),
    driver.UnsupportedSaslMechanismError: Meaning("permanent", Cause.AUTH),
    driver.IllegalSaslStateError: Meaning("permanent", Cause.AUTH),
    driver.TopicAuthorizationFailedError: Meaning("permanent", Cause.AUTH),
    driver.GroupAuthorizationFailedError: Meaning("permanent", Cause.AUTH),
    driver.ClusterAuthorizationFailedError: Meaning("permanent", Cause.AUTH),
    driver.TransactionalIdAuthorizationFailed: Meaning("permanent", Cause.AUTH),
    driver.SecurityDisabled: Meaning("permanent", Cause.AUTH),
    driver.UnsupportedVersionError: Meaning("permanent", Cause.PROTOCOL),
    driver.IncompatibleBrokerVersion: Meaning("permanent", Cause.PROTOCOL),
    driver.UnrecognizedBrokerVersion: Meaning("permanent", Cause.PROTOCOL),
}
"""By class, the nearest base counts; what is not here is refused for good, and only itself."""


def meaning_of(error: BaseException) -> Meaning:
    """Say what an error that aiokafka raised means.

    A bare `KafkaError` is how aiokafka 0.14 says "Unexpected error during …" of a background task
    that died. What is no error of Kafka's at all (an assertion of aiokafka's after fencing, a bug)
    leaves the instance in an unknown condition: both are fatal.
    """
    if isinstance(error, InstanceEnded):
        return Meaning("perhaps" if error.sent else "transient", Cause.CLOSED)
    kind = type(error)
    if kind is driver.KafkaError or not isinstance(error, driver.KafkaError):
        if isinstance(error, (OSError, TimeoutError)):
            return Meaning("perhaps", connection_failure(error).cause)
        return _MEANINGS.get(kind, Meaning("fatal"))
    for base in kind.__mro__:
        found = _MEANINGS.get(base)
        if found is not None:
            return found
    return _OTHERWISE


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connection could not be made, was lost, or was of no use.

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
    ((ssl.SSLCertVerificationError,), Failure(Cause.TLS, "", permanent=True)),
    ((ssl.SSLError,), Failure(Cause.TLS, " (is this a TLS port?)", permanent=True)),
    ((socket.gaierror,), Failure(Cause.DNS, "")),
    ((ConnectionRefusedError,), Failure(Cause.REFUSED, "")),
    ((PermissionError,), Failure(Cause.REFUSED, "", permanent=True)),
    (
        (ConnectionResetError, BrokenPipeError, ConnectionAbortedError, EOFError),
        Failure(Cause.RESET, ""),
    ),
    ((driver.RequestTimedOutError, TimeoutError), Failure(Cause.TIMED_OUT, "", definite=False)),
    ((OSError,), Failure(Cause.UNREACHABLE, "")),
)
"""What an exception among the causes of a failed connection means; `detail` is a hint to add."""


def connection_failure(error: BaseException, *, tls: bool = False) -> Failure:
    """Say why dialling or talking to a broker failed.

    Args:
        error: What aiokafka or asyncio raised; its causes are looked at, too.
        tls: Whether the connection was to be encrypted.
    """
    detail = _line(error)
    for link in _chain(error):
        if isinstance(link, driver.KafkaError):
            meaning = meaning_of(link)
            if isinstance(link, TokenFailed):
                # Its own causes are the provider's, not Kafka's; the next token may be good.
                return Failure(meaning.cause, detail)
            if meaning.kind == "permanent":
                return Failure(meaning.cause, detail, permanent=meaning.cause.permanent)
        for kinds, failure in _FAILURES:
            if isinstance(link, kinds):
                slow_tls = tls and failure.cause is Cause.TIMED_OUT
                hint = " (is this a TLS port?)" if slow_tls else failure.detail
                return replace(failure, detail=detail + hint)
    if isinstance(error, driver.KafkaError) and type(error) is not driver.KafkaError:
        return Failure(meaning_of(error).cause, detail)
    return Failure(Cause.OTHER, detail)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _line(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    said = " ".join(str(error).split())
    name = type(error).__name__
    # KafkaError.__str__ begins with the name already.
    return said if name in said else f"{name}: {said}" if said else name
