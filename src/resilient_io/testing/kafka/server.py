"""Brokers of Apache Kafka to test against: started, killed, frozen and restarted at will."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from resilient_io.testing._configuration import free_ports
from resilient_io.testing._process import ServerDidNotStartError
from resilient_io.testing.kafka._storage import (
    Listener,
    Seat,
    Storage,
    configuration,
    new_id,
    written,
)
from resilient_io.testing.kafka.broker import KafkaBroker
from resilient_io.testing.kafka.distribution import find_apache_kafka

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from resilient_io.testing.kafka._storage import KafkaOption
    from resilient_io.testing.kafka.distribution import ApacheKafka

_JVM: Final = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-Djava.awt.headless=true")
_LOGGER: Final = "-Dorg.slf4j.simpleLogger"


class KafkaServer(KafkaBroker):
    """A broker of Apache Kafka of its own, on free ports of the loopback interface.

    It is its own controller, keeps its data over `kill` and `restart`, and never outlives this
    process, not even when that is killed. `async with` starts it and closes it. Beside the port
    for clients it has one past proxies and credentials, `direct_servers`, for a look at what really
    happened.

    Args:
        port: Port for clients; None takes a free one, and keeps it over restarts.
        advertised_port: Port that clients are told to connect to, as that of a `FaultProxy` in
            front; None means `port`. It may be changed while the broker does not run.
        users: Names and passwords that clients have to give (SASL_PLAINTEXT, PLAIN); None lets
            everybody in.
        oauth: Take unsecured tokens too (SASL_PLAINTEXT, OAUTHBEARER).
        superusers: Users who may do everything, while others may do nothing; None lets all do all.
        options: Lines for its server.properties.
        kafka: The distribution; None lets `find_apache_kafka` look for it.
        quick: Start sooner and serve slower (the JVM compiles less); False for benchmarks.
        heap: Memory for the JVM's heap.
        jvm: Further options for the JVM.
        seat: Its place in a cluster, for `KafkaCluster`.
    """

    _start_timeout: ClassVar[float] = 60.0

    def __init__(
        self,
        *,
        port: int | None = None,
        advertised_port: int | None = None,
        users: Mapping[str, str] | None = None,
        oauth: bool = False,
        superusers: Collection[str] | None = None,
        options: Mapping[str, KafkaOption] | None = None,
        kafka: ApacheKafka | None = None,
        quick: bool = True,
        heap: str = "384m",
        jvm: Sequence[str] = (),
        seat: Seat | None = None,
    ) -> None:
        free = free_ports(3)
        super().__init__(
            port=port if port is not None else free[0],
            advertised_port=advertised_port,
            fixed_ports=port is not None or seat is not None,
        )
        self._direct_port = free[1]
        self._seat = seat or Seat(node=1, cluster_id=new_id(), voters={1: free[2]})
        self._users = dict(users or {})
        self._oauth = oauth
        self._superusers = superusers
        self._options: dict[str, KafkaOption] = dict(options or {})
        self._kafka = kafka
        self._quick = quick
        self._heap = heap
        self._jvm = list(jvm)

    @property
    def direct_servers(self) -> str:
        """Address past proxies and credentials, for a look at what really happened."""
        return f"{self.host}:{self._direct_port}"

    @property
    def node_id(self) -> int:
        """The broker's id, as in metadata."""
        return self._seat.node

    async def start(self) -> None:
        """Start it, and wait until clients can use it, groups included; nothing if it runs.

        That takes 2 to 5 s. When this fails or is cancelled, no process is left.

        Raises:
            NoServerError: There is no Apache Kafka on this machine, or no Java.
            ServerDidNotStartError: It ended at once, or could not be used within 60 s.
        """
        await super().start()

    @property
    def _cluster_id(self) -> str:
        return self._seat.cluster_id

    async def _prepare(self) -> None:
        self._kafka = self._kafka or find_apache_kafka()
        storage = Storage(self._kafka, self.folder / "data")
        if storage.is_formatted or storage.copy_format(self._seat):
            return
        command = [
            *self._java(self._kafka),
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={self._cluster_id}",
            f"--config={self._settings()}",
        ]
        if await self._run(command):
            raise ServerDidNotStartError(self._told("could not format its folder"))
        storage.remember()

    def _java(self, kafka: ApacheKafka) -> list[str | Path]:
        compiling = ("-XX:TieredStopAtLevel=1",) if self._quick else ()
        # Classes as they lie in memory, written by `make servers`; ignored where they do not fit.
        archive = kafka.libs.parent / "kafka.jsa"
        shared = (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()
        return [
            kafka.java,
            f"-Xmx{self._heap}",
            *_JVM,
            *compiling,
            *shared,
            f"-XX:ErrorFile={self.folder}/crash.log",
            f"{_LOGGER}.defaultLogLevel=warn",
            f"{_LOGGER}.showDateTime=true",
            f"{_LOGGER}.dateTimeFormat=HH:mm:ss.SSS",
            "-cp",
            f"{kafka.libs}/*",
        ]

    def _settings(self) -> Path:
        listener = Listener(
            port=self.port,
            advertised=self.advertised_port or self.port,
            users=self._users,
            oauth=self._oauth,
            superusers=self._superusers,
        )
        data = self.folder / "data"
        lines = configuration(self._seat, listener, self._direct_port, data, self.host)
        path = self.folder / "server.properties"
        path.write_text(written(lines | self._options))
        return path

    def _command(self) -> Sequence[str | Path]:
        kafka = self._kafka or find_apache_kafka()
        java, *options = self._java(kafka)
        return [java, *self._jvm, *options, "kafka.Kafka", self._settings()]

    def _take_other_ports(self) -> None:
        self.port, self._direct_port, controller = free_ports(3)
        self._seat = Seat(node=1, cluster_id=self._cluster_id, voters={1: controller})

    def _described(self) -> str:
        return f"{self._kafka or find_apache_kafka()} on port {self.port}"
