"""The health probe without a broker: its results contain no secret."""

import traceback
from types import SimpleNamespace

import pytest
from aiokafka import errors as kafka_errors

from resilient_io import Cause
from resilient_io.health import ProbeDegraded, ProbeFailed
from resilient_io.kafka import probe as probe_module
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.probe import GROUP, ClusterSnapshot, KafkaProbe

SECRET = "canary-passw0rd"


@pytest.fixture
def target():
    return KafkaTarget(
        "127.0.0.1:1,127.0.0.1:2",
        {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_plain_username": "me",
            "sasl_plain_password": SECRET,
        },
    )


def fail_with(error):
    async def fail(*_arguments, **_options):
        raise error

    return fail


async def test_probe_hides_a_password_that_the_broker_quotes(target):
    error = kafka_errors.SaslAuthenticationFailed(f"no user me with password {SECRET}")
    target.connect = fail_with(error)
    with pytest.raises(ProbeFailed) as caught:
        await KafkaProbe(target=target, timeout=1.0)(True)
    assert caught.value.cause is Cause.AUTH
    assert caught.value.detail == "SaslAuthenticationFailed: no user me with password …"
    assert SECRET not in "".join(traceback.format_exception(caught.value))


async def test_probe_hides_a_password_that_a_coordinator_error_quotes(target, monkeypatch):
    connection = SimpleNamespace(
        connected=lambda: True, close=lambda **_options: None, _writer=None, _requests=[]
    )

    async def connect(*_arguments):
        return connection

    async def metadata(*_arguments):
        return ClusterSnapshot()

    target.connect = connect
    monkeypatch.setattr(probe_module, "request_metadata", metadata)
    error = kafka_errors.GroupAuthorizationFailedError(SECRET)
    monkeypatch.setattr(probe_module, "find_coordinator", fail_with(error))
    with pytest.raises(ProbeDegraded) as caught:
        await KafkaProbe(target=target, timeout=1.0, coordinator=(GROUP, "orders"))(True)
    assert caught.value.detail == "no coordinator of orders: GroupAuthorizationFailedError: …"
    assert SECRET not in "".join(traceback.format_exception(caught.value))
