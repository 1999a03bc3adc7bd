"""How far a consumer group is behind: what it committed, and where its partitions end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from resilient_io.doctor.looking import together
from resilient_io.kafka.driver import abort_connection

from .questions import EARLIEST, LATEST, ask_committed, ask_offsets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiokafka.structs import TopicPartition

    from resilient_io.kafka.connect import KafkaTarget
    from resilient_io.kafka.protocols import Connection

    from .questions import Cluster

__all__ = ["Offsets", "Seen"]


class Seen:
    """Offsets at one moment.

    Attributes:
        committed: Those that the group has committed.
        begins: The first offsets that are there, also of partitions that members have.
        ends: The next offsets of the same ones.
        lost: Partitions whose committed offset is no longer there.
        unknown: Partitions whose end could not be asked for.
    """

    def __init__(
        self,
        committed: Mapping[TopicPartition, int],
        begins: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> None:
        self.committed = committed
        self.begins = begins
        self.ends = ends
        self.lost = sorted(
            at for at, offset in committed.items() if at in begins and offset < begins[at]
        )
        self.unknown = sorted(at for at in committed if at not in ends)
        self.by_partition = {
            at: max(ends[at] - max(offset, begins.get(at, 0)), 0)
            for at, offset in sorted(committed.items())
            if at in ends
        }

    @property
    def lag(self) -> int:
        """How many records there are that it has not committed."""
        return sum(self.by_partition.values())


class Offsets:
    """Asks for a group's offsets, and for the ends of its partitions at their leaders."""

    def __init__(
        self,
        coordinator: Connection,
        cluster: Cluster,
        target: KafkaTarget,
        group: str,
        timeout: float,
    ) -> None:
        self._coordinator = coordinator
        self._cluster = cluster
        self._target = target
        self._group = group
        self._timeout = timeout

    async def take(self, assigned: frozenset[TopicPartition]) -> Seen:
        """Ask for all of them now.

        Args:
            assigned: Partitions that are of interest though nothing was committed of them.

        Raises:
            TimeoutError: No answer came.
            KafkaError: The coordinator may not be asked, or is lost.
        """
        committed = await ask_committed(self._coordinator, self._group, self._timeout)
        by_leader: dict[int, list[TopicPartition]] = {}
        for at in sorted({*committed, *assigned}):
            leader = self._cluster.leader_of(at)
            if leader is not None and leader in self._cluster.brokers:
                by_leader.setdefault(leader, []).append(at)
        told = await together(
            "offsets", (self._ask_leader(node, wanted) for node, wanted in by_leader.items())
        )
        begins: dict[TopicPartition, int] = {}
        ends: dict[TopicPartition, int] = {}
        for first, last in told:
            begins |= first
            ends |= last
        return Seen(committed, begins, ends)

    async def _ask_leader(
        self, node: int, wanted: list[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Give the first and the next offsets; nothing of a leader that cannot be asked."""
        host, port = self._cluster.brokers[node]
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._target.connect(host, port, self._timeout)
                try:
                    return (
                        await ask_offsets(connection, wanted, EARLIEST, self._timeout),
                        await ask_offsets(connection, wanted, LATEST, self._timeout),
                    )
                finally:
                    abort_connection(connection)
        except (KafkaError, OSError):
            return {}, {}
