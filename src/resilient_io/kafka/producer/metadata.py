"""The topics that a producer writes to: their partitions and leaders, and how they are found."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING

from aiokafka import errors as kafka_errors

from ..driver import DriverClosed, client_of
from .errors import copy_with_note
from .partitioner import Partitioner, TopicPartitions

if TYPE_CHECKING:
    import random

    from aiokafka.cluster import ClusterMetadata

    from ..protocols import DriverClient, ProducerDriver
    from ..supervisor import Supervisor
    from .partition_queue import PartitionQueue


_LEGAL_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")

_MISSING_ANSWERS = 5
"""Number of answers without a topic after which it does not exist.

A broker that creates topics on demand answers "unknown" once or twice before it names the
partitions, and one of several brokers may learn of a new topic later than the others.
"""

_FIRST_PAUSE = 0.02
_MAX_PAUSE = 0.5


class ProducerMetadata:
    """The topics written to; they stay known when the aiokafka producer is replaced.

    Args:
        supervisor: Provides the aiokafka producer that is asked.
        rng: For choosing partitions.
        partitioner: The user's own.
        sticky_bytes: Bytes of records without a key that go to one partition.

    Attributes:
        topics: Known topics, by name.
        queues: The queues of all topics; only ever appended to.
    """

    def __init__(
        self,
        *,
        supervisor: Supervisor[ProducerDriver],
        rng: random.Random,
        partitioner: Partitioner | None,
        sticky_bytes: int,
    ) -> None:
        self.topics: dict[str, TopicPartitions] = {}
        self.queues: list[PartitionQueue] = []
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
        """Find a topic's partitions. Callers that want the same topic share the lookup.

        If all its callers are cancelled, the lookup ends.

        Args:
            name: The topic.
            until: When to give up, in loop time.

        Returns:
            The topic; None when the time ended first.

        Raises:
            InvalidTopicError: The name is not valid for a topic.
            UnknownTopicOrPartitionError: Kafka answered several times that the topic does not
                exist.
            TopicAuthorizationFailedError: The user may not see the topic.
            TypeError: The name is not a string.
            KafkaUnavailable: Kafka is down or cannot be used.
        """
        if not isinstance(name, str):
            raise TypeError(f"topic must be a str, not {type(name).__name__}")
        if not _LEGAL_NAME.fullmatch(name) or name in {".", ".."}:
            raise kafka_errors.InvalidTopicError(name)
        if name in self.topics:
            return self.topics[name]
        lookup = self._lookups.get(name)
        if lookup is None:
            lookup = self._lookups[name] = _Lookup(self._context.run(self._start_lookup, name))
        lookup.waiting += 1
        try:
            done, _ = await asyncio.wait([lookup.task], timeout=_seconds_until(until))
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

    async def refresh(self, driver: ProducerDriver) -> bool:
        """Request new metadata once; return whether a broker answered.

        Raises:
            DriverClosed: The driver was closed.
        """
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

    # --- inside

    def _start_lookup(self, name: str) -> asyncio.Task[TopicPartitions]:
        return asyncio.get_running_loop().create_task(
            self._look_up(name), name=f"resilient-io kafka metadata of {name}"
        )

    async def _look_up(self, name: str) -> TopicPartitions:
        answers, pause = 0, _FIRST_PAUSE
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
            answers += answered
            if answers >= _MISSING_ANSWERS:
                if self.topics:  # otherwise its metadata would be requested again and again
                    client.set_topics(list(self.topics))
                raise kafka_errors.UnknownTopicOrPartitionError(name)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)

    def _update(self, name: str, cluster: ClusterMetadata) -> TopicPartitions:
        topic = self.topics.get(name)
        if topic is None:
            topic = TopicPartitions(name, self._rng, self._partitioner, self._sticky_bytes)
            self.topics[name] = topic
        partitions = cluster.partitions_for_topic(name)
        if partitions:
            available = cluster.available_partitions_for_topic(name) or ()
            self.queues += topic.update(partitions, available)
        return topic

    def _updated(self, cluster: ClusterMetadata) -> None:
        for name in self.topics:
            self._update(name, cluster)


class _Lookup:
    """One lookup of a topic, and the number of callers that wait for it."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[TopicPartitions]) -> None:
        self.task = task
        self.waiting = 0


def _seconds_until(until: float | None) -> float | None:
    return None if until is None else until - asyncio.get_running_loop().time()
