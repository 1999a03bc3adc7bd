"""What brokers, partitions and groups of Kafka mean, as the cluster tells of them."""

import pytest
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.structs import TopicPartition

from resilient_io.doctor import Status
from resilient_io.doctor.kafka import group as of_group
from resilient_io.doctor.kafka.entrance import judge_failure
from resilient_io.doctor.kafka.group import look_at_group
from resilient_io.doctor.kafka.lag import Seen
from resilient_io.doctor.kafka.listeners import look_at_listeners
from resilient_io.doctor.kafka.partitions import look_at_brokers, look_at_partitions
from resilient_io.doctor.kafka.questions import Cluster, Group, Partition
from resilient_io.doctor.network import Place
from resilient_io.health import Cause
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.errors import ConnectionFailure


def at(topic, partition=0):
    return TopicPartition(topic, partition)


def cluster(*partitions, brokers=(1, 2, 3), controller=1, errors=None, internal=()):
    return Cluster(
        id="abc",
        controller=controller,
        brokers={node: (f"kafka-{node}", 9092) for node in brokers},
        partitions=partitions,
        internal=frozenset(internal),
        errors=errors or {},
    )


WELL = Partition(at("orders"), 1, (1, 2, 3), (1, 2, 3))
BEHIND = Partition(at("orders", 1), 1, (1, 2, 3), (1, 3))
LOST = Partition(at("orders", 2), -1, (2, 3), ())
SINGLE = Partition(at("audit"), 1, (1,), (1,))


def test_a_cluster_that_is_well():
    found = look_at_brokers(cluster(WELL))
    assert (found.status, found.found) == (Status.OK, "3 brokers (1, 2, 3), controller 1")
    found = look_at_partitions(cluster(WELL))
    assert (found.status, found.found) == (
        Status.OK,
        "1 partition of 1 topic, all led and in sync",
    )


def test_a_cluster_without_a_controller_or_without_brokers():
    found = look_at_brokers(cluster(WELL, controller=None))
    assert (found.status, found.found) == (Status.PROBLEM, "3 brokers (1, 2, 3), and no controller")
    assert look_at_brokers(cluster(brokers=())).status is Status.PROBLEM


def test_a_broker_that_has_copies_and_is_not_there():
    found = look_at_brokers(cluster(WELL, LOST, brokers=(1,)))
    assert found.status is Status.PROBLEM
    assert "brokers 2, 3 are not there" in found.found
    assert found.data["missing"] == [2, 3]


def test_partitions_without_leader_come_first_and_name_who_could_lead():
    found = look_at_partitions(cluster(WELL, BEHIND, LOST, SINGLE))
    assert found.status is Status.PROBLEM
    assert found.found.startswith("1 partition without a leader: orders[2]")
    assert "1 partition with copies that are behind: orders[1]" in found.found
    assert "topics with one copy only: audit" in found.found
    assert "brokers 2, 3" in found.advice
    assert "Look at broker 2:" in found.advice
    assert found.data["leaderless"] == ["orders[2]"]
    assert found.data["under_replicated"] == ["orders[1]"]


def test_only_some_of_many_partitions_are_named():
    many = [Partition(at("t", number), -1, (1,), ()) for number in range(9)]
    found = look_at_partitions(cluster(*many, brokers=(1,)))
    assert "9 partitions without a leader: t[0], t[1], t[2] and 6 more" in found.found
    assert len(found.data["leaderless"]) == 9


def test_one_copy_is_no_risk_worth_telling_where_there_is_one_broker_or_it_is_kafkas_own():
    assert look_at_partitions(cluster(SINGLE, brokers=(1,))).status is Status.OK
    assert look_at_partitions(cluster(SINGLE)).status is Status.NOTE
    assert look_at_partitions(cluster(SINGLE, internal=["audit"])).status is Status.OK


def test_topics_that_are_not_there_or_may_not_be_seen():
    found = look_at_partitions(cluster(errors={"gone": UnknownTopicOrPartitionError}))
    assert (found.status, found.found) == (Status.PROBLEM, "there is no topic gone")
    found = look_at_partitions(cluster(errors={"hidden": TopicAuthorizationFailedError}))
    assert (found.status, found.found) == (Status.BLIND, "no permission for topic hidden")


