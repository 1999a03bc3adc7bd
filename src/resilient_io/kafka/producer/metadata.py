"""The topics that a producer writes to: their partitions and leaders, and the choice of one."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from aiokafka import errors as kafka_errors
from aiokafka.partitioner import DefaultPartitioner

from ..driver import DriverClosed, client_of
from ..errors import copy_with_note
from ..options import is_topic_name
from .partition_queue import PartitionQueue

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection

    from aiokafka.cluster import ClusterMetadata

    from ..driver import DriverClient, ProducerDriver
    from ..supervisor import Supervisor


Partitioner: TypeAlias = "Callable[[bytes | None, list[int], list[int]], int]"
"""Takes the key, all partitions in order, and those with a leader; returns one of them."""

_MAX_CACHED_KEYS = 65_536  # keys whose queue is cached, for each topic; one takes about 150 bytes

_partition_by_hash: Partitioner = DefaultPartitioner()

_MISSING_ANSWERS = 5
"""Number of answers without a topic after which it does not exist, or not yet.

A broker that creates topics on demand answers "unknown" once or twice before it names the
partitions, and one of several brokers may learn of a new topic later than the others.
"""

_LONGEST_LOOKUP = 30.0
"""Longest time, in seconds, to wait for a topic that does not exist, without a deadline."""

_FIRST_PAUSE = 0.02
_MAX_PAUSE = 0.5


class TopicPartitions:
    """The partitions of one topic, and the choice of one for each record.

    Records with a key go where aiokafka and Java's client would send them. Records without a key
    stay with one partition for the length of a batch ("sticky"), then switch to an idle one.
    """

    def __init__(
        self, name: str, rng: random.Random, partitioner: Partitioner | None, sticky_bytes: int
    ) -> None:
        self.name = name
        self.queues: dict[int, PartitionQueue] = {}
        self.queue_by_key: dict[bytes | None, PartitionQueue] = {}  # of recent keys
        self.sticky: PartitionQueue | None = None  # None when the user's partitioner decides
        self.sticky_limit = 0  # bytes waiting in that queue after which it is switched
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
        new = [PartitionQueue(self.name, p) for p in wanted if p not in self.queues]
        self.queues |= {queue.partition: queue for queue in new}
        if self._partitioner is None:
            self.switch_sticky()
        return new

    def queue_of(self, partition: int) -> PartitionQueue:
        """Return the queue of a partition, or raise the error of a partition that is unknown."""
        queue = self.queues.get(partition)
        if queue is None:
            raise kafka_errors.UnknownTopicOrPartitionError(
                f"topic {self.name!r} has no partition {partition}; it has {sorted(self.queues)}"
            )
        return queue

    def choose(self, key: bytes | None) -> PartitionQueue:
        """Choose the queue of a record; `queue_by_key` and `sticky` are shortcuts to it."""
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


class ProducerMetadata:
    """The topics written to; they stay known when the aiokafka producer is replaced."""

    def __init__(
        self,
        *,
        supervisor: Supervisor[ProducerDriver],
        rng: random.Random,
        partitioner: Partitioner | None,
        sticky_bytes: int,
    ) -> None:
        self.topics: dict[str, TopicPartitions] = {}
        self.queues: list[PartitionQueue] = []  # of all topics; only ever appended to
        self._supervisor = supervisor
        self._rng = rng
        self._partitioner = partitioner
        self._sticky_bytes = sticky_bytes
        self._context = supervisor.context()
        self._client: DriverClient | None = None
        self._cluster: ClusterMetadata | None = None
        self._missing: dict[str, int] = {}  # consecutive answers without the topic
        self._lookups: dict[str, _Lookup] = {}

    def attach(self, driver: ProducerDriver) -> None:
        """Use the metadata of this driver, and have it refresh all known topics."""
        client = client_of(driver)
        self._client = client
        self._cluster = client.cluster
        client.cluster.add_listener(self._updated)
        if self.topics:
            self._context.run(client.set_topics, list(self.topics))

    def detach(self) -> None:
        """Stop using the metadata of the driver."""
        if self._cluster is not None:
            self._cluster.remove_listener(self._updated)
        self._cluster = self._client = None

    async def find(self, name: str, until: float | None) -> TopicPartitions | None:
        """Find a topic's partitions; return None when the time ended first.

        A topic that does not exist is waited for, because it may just have been created: the error
        is raised when the time ends. Callers that want the same topic share the lookup. If all are
        cancelled, it ends.
        """
        if not isinstance(name, str):
            raise TypeError(f"topic must be a str, not {type(name).__name__}")
        if not is_topic_name(name):
            raise kafka_errors.InvalidTopicError(name)
        if name in self.topics:
            return self.topics[name]
        lookup = self._lookups.get(name)
        if lookup is None:
            lookup = self._lookups[name] = _Lookup(name)
            lookup.task = self._context.run(self._start_lookup, lookup)
        lookup.waiting += 1
        try:
            done, _ = await asyncio.wait([lookup.task], timeout=_seconds_until(until))
            if not done and lookup.missing:
                raise kafka_errors.UnknownTopicOrPartitionError(name)
            if not done or lookup.task.cancelled():
                return None
            error = lookup.task.exception()
            if isinstance(error, Exception):  # each caller gets its own
                raise copy_with_note(error, f"while looking for topic {name!r}")
            return lookup.task.result()
        finally:
            lookup.waiting -= 1
            if not lookup.waiting and self._lookups.get(name) is lookup:
                del self._lookups[name]
                lookup.task.cancel()
                if lookup.missing and self.topics and self._client is not None:
                    # Otherwise its metadata would be requested again and again.
                    self._context.run(self._client.set_topics, list(self.topics))

    async def refresh(self, driver: ProducerDriver) -> bool:
        """Request new metadata once; return whether a broker answered."""
        answered: bool = await self._context.run(client_of(driver).force_metadata_update)
        if answered and self._cluster is not None:
            for name in self.topics:
                found = self._cluster.partitions_for_topic(name)
                self._missing[name] = 0 if found else self._missing.get(name, 0) + 1
        return answered

    async def refresh_within(self, until: float | None) -> None:
        """Request new metadata once, if there is a driver, and wait until a loop time."""
        if self._client is None:
            return
        with contextlib.suppress(DriverClosed):
            update = self._context.run(self._client.force_metadata_update)
            await asyncio.wait([update], timeout=_seconds_until(until))

    def is_deleted(self, name: str) -> bool:
        """Return whether Kafka said several times in a row that it does not have this topic."""
        return self._missing.get(name, 0) >= _MISSING_ANSWERS

    def forget(self, names: list[str]) -> None:
        """Forget topics; the next record for one of them looks it up again."""
        for name in names:
            self.topics.pop(name, None)
            self._missing.pop(name, None)

    def leader_of(self, queue: PartitionQueue) -> int | None:
        """Return the node that leads a partition; -1 without one, None if it is unknown."""
        return None if self._cluster is None else self._cluster.leader_for_partition(queue.tp)

    def has_leader(self, queue: PartitionQueue) -> bool:
        """Return whether a partition has a leader, as far as the metadata show."""
        leader = self.leader_of(queue)
        return leader is not None and leader != -1

    def leaders(self) -> set[int | None]:
        """Return the nodes that lead all partitions; with -1 or None if one has no leader."""
        return {self.leader_of(queue) for queue in self.queues}

    async def aclose(self) -> None:
        """Stop all lookups; their callers get None."""
        tasks = [lookup.task for lookup in self._lookups.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start_lookup(self, lookup: _Lookup) -> asyncio.Task[TopicPartitions]:
        return asyncio.get_running_loop().create_task(
            self._look_up(lookup), name=f"resilient-io kafka metadata of {lookup.name}"
        )

    async def _look_up(self, lookup: _Lookup) -> TopicPartitions:
        name, time = lookup.name, asyncio.get_running_loop().time
        until, pause = time() + _LONGEST_LOOKUP, _FIRST_PAUSE
        while True:
            driver = await self._supervisor.ready(None, "metadata")
            client = client_of(driver)
            answered = False
            with contextlib.suppress(DriverClosed):  # then another driver will follow
                client.add_topic(name)
                answered = await client.force_metadata_update()
            if client.cluster.partitions_for_topic(name):
                return self._update(name, client.cluster)
            if name in client.cluster.unauthorized_topics:
                raise kafka_errors.TopicAuthorizationFailedError(name)
            lookup.answers += answered
            if lookup.missing and time() >= until:
                raise kafka_errors.UnknownTopicOrPartitionError(name)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)

    def _update(self, name: str, cluster: ClusterMetadata) -> TopicPartitions:
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = TopicPartitions(
                name, self._rng, self._partitioner, self._sticky_bytes
            )
        partitions = cluster.partitions_for_topic(name)
        if partitions:
            available = cluster.available_partitions_for_topic(name) or ()
            self.queues += topic.update(partitions, available)
        return topic

    def _updated(self, cluster: ClusterMetadata) -> None:
        for name in self.topics:
            self._update(name, cluster)


@dataclass(eq=False)
class _Lookup:
    """One lookup of a topic, and the number of callers that wait for it."""

    name: str
    task: asyncio.Task[TopicPartitions] = field(init=False)  # set directly after the construction
    waiting: int = 0
    answers: int = 0  # those without the topic

    @property
    def missing(self) -> bool:
        """Whether the topic does not exist, or not yet."""
        return self.answers >= _MISSING_ANSWERS


def _seconds_until(until: float | None) -> float | None:
    return None if until is None else until - asyncio.get_running_loop().time()
