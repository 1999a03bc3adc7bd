"""Cooperative rebalances on aiokafka 0.14: what they rely on, and what they do to it."""

import inspect
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.consumer.fetcher import Fetcher, FetchResult
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.consumer.subscription_state import Assignment, Subscription, SubscriptionState
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalGenerationError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import JoinGroupRequest

from resilient_io.kafka import CooperativeStickyAssignor
from resilient_io.kafka.consumer.assignor import Member
from resilient_io.kafka.consumer.cooperative import (
    add_partitions,
    rebalance_cooperatively,
    remove_partitions,
    with_own_assignor,
)

ONE, TWO, THREE = (TopicPartition("t", number) for number in range(3))


def source_of(thing):
    return inspect.getsource(thing)


def parameters_of(function):
    return list(inspect.signature(function).parameters)


# --- aiokafka 0.14


def test_coordinator_looks_its_methods_up_on_the_instance():
    active = source_of(GroupCoordinator.ensure_active_group)
    assert "await self._on_join_prepare(prev_assignment)" in active
    rejoin = source_of(GroupCoordinator._do_rejoin_group)
    assert "await self._on_join_complete(" in rejoin
    leader = source_of(CoordinatorGroupRebalance._on_join_leader)
    assert "await self._coordinator._perform_assignment(response)" in leader
    for method in ("_perform_assignment", "_on_join_complete"):
        assert "self._lookup_assignor(" in source_of(getattr(GroupCoordinator, method))
    for method in ("perform_group_join", "_send_sync_group_request"):
        source = source_of(getattr(CoordinatorGroupRebalance, method))
        assert "await self._coordinator._send_req(request)" in source
    for method in ("_do_heartbeat", "_do_commit_offsets", "_maybe_leave_group"):
        assert "self.reset_generation()" in source_of(getattr(GroupCoordinator, method))
    assert "self._coordinator.reset_generation()" in source_of(CoordinatorGroupRebalance)


def test_overridden_methods_have_their_parameters():
    assert parameters_of(GroupCoordinator._on_join_prepare) == ["self", "previous_assignment"]
    assert parameters_of(GroupCoordinator._on_join_complete) == [
        "self",
        "generation",
        "member_id",
        "protocol",
        "member_assignment_bytes",
    ]
    assert parameters_of(GroupCoordinator._perform_assignment) == ["self", "response"]
    assert parameters_of(GroupCoordinator._send_req) == ["self", "request"]
    assert parameters_of(GroupCoordinator.reset_generation) == ["self"]
    assert parameters_of(GroupCoordinator._lookup_assignor) == ["self", "name"]
    assert parameters_of(GroupCoordinator._start_heartbeat_task) == ["self"]
    assert parameters_of(GroupCoordinator.request_rejoin) == ["self"]


def test_preparing_to_join_marks_all_partitions_as_reassigned():
    body = source_of(GroupCoordinator._on_join_prepare)
    first = body.split("await ")[0]
    assert "self._subscription.begin_reassignment()" in first
    assert "self._group_subscription = None" in first
    active = source_of(GroupCoordinator.ensure_active_group)
    prepare = active.index("_on_join_prepare(")
    assert prepare < active.index("self._performed_join_prepare = True")
    # Once per join: not again after a request to join has failed.
    assert active.index("if not self._performed_join_prepare") < prepare
    success = active.split("if success:")[1]
    assert success.index("_performed_join_prepare = False") < success.index("_start_heartbeat_task")
    # The heartbeat stops before the request, and is started only once.
    assert prepare < active.index("_stop_heartbeat_task") < active.index("_do_rejoin_group")
    assert "if self._heartbeat_task is None" in source_of(GroupCoordinator._start_heartbeat_task)


def test_request_to_join_is_made_once_for_each_assignor():
    """`_CooperativeMember` names one assignor to aiokafka, and adds the others itself."""
    body = source_of(CoordinatorGroupRebalance.perform_group_join)
    assert "for assignor in self._assignors:" in body
    assert "metadata_list,\n" in body
    request = JoinGroupRequest("g", 1, 1, "", None, "consumer", [("a", b"")])
    request._group_protocols = [("a", b""), ("b", b"")]
    made = request.prepare({JoinGroupRequest.API_KEY: (0, 5)})
    assert made.group_protocols == [("a", b""), ("b", b"")]
    # The generation is that of the response, before the partitions are known.
    assert "self._coordinator.generation = response.generation_id" in body


