"""Which partition a record goes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from aiokafka.partitioner import DefaultPartitioner

from .partition_queue import PartitionQueue

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection


Partitioner: TypeAlias = "Callable[[bytes | None, list[int], list[int]], int]"
"""Takes the key, all partitions in order, and those with a leader; returns one of them."""

_MAX_CACHED_KEYS = 65_536
"""Keys whose queue is cached, for each topic; one takes about 150 bytes."""

_partition_by_hash: Partitioner = DefaultPartitioner()


class TopicPartitions:
    """The partitions of one topic, and the choice of one for each record.

    Records with a key go where aiokafka and Java's client would send them. Records without a key
    stay with one partition for the length of a batch ("sticky"), then switch to an idle one.

    Args:
        name: The topic's name.
        rng: For choosing among idle partitions.
        partitioner: The user's own.
        sticky_bytes: Bytes of records without a key that go to one partition.

    Attributes:
        name: The topic's name.
        queues: The queues, by partition.
        queue_by_key: The queues of recent keys.
        sticky: Where records without a key go now; None when the user's partitioner decides.
        sticky_limit: Bytes waiting in that queue after which it is switched.
    """

    __slots__ = (
        "_available",
        "_partitioner",
        "_partitions",
        "_rng",
        "_sticky_bytes",
        "name",
        "queue_by_key",
        "queues",
        "sticky",
        "sticky_limit",
    )

    def __init__(
        self, name: str, rng: random.Random, partitioner: Partitioner | None, sticky_bytes: int
    ) -> None:
        self.name = name
        self.queues: dict[int, PartitionQueue] = {}
        self.queue_by_key: dict[bytes | None, PartitionQueue] = {}
        self.sticky: PartitionQueue | None = None
        self.sticky_limit = 0
        self._sticky_bytes = sticky_bytes
        self._rng = rng
        self._partitioner = partitioner
        self._partitions: list[int] = []
        self._available: list[int] = []

    def update(
        self, partitions: Collection[int], available: Collection[int]
    ) -> list[PartitionQueue]:
        """Take over new metadata; return the queues of new partitions."""
        self._available = sorted(available)
        wanted = sorted(partitions)
        if wanted == self._partitions:
            return []
        self._partitions = wanted
        self.queue_by_key.clear()
        # Records that wait for a partition that was removed fail at their deadline.
        self.queues = {p: queue for p, queue in self.queues.items() if p in partitions}
        new = []
        for partition in wanted:
            if partition not in self.queues:
                self.queues[partition] = PartitionQueue(self.name, partition)
                new.append(self.queues[partition])
        if self._partitioner is None:
            self.switch_sticky()
        return new

    def choose(self, key: bytes | None) -> PartitionQueue:
        """Choose the queue of a record; `queue_by_key` and `sticky` are shortcuts to it.

        Raises:
            Exception: The user's partitioner raised it.
            ValueError: The user's partitioner returned an unknown partition.
        """
        if self._partitioner is not None:
            chosen = self._partitioner(key, list(self._partitions), list(self._available))
            queue = self.queues.get(chosen)
            if queue is None:
                raise ValueError(
                    f"partitioner= returned {chosen!r} for topic {self.name!r}: it must return "
                    f"one of {self._partitions}"
                )
            return queue
        if key is None and self.sticky is not None:
            if self.sticky.waiting_bytes >= self.sticky_limit:
                self.switch_sticky()
            return self.sticky
        if len(self.queue_by_key) >= _MAX_CACHED_KEYS:
            self.queue_by_key.clear()
        queue = self.queues[_partition_by_hash(key, self._partitions, self._available)]
        self.queue_by_key[key] = queue
        return queue

    def switch_sticky(self) -> None:
        """Send records without a key to another partition: an idle one, or the least loaded."""
        queues = [self.queues[partition] for partition in self._partitions]
        free = [queue for queue in queues if queue.idle]
        free = free or [queue for queue in queues if not queue.on_hold]
        if len(free) > 1:
            start = self._rng.randrange(len(free))
            free = free[start:] + free[:start]
        self.sticky = min(free or queues, key=lambda queue: queue.waiting_bytes)
        self.sticky_limit = self.sticky.waiting_bytes + self._sticky_bytes
