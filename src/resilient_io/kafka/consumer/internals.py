"""What is private in aiokafka 0.14's consumer, and leant on all the same.

Each function names the attribute. `tests/unit/kafka/test_consumer_internals.py` fails when a new
aiokafka changes any of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, Protocol

from aiokafka.errors import CommitFailedError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest
from aiokafka.structs import OffsetAndMetadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiokafka import TopicPartition

    from resilient_io.kafka.protocols import Connection, ConsumerDriver

__all__ = [
    "Membership",
    "PartitionState",
    "arrival",
    "check",
    "commit_once",
    "committed_offsets",
    "has_coordinator",
    "kind_of",
    "membership",
    "note_poll",
    "notice_heartbeats",
    "partitions_of",
    "reassigning",
    "received",
    "state_of",
]


class PartitionState(Protocol):
    """What the driver knows of a partition (`subscription_state.TopicPartitionState`)."""

    highwater: int | None
    """The end offset that the latest fetch saw; None before it."""

    timestamp: int | None
    """When its leader last answered, in milliseconds since 1970; None before the first time."""

    @property
    def has_valid_position(self) -> bool:
        """Whether it is known where reading goes on."""
        raise NotImplementedError

    @property
    def position(self) -> int:
        """The offset of the next record."""
        raise NotImplementedError


Membership = tuple[int, str]
"""The generation of the group and the member's id in it."""


def arrival(instance: ConsumerDriver) -> asyncio.Future[None]:
    """Give a future that is done when records arrive (`Fetcher._create_fetch_waiter`).

    `getmany` with a timeout would be the public way. But while the group rebalances it ignores its
    timeout, and a cancelled one leaves `SubscriptionState._fetch_count` raised for good, after
    which `max_poll_interval_ms` is never noticed.
    """
    driver: Any = instance
    waiter: asyncio.Future[None] = driver._fetcher._create_fetch_waiter()
    return waiter


def check(instance: ConsumerDriver) -> None:
    """Raise what the coordination met, and let it go on (`check_errors` of the coordinators)."""
    driver: Any = instance
    driver._coordinator.check_errors()


def reassigning(instance: ConsumerDriver) -> bool:
    """Tell whether `getmany` would wait for the group (`reassignment_in_progress`)."""
    driver: Any = instance
    return bool(driver._subscription.reassignment_in_progress)


def note_poll(instance: ConsumerDriver) -> None:
    """Say that the consumer is alive (`SubscriptionState.fetch_context`, as `getmany` does)."""
    driver: Any = instance
    with driver._subscription.fetch_context():
        pass


def partitions_of(instance: ConsumerDriver) -> frozenset[TopicPartition]:
    """Give its partitions; the same object until they change (`Assignment.tps`)."""
    driver: Any = instance
    subscription = driver._subscription.subscription
    if subscription is None or subscription.assignment is None:
        return frozenset()
    partitions: frozenset[TopicPartition] = subscription.assignment.tps
    return partitions


def state_of(instance: ConsumerDriver, partition: TopicPartition) -> PartitionState | None:
    """Give what the driver knows of a partition that is its own (`Assignment.state_value`).

    The public `position` and `highwater` assert that it still is, and the first may wait.
    """
    driver: Any = instance
    subscription = driver._subscription.subscription
    if subscription is None or subscription.assignment is None:
        return None
    state: PartitionState | None = subscription.assignment.state_value(partition)
    return state


def received(connection: Connection) -> int:
    """Give the bytes of an answer that is not complete yet (`AIOKafkaConnection._reader`)."""
    known: Any = connection
    return 0 if known._reader is None else len(known._reader._buffer)


def kind_of(request: object) -> Literal["fetch", "join", "other"]:
    """Say how long the broker may take its time with an outstanding request.

    One is a tuple, and its second element what was sent (`AIOKafkaConnection._requests`); a step
    of the login has none.
    """
    entry: Any = request
    key = getattr(entry[1], "API_KEY", None)
    if key == FetchRequest.API_KEY:
        return "fetch"
    return "join" if key in (JoinGroupRequest.API_KEY, SyncGroupRequest.API_KEY) else "other"


def membership(instance: ConsumerDriver) -> Membership | None:
    """Give its place in the group; None without one (`GroupCoordinator.generation`)."""
    driver: Any = instance
    generation = getattr(driver._coordinator, "generation", -1)
    return (generation, driver._coordinator.member_id) if generation >= 0 else None


def notice_heartbeats(instance: ConsumerDriver, told: Callable[[float], None]) -> None:
    """Be told of each heartbeat that the group has answered, with the loop time of its question.

    Wraps `GroupCoordinator._do_heartbeat`, which returns whether the group knows the member; so
    call this after the start, and before it subscribes. Without a group there is none.
    """
    driver: Any = instance
    own = getattr(driver._coordinator, "_do_heartbeat", None)
    if own is None:
        return
    time = asyncio.get_running_loop().time

    async def beat() -> bool:
        member, asked = membership(instance), time()
        known: bool = await own()
        if known and membership(instance) == member:
            told(asked)
        return known

    driver._coordinator._do_heartbeat = beat


def has_coordinator(instance: ConsumerDriver) -> bool:
    """Tell whether it knows whom to ask for its group (`GroupCoordinator.coordinator_id`).

    It forgets it as soon as a heartbeat fails. Without a group it needs none.
    """
    driver: Any = instance
    return getattr(driver._coordinator, "coordinator_id", "") is not None


async def commit_once(
    instance: ConsumerDriver, offsets: Mapping[TopicPartition, int], member: Membership
) -> None:
    """Commit, in one attempt, as this member and no other.

    The public `commit` tries again for ever, and takes the generation of the day each time: begun
    before a rebalance, it could commit after it, for a partition that is another member's by then
    (`GroupCoordinator._do_commit_offsets`). Bound it from outside.

    Raises:
        KafkaError: It was not committed, or nobody knows; `CommitFailedError` when the group moved
            on.
    """
    driver: Any = instance
    coordinator = driver._coordinator
    await coordinator.ensure_coordinator_known()
    if membership(instance) != member:
        raise CommitFailedError("the group has moved on since these partitions were assigned")
    # From here to the writing of the request nothing awaits: its generation is the one just seen.
    await coordinator._do_commit_offsets(
        None, {partition: OffsetAndMetadata(offset, "") for partition, offset in offsets.items()}
    )


async def committed_offsets(
    instance: ConsumerDriver, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """Ask for the group's committed offsets of all of these at once; those without are left out.

    The public `committed` asks for one (`GroupCoordinator.fetch_committed_offsets`). It tries for
    ever: bound it from outside.
    """
    driver: Any = instance
    found = await driver._coordinator.fetch_committed_offsets(list(partitions))
    return {partition: committed.offset for partition, committed in found.items()}
