"""Which member of a group reads which partitions, with as few moves as possible (KIP-429).

The leader of a group runs this for all members. Members written in other languages may be among
them, and may be the leader: the format is that of Kafka's own `CooperativeStickyAssignor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka import TopicPartition
from aiokafka.coordinator.protocol import (
    ConsumerProtocol,
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.protocol.struct import Struct
from aiokafka.protocol.types import Array, Bytes, Int16, Int32, Schema, String

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from aiokafka.cluster import ClusterMetadata

    Partitions = frozenset[TopicPartition]

NO_GENERATION = -1

_OWNED_SINCE = 1
_GENERATION_SINCE = 2
_VERSION = 2
"""Version of Kafka's `ConsumerProtocolSubscription`: 1 adds the owned partitions, 2 the
generation. Members that know only earlier versions ignore what they do not know."""

_PARTITIONS = Array(("topic", String("utf-8")), ("partitions", Array(Int32)))


class _Subscription(Struct):
    SCHEMA = Schema(
        ("version", Int16),
        ("topics", Array(String("utf-8"))),
        ("user_data", Bytes),
        ("owned", _PARTITIONS),
        ("generation", Int32),
    )


class _SubscriptionV1(Struct):
    SCHEMA = Schema(
        *zip(_Subscription.SCHEMA.names, _Subscription.SCHEMA.fields[:-1], strict=False)
    )


@dataclass(frozen=True, slots=True)
class Member:
    """What a member tells the leader when it joins."""

    topics: tuple[str, ...]
    owned: frozenset[TopicPartition] = frozenset()  # which it still reads
    generation: int = NO_GENERATION  # in which it got them
    user_data: bytes = b""

    def encode(self) -> bytes:
        """Return the metadata for a request to join the group."""
        owned = sorted(_by_topic(self.owned).items())
        fields = (_VERSION, list(self.topics), self.user_data, owned, self.generation)
        return _Subscription(*fields).encode()

    @classmethod
    def decode(cls, data: bytes) -> Member:
        """Return a member by its metadata."""
        fields: Any = ConsumerProtocol.METADATA.decode(data)
        topics, user_data = tuple(fields.subscription), fields.user_data or b""
        if fields.version < _OWNED_SINCE:
            return cls(topics, user_data=user_data)
        kind = _SubscriptionV1 if fields.version < _GENERATION_SINCE else _Subscription
        more: Any = kind.decode(data)
        owned = frozenset(
            TopicPartition(topic, number) for topic, numbers in more.owned for number in numbers
        )
        generation = getattr(more, "generation", None)
        if generation is None:  # members of version 1 put it into the user data
            generation = int.from_bytes(user_data, signed=True) if user_data else NO_GENERATION
        return cls(topics, owned, generation, user_data)


class CooperativeStickyAssignor:
    """Moves as few partitions as possible, and stops only those that move.

    For `partition_assignment_strategy=[CooperativeStickyAssignor]` of a `ResilientKafkaConsumer`.
    Members that use "cooperative-sticky" of Kafka's Java client or of librdkafka can be in the same
    group. Each consumer creates its own instance.
    """

    name = "cooperative-sticky"

    def __init__(self) -> None:
        self._members: Mapping[str, Member] = {}

    def metadata(self, topics: Iterable[str]) -> bytes:
        """Return the metadata of a member that owns no partitions."""
        return Member(tuple(sorted(topics))).encode()

    def joined(self, members: Mapping[str, Member]) -> None:
        """Take note of the members to assign partitions to, and of what they own."""
        self._members = members

    def assign(
        self,
        cluster: ClusterMetadata,
        members: Mapping[str, ConsumerProtocolMemberMetadata],
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Return the partitions of each member, also those that others still own."""
        known = {
            member: self._members.get(member, Member(tuple(each.subscription)))
            for member, each in members.items()
        }
        topics = sorted({topic for each in known.values() for topic in each.topics})
        counts = {topic: cluster.partitions_for_topic(topic) or () for topic in topics}
        partitions = [TopicPartition(topic, n) for topic in topics for n in sorted(counts[topic])]
        assigned = assign_partitions(known, partitions)
        return {member: encode_assignment(found) for member, found in assigned.items()}

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Take note of an assignment (aiokafka calls this)."""


def assign_partitions(
    members: Mapping[str, Member], partitions: Iterable[TopicPartition]
) -> dict[str, list[TopicPartition]]:
    """Return the partitions of each member: balanced, and with as few moves as possible.

    A member with at least two partitions more than another one that reads the same topic gives it
    some of them.
    """
    readers: dict[str, list[str]] = {}
    for name in sorted(members):
        for topic in members[name].topics:
            readers.setdefault(topic, []).append(name)
    owners = _owners(members)
    assigned: dict[str, list[TopicPartition]] = {name: [] for name in sorted(members)}
    free = []
    for partition in partitions:
        owner = owners.get(partition)
        if owner is not None and owner in readers.get(partition.topic, ()):
            assigned[owner].append(partition)
        else:
            free.append(partition)

    def size(name: str) -> int:
        return len(assigned[name])

    for partition in free:
        if partition.topic in readers:
            assigned[min(readers[partition.topic], key=size)].append(partition)
    while _move_one(assigned, readers):
        pass
    return assigned


def _owners(members: Mapping[str, Member]) -> dict[TopicPartition, str]:
    """Return the owner of each partition; of several, the one of the latest generation."""
    owners: dict[TopicPartition, str] = {}
    for name in sorted(members, key=lambda each: (members[each].generation, each)):
        owners.update(dict.fromkeys(members[name].owned, name))
    return owners


def _move_one(
    assigned: Mapping[str, list[TopicPartition]], readers: Mapping[str, list[str]]
) -> bool:
    """Move a partition from the member with the most to one with fewer; return whether it did."""
    for name in sorted(assigned, key=lambda each: -len(assigned[each])):
        held = assigned[name]
        least: dict[str, str] = {}
        for at in range(len(held) - 1, -1, -1):
            topic = held[at].topic
            if topic not in least:
                least[topic] = min(readers[topic], key=lambda each: len(assigned[each]))
                if len(held) - len(assigned[least[topic]]) > 1:
                    assigned[least[topic]].append(held.pop(at))
                    return True
    return False


def withhold_owned(
    assigned: Mapping[str, Collection[TopicPartition]], members: Mapping[str, Member]
) -> dict[str, list[TopicPartition]]:
    """Return what each member may read now: nothing that another member has yet to give up.

    A partition that stays with one of its owners is not withheld from that one.
    """
    owners: dict[TopicPartition, list[str]] = {}
    for name, member in members.items():
        for partition in member.owned:
            owners.setdefault(partition, []).append(name)
    return {
        name: [each for each in partitions if name in owners.get(each, (name,))]
        for name, partitions in assigned.items()
    }


def encode_assignment(partitions: Iterable[TopicPartition]) -> ConsumerProtocolMemberAssignment:
    """Return an assignment as aiokafka sends it."""
    return ConsumerProtocolMemberAssignment(0, sorted(_by_topic(partitions).items()), b"")


def _by_topic(partitions: Iterable[TopicPartition]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for topic, number in sorted(partitions):
        found.setdefault(topic, []).append(number)
    return found
