"""What each error of aiokafka means."""

import inspect
import socket
import ssl

import pytest
from aiokafka import errors as driver

from resilient_io import Cause
from resilient_io.kafka import errors
from resilient_io.kafka.connect import TokenFailed
from resilient_io.kafka.driver import InstanceEnded
from resilient_io.kafka.errors import connection_failure, meaning_of


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (driver.KafkaTimeoutError(), "transient"),
        (driver.ProducerClosed(), "transient"),
        (driver.KafkaConnectionError(), "perhaps"),
        (driver.NodeNotReadyError(), "perhaps"),
        (driver.RequestTimedOutError(), "perhaps"),
        (driver.UnknownError(), "perhaps"),
        (driver.NotEnoughReplicasAfterAppendError(), "perhaps"),
        (driver.CorrelationIdError(), "perhaps"),
        (driver.Cancelled(), "perhaps"),
        (ConnectionResetError(), "perhaps"),
        (TimeoutError(), "perhaps"),
        (driver.NotEnoughReplicasError(), "refused"),
        (driver.NotLeaderForPartitionError(), "refused"),
        (driver.CoordinatorNotAvailableError(), "refused"),
        (driver.KafkaStorageError(), "refused"),
        (driver.ConcurrentTransactions(), "refused"),
        (driver.CommitFailedError(), "rebalance"),
        (driver.IllegalGenerationError(), "rebalance"),
        (driver.RebalanceInProgressError(), "rebalance"),
        (driver.UnknownMemberIdError(), "rebalance"),
        (driver.ProducerFenced(), "fatal"),
        (driver.InvalidProducerEpoch(), "fatal"),
        (driver.OutOfOrderSequenceNumber(), "fatal"),
        (driver.UnknownProducerId(), "fatal"),
        (driver.InvalidProducerIdMapping(), "fatal"),
        (driver.InvalidTxnState(), "fatal"),
        (driver.KafkaError("Unexpected error during batch delivery"), "fatal"),
        (driver.ConsumerStoppedError(), "fatal"),
        (AssertionError("begin after fencing"), "fatal"),
        (driver.TopicAuthorizationFailedError(), "permanent"),
        (driver.TransactionalIdAuthorizationFailed(), "permanent"),
        (driver.MessageSizeTooLargeError(), "permanent"),
        (driver.UnknownTopicOrPartitionError(), "permanent"),
        (driver.InvalidTopicError(), "permanent"),
        (driver.OffsetOutOfRangeError(), "permanent"),
        (driver.UnsupportedCodecError(), "permanent"),
        (InstanceEnded("it was replaced"), "transient"),
        (InstanceEnded("it was replaced", sent=True), "perhaps"),
        (TokenFailed("raised"), "transient"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_what_follows_from_an_error(error, kind):
    assert meaning_of(error).kind == kind
    assert meaning_of(error).fatal is (kind == "fatal")


def test_a_subclass_means_what_its_nearest_base_means():
    class Special(driver.OutOfOrderSequenceNumber):
        pass

    assert meaning_of(Special()).kind == "fatal"


def test_every_retriable_error_of_aiokafka_has_been_thought_of():
    for name, error in inspect.getmembers(driver, inspect.isclass):
        if not issubclass(error, driver.KafkaError) or not error.retriable:
            continue
        if error is driver.UnknownTopicOrPartitionError:
            continue  # what is left of it after the driver's retries is final
        assert meaning_of(error()).kind not in ("permanent", "fatal"), name


def test_the_table_names_only_classes_once():
    listed = list(errors._MEANINGS)
    assert len(listed) == len(set(listed))


def _caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "cause", "definite", "permanent"),
    [
        (ConnectionRefusedError(111, "refused"), Cause.REFUSED, True, False),
        (socket.gaierror(-2, "Name or service not known"), Cause.DNS, True, False),
        (ssl.SSLCertVerificationError("self-signed"), Cause.TLS, True, True),
        (ssl.SSLError("wrong version number"), Cause.TLS, True, True),
        (TimeoutError(), Cause.TIMED_OUT, False, False),
        (OSError(113, "No route to host"), Cause.UNREACHABLE, True, False),
        (driver.KafkaConnectionError("closed"), Cause.RESET, True, False),
        (
            _caused(driver.KafkaConnectionError("closed"), ConnectionResetError()),
            Cause.RESET,
            True,
            False,
        ),
        (driver.SaslAuthenticationFailed("bad"), Cause.AUTH, True, True),
        (
            _caused(
                driver.KafkaConnectionError("closed"), driver.UnsupportedSaslMechanismError("X")
            ),
            Cause.AUTH,
            True,
            True,
        ),
        (_caused(TokenFailed("raised"), ConnectionRefusedError()), Cause.AUTH, True, False),
        (driver.LeaderNotAvailableError(), Cause.NO_LEADER, True, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_why_a_connection_failed(error, cause, definite, permanent):
    failure = connection_failure(error)
    assert failure.cause is cause
    assert failure.definite is definite
    assert failure.permanent is permanent
    assert "\n" not in failure.detail
    assert failure.detail


def test_silence_where_tls_was_spoken_is_hinted_at():
    assert "TLS port" in connection_failure(TimeoutError(), tls=True).detail