def test_a_request_to_rejoin_after_the_partitions_are_known_is_not_forgotten():
    body = source_of(CoordinatorGroupRebalance._send_sync_group_request)
    renewed = body.index("self._coordinator._rejoin_needed_fut = create_future()")
    assert renewed < body.index("await ")
    routine = source_of(GroupCoordinator)
    assert "if auto_assigned and self.need_rejoin(subscription):" in routine


def test_a_leader_answers_with_encoded_or_decoded_assignments():
    assert "if not isinstance(assignment, bytes)" in source_of(
        CoordinatorGroupRebalance._on_join_leader
    )
    body = source_of(GroupCoordinator._perform_assignment)
    assert "member_id, _group_instance_id, metadata_bytes = member" in body
    assert "member_id, metadata_bytes = member" in body
    assert "assignor.assign(self._cluster, member_metadata)" in body


def test_an_assignment_can_change_in_place():
    """The fetcher reads the partitions in each round, and forgets nothing."""
    routine = source_of(Fetcher._fetch_requests_routine)
    assert "if assignment is None or not assignment.active:" in routine
    assert "self._wait_consume_future" in routine
    assert "for tp in assignment.tps:" in source_of(Fetcher._get_actions_per_node)
    assert "for tp in self._topic_partitions:" in source_of(Assignment.requesting_committed)
    # What arrives for a partition without this position is discarded.
    fetched = source_of(Fetcher._proc_fetch_request)
    assert "if not tp_state.has_valid_position or tp_state.position != fetch_offset" in fetched
    # A partition that is removed while its position is being found is skipped.
    positions = source_of(Fetcher._update_fetch_positions)
    waited = positions.split("await tp_state.fetch_committed()")[1]
    assert "if tp_state.has_valid_position or tp_state.awaiting_reset" in waited
    assert "if tp_state.awaiting_reset:\n                tp_state.reset_to" in positions
    assert "position != self._partition_records.next_fetch_offset" in source_of(FetchResult)
    assert parameters_of(Fetcher._notify) == ["self", "future"]


def test_a_request_can_use_the_connection_of_the_fetches():
    assert parameters_of(AIOKafkaClient.send) == ["self", "node_id", "request", "group"]
    commit = source_of(GroupCoordinator._do_commit_offsets)
    assert "response = await self._send_req(request)" in commit
    # This is why a response of another generation must not get there.
    assert "self.reset_generation()" in commit


# --- this package


class Fetching:
    """What of aiokafka's consumer knows the partitions."""

    async def start(self, *partitions):
        self._subscription = SubscriptionState()
        self._subscription._subscription = Subscription(["t"])
        self._subscription._subscription._assign(list(partitions))
        self._fetcher = SimpleNamespace(
            _records={ONE: "records"}, _wait_consume_future=None, _notify=self._notify
        )
        self.woken = 0
        return self

    def _notify(self, _):
        self.woken += 1

    @property
    def assignment(self):
        return self._subscription.subscription.assignment


async def test_partitions_are_added_without_touching_the_others():
    driver = await Fetching().start(ONE)
    before, state = driver.assignment, driver.assignment.state_value(ONE)
    state.seek(5)
    add_partitions(driver, [TWO, THREE])
    assert driver.assignment is before
    assert before.active
    assert before.tps == {ONE, TWO, THREE}
    assert before.state_value(ONE) is state
    assert not before.state_value(TWO).has_valid_position
    assert driver.woken == 1
    assert driver._fetcher._records == {ONE: "records"}
    partitions = before.tps
    add_partitions(driver, [])
    assert before.tps is partitions
    assert driver.woken == 1


async def test_nothing_waits_for_a_partition_that_was_removed():
    driver = await Fetching().start(ONE, TWO)
    assignment, gone = driver.assignment, driver.assignment.state_value(ONE)
    committed = gone.fetch_committed()
    gone.await_reset(-1)
    remove_partitions(driver, [ONE])
    assert driver.assignment is assignment
    assert assignment.tps == {TWO}
    assert committed.done()
    assert gone.position == -1
    assert not gone.awaiting_reset
    assert assignment.state_value(ONE) is gone, "the response to a fetch may still come"
    assert driver._fetcher._records == {}
    assert assignment.requesting_committed() == []
    add_partitions(driver, [ONE])
    assert not assignment.state_value(ONE).has_valid_position


