"""Accessors for private attributes of aiokafka 0.14's consumer that this package relies on.

Each function names the attribute that it accesses. `tests/unit/kafka/consumer/test_internals.py`
fails when a new version of aiokafka changes any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any, Literal

from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.consumer.fetcher import READ_COMMITTED, OffsetResetStrategy
from aiokafka.errors import CommitFailedError, UnknownMemberIdError
from aiokafka.protocol.api import Request, RequestStruct
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import (
    HeartbeatRequest,
    HeartbeatResponse_v1,
    JoinGroupRequest,
    SyncGroupRequest,
)
from aiokafka.protocol.types import Int32, Schema, String

from ..driver import answered_at, client_of, retrieve_exception
from ..error_codes import FencedInstanceIdError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from aiokafka.structs import OffsetAndMetadata

    from ..driver import Connection, ConsumerDriver


GroupMember = tuple[int, str]
"""The generation of the group and the member's id in it."""


def arrival(instance: ConsumerDriver) -> asyncio.Future[None]:
    """Return a future that is done when records arrive (`Fetcher._create_fetch_waiter`).

    The public way is `getmany` with a timeout. But it ignores its timeout while the group
    rebalances, and if it is cancelled, `SubscriptionState._fetch_count` stays raised: from then
    on, `max_poll_interval_ms` is never enforced.
    """
    driver: Any = instance
    waiter: asyncio.Future[None] = driver._fetcher._create_fetch_waiter()
    return waiter


def raise_coordination_error(instance: ConsumerDriver) -> None:
    """Raise the error that the coordination task reported (`check_errors` of the coordinators)."""
    driver: Any = instance
    driver._coordinator.check_errors()


def has_dead_member(instance: ConsumerDriver) -> bool:
    """Return whether a task of the coordination task has failed, so heartbeats have ended.

    aiokafka reports the error again and again, and starts the task (`_heartbeat_task`,
    `_commit_refresh_task`) only after the next rebalance, of which it does not learn.
    """
    driver: Any = instance
    tasks = [
        getattr(driver._coordinator, name, None)
        for name in ("_heartbeat_task", "_commit_refresh_task")
    ]
    return any(
        task is not None and task.done() and not task.cancelled() and task.exception() is not None
        for task in tasks
    )


def reassigning(instance: ConsumerDriver) -> bool:
    """Return whether the group is assigning partitions (`reassignment_in_progress`)."""
    driver: Any = instance
    return bool(driver._subscription.reassignment_in_progress)


def rebalancing(instance: ConsumerDriver) -> bool:
    """Return whether this member waits for the group (`GroupCoordinator._performed_join_prepare`).

    With cooperative rebalances, it reads its partitions meanwhile.
    """
    driver: Any = instance
    joining = getattr(driver._coordinator, "_performed_join_prepare", False)
    return bool(joining) or reassigning(instance)


def note_poll(instance: ConsumerDriver) -> None:
    """Count as a poll for `max_poll_interval_ms` (`SubscriptionState.fetch_context`)."""
    driver: Any = instance
    with driver._subscription.fetch_context():
        pass


def partitions_of(instance: ConsumerDriver) -> frozenset[TopicPartition]:
    """Return the partitions; the same object until they change (`Assignment.tps`)."""
    driver: Any = instance
    subscription = driver._subscription.subscription
    if subscription is None or subscription.assignment is None:
        return frozenset()
    partitions: frozenset[TopicPartition] = subscription.assignment.tps
    return partitions


def state_of(instance: ConsumerDriver, partition: TopicPartition) -> Any:
    """Return aiokafka's state of a partition, or None (`Assignment.state_value`).

    It is a `subscription_state.TopicPartitionState`, with `has_valid_position`, `position`,
    `highwater` and `timestamp`. The public `position` and `highwater` assert that the partition is
    still assigned, and the first may wait.
    """
    driver: Any = instance
    subscription = driver._subscription.subscription
    if subscription is None or subscription.assignment is None:
        return None
    return subscription.assignment.state_value(partition)


def reads_committed(instance: ConsumerDriver) -> bool:
    """Return whether records of open transactions are not read (`Fetcher._isolation_level`)."""
    fetcher: Any = getattr(instance, "_fetcher", None)
    return fetcher is not None and fetcher._isolation_level == READ_COMMITTED


