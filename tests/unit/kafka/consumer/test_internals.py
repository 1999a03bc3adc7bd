"""Private attributes of aiokafka's consumer: these tests fail when a new version changes them."""

import asyncio
import inspect
import math
import time
from types import SimpleNamespace

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import Fetcher, FetchResult, OffsetResetStrategy
from aiokafka.consumer.group_coordinator import GroupCoordinator, NoGroupCoordinator
from aiokafka.consumer.subscription_state import (
    Assignment,
    Subscription,
    SubscriptionState,
    TopicPartitionState,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, SyncGroupRequest

from resilient_io.kafka.consumer import internals


def source_of(thing):
    return inspect.getsource(thing)


def parameters_of(function):
    return list(inspect.signature(function).parameters)


async def test_consumer_has_its_components():
    consumer = AIOKafkaConsumer(group_id="g")
    assert {"_fetcher", "_coordinator", "_subscription"} <= set(vars(consumer))
    assert isinstance(consumer._subscription, SubscriptionState)
    consumer._closed = True  # it was never started


async def test_fetcher_wakes_its_waiters():
    assert parameters_of(Fetcher._create_fetch_waiter) == ["self"]
    # Waiters are woken when records arrive, and removed when they are done.
    assert "waiters.remove(f)" in source_of(Fetcher._create_fetch_waiter)
    assert "self._notify(waiter)" in source_of(Fetcher._fetch_requests_routine)


async def test_records_are_not_taken_while_the_group_assigns_partitions():
    body = source_of(Fetcher.fetched_records)
    assert body.index("reassignment_in_progress") < body.index("self._records")
    assert "reassignment_in_progress" in vars(SubscriptionState)
    assert "paused" in source_of(FetchResult.check_assignment)


async def test_polls_are_noted_by_a_context_that_a_cancellation_leaves_open():
    state = SubscriptionState(loop=asyncio.get_running_loop())
    before = state._last_fetch_ended
    with state.fetch_context():
        assert state.fetcher_idle_time == 0
    assert state._last_fetch_ended >= before
    assert "finally" not in source_of(SubscriptionState.fetch_context)


async def test_assignment_has_partitions_and_their_state():
    partition = TopicPartition("t", 0)
    assignment = Assignment([partition])
    assert assignment.tps is assignment.tps
    state = assignment.state_value(partition)
    assert isinstance(state, TopicPartitionState)
    assert not state.has_valid_position
    state.seek(5)
    assert state.position == 5
    assert state.highwater is None
    assert state.timestamp is None
    assert "tp_state.timestamp = now_ms" in source_of(Fetcher._proc_fetch_request)
    assert Subscription(["t"]).assignment is None


async def test_commit_is_sent_once_for_one_member():
    assert parameters_of(GroupCoordinator._do_commit_offsets) == ["self", "assignment", "offsets"]
    body = source_of(GroupCoordinator._do_commit_offsets)
    assert "assignment." not in body, "it may be None"
    # The request is made, with the generation, before anything is awaited.
    assert body.index("self.generation") < body.index("await ")
    assert body.count("await ") == 1
    coordinator = source_of(GroupCoordinator.__init__)
    assert "self.generation = " in coordinator
    assert "self.member_id = " in coordinator
    assert "self.coordinator_id = None" in coordinator
    assert "self.coordinator_id = None" in source_of(GroupCoordinator.coordinator_dead)
    assert parameters_of(GroupCoordinator.ensure_coordinator_known) == ["self"]
    assert parameters_of(GroupCoordinator.fetch_committed_offsets) == ["self", "partitions"]


async def test_positions_are_left_to_this_package():
    """With "none", aiokafka reports a missing position until one is set."""
    assert parameters_of(Fetcher.request_offset_reset) == ["self", "tps", "strategy"]
    assert OffsetResetStrategy.EARLIEST != OffsetResetStrategy.LATEST
    body = source_of(Fetcher._proc_fetch_request)
    assert "Errors.OffsetOutOfRangeError({tp: fetch_offset})" in body
    assert "Errors.NoOffsetForPartitionError(tp)" in source_of(Fetcher._update_fetch_positions)
    assert parameters_of(AIOKafkaConsumer.subscription) == ["self"]
    assert parameters_of(AIOKafkaClient.send) == ["self", "node_id", "request", "group"]
    assert parameters_of(AIOKafkaClient.get_random_node) == ["self"]


async def test_heartbeat_returns_whether_the_group_knows_the_member():
    assert parameters_of(GroupCoordinator._do_heartbeat) == ["self"]
    assert inspect.iscoroutinefunction(GroupCoordinator._do_heartbeat)
    assert not hasattr(NoGroupCoordinator, "_do_heartbeat")
    # It is looked up at each beat, so that it can be wrapped.
    assert "success = await self._do_heartbeat()" in source_of(GroupCoordinator._heartbeat_routine)
    body = source_of(GroupCoordinator._do_heartbeat)
    assert body.count("return True") == 2, "the group knows the member, or is rebalancing"
    assert "error_type is Errors.NoError" in body
    assert "error_type is Errors.RebalanceInProgressError" in body
    # A member that was expelled joins as a new one.
    for error in ("UnknownMemberIdError", "IllegalGenerationError"):
        assert (
            "reset_generation()" in body.split(f"error_type is Errors.{error}")[1].split("elif")[0]
        )


async def test_rebalance_waits_for_the_listener():
    prepare = source_of(GroupCoordinator._on_join_prepare)
    assert prepare.index("begin_reassignment") < prepare.index("on_partitions_revoked")
    complete = source_of(GroupCoordinator._on_join_complete)
    assert complete.index("assign_from_subscribed") < complete.index("on_partitions_assigned")
    for name in ("on_partitions_revoked", "on_partitions_assigned"):
        assert hasattr(ConsumerRebalanceListener, name)
        assert "await res" in prepare + complete


async def test_coordination_errors_are_raised_on_request():
    assert parameters_of(GroupCoordinator.check_errors) == ["self"]
    routine = source_of(GroupCoordinator._GroupCoordinator__coordination_routine)
    assert "for task in [self._heartbeat_task, self._commit_refresh_task]:" in routine
    assert parameters_of(NoGroupCoordinator.check_errors) == ["self"]


async def test_connection_lists_its_pending_requests():
    send = source_of(AIOKafkaConnection.send)
    assert "self._requests.append(\n            (correlation_id, request_struct, fut)," in send
    assert "request_struct = request.prepare" in send
    kinds = {
        FetchRequest(1, 1, 1, 0, []): "fetch",
        JoinGroupRequest("g", 1, 1, "m", None, "consumer", []): "join",
        SyncGroupRequest("g", 1, "m", None, []): "join",
        HeartbeatRequest("g", 1, "m"): "other",
    }
    for request, kind in kinds.items():
        prepared = request.prepare({request.API_KEY: (0, 4)})
        assert internals.kind_of((1, prepared, None)) == kind
    assert internals.kind_of((None, None, None)) == "other"
    reader = asyncio.StreamReader()
    reader.feed_data(b"part")
    assert internals.received_bytes(SimpleNamespace(_reader=reader)) == 4
    assert internals.received_bytes(SimpleNamespace(_reader=None)) == 0


class Brokers:
    """An instance that fetches from two brokers, of which one leads two partitions."""

    def __init__(self):
        self.coordinator = SimpleNamespace(coordinator_id=2)
        self.connections = {node: SimpleNamespace(_last_action=10.0 + node) for node in (1, 2)}
        groups = {(node, ConnectionGroup.DEFAULT): self.connections[node] for node in (1, 2)}
        self.conns = groups | {(1, ConnectionGroup.COORDINATION): SimpleNamespace(_last_action=5.0)}
        self.instance = SimpleNamespace(
            _client=SimpleNamespace(_conns=self.conns),
            _coordinator=self.coordinator,
            _fetcher=SimpleNamespace(_select_read_replica=lambda each: 1 + each.partition // 2),
        )

    def answered_at(self, *numbers):
        partitions = [TopicPartition("t", number) for number in numbers]
        return internals.all_answered_at(self.instance, partitions)


def test_all_brokers_have_answered_since_the_earliest_of_their_latest_answers():
    brokers = Brokers()
    assert brokers.answered_at(0, 1, 2) == 11.0
    assert brokers.answered_at(2) == 12.0, "paused partitions need not be fetched"
    brokers.connections[1]._last_action = 20.0
    assert brokers.answered_at(0, 1, 2) == 12.0


def test_not_all_brokers_have_answered_without_a_partition_a_connection_or_the_coordinator():
    brokers = Brokers()
    assert brokers.answered_at() == -math.inf
    brokers.coordinator.coordinator_id = None
    assert brokers.answered_at(0) == -math.inf
    brokers.coordinator.coordinator_id = 2
    del brokers.conns[1, ConnectionGroup.DEFAULT]
    assert brokers.answered_at(0, 2) == -math.inf
    assert brokers.answered_at(2) == 12.0


def test_latest_answer_of_a_connection_is_kept_by_the_clock_of_the_loop():
    assert "self._last_action = time.monotonic()" in source_of(AIOKafkaConnection._handle_frame)
    assert "self._last_action = time.monotonic()" in source_of(AIOKafkaConnection.__init__)
    loop = asyncio.SelectorEventLoop()
    assert abs(loop.time() - time.monotonic()) < 1.0
    loop.close()
    assert parameters_of(Fetcher._select_read_replica) == ["self", "tp"]
    assert "self._select_read_replica(tp)" in source_of(Fetcher._get_actions_per_node)
    assert "self._conns[conn_id] = " in source_of(AIOKafkaClient._get_conn)
