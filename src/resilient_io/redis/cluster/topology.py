"""What a cluster client shows of its nodes: masters with their slots, replicas, and failovers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

from resilient_io.health import FailoverRecord, State, Topology, TopologyServer
from resilient_io.text import format_address

from ..failover import log_failover
from .nodes import Member

if TYPE_CHECKING:
    from .router import OwnerChanges, Router
    from .slots import Node, Shard


class ClusterTopology:
    """The topology of a cluster, for `Dependency.topology`, from the slot table and the nodes.

    A failover is noticed when the table names a new master for the slots of another one. Its
    duration counts from the time at which the former master went down, if it did.

    Args:
        name: Name of the cluster, for the log.
        router: Has the slot table and the connections to the nodes.
    """

    def __init__(self, name: str, router: Router) -> None:
        self._name = name
        self._router = router
        self._count = self._held = 0
        self._seconds = 0.0
        self._latest: FailoverRecord | None = None
        self._owners: set[Member] = set()  # those of the previous table
        router.on_change(self._owners_changed)

    def __call__(self) -> Topology:
        """Return what is known now."""
        router = self._router
        counts = router.slots
        lost = {member for member in counts if member.lost}
        masters, replicas = [], []
        waiting_for_replica = False
        for shard in router.table.shards:
            member = router.members.find(shard.master.address)
            slots = counts.get(member, 0) if member is not None else 0
            masters.append(_master(shard.master, member, slots))
            replicas += [_replica(each, shard) for each in shard.replicas]
            waiting_for_replica |= member in lost and bool(shard.replicas)
        return Topology(
            servers=(*masters, *replicas),
            slots=SLOTS,
            slots_served=sum(counts.values()) - sum(counts[member] for member in lost),
            failing_over=waiting_for_replica,
            failovers=self._count,
            failover_seconds=self._seconds,
            calls_held=self._held,
            latest=self._latest,
        )

    def _owners_changed(self, changes: OwnerChanges) -> None:
        """Note which masters were replaced by a new one.

        It has their slots, and they have none any more. If slots are moved to another master, then
        the former one still has some, or the latter had some before.
        """
        # Not the former owners now: MOVED has added new ones to them.
        known, self._owners = self._owners, set(self._router.slots)
        for former, master in changes:
            if (
                isinstance(former, Member)
                and isinstance(master, Member)
                and former not in self._owners
                and master not in known
            ):
                self._note_failover(former, master)

    def _note_failover(self, former: Member, master: Member) -> None:
        now = asyncio.get_running_loop().time()
        began, held = now, 0
        if former.opened:
            held = former.multiplexer.waiting
            if former.health.state is State.DOWN:
                began = former.health.since
        record = FailoverRecord(began, now - began, held, master.name)
        self._latest = record
        self._count += 1
        self._held += held
        self._seconds += record.duration
        log_failover(self._name, record)


def _master(node: Node, member: Member | None, slots: int) -> TopologyServer:
    opened = member if member is not None and member.opened else None
    state = "unknown" if opened is None else opened.health.state.value
    return TopologyServer(
        address=format_address(*node.address), role="master", state=state, slots=slots
    )


def _replica(node: Node, shard: Shard) -> TopologyServer:
    return TopologyServer(
        address=format_address(*node.address),
        role="replica",
        state="unknown",
        master=format_address(*shard.master.address),
    )