async def listeners(monkeypatch, failures, *, host="kafka-{}", bootstrap="broker.example"):
    """Look at listeners of which some fail, by node."""

    async def attempt(name, *_):
        return failures.get(int(name.rpartition("-")[2]) if "-" in name else 1)

    monkeypatch.setattr("resilient_io.doctor.kafka.listeners._try", attempt)
    seen = cluster(WELL)
    seen.brokers.update({node: (host.format(node), 9092) for node in seen.brokers})
    place = Place(bootstrap, 9092, addresses=["10.0.0.9"], reached={"10.0.0.9": 0.001})
    return await look_at_listeners(seen, KafkaTarget("broker.example:9092"), [place], 1.0)


async def test_listeners_that_all_answer(monkeypatch):
    found = await listeners(monkeypatch, {})
    assert found.status is Status.OK
    assert "3 brokers answer where advertised" in found.found


async def test_a_name_that_only_the_brokers_know(monkeypatch):
    why = "there is no such name here"
    found = await listeners(monkeypatch, dict.fromkeys((1, 2, 3), why))
    assert found.status is Status.PROBLEM
    assert f"broker 1 says it is at kafka-1:9092: {why}" in found.found
    assert "advertised.listeners" in found.advice
    assert found.data["brokers"]["1"] == {"advertised": "kafka-1:9092", "failure": why}


async def test_one_broker_that_does_not_answer_may_have_just_died(monkeypatch):
    found = await listeners(monkeypatch, {2: "refused"})
    assert found.found == "broker 2 says it is at kafka-2:9092: refused"
    assert "just died" in found.advice


async def test_brokers_that_advertise_localhost_to_another_host(monkeypatch):
    found = await listeners(monkeypatch, {1: "refused"}, host="localhost")
    assert "this machine (or container) itself" in found.advice
    assert "broker.example" in found.advice


async def test_two_clusters_that_are_mixed_up(monkeypatch):
    why = "a broker of another cluster answers there (x, not abc)"
    found = await listeners(monkeypatch, {1: why})
    assert "Two clusters" in found.advice


@pytest.mark.parametrize(
    ("cause", "detail", "found", "advice"),
    [
        (Cause.AUTH, "[Error 58] SaslAuthenticationFailed: Wrong", "let us in: Wrong", "rotated"),
        (Cause.AUTH, "[Error 33] UnsupportedSaslMechanismError: <…>", "mechanism", "enabled"),
        (Cause.AUTH, "[Error 34] IllegalSaslStateError: <…>", "takes no login", "out of the URL"),
        (Cause.TIMED_OUT, "no answer in time", "answers nothing", "frozen"),
        (Cause.OTHER, "KafkaError: odd", "odd", "log"),
    ],
)
async def test_a_broker_that_does_not_let_us_in(cause, detail, found, advice):
    failure = ConnectionFailure(cause, detail)
    judged = await judge_failure(Place("b", 1), failure, KafkaTarget("b:1"))
    assert judged.status is Status.PROBLEM
    assert found in judged.found
    assert advice in judged.advice


async def look(monkeypatch, *, state="Stable", members=1, assigned=None, offsets, refused=None):
    """Look at a group whose offsets are those given, one after the other."""
    held = frozenset([at("orders"), at("orders", 1)] if assigned is None else assigned)

    async def find(*_):
        if refused is not None:
            raise refused
        return "kafka-1", 9092

    async def tell(*_):
        return Group(state, members, held, complete=True)

    class Offsets:
        def __init__(self, *_):
            self.left = iter(offsets)

        async def take(self, _):
            return next(self.left)

    class Reachable:
        uses_tls = False
        secrets = staticmethod(tuple)

        async def connect(self, *_):
            return object()

    monkeypatch.setattr(of_group, "find_coordinator", find)
    monkeypatch.setattr(of_group, "ask_group", tell)
    monkeypatch.setattr(of_group, "Offsets", Offsets)
    monkeypatch.setattr(of_group, "abort_connection", lambda _: None)
    return await look_at_group(object(), cluster(WELL), Reachable(), "g", 5.0)


