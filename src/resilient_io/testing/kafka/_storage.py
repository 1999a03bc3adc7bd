"""The configuration and the formatted storage of a broker of Apache Kafka."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from resilient_io.testing.kafka.distribution import ApacheKafka

KafkaOption: TypeAlias = str | int | float | bool
"""A value of server.properties."""

_ID_BYTES: Final = 16
_SINGLE: Final[Mapping[str, KafkaOption]] = {
    "offsets.topic.replication.factor": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
}
_TRIPLE: Final[Mapping[str, KafkaOption]] = {
    "default.replication.factor": 3,
    "min.insync.replicas": 2,
    "offsets.topic.replication.factor": 3,
    "transaction.state.log.replication.factor": 3,
    "transaction.state.log.min.isr": 2,
}
_QUICK: Final[Mapping[str, KafkaOption]] = {
    "num.partitions": 4,
    "offsets.topic.num.partitions": 4,
    "transaction.state.log.num.partitions": 4,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    # After a kill the controller waits until the broker's old session has ended.
    "broker.session.timeout.ms": 2000,
    "broker.heartbeat.interval.ms": 300,
    "log.cleaner.dedupe.buffer.size": 4 << 20,  # instead of 128 MB
}


def new_id() -> str:
    """Make an id as Kafka writes them."""
    return base64.urlsafe_b64encode(os.urandom(_ID_BYTES)).decode().rstrip("=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """The listener for clients.

    Attributes:
        port: Port to listen on.
        advertised: Port that clients are told.
        users: Names and passwords of SASL PLAIN; empty for none.
        oauth: Take unsecured OAUTHBEARER tokens.
        superusers: Who may do everything, while others may nothing; None lets all do all.
    """

    port: int
    advertised: int
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    oauth: bool = False
    superusers: Collection[str] | None = None

    def lines(self) -> dict[str, KafkaOption]:
        """Give its part of server.properties."""
        lines: dict[str, KafkaOption] = {}
        mechanisms = ["PLAIN"] * bool(self.users) + ["OAUTHBEARER"] * self.oauth
        if mechanisms:
            lines["sasl.enabled.mechanisms"] = ",".join(mechanisms)
        if self.users:
            known = "".join(f" user_{name}={_quoted(word)}" for name, word in self.users.items())
            lines["listener.name.client.plain.sasl.jaas.config"] = (
                f"org.apache.kafka.common.security.plain.PlainLoginModule required{known};"
            )
        if self.oauth:
            lines["listener.name.client.oauthbearer.sasl.jaas.config"] = (
                "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
                'unsecuredLoginStringClaim_sub="broker";'
            )
        if self.superusers is not None:
            lines["authorizer.class.name"] = (
                "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
            )
            # The brokers themselves, and the kit's own questions, come without a name.
            names = ["ANONYMOUS", *self.superusers]
            lines["super.users"] = ";".join(f"User:{name}" for name in names)
        return lines

    @property
    def security(self) -> str:
        """Its security protocol."""
        return "SASL_PLAINTEXT" if self.users or self.oauth else "PLAINTEXT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A broker's place in its cluster.

    Attributes:
        node: Its id.
        cluster_id: The cluster's id.
        voters: The controllers of all brokers: their ids and ports.
    """

    node: int
    cluster_id: str
    voters: Mapping[int, int]


def configuration(
    seat: Seat, listener: Listener, direct_port: int, data: Path, host: str
) -> dict[str, KafkaOption]:
    """Give the lines of server.properties."""
    own = f"DIRECT://{host}:{direct_port}"
    alone = len(seat.voters) == 1
    return {
        "process.roles": "broker,controller",
        "node.id": seat.node,
        "controller.quorum.voters": ",".join(
            f"{node}@{host}:{port}" for node, port in seat.voters.items()
        ),
        "listeners": (
            f"CLIENT://{host}:{listener.port},{own},CONTROLLER://{host}:{seat.voters[seat.node]}"
        ),
        "advertised.listeners": f"CLIENT://{host}:{listener.advertised},{own}",
        "listener.security.protocol.map": (
            f"CLIENT:{listener.security},DIRECT:PLAINTEXT,CONTROLLER:PLAINTEXT"
        ),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "DIRECT",
        "log.dirs": str(data),
        **_QUICK,
        **(_SINGLE if alone else _TRIPLE),
        **listener.lines(),
    }


def written(options: Mapping[str, KafkaOption]) -> str:
    """Write server.properties."""
    return "".join(f"{name}={_escaped(value)}\n" for name, value in options.items())


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escaped(value: KafkaOption) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.replace("\\", "\\\\").replace("\n", "\\n")


class Storage:
    """The folder of a broker's data, as Kafka's own tool formats it.

    The tool takes a second, and what it writes differs from broker to broker in two ids only: it
    runs once for each distribution, if `make servers` has not run it.

    Args:
        kafka: Whose tool it is.
        data: The folder.
    """

    _formatted: Final[dict[Path, bytes]] = {}

    def __init__(self, kafka: ApacheKafka, data: Path) -> None:
        self._kafka = kafka
        self._data = data

    @property
    def is_formatted(self) -> bool:
        """A broker can start on it."""
        return (self._data / "meta.properties").exists()

    def copy_format(self, seat: Seat) -> bool:
        """Write what the tool would write; False if it has to run first."""
        libs = self._kafka.libs
        known = self._formatted.get(libs)
        if known is None:
            try:
                known = self._formatted[libs] = (libs.parent / "bootstrap.checkpoint").read_bytes()
            except FileNotFoundError:
                return False
        self._data.mkdir()
        (self._data / "bootstrap.checkpoint").write_bytes(known)
        lines: dict[str, KafkaOption] = {
            "version": 1,
            "cluster.id": seat.cluster_id,
            "node.id": seat.node,
            "directory.id": new_id(),
        }
        (self._data / "meta.properties").write_text(written(lines))
        return True

    def remember(self) -> None:
        """Keep what the tool has written for other brokers."""
        known = (self._data / "bootstrap.checkpoint").read_bytes()
        self._formatted[self._kafka.libs] = known