async def test_each_instance_has_its_own_assignor():
    options = {
        "partition_assignment_strategy": [CooperativeStickyAssignor, RoundRobinPartitionAssignor],
        "client_rack": "a",
    }
    first, second = with_own_assignor(options), with_own_assignor(options)
    one, other = first["partition_assignment_strategy"]
    assert isinstance(one, CooperativeStickyAssignor)
    assert one is not second["partition_assignment_strategy"][0]
    assert other is RoundRobinPartitionAssignor
    assert first["client_rack"] == "a"
    assert with_own_assignor({}) == {}
    consumer = AIOKafkaConsumer(group_id="g", **first)
    assert consumer._partition_assignment_strategy == (one, other)
    consumer._closed = True  # it was never started


class Committing:
    """aiokafka's consumer, of a group that answers each commit with an error code."""

    def __init__(self, code=0):
        self._coordinator = self._client = self._subscription = self
        self._assignors = [CooperativeStickyAssignor()]
        self._on_join_prepare = self._on_join_complete = self._perform_assignment = None
        self._performed_join_prepare = True
        self.subscription = Subscription(["t"])
        self.coordinator_id, self.generation, self.member_id = 1, 5, "me"
        self.code = code
        self.connections = []
        self.resets = 0

    async def _send_req(self, request):
        return await self.send(self.coordinator_id, request, group="coordination")

    async def send(self, _, request, *, group):
        self.connections.append(group)
        if isinstance(request, JoinGroupRequest):
            return request.prepare({JoinGroupRequest.API_KEY: (0, 5)})
        return SimpleNamespace(topics=[("t", [(0, self.code)])])

    def reset_generation(self):
        self.resets += 1


COMMIT = OffsetCommitRequest("g", 5, "me", -1, [("t", [(0, 7, "")])])
JOIN = JoinGroupRequest("g", 1, 1, "me", None, "consumer", [])


async def test_a_commit_does_not_wait_behind_a_request_to_join():
    driver = Committing()
    rebalance_cooperatively(driver, rebalancer=None)
    await driver._send_req(COMMIT)
    await driver._send_req(JOIN)
    await driver._send_req(COMMIT)
    assert driver.connections == ["coordination", "coordination", ConnectionGroup.DEFAULT]


async def test_a_commit_that_the_next_generation_refuses_costs_no_membership():
    """Its answer may arrive before the one to the request to join."""
    driver = Committing(IllegalGenerationError.errno)
    rebalance_cooperatively(driver, rebalancer=None)
    answer = await driver._send_req(COMMIT)
    assert answer.topics == [("t", [(0, IllegalGenerationError.errno)])], "expelled: aiokafka joins"
    await driver._send_req(JOIN)
    with pytest.raises(CommitFailedError, match="rebalanced"):
        await driver._send_req(COMMIT)


async def test_an_expelled_member_prepares_again_and_claims_nothing():
    driver = Committing()
    rebalance_cooperatively(driver, rebalancer=None)
    driver.reset_generation()
    assert driver.resets == 1
    assert not driver._performed_join_prepare
    sent = await driver._send_req(JOIN)
    assert [(name, Member.decode(data)) for name, data in sent.group_protocols] == [
        ("cooperative-sticky", Member(("t",), user_data=b"\xff\xff\xff\xff"))
    ]


async def test_all_assignors_are_named_at_once_and_keep_their_metadata():
    driver = Committing()
    driver._assignors.append(RoundRobinPartitionAssignor)
    rebalance_cooperatively(driver, rebalancer=None)
    sent = await driver._send_req(JOIN)
    assert [name for name, _ in sent.group_protocols] == ["cooperative-sticky", "roundrobin"]
    assert Member.decode(sent.group_protocols[1][1]) == Member(("t",))
    assert len(driver._assignors) == 1
    assert driver._lookup_assignor("roundrobin") is RoundRobinPartitionAssignor
    assert driver._lookup_assignor("range") is None


async def test_other_consumers_are_left_alone():
    driver = Committing()
    driver._assignors = [RoundRobinPartitionAssignor]
    rebalance_cooperatively(driver, rebalancer=None)
    assert "_send_req" not in vars(driver)
    rebalance_cooperatively(SimpleNamespace(_coordinator=object()), rebalancer=None)  # no group
