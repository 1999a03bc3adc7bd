"""What is asked of brokers: the cluster, a group, its offsets. Nothing is changed by asking."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError, NoError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from resilient_io.kafka.protocols import Connection

__all__ = [
    "EARLIEST",
    "LATEST",
    "Cluster",
    "Group",
    "Partition",
    "ask_cluster",
    "ask_committed",
    "ask_group",
    "ask_offsets",
]

EARLIEST: Final = -2
LATEST: Final = -1

_NONE: Final = -1


@dataclass(frozen=True, slots=True)
class Partition:
    """What the cluster says of a partition; brokers are named by their ids.

    Attributes:
        at: Topic and number.
        leader: -1 without one.
        replicas: Those that should have it.
        in_sync: Those whose copy is complete.
    """

    at: TopicPartition
    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a broker says of its cluster.

    Attributes:
        id: The cluster's id.
        controller: The broker that says it is the controller; None for none.
        brokers: Host and port by node id, as they are advertised.
        partitions: Of the topics asked for, those of Kafka itself included.
        internal: The names of Kafka's own topics.
        errors: Why a topic could not be shown, by its name.
    """

    id: str | None
    controller: int | None
    brokers: Mapping[int, tuple[str, int]]
    partitions: Sequence[Partition]
    internal: frozenset[str]
    errors: Mapping[str, type[KafkaError]]

    def leader_of(self, at: TopicPartition) -> int | None:
        """Give the leader of a partition; None without one."""
        for partition in self.partitions:
            if partition.at == at:
                return None if partition.leader == _NONE else partition.leader
        return None


@dataclass(frozen=True, slots=True)
class Group:
    """What its coordinator says of a group.

    Attributes:
        state: "Stable", "Empty", "Dead", "PreparingRebalance", "CompletingRebalance" …
        members: How many there are.
        assigned: The partitions that a member has.
        complete: Whether `assigned` could be read of every member.
    """

    state: str
    members: int
    assigned: frozenset[TopicPartition]
    complete: bool


async def ask_cluster(
    connection: Connection, topics: Iterable[str] | None, timeout: float
) -> Cluster:
    """Ask for brokers, controller and partitions. Creates no topic.

    Args:
        connection: To any broker.
        topics: Those to show; None for all that may be seen.
        timeout: Longest wait in seconds.

    Raises:
        TimeoutError: No answer came.
        KafkaError: The connection was lost.
    """
    named = None if topics is None else list(topics)
    request = MetadataRequest(named, allow_auto_topic_creation=False)
    async with asyncio.timeout(timeout):
        answer: Any = await connection.send(request)
    partitions: list[Partition] = []
    internal: set[str] = set()
    errors: dict[str, type[KafkaError]] = {}
    for topic in answer.topics:
        error, name, parts = for_code(topic[0]), topic[1], topic[-1]
        if error is not NoError:
            errors[name] = error
        if len(topic) > 3 and topic[2]:  # noqa: PLR2004 - from version 1 on: whether it is Kafka's
            internal.add(name)
        partitions += [
            Partition(TopicPartition(name, part[1]), part[2], tuple(part[3]), tuple(part[4]))
            for part in parts
        ]
    controller = getattr(answer, "controller_id", _NONE)
    return Cluster(
        id=getattr(answer, "cluster_id", None),
        controller=None if controller == _NONE else controller,
        brokers={broker[0]: (broker[1], broker[2]) for broker in answer.brokers},
        partitions=sorted(partitions, key=lambda each: each.at),
        internal=frozenset(internal),
        errors=errors,
    )


async def ask_group(connection: Connection, group: str, timeout: float) -> Group:
    """Ask for the state of a group.

    Args:
        connection: To its coordinator.
        group: Its id.
        timeout: Longest wait in seconds.

    Raises:
        TimeoutError: No answer came.
        KafkaError: It may not be asked, or the connection was lost.
    """
    async with asyncio.timeout(timeout):
        answer: Any = await connection.send(DescribeGroupsRequest([group]))
    code, _, state, _, _, members = answer.groups[0][:6]
    _check(code, group)
    assigned: set[TopicPartition] = set()
    complete = True
    for member in members:
        try:
            read: Any = ConsumerProtocolMemberAssignment.decode(member[4])
            assigned.update(read.partitions())
        except (ValueError, AttributeError, TypeError, UnicodeDecodeError):
            complete = False  # of another protocol, or in the middle of a rebalance
    return Group(state, len(members), frozenset(assigned), complete)


async def ask_committed(
    connection: Connection, group: str, timeout: float
) -> dict[TopicPartition, int]:
    """Ask for all offsets that a group has committed.

    Args:
        connection: To its coordinator.
        group: Its id.
        timeout: Longest wait in seconds.

    Raises:
        TimeoutError: No answer came.
        KafkaError: It may not be asked, or the connection was lost.
    """
    async with asyncio.timeout(timeout):
        answer: Any = await connection.send(OffsetFetchRequest(group, None))
    _check(getattr(answer, "error_code", 0), group)
    return {
        TopicPartition(topic, part[0]): part[1]
        for topic, parts in answer.topics
        for part in parts
        if part[1] != _NONE and for_code(part[3]) is NoError
    }


async def ask_offsets(
    connection: Connection, partitions: Iterable[TopicPartition], which: int, timeout: float
) -> dict[TopicPartition, int]:
    """Ask for the first or the next offset of partitions; those it cannot tell are left out.

    Args:
        connection: To their leader.
        partitions: Those that it leads.
        which: `EARLIEST` or `LATEST`.
        timeout: Longest wait in seconds.

    Raises:
        TimeoutError: No answer came.
        KafkaError: The connection was lost.
    """
    wanted: dict[str, list[tuple[int, int]]] = {}
    for at in partitions:
        wanted.setdefault(at.topic, []).append((at.partition, which))
    request = OffsetRequest(_NONE, 0, list(wanted.items()))
    async with asyncio.timeout(timeout):
        answer: Any = await connection.send(request)
    return {
        TopicPartition(topic, part[0]): part[3]
        for topic, parts in answer.topics
        for part in parts
        if for_code(part[1]) is NoError
    }


def _check(code: int, about: str) -> None:
    error = for_code(code)
    if error is not NoError:
        raise error(about)
