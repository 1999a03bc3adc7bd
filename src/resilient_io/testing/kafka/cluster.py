"""A cluster of brokers to test against, of which one after the other may die."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self

from resilient_io.testing._configuration import free_ports
from resilient_io.testing.kafka._storage import Seat, new_id
from resilient_io.testing.kafka._wire import until
from resilient_io.testing.kafka.server import KafkaServer
from resilient_io.testing.kafka.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from types import TracebackType

    from resilient_io.testing.kafka._storage import KafkaOption
    from resilient_io.testing.kafka._wire import Inquirer
    from resilient_io.testing.kafka.distribution import ApacheKafka

_IN_SYNC_TIMEOUT: Final = 60.0


class KafkaCluster(Topics):
    """Brokers of Apache Kafka, each a controller too, with three copies of each partition.

    Two copies have to be written before a write with acks=all is acknowledged
    (`min.insync.replicas`), so one broker may die. `async with` starts all and closes all; each
    broker can be killed, frozen and restarted by itself.

    Args:
        size: How many brokers; at least 3.
        users: As for `KafkaServer`.
        oauth: As for `KafkaServer`.
        superusers: As for `KafkaServer`.
        options: Lines for the server.properties of each.
        kafka: As for `KafkaServer`.
        quick: As for `KafkaServer`.
        heap: Memory for the heap of each.
    """

    def __init__(
        self,
        *,
        size: int = 3,
        users: Mapping[str, str] | None = None,
        oauth: bool = False,
        superusers: Collection[str] | None = None,
        options: Mapping[str, KafkaOption] | None = None,
        kafka: ApacheKafka | None = None,
        quick: bool = True,
        heap: str = "256m",
    ) -> None:
        if size < 3:  # noqa: PLR2004 - the copies of a partition
            raise ValueError(f"size must be at least 3, got {size}; for one there is KafkaServer")
        voters = dict(enumerate(free_ports(size), start=1))
        cluster_id = new_id()
        self.brokers = [
            KafkaServer(
                users=users,
                oauth=oauth,
                superusers=superusers,
                options=options,
                kafka=kafka,
                quick=quick,
                heap=heap,
                seat=Seat(node=node, cluster_id=cluster_id, voters=voters),
            )
            for node in voters
        ]
        """Its brokers, by their ids; each is a `KafkaServer`."""

    def __repr__(self) -> str:
        up = sum(broker.running for broker in self.brokers)
        return f"<KafkaCluster {self.bootstrap_servers}, {up} of {len(self.brokers)} up>"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:  # also a cancel must not leave the folders behind; re-raised
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def bootstrap_servers(self) -> str:
        """Addresses for clients, of all brokers."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    @property
    def direct_servers(self) -> str:
        """Addresses past proxies and credentials, for a look at what really happened."""
        return ",".join(broker.direct_servers for broker in self.brokers)

    @property
    def running(self) -> bool:
        """The processes of all live (also when frozen)."""
        return all(broker.running for broker in self.brokers)

    def broker(self, node_id: int) -> KafkaServer:
        """Give the broker of this id.

        Args:
            node_id: As `leader_of` and `coordinator_of` give it.

        Raises:
            LookupError: There is none.
        """
        for broker in self.brokers:
            if broker.node_id == node_id:
                return broker
        raise LookupError(f"no broker has the id {node_id}")

    async def start(self) -> None:
        """Start those that do not run, and wait until clients can use all of them.

        When this fails or is cancelled, no process is left of those that it started.

        Raises:
            NoServerError: There is no Apache Kafka on this machine, or no Java.
            ServerDidNotStartError: One ended at once, or could not be used within 60 s.
        """
        started = [broker for broker in self.brokers if not broker.running]
        complete = False
        try:
            async with asyncio.TaskGroup() as group:
                for broker in started:
                    group.create_task(broker.start(), name=f"start of {broker!r}")
            await until(self._complete, "all brokers to know of each other", _IN_SYNC_TIMEOUT)
            complete = True
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            if not complete:
                for broker in started:
                    broker.kill()

    async def restart(self) -> None:
        """Kill all that run, and start them on the same ports."""
        self.kill()
        await self.start()

    def kill(self) -> None:
        """End all processes at once (SIGKILL)."""
        for broker in self.brokers:
            broker.kill()

    def freeze(self) -> None:
        """Stop all processes that run (SIGSTOP)."""
        for broker in self.brokers:
            if broker.running:
                broker.freeze()

    def thaw(self) -> None:
        """Let all frozen processes go on (SIGCONT)."""
        for broker in self.brokers:
            if broker.running:
                broker.thaw()

    async def until_in_sync(self, topic: str, timeout: float = _IN_SYNC_TIMEOUT) -> None:
        """Wait until each copy of each partition of a topic is complete.

        Cancelling the wait changes nothing.

        Args:
            topic: The topic's name.
            timeout: Longest wait in seconds.

        Raises:
            TimeoutError: It was not so within `timeout`.
        """

        async def in_sync() -> bool:
            partitions = (await self._inquirers[0].metadata([topic])).topics[topic]
            return bool(partitions) and all(
                each.leader >= 0 and len(each.in_sync) == len(each.replicas) for each in partitions
            )

        await until(in_sync, f"topic {topic!r} to be in sync", timeout)

    async def aclose(self) -> None:
        """Kill all and remove their folders; twice is fine, cancelling has no moment to hit."""
        self.kill()
        for broker in self.brokers:
            await broker.aclose()

    @property
    def _inquirers(self) -> list[Inquirer]:
        return [
            inquirer
            for broker in self.brokers
            if broker.running
            for inquirer in broker._inquirers  # noqa: SLF001 - a cluster is its brokers
        ]

    async def _complete(self) -> bool:
        for inquirer in self._inquirers:
            if len((await inquirer.metadata()).brokers) < len(self.brokers):
                return False
        return True