def received_bytes(connection: Connection) -> int:
    """Return the size of the incomplete response received so far (`AIOKafkaConnection._reader`)."""
    known: Any = connection
    return 0 if known._reader is None else len(known._reader._buffer)


def kind_of(request: object) -> Literal["fetch", "join", "other"]:
    """Return what kind of pending request this is, which determines how long it may take.

    A pending request is a tuple whose second element is the request that was sent
    (`AIOKafkaConnection._requests`); that of an authentication step is None.
    """
    entry: Any = request
    key = getattr(entry[1], "API_KEY", None)
    if key == FetchRequest.API_KEY:
        return "fetch"
    return "join" if key in (JoinGroupRequest.API_KEY, SyncGroupRequest.API_KEY) else "other"


def member_of(instance: ConsumerDriver) -> GroupMember | None:
    """Return the membership in the group, or None without one (`GroupCoordinator.generation`)."""
    driver: Any = instance
    generation = getattr(driver._coordinator, "generation", -1)
    return (generation, driver._coordinator.member_id) if generation >= 0 else None


def between_generations(instance: ConsumerDriver, member: GroupMember) -> bool:
    """Return whether the group has a new generation whose partitions are not assigned yet.

    Then offsets cannot be committed (`GroupCoordinator._performed_join_prepare`).
    """
    driver: Any = instance
    return driver._coordinator._performed_join_prepare and member_of(instance) != member


def on_heartbeat(instance: ConsumerDriver, confirmed: Callable[[float], None]) -> None:
    """Call `confirmed` with the loop time of each heartbeat request that the group has answered.

    Wraps `GroupCoordinator._do_heartbeat`, which returns whether the group knows the member. Call
    this after the start and before the instance subscribes. Without a group, it has no effect.
    """
    driver: Any = instance
    original = getattr(driver._coordinator, "_do_heartbeat", None)
    if original is None:
        return
    time = asyncio.get_running_loop().time

    async def heartbeat() -> bool:
        member, requested_at = member_of(instance), time()
        known: bool = await original()
        if known and member_of(instance) == member:
            confirmed(requested_at)
        return known

    driver._coordinator._do_heartbeat = heartbeat


class _StaticHeartbeatStruct(RequestStruct):
    API_KEY = HeartbeatRequest.API_KEY
    API_VERSION = 3
    RESPONSE_TYPE = HeartbeatResponse_v1  # that of version 3 has the same fields
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("generation_id", Int32),
        ("member_id", String("utf-8")),
        ("group_instance_id", String("utf-8")),
    )


class _StaticHeartbeat(Request[_StaticHeartbeatStruct]):
    API_KEY = HeartbeatRequest.API_KEY

    def __init__(self, *fields: object) -> None:
        self._fields = fields

    def build(self, request_struct_class: type[_StaticHeartbeatStruct]) -> _StaticHeartbeatStruct:
        """Return the request."""
        return request_struct_class(*self._fields)


def on_fenced(instance: ConsumerDriver, fenced: Callable[[FencedInstanceIdError], None]) -> None:
    """Call `fenced` if another member of the group has the same `group_instance_id`.

    aiokafka 0.14 sends heartbeats without it (version 1). The coordinator then answers that it does
    not know the member, and aiokafka joins again, which displaces the other member: both do so
    forever. With it (version 3), the answer tells. Wraps `GroupCoordinator._send_req`.
    """
    driver: Any = instance
    coordinator = driver._coordinator
    instance_id = getattr(coordinator, "_group_instance_id", None)
    if instance_id is None:
        return
    original = coordinator._send_req

    async def beat() -> Any:
        response = await original(
            _StaticHeartbeat(
                coordinator.group_id, coordinator.generation, coordinator.member_id, instance_id
            )
        )
        if response.error_code == FencedInstanceIdError.errno:
            error = FencedInstanceIdError(
                f"another member of the group {coordinator.group_id!r} has the same "
                f"group_instance_id={instance_id!r}: give each process its own"
            )
            fenced(error)
            raise error  # a failed request for aiokafka, after which it does not join again
        return response

    async def send(request: Any) -> Any:
        if isinstance(request, HeartbeatRequest):
            try:
                return await beat()
            except NotImplementedError:  # a broker before Kafka 2.3
                return await original(request)
        response = await original(request)
        if isinstance(request, OffsetCommitRequest) and _member_unknown(response):
            with contextlib.suppress(NotImplementedError):
                await beat()
        return response

    coordinator._send_req = send


