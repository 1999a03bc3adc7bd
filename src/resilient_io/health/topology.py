"""The servers of a dependency that has several: which one is the master, and the failovers.

The client that knows them builds a `Topology` when it is asked for one, from what it knows already.
The status page, the metrics and `resilient-io watch` show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["master", "replica"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyServer:
    """One server, as far as the client knows it.

    Attributes:
        address: Host and port, where the client connects to.
        role: Whether it accepts writes, or copies a master.
        state: "up", "degraded" or "down"; "unknown" if the client has no connection to it, and
            nothing else is known about it.
        lag: For a replica, seconds since it last confirmed data to its master, if known.
        slots: For a master of a cluster, how many slots it serves.
        master: For a replica of a cluster, the address of its master.
    """

    address: str
    role: Role
    state: str = "unknown"
    lag: float | None = None
    slots: int | None = None
    master: str | None = None


@dataclass(frozen=True, slots=True)
class FailoverRecord:
    """The latest time that another server became the master.

    Attributes:
        at: Loop time at which the client noticed that it began.
        duration: Seconds until the client was connected to the new master.
        held: How many calls waited for it.
        master: Address of the new master.
    """

    at: float
    duration: float
    held: int
    master: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The servers of a dependency, and what became of its failovers.

    Attributes:
        servers: All servers, masters first.
        master_since: Loop time since which the client knows the current master; None if there are
            several, or none is known.
        sentinels: How many Sentinels there are; None without Sentinels.
        sentinels_reached: How many of them the client listens to.
        slots: How many slots there are; None without a cluster.
        slots_served: How many of them have a master that is not down.
        failing_over: Whether a failover is in progress now.
        failovers: How many failovers the client went through.
        failover_seconds: How long they took together.
        calls_held: How many calls waited for them together.
        latest: The latest one, or None.
    """

    servers: tuple[TopologyServer, ...] = ()
    master_since: float | None = None
    sentinels: int | None = None
    sentinels_reached: int = 0
    slots: int | None = None
    slots_served: int = 0
    failing_over: bool = False
    failovers: int = 0
    failover_seconds: float = 0.0
    calls_held: int = 0
    latest: FailoverRecord | None = None

    @property
    def masters(self) -> list[TopologyServer]:
        """The masters."""
        return [each for each in self.servers if each.role == "master"]

    @property
    def replicas(self) -> list[TopologyServer]:
        """The replicas."""
        return [each for each in self.servers if each.role == "replica"]

    @property
    def longest_lag(self) -> float | None:
        """The longest known lag of a replica, in seconds."""
        return max((each.lag for each in self.replicas if each.lag is not None), default=None)

    def as_dict(self, now: float) -> dict[str, Any]:
        """Return it as plain data for `json.dumps`, with ages instead of times.

        Args:
            now: The current loop time.
        """
        latest = self.latest
        return {
            "servers": [
                {name: getattr(each, name) for name in TopologyServer.__slots__}
                for each in self.servers
            ],
            "master_age": None if self.master_since is None else now - self.master_since,
            "sentinels": self.sentinels,
            "sentinels_reached": self.sentinels_reached,
            "slots": self.slots,
            "slots_served": self.slots_served,
            "failing_over": self.failing_over,
            "failovers": self.failovers,
            "failover_seconds": self.failover_seconds,
            "calls_held": self.calls_held,
            "latest": latest
            and {
                "ago": now - latest.at,
                "duration": latest.duration,
                "held": latest.held,
                "master": latest.master,
            },
        }

    def describe(self) -> str:
        """Return it in one short line: "master 10.0.0.1:6379, 2 replicas"."""
        masters, replicas = self.masters, self.replicas
        parts = []
        if self.slots is not None:
            parts.append(f"{self.slots_served:,} of {self.slots:,} slots")
            parts.append(_count(len(masters), "master"))
        else:
            parts.append(f"master {masters[0].address}" if masters else "no master known")
        parts.append(_count(len(replicas), "replica"))
        if self.longest_lag is not None:
            parts[-1] += f" up to {self.longest_lag:.1f} s behind"
        if self.sentinels is not None and self.sentinels_reached < self.sentinels:
            parts.append(f"{self.sentinels_reached} of {self.sentinels} Sentinels reached")
        if self.failing_over:
            parts.append("failing over")
        elif self.latest is not None:
            parts.append(
                f"{_count(self.failovers, 'failover')} (latest {self.latest.duration:.1f} s)"
            )
        return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
