"""What is known of the topics that the producer writes to, and how it is found out."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING

from aiokafka import errors as driver

from ..driver import InstanceEnded, client_of
from .errors import noted
from .partitioner import Partitioner, Topic

if TYPE_CHECKING:
    import contextvars
    import random
    from collections.abc import Awaitable, Callable

    from ..protocols import Cluster, DriverClient, ProducerDriver
    from .partition_queue import Line


_LEGAL = re.compile(r"[A-Za-z0-9._-]{1,249}")

_ROUNDS = 5
"""Answers without the topic after which it does not exist.

A broker that creates topics by itself says "unknown" once or twice before it names the partitions,
and one of several brokers may learn of a new topic later than the others.
"""

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


class Topics:
    """The topics written to; they stay known when the instance is replaced.

    Attributes:
        known: By name.
        lines: All lines of all topics; only ever appended to.
    """

    def __init__(
        self,
        *,
        rng: random.Random,
        partitioner: Partitioner | None,
        full: int,
        ready: Callable[[], Awaitable[ProducerDriver]],
        context: contextvars.Context,
    ) -> None:
        """Prepare.

        Args:
            rng: For choosing partitions.
            partitioner: The user's own.
            full: Bytes of records without a key that stay together.
            ready: Waits for an instance.
            context: What its tasks run in.
        """
        self.known: dict[str, Topic] = {}
        self.lines: list[Line] = []
        self._rng = rng
        self._partitioner = partitioner
        self._full = full
        self._ready = ready
        self._context = context
        self._client: DriverClient | None = None
        self._cluster: Cluster | None = None
        self._missing: dict[str, int] = {}  # answers in a row without the topic
        self._looking: dict[str, _Look] = {}

    def attach(self, instance: ProducerDriver) -> None:
        """Take metadata from this instance from now on, and let it keep all our topics in mind."""
        client = client_of(instance)
        self._client = client
        self._cluster = client.cluster
        client.cluster.add_listener(self._updated)
        if self.known:
            self._context.run(client.set_topics, list(self.known))

    def detach(self) -> None:
        """Take no more metadata from the instance."""
        if self._cluster is not None:
            self._cluster.remove_listener(self._updated)
        self._cluster = self._client = None

    async def resolve(self, name: str, until: float | None) -> Topic | None:
        """Find out a topic's partitions; callers that want the same one share the look.

        Cancelling leaves at once; the look ends when nobody waits for it.

        Args:
            name: The topic.
            until: When to give up, in loop time.

        Returns:
            The topic; None when the time ended first.

        Raises:
            InvalidTopicError: It is no name for a topic.
            UnknownTopicOrPartitionError: Kafka answered several times that there is none.
            TopicAuthorizationFailedError: It may not be seen.
            TypeError: It is no string.
            KafkaUnavailable: Kafka is down, or cannot be used at all.
        """
        if not isinstance(name, str):
            raise TypeError(f"topic={name!r} is {type(name).__name__}, not str")
        if not _LEGAL.fullmatch(name) or name in {".", ".."}:
            raise driver.InvalidTopicError(name)
        if name in self.known:
            return self.known[name]
        look = self._looking.get(name)
        if look is None:
            look = self._looking[name] = _Look(self._context.run(self._start, name))
        look.waiting += 1
        try:
            timeout = None if until is None else until - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait([look.task], timeout=timeout)
            if not done or look.task.cancelled():
                return None
            error = look.task.exception()
            if isinstance(error, Exception):  # each caller gets its own
                raise noted(error, f"while looking for topic {name!r}")
            return look.task.result()
        finally:
            look.waiting -= 1
            if not look.waiting and self._looking.get(name) is look:
                del self._looking[name]
                look.task.cancel()

    async def refresh(self, instance: ProducerDriver) -> bool:
        """Ask for new metadata once; return whether a broker gave it.

        Raises:
            KafkaError: The instance has ended.
        """
        answered: bool = await self._context.run(client_of(instance).force_metadata_update)
        if answered and self._cluster is not None:
            for name in self.known:
                there = self._cluster.partitions_for_topic(name)
                self._missing[name] = 0 if there else self._missing.get(name, 0) + 1
        return answered

    async def look_again(self, until: float | None) -> None:
        """Ask for new metadata once, if there is an instance to ask through."""
        if self._client is None:
            return
        with contextlib.suppress(InstanceEnded):
            asked = self._context.run(self._client.force_metadata_update)
            timeout = None if until is None else until - asyncio.get_running_loop().time()
            await asyncio.wait([asked], timeout=timeout)

    def is_gone(self, name: str) -> bool:
        """Tell whether Kafka has said several times in a row that it has no such topic."""
        return self._missing.get(name, 0) >= _ROUNDS

    def forget(self, names: list[str]) -> None:
        """Know these topics no more; who sends to one asks for it anew."""
        for name in names:
            self.known.pop(name, None)
            self._missing.pop(name, None)

    def has_leader(self, line: Line) -> bool:
        """Tell whether somebody takes this line's batches, as far as the metadata know."""
        leader = self.leader_of(line)
        return leader is not None and leader != -1

    def leader_of(self, line: Line) -> int | None:
        """Give the node that takes a line's batches, as far as the metadata know."""
        return None if self._cluster is None else self._cluster.leader_for_partition(line.tp)

    def leaders(self) -> set[int | None]:
        """Give the nodes that lead what is written to; -1 or None among them for none."""
        return {self.leader_of(line) for line in self.lines}

    async def aclose(self) -> None:
        """End every look; whoever waits for one is told None."""
        tasks = [look.task for look in self._looking.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- inside

    def _start(self, name: str) -> asyncio.Task[Topic]:
        return asyncio.get_running_loop().create_task(
            self._look(name), name=f"resilient-io kafka metadata of {name}"
        )

    async def _look(self, name: str) -> Topic:
        answers, pause = 0, _FIRST_PAUSE
        while True:
            instance = await self._ready()
            client = client_of(instance)
            answered = False
            # Ended meanwhile: there will be another.
            with contextlib.suppress(InstanceEnded):
                client.add_topic(name)
                answered = await client.force_metadata_update()
            if client.cluster.partitions_for_topic(name):
                return self._learn(name, client.cluster)
            if name in client.cluster.unauthorized_topics:
                raise driver.TopicAuthorizationFailedError(name)
            answers += answered
            if answers >= _ROUNDS:
                if self.known:  # else its metadata would be asked for again and again
                    client.set_topics(list(self.known))
                raise driver.UnknownTopicOrPartitionError(name)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _learn(self, name: str, cluster: Cluster) -> Topic:
        topic = self.known.get(name)
        if topic is None:
            topic = self.known[name] = Topic(name, self._rng, self._partitioner, self._full)
        partitions = cluster.partitions_for_topic(name)
        if partitions:
            available = cluster.available_partitions_for_topic(name) or ()
            self.lines += topic.learn(partitions, available)
        return topic

    def _updated(self, cluster: Cluster) -> None:
        for name in self.known:
            self._learn(name, cluster)


class _Look:
    """One search for a topic, and how many wait for it."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[Topic]) -> None:
        self.task = task
        self.waiting = 0
