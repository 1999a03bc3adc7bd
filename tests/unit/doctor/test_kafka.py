"""What brokers, listeners and groups of Kafka mean, as the cluster describes them."""

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, GroupCoordinatorNotAvailableError

from resilient_io.doctor import Status
from resilient_io.doctor import kafka as module
from resilient_io.doctor.kafka import (
    ClusterMetadata,
    check_group,
    check_listeners,
    judge_cluster,
    judge_failure,
    judge_group,
)
from resilient_io.doctor.network import Endpoint
from resilient_io.health import Cause
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.errors import ConnectionFailure


def cluster(brokers=(1, 2, 3), *, controller=1, host="kafka-{}"):
    return ClusterMetadata(
        "abc", controller, {node: Endpoint(host.format(node), 9092) for node in brokers}
    )


def test_reply_lists_brokers_and_controller():
    found = judge_cluster(cluster())
    assert (found.status, found.found) == (Status.OK, "3 brokers (1, 2, 3), controller 1")


def test_cluster_without_controller_or_brokers_is_a_problem():
    found = judge_cluster(cluster(controller=None))
    assert (found.status, found.found) == (Status.PROBLEM, "3 brokers (1, 2, 3), but no controller")
    assert judge_cluster(cluster([])).status is Status.PROBLEM


async def listeners(monkeypatch, failures, *, host="kafka-{}", bootstrap="broker.example"):
    """Check listeners of which some fail, by node."""

    async def attempt(_, node, *__):
        return failures.get(node)

    monkeypatch.setattr(module, "_try_listener", attempt)
    endpoint = Endpoint(bootstrap, 9092, addresses=["10.0.0.9"], reached={"10.0.0.9": 0.001})
    return await check_listeners(
        cluster(host=host), KafkaTarget("broker.example:9092"), [endpoint], timeout=1.0
    )


async def test_listeners_that_answer_are_ok(monkeypatch):
    found = await listeners(monkeypatch, {})
    assert found.status is Status.OK
    assert "3 brokers answer where advertised" in found.found


async def test_advertised_name_that_does_not_exist_here(monkeypatch):
    why = "this name does not exist here"
    found = await listeners(monkeypatch, dict.fromkeys((1, 2, 3), why))
    assert found.status is Status.PROBLEM
    assert f"broker 1 advertises kafka-1:9092: {why}" in found.found
    assert found.advice.count("advertised.listeners") == 1
    assert f"broker 3 advertises kafka-3:9092: {why}" in found.found


async def test_one_broker_that_does_not_answer_may_have_just_died(monkeypatch):
    found = await listeners(monkeypatch, {2: "connection refused"})
    assert found.found == "broker 2 advertises kafka-2:9092: connection refused"
    assert "just died" in found.advice


async def test_brokers_that_advertise_localhost_to_another_host(monkeypatch):
    found = await listeners(monkeypatch, {1: "connection refused"}, host="localhost")
    assert "the machine (or container) of the client" in found.advice
    assert "broker.example" in found.advice


async def test_mixed_up_clusters(monkeypatch):
    why = "a broker of another cluster answers there (x, not abc)"
    found = await listeners(monkeypatch, {1: why})
    assert "Two clusters" in found.advice


@pytest.mark.parametrize(
    ("cause", "detail", "found", "advice"),
    [
        (Cause.AUTH, "[Error 58] SaslAuthenticationFailed: Bad", "failed: Bad", "rotated"),
        (Cause.AUTH, "[Error 33] UnsupportedSaslMechanismError: <…>", "mechanism", "enabled"),
        (Cause.AUTH, "[Error 34] IllegalSaslStateError: <…>", "does not accept", "from the URL"),
        (Cause.TIMED_OUT, "no answer in time", "does not answer", "frozen"),
        (Cause.OTHER, "KafkaError: odd", "b:1: odd", "log"),
    ],
)
async def test_broker_that_accepts_the_connection_but_does_not_answer(cause, detail, found, advice):
    judged = await judge_failure(
        Endpoint("b", 1), ConnectionFailure(cause, detail), KafkaTarget("b:1")
    )
    assert judged.status is Status.PROBLEM
    assert found in judged.found
    assert advice in judged.advice


@pytest.mark.parametrize(
    ("state", "status", "found"),
    [
        ("Stable", Status.OK, "the group g is stable, coordinator kafka-1:9092"),
        ("Dead", Status.PROBLEM, "the group g does not exist"),
    ],
)
def test_state_of_a_group(state, status, found):
    judged = judge_group("g", state, "kafka-1:9092")
    assert (judged.status, judged.found) == (status, found)
    assert judged.found.startswith("the group g")


async def test_group_that_may_not_be_described_or_has_no_coordinator(monkeypatch):
    async def refused(*_):
        raise error("g")

    monkeypatch.setattr(module, "find_coordinator", refused)
    error = GroupAuthorizationFailedError
    found = await check_group(object(), KafkaTarget("b:1"), "g", 5.0)
    assert (found.status, found.found) == (Status.UNKNOWN, "no permission for the group g")
    error = GroupCoordinatorNotAvailableError
    found = await check_group(object(), KafkaTarget("b:1"), "g", 5.0)
    assert found.status is Status.PROBLEM
    assert "has no coordinator now" in found.found
    assert "__consumer_offsets" in found.advice
