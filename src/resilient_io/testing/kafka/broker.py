"""What every broker has in common, whichever program it is."""

from __future__ import annotations

import abc
from typing import ClassVar, Final

from resilient_io.testing._process import ServerProcess
from resilient_io.testing.kafka._wire import NOT_YET, Inquirer, KafkaRefusedError
from resilient_io.testing.kafka.topics import Topics

_GROUP: Final = "resilient-io-testing"


class KafkaBroker(ServerProcess, Topics):
    """A broker with ports on the loopback interface: `KafkaServer` or `TansuServer`.

    Args:
        port: Port for clients.
        advertised_port: Port that clients are told to connect to; None means `port`.
        fixed_ports: Never try other ports when somebody took them.
    """

    _look_again: ClassVar[float] = 0.02

    def __init__(self, *, port: int, advertised_port: int | None, fixed_ports: bool) -> None:
        super().__init__(fixed_ports=fixed_ports)
        self.port = port
        self.advertised_port = advertised_port

    def __repr__(self) -> str:
        state = "up" if self.running else "not running"
        return f"<{type(self).__name__} {self.node_id}, {self.host}:{self.port} {state}>"

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients."""
        return f"{self.host}:{self.advertised_port or self.port}"

    @property
    @abc.abstractmethod
    def direct_servers(self) -> str:
        """Address past proxies and credentials, for a look at what really happened."""

    @property
    @abc.abstractmethod
    def node_id(self) -> int:
        """The broker's id, as in metadata."""

    @property
    @abc.abstractmethod
    def _cluster_id(self) -> str:
        """Its cluster's id, by which it is known from another that took the port."""

    @property
    def _inquirers(self) -> list[Inquirer]:
        return [Inquirer(self.host, int(self.direct_servers.rpartition(":")[2]))]

    async def _is_ready(self) -> bool:
        inquirer = self._inquirers[0]
        known = await inquirer.metadata()
        if known.cluster_id != self._cluster_id or self.node_id not in known.brokers:
            return False
        try:
            await inquirer.coordinator(_GROUP)
        except KafkaRefusedError as error:
            if error.code not in NOT_YET:
                raise
            return False
        return True
