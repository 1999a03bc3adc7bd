"""What can be asked of a broker or a cluster, past the client under test."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Final

from resilient_io.testing.kafka._wire import UNKNOWN_TOPIC, until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from resilient_io.testing.kafka._wire import Inquirer, Metadata, Partition

_TIMEOUT: Final = 30.0


class Topics(abc.ABC):
    """Topics and their leaders; each question goes to the brokers themselves."""

    @property
    @abc.abstractmethod
    def _inquirers(self) -> Sequence[Inquirer]:
        """One for each broker that runs."""

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replicas: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Make a topic, and wait until every broker that runs knows its leaders.

        Args:
            name: Its name.
            partitions: How many partitions.
            replicas: How many copies of each; None for what the broker is configured to.
            config: Its options, as `{"max.message.bytes": "1000"}`.

        Raises:
            ServerError: The broker will not, as for a name that exists.
            TimeoutError: It did not happen within 30 s.
        """
        await self._inquirers[0].create_topic(name, partitions, replicas, config or {})
        await self._until_seen(
            name, lambda seen: len(seen.topics[name]) == partitions and _led(seen.topics[name])
        )

    async def delete_topic(self, name: str) -> None:
        """Remove a topic, and wait until no broker that runs knows it.

        Args:
            name: Its name.

        Raises:
            ServerError: The broker will not, as for a name that it does not know.
            TimeoutError: It did not happen within 30 s.
        """
        await self._inquirers[0].delete_topic(name)
        await self._until_seen(name, lambda seen: seen.errors.get(name) == UNKNOWN_TOPIC)

    async def topics(self) -> list[str]:
        """Give the names of all topics but the broker's own, sorted."""
        known = await self._inquirers[0].metadata(None)
        return sorted(name for name in known.topics if not name.startswith("__"))

    async def leader_of(self, topic: str, partition: int = 0) -> int:
        """Give the id of the broker that leads a partition, -1 for none.

        Args:
            topic: The topic's name.
            partition: The partition's number.

        Raises:
            LookupError: There is no such partition.
        """
        return (await self._partition(topic, partition)).leader

    async def in_sync(self, topic: str, partition: int = 0) -> list[int]:
        """Give the ids of the brokers whose copy of a partition is complete.

        Args:
            topic: The topic's name.
            partition: The partition's number.

        Raises:
            LookupError: There is no such partition.
        """
        return sorted((await self._partition(topic, partition)).in_sync)

    async def coordinator_of(self, group: str) -> int:
        """Give the id of the broker that coordinates a group.

        Args:
            group: The group's id.

        Raises:
            ServerError: None does at the moment.
        """
        return await self._inquirers[0].coordinator(group)

    async def _partition(self, topic: str, partition: int) -> Partition:
        known = await self._inquirers[0].metadata([topic])
        for each in known.topics[topic]:
            if each.index == partition:
                return each
        raise LookupError(f"no partition {partition} of topic {topic!r}")

    async def _until_seen(self, name: str, wanted: Callable[[Metadata], bool]) -> None:
        for inquirer in self._inquirers:

            async def seen(inquirer: Inquirer = inquirer) -> bool:
                return wanted(await inquirer.metadata([name]))

            await until(seen, f"topic {name!r} to be as asked for", _TIMEOUT)


def _led(partitions: Sequence[Partition]) -> bool:
    return all(each.leader >= 0 for each in partitions)
