"""The availability of a whole cluster: how many slots are served, from the health of its nodes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

from resilient_io.health import Cause, ProbeDegraded, ProbeFailed

from .topology import ClusterTopology

if TYPE_CHECKING:
    from resilient_io.health import Attachment, Dependency

    from .nodes import Member
    from .router import Router

_MOST_NAMED = 3  # nodes in the text


class ClusterHealth:
    """Derives the state of a cluster from its slot table and the state of each node.

    It is the probe of the cluster's dependency, and contacts no server itself: each node that is in
    use has a probe of its own.

    Args:
        health: The dependency of the whole cluster.
        router: Knows the owner of each slot.
        down_share: The share of the slots from which on the cluster is DOWN when they are lost.
    """

    def __init__(self, health: Dependency, router: Router, *, down_share: float) -> None:
        self._health = health
        self._router = router
        self._down_share = down_share
        self._topology = ClusterTopology(health.name, router)
        self._attachment: Attachment | None = None

    def start(self) -> None:
        """Start to derive the state. The nodes' changes are taken into account immediately."""
        self._attachment = self._health.start(
            self._probe, last_reply=lambda: -math.inf, topology=self._topology
        )

    def update(self, _node: Dependency) -> None:
        """Derive the state again: that of a node has changed."""
        self._health.probe_soon()

    async def aclose(self) -> None:
        """Stop deriving the state. Idempotent."""
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            await attachment.detach()

    async def _probe(self, _suspicious: bool) -> float:
        router = self._router
        await router.first_attempt()
        owned = router.slots
        if not owned:
            failure = router.failure
            cause = Cause.SLOTS_LOST if failure is None else failure.cause
            detail = "no slot has an owner" if failure is None else failure.detail
            raise ProbeFailed(cause, detail, definite=True, answered=True)
        lost = {member: count for member, count in owned.items() if member.lost}
        orphaned = SLOTS - sum(owned.values())
        count = sum(lost.values()) + orphaned
        if not count:
            return max((_latency(member) for member in owned), default=0.0)
        cause = next((member.health.cause for member in lost), None) or Cause.SLOTS_LOST
        detail = f"{count:,} of {SLOTS:,} slots{_whose(lost)}"
        if count / SLOTS >= self._down_share:
            raise ProbeFailed(cause, detail, definite=True, answered=True)
        raise ProbeDegraded(cause, detail)


def _latency(member: Member) -> float:
    return (member.health.latency or 0.0) if member.opened else 0.0


def _whose(lost: dict[Member, int]) -> str:
    if not lost:
        return " without an owner"
    names = [member.name for member in lost]
    shown = ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
    return f", shard of {shown}" if len(names) == 1 else f", shards of {shown}"
