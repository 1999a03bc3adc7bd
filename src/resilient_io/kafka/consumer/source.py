"""What handles records asks of the consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .assignment import PartitionProgress
    from .record import Record, TopicPartition

__all__ = ["Source"]


class Source(Protocol):
    """Gives records of the partitions that are ours, and takes the account of what is done.

    A record that was fetched is outstanding in its partition's progress until `record.done()`
    (or `progress.done(offset)`): fetching notes that it was handed out, nobody else has to.
    """

    async def fetch(self, max_records: int, max_wait: float) -> dict[TopicPartition, list[Record]]:
        """Return the next records of the partitions that are ours and not paused.

        It counts as a poll for `max_poll_interval_ms`, also when everything is paused. An outage
        is never raised: then nothing comes. Cancelling it loses no record.

        Args:
            max_records: The most records, over all partitions.
            max_wait: Longest wait for the first record, in seconds; after it the answer is empty.

        Raises:
            Exception: What Kafka refuses for good (no authorisation, say), as the driver has it.
        """
        raise NotImplementedError

    def pause(self, partitions: Iterable[TopicPartition], reason: str) -> None:
        """Stop fetching from them until `resume` with the same reason.

        A partition is paused while any reason holds, also across a rebalance; the same reason
        twice counts once.
        """

    def resume(self, partitions: Iterable[TopicPartition], reason: str) -> None:
        """Take back a reason for pausing; one that was not given does no harm."""

    def assignment(self) -> tuple[TopicPartition, ...]:
        """Return the partitions that are ours now, in a fixed order."""
        raise NotImplementedError

    def progress(self, partition: TopicPartition) -> PartitionProgress | None:
        """Return the account of a partition; None when it is not, or no longer, ours."""
        raise NotImplementedError

    async def commit(self, timeout: float) -> None:
        """Commit what is contiguous now; never raises for an outage or a rebalance.

        Args:
            timeout: Longest time it may take, in seconds; then it is given up.
        """

    def on_revoked(
        self, drain: Callable[[tuple[TopicPartition, ...]], Awaitable[None]] | None
    ) -> None:
        """Name who is awaited when partitions are taken away; None for nobody.

        Nothing more is fetched from these partitions by then, and what is done until it returns
        is still committed. It has to return within the rebalance, so it must bound itself. It is
        also awaited for partitions that were lost without a word (the session expired, the
        driver's instance was replaced): then nothing is committed any more, and they become ours
        again only after it returned.
        """

    def on_assigned(self, taken: Callable[[tuple[TopicPartition, ...]], None] | None) -> None:
        """Name who is told when partitions become ours; None for nobody."""
