"""Notices partitions that have records waiting, and do not move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.health import Cause, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka import TopicPartition

    from resilient_io.health import Dependency

    from .holdings import Holding

__all__ = ["StallWatch"]


class StallWatch:
    """Makes health DEGRADED while a partition is stalled.

    What is paused on purpose is not stalled, and neither is anything while Kafka is away: then the
    time begins anew.

    Args:
        health: Is told of stalled partitions as lost parts.
        after: Seconds without movement, with records waiting.
        group: Whose partitions they are, for the name of the part.
    """

    __slots__ = ("_after", "_group", "_health", "_moved", "_stalled")

    def __init__(self, health: Dependency, after: float, group: str | None) -> None:
        self._health = health
        self._after = after
        self._group = group
        self._moved: dict[TopicPartition, tuple[int | None, float]] = {}
        self._stalled: dict[TopicPartition, bool] = {}

    def look(
        self, holdings: list[Holding], paused: Callable[[TopicPartition], bool], now: float
    ) -> None:
        """Compare with the last look.

        Args:
            holdings: The partitions that are ours.
            paused: Tells whether one is paused.
            now: The loop's time.
        """
        down = self._health.state is State.DOWN
        moved: dict[TopicPartition, tuple[int | None, float]] = {}
        stalled: dict[TopicPartition, bool] = {}
        for holding in holdings:
            partition, at, end = holding.partition, holding.resume, holding.end
            before = self._moved.get(partition)
            waiting = end is not None and (at is None or at < end)
            if before is None or before[0] != at or not waiting or down or paused(partition):
                moved[partition] = (at, now)
                continue
            moved[partition] = before
            if now - before[1] >= self._after:
                stalled[partition] = True
                # Going DOWN forgot it; otherwise once is enough.
                if partition not in self._stalled:
                    self._health.part_lost(
                        self._part(partition),
                        Cause.STALLED,
                        f"it has stood at {at} for {now - before[1]:.0f} s, with {end} to reach",
                    )
        for partition in self._stalled:
            if partition not in stalled:
                self._health.part_back(self._part(partition))
        self._moved, self._stalled = moved, stalled

    def close(self) -> None:
        """Take back what was said."""
        for partition in self._stalled:
            self._health.part_back(self._part(partition))
        self._stalled = {}

    def _part(self, partition: TopicPartition) -> str:
        whose = "" if self._group is None else f"{self._group}: "
        return f"{whose}{partition.topic}[{partition.partition}]"