def _member_unknown(response: Any) -> bool:
    """Return whether the coordinator refused a commit because it does not know the member."""
    return any(
        code == UnknownMemberIdError.errno
        for _, partitions in response.topics
        for _, code in partitions
    )


def has_coordinator(instance: ConsumerDriver) -> bool:
    """Return whether the group's coordinator is known (`GroupCoordinator.coordinator_id`).

    aiokafka forgets it as soon as a heartbeat fails. Without a group, none is needed.
    """
    driver: Any = instance
    return getattr(driver._coordinator, "coordinator_id", "") is not None


def all_answered_at(instance: ConsumerDriver, partitions: Collection[TopicPartition]) -> float:
    """Return the loop time since which every broker that is fetched from has answered.

    It is `-math.inf` if one is not connected or if the group's coordinator is not known, and for no
    partitions (`Fetcher._select_read_replica`, `AIOKafkaClient._conns`).
    """
    driver: Any = instance
    client: Any = client_of(instance)
    nodes = {driver._fetcher._select_read_replica(partition) for partition in partitions}
    connections = [client._conns.get((node, ConnectionGroup.DEFAULT)) for node in nodes]
    if not (connections and all(connections) and has_coordinator(instance)):
        return -math.inf
    return min(map(answered_at, connections))


async def commit_once(
    instance: ConsumerDriver,
    offsets: Mapping[TopicPartition, OffsetAndMetadata],
    member: GroupMember,
) -> None:
    """Commit in one attempt, and only as this member.

    The public `commit` retries forever, each time with the current generation: begun before a
    rebalance, it could commit after it for a partition that belongs to another member by then
    (`GroupCoordinator._do_commit_offsets`). The caller must limit the time.
    """
    driver: Any = instance
    coordinator = driver._coordinator
    await coordinator.ensure_coordinator_known()
    if member_of(instance) != member:
        raise CommitFailedError("the group was rebalanced since these partitions were assigned")
    # Nothing is awaited between this check and the writing of the request: the request contains
    # the generation that was just checked.
    await coordinator._do_commit_offsets(None, dict(offsets))


async def committed_offsets(
    instance: ConsumerDriver, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return the group's committed offsets; partitions without one are left out.

    The public `committed` requests one partition (`GroupCoordinator.fetch_committed_offsets`). It
    retries forever: the caller must limit the time. Without a group there are none.
    """
    driver: Any = instance
    fetch = getattr(driver._coordinator, "fetch_committed_offsets", None)
    return {} if fetch is None else await fetch(list(partitions))


def subscribed(instance: ConsumerDriver) -> list[TopicPartition]:
    """Return all partitions of the subscribed topics (`Subscription.topics`)."""
    driver: Any = instance
    cluster = client_of(instance).cluster
    return [
        TopicPartition(topic, number)
        for topic in sorted(driver.subscription())
        for number in sorted(cluster.partitions_for_topic(topic) or ())
    ]


def topics_of(instance: ConsumerDriver) -> set[str]:
    """Return the topics that an instance reads, by subscription or by `assign`."""
    driver: Any = instance
    return set(driver.subscription()) | {each.topic for each in instance.assignment()}


def hidden_topics(instance: ConsumerDriver) -> set[str]:
    """Return the topics that the user may not see.

    The set is another one after each metadata response (`ClusterMetadata.unauthorized_topics`).
    """
    cluster: Any = client_of(instance).cluster
    hidden: set[str] = cluster.unauthorized_topics
    return hidden


def reset_position(instance: ConsumerDriver, partition: TopicPartition, *, beginning: bool) -> None:
    """Continue at the beginning or the end, whose offset aiokafka queries in the background.

    The public `seek_to_beginning` and `seek_to_end` wait for it (`Fetcher.request_offset_reset`).
    """
    driver: Any = instance
    where = OffsetResetStrategy.EARLIEST if beginning else OffsetResetStrategy.LATEST
    positions = driver._fetcher.request_offset_reset([partition], where)
    positions.add_done_callback(retrieve_exception)


async def offset_range(instance: ConsumerDriver, partition: TopicPartition) -> tuple[int, int]:
    """Return the first offset of a partition and its end offset.

    The caller must limit the time.
    """
    first = await instance.beginning_offsets([partition])
    end = await instance.end_offsets([partition])
    return first[partition], end[partition]
