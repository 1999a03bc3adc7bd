"""What a client shows of the servers behind its Sentinels: the master, its replicas, failovers.

It is built from what the client knows anyway. Only the lag of the replicas is asked for: the master
says it in INFO replication.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from resilient_io.health import Topology, TopologyServer
from resilient_io.text import format_address

from .addresses import map_address
from .driver_connection import StallTolerantTimeout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .addresses import Address, AddressMap
    from .failover import Failover
    from .multiplexer import Multiplexer
    from .sentinel import Answer, KnownMaster, SentinelAddress

_INTERVAL: Final = 5.0  # seconds between two questions for the lag
_FIRST: Final = 0.5  # seconds before the first one: the client connects meanwhile
_TIMEOUT: Final = 0.5


class SentinelTopology:
    """The topology of a master that Sentinels monitor, for `Dependency.topology`.

    Args:
        source: Knows the master, and what each Sentinel says.
        failover: Counts the failovers.
        multiplexer: Has the connections to the master.
        address_map: Where a server is reached that its master lists at another address.
    """

    def __init__(
        self,
        *,
        source: SentinelAddress,
        failover: Failover,
        multiplexer: Multiplexer,
        address_map: AddressMap | None,
    ) -> None:
        self._source = source
        self._failover = failover
        self._multiplexer = multiplexer
        self._address_map = address_map
        self._subscribed = 0
        self._measured: KnownMaster | None = None  # the master that was asked for the lags
        self._lags: dict[Address, float] = {}

    def note_subscribed(self, count: int) -> None:
        """Note to how many Sentinels the client listens."""
        self._subscribed = count

    def __call__(self) -> Topology:
        """Return what is known now."""
        failover = self._failover
        return Topology(
            servers=self._servers(),
            master_since=self._source.known_since,
            sentinels=len(self._source.answers),
            sentinels_reached=self._subscribed,
            failing_over=failover.in_progress,
            failovers=failover.count,
            failover_seconds=failover.seconds,
            calls_held=failover.held,
            latest=failover.latest,
        )

    def _servers(self) -> tuple[TopologyServer, ...]:
        known = self._source.known
        if known is None:
            return ()
        state = self._multiplexer.health.state.value
        master = TopologyServer(address=str(known), role="master", state=state)
        answer = self._answer(known)
        if answer is None:
            return (master,)
        lags = self._lags if self._measured == known else {}
        replicas = (
            TopologyServer(
                address=format_address(*address),
                role="replica",
                state="up" if address in answer.replicas else "down",
                lag=lags.get(address),
            )
            for address in answer.all_replicas
            if address != known.address
        )
        return (master, *replicas)

    def _answer(self, known: KnownMaster) -> Answer | None:
        """Return what a Sentinel says that names the known master."""
        answers = (each for each in self._source.answers if each is not None)
        return next((each for each in answers if each.address == known.address), None)

    # -- the lag of the replicas ---------------------------------------------------------------

    async def measure_repeatedly(self) -> None:
        """Ask the master for the lag of its replicas, again and again, until cancelled."""
        pause = _FIRST
        while True:
            await asyncio.sleep(pause)
            pause = _INTERVAL
            if not self._failover.in_progress:
                with contextlib.suppress(RedisError, OSError):  # no permission, or lost meanwhile
                    await self._measure()

    async def _measure(self) -> None:
        connection = self._multiplexer.open_connection
        if connection is None:
            return
        known = self._source.known
        async with StallTolerantTimeout(_TIMEOUT):
            reply: Any = await connection.query("INFO", "replication")
        self._lags = {
            map_address(self._address_map, address): float(lag)
            for address, lag in replica_lags(read_info(reply)).items()
        }
        self._measured = known


def read_info(reply: Any) -> dict[str, str]:
    """Return a reply to INFO, with one `name:value` in each line, as a map."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value for name, colon, value in lines if colon}


def replica_lags(facts: Mapping[str, str]) -> dict[Address, int]:
    """Return the seconds since each replica confirmed data to its master, by its address.

    `facts` are those of INFO replication of the master. A replica that is copying all data has
    confirmed nothing yet, and is left out.
    """
    found: dict[Address, int] = {}
    for name, text in facts.items():
        if name.startswith("slave") and name[5:].isdigit():
            parts = (part.partition("=") for part in text.split(","))
            fields = {key: value for key, _, value in parts}
            port, lag = fields.get("port", ""), fields.get("lag", "")
            if port.isdecimal() and lag.isdecimal():
                found[fields.get("ip", ""), int(port)] = int(lag)
    return found