def seen(*committed, ends=(10, 10), begins=(0, 0)):
    numbers = range(len(committed))
    return Seen(
        {at("orders", n): committed[n] for n in numbers},
        {at("orders", n): begins[n] for n in numbers},
        {at("orders", n): ends[n] for n in numbers},
    )


async def test_a_group_that_keeps_up(monkeypatch):
    found = await look(monkeypatch, offsets=[seen(10, 10)])
    assert (found.status, found.found) == (Status.OK, "g is stable, 1 member; no lag")


async def test_a_group_that_is_behind_and_moves(monkeypatch):
    found = await look(monkeypatch, offsets=[seen(1, 2), seen(4, 2)])
    assert found.status is Status.OK
    assert "lag 14 (orders[1] 8, orders[0] 6), 3 records committed in 1 s" in found.found
    assert found.data["lag_by_partition"] == {"orders[0]": 6, "orders[1]": 8}


async def test_a_group_that_is_behind_and_does_not_move(monkeypatch):
    found = await look(monkeypatch, offsets=[seen(1, 2), seen(1, 2)])
    assert found.status is Status.NOTE
    assert "nothing was committed in 1 s" in found.found
    assert "handler" in found.advice


async def test_a_group_whose_members_have_never_committed_anything(monkeypatch):
    waits = Seen({}, {at("orders"): 0, at("orders", 1): 3}, {at("orders"): 7, at("orders", 1): 3})
    found = await look(monkeypatch, offsets=[waits])
    assert found.status is Status.NOTE
    assert "nothing was ever committed, though there are records in orders[0];" in found.found
    assert "first handlers hang" in found.advice
    empty = Seen({}, {at("orders"): 3}, {at("orders"): 3})
    assert (await look(monkeypatch, offsets=[empty])).status is Status.OK


async def test_a_group_without_members_whose_records_wait(monkeypatch):
    found = await look(monkeypatch, state="Empty", members=0, assigned=[], offsets=[seen(1, 2)])
    assert (found.status, found.found) == (
        Status.PROBLEM,
        "nobody reads in g, and 17 records wait",
    )


async def test_a_group_without_members_and_without_work(monkeypatch):
    found = await look(monkeypatch, state="Empty", members=0, assigned=[], offsets=[seen(10, 10)])
    assert found.status is Status.NOTE


async def test_a_group_that_nobody_has_used(monkeypatch):
    found = await look(monkeypatch, state="Dead", members=0, assigned=[], offsets=[seen()])
    assert (found.status, found.found) == (Status.PROBLEM, "nobody has ever used the group g")


async def test_a_group_in_a_rebalance(monkeypatch):
    found = await look(monkeypatch, state="PreparingRebalance", members=3, offsets=[seen(10, 10)])
    assert found.status is Status.NOTE
    assert "in the middle of a rebalance, 3 members" in found.found


async def test_records_that_were_deleted_before_they_were_read(monkeypatch):
    lost = seen(1, 10, begins=(5, 0))
    found = await look(monkeypatch, offsets=[lost, lost])
    assert found.status is Status.PROBLEM
    assert "the committed offset of orders[0] is gone" in found.found
    assert found.data["lag"] == 5


async def test_a_partition_that_no_member_has(monkeypatch):
    waits = seen(10, 2)
    found = await look(monkeypatch, assigned=[at("orders")], offsets=[waits, waits])
    assert found.status is Status.PROBLEM
    assert "no member has orders[1], and records wait there" in found.found


async def test_a_group_that_may_not_be_seen_or_has_no_coordinator(monkeypatch):
    found = await look(monkeypatch, offsets=[], refused=GroupAuthorizationFailedError("g"))
    assert (found.status, found.found) == (Status.BLIND, "no permission for the group g")
    found = await look(monkeypatch, offsets=[], refused=GroupCoordinatorNotAvailableError("g"))
    assert found.status is Status.PROBLEM
    assert "has no coordinator now" in found.found
    assert "__consumer_offsets" in found.advice
