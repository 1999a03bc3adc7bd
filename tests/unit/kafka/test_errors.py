"""The meaning of aiokafka's errors."""

import inspect
import pickle
import socket
import ssl
import time
import traceback

import pytest
from aiokafka import errors as driver

from resilient_io import Cause
from resilient_io.kafka import errors
from resilient_io.kafka.connect import TokenFailed
from resilient_io.kafka.driver import DriverClosed
from resilient_io.kafka.errors import classify_error, connection_failure, without_secrets


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (driver.KafkaTimeoutError(), "transient"),
        (driver.ProducerClosed(), "transient"),
        (driver.KafkaConnectionError(), "ambiguous"),
        (driver.NodeNotReadyError(), "ambiguous"),
        (driver.RequestTimedOutError(), "ambiguous"),
        (driver.UnknownError(), "ambiguous"),
        (driver.NotEnoughReplicasAfterAppendError(), "ambiguous"),
        (driver.CorrelationIdError(), "ambiguous"),
        (driver.Cancelled(), "ambiguous"),
        (ConnectionResetError(), "ambiguous"),
        (TimeoutError(), "ambiguous"),
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
        (driver.for_code(87)(), "permanent"),
        (driver.for_code(82)(), "permanent"),
        (driver.for_code(81)(), "refused"),
        (driver.for_code(89)(), "refused"),
        (driver.for_code(90)(), "fatal"),
        (driver.KafkaError("FencedInstanceIdError()"), "permanent"),
        (
            driver.KafkaError("Unexpected exception in heartbeat task: FencedInstanceIdError()"),
            "permanent",
        ),
        (DriverClosed("it was replaced"), "transient"),
        (DriverClosed("it was replaced", sent=True), "ambiguous"),
        (TokenFailed("raised"), "transient"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_error_has_its_kind(error, kind):
    assert classify_error(error).kind == kind
    assert classify_error(error).fatal is (kind == "fatal")


def test_subclass_has_the_meaning_of_its_nearest_base():
    class Special(driver.OutOfOrderSequenceNumber):
        pass

    assert classify_error(Special()).kind == "fatal"


def test_every_retriable_error_of_aiokafka_is_classified():
    for name, error in inspect.getmembers(driver, inspect.isclass):
        if not issubclass(error, driver.KafkaError) or not error.retriable:
            continue
        if error is driver.UnknownTopicOrPartitionError:
            continue  # final, after the driver's own retries
        assert classify_error(error()).kind not in ("permanent", "fatal"), name


def test_table_contains_each_class_once():
    listed = list(errors._CLASSIFICATIONS)
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
def test_connection_failure_has_cause_and_certainty(error, cause, definite, permanent):
    failure = connection_failure(error)
    assert failure.cause is cause
    assert failure.definite is definite
    assert failure.permanent is permanent
    assert "\n" not in failure.detail
    assert failure.detail


def test_timeout_with_tls_hints_at_the_port():
    assert "TLS port" in connection_failure(TimeoutError(), tls=True).detail


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (
            ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 9092)"),
            "connection refused",
        ),
        (
            _caused(
                driver.KafkaConnectionError("Connection at 127.0.0.1:9092 broken"),
                ConnectionResetError(104, "Connection reset by peer"),
            ),
            "connection reset by peer",
        ),
        (driver.KafkaConnectionError("the broker closed it"), "the broker closed it"),
        (driver.SaslAuthenticationFailed("bad login"), "SaslAuthenticationFailed: bad login"),
        (
            driver.IllegalSaslStateError("<AIOKafkaConnection host=a port=1>"),
            (
                "IllegalSaslStateError: the listener has no login: use "
                'security_protocol="PLAINTEXT" or "SSL", or the port of a listener with SASL'
            ),
        ),
        (driver.UnknownError(), "UnknownError"),
        (TokenFailed("the OAuth token provider raised X"), "the OAuth token provider raised X"),
        (TimeoutError(), "timed out"),
    ],
)
def test_connection_failure_is_described_once_in_words(error, detail):
    assert connection_failure(error).detail == detail


def test_connection_failure_contains_no_secret_and_is_bounded():
    error = driver.SaslAuthenticationFailed(
        "\x1b[2Jno user me with password s3cret-word" + "x" * 9999
    )
    detail = connection_failure(error, secrets=["s3cret-word"]).detail
    assert "s3cret" not in detail
    assert "\x1b" not in detail
    assert len(detail) < 400


def test_error_without_a_secret_is_raised_as_it_is():
    error = _caused(driver.SaslAuthenticationFailed("bad login"), ConnectionResetError())
    assert without_secrets(error, ["s3cret-word"]) is error


@pytest.mark.parametrize(
    "error",
    [
        driver.SaslAuthenticationFailed("wrong password s3cret-word for me"),
        _caused(driver.SaslAuthenticationFailed("refused"), ValueError("bad: s3cret-word")),
    ],
    ids=["message", "cause"],
)
def test_error_that_quotes_a_secret_is_replaced_by_a_clean_one_without_a_cause(error):
    clean = without_secrets(error, ["s3cret-word"])
    assert type(clean) is driver.SaslAuthenticationFailed
    assert "s3cret" not in "".join(traceback.format_exception(clean))
    assert "s3cret" in "".join(traceback.format_exception(error))


def test_error_that_quotes_a_secret_in_another_type_is_replaced_by_a_kafka_error():
    clean = without_secrets(driver.TopicAuthorizationFailedError({"s3cret-word"}), ["s3cret-word"])
    assert type(clean) is driver.KafkaError
    assert "s3cret" not in str(clean)


def test_long_error_text_does_not_stall_the_event_loop():
    error = driver.SaslAuthenticationFailed("://" * 8000 + "s3cret-word")
    began = time.process_time()
    connection_failure(error, secrets=["s3cret-word"])
    without_secrets(error, ["s3cret-word"])
    assert time.process_time() - began < 0.25


def test_every_error_code_of_kafka_has_a_class_of_its_own():
    kinds = [driver.for_code(code) for code in range(134)]
    assert driver.UnknownError not in kinds
    for kind in kinds[73:]:
        assert type(pickle.loads(pickle.dumps(kind()))) is kind  # noqa: S301 - its own
        assert kind().retriable in (True, False)
