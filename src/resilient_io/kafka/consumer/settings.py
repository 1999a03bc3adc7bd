"""What can be chosen for a consumer, beside the driver's own options."""

from __future__ import annotations

from dataclasses import dataclass

from resilient_io.validation import check_count, check_number, check_seconds

__all__ = ["ConsumerSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """When a consumer commits, and how long its ends may take.

    Args:
        commit_interval: Seconds between two commits in the background; None commits nothing, ever:
            for offsets that a transaction takes along (`transaction().send_offsets`).
        commit_timeout: Longest time for one commit, in seconds.
        drain_timeout: Seconds that a record or batch in hand gets to be handled, when its partition
            is revoked or the consumer is closed. Together with `commit_timeout` it must stay below
            `rebalance_timeout_ms` (by default `session_timeout_ms`, 10 s), or the group goes on
            without waiting for this member.
        close_timeout: Seconds within which `aclose()` ends when it is given no timeout.
        stalled_after: Seconds after which a partition that has records waiting, but does not move,
            makes health DEGRADED (`Cause.STALLED`); None never does.
        fetch_records: Most records that iteration takes from the driver at once. The event loop
            gets its turn in between.

    Raises:
        ConfigurationError: A value is out of range.
    """

    commit_interval: float | None = 1.0
    commit_timeout: float = 3.0
    drain_timeout: float = 5.0
    close_timeout: float = 10.0
    stalled_after: float | None = 60.0
    fetch_records: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.commit_interval is not None:
            check_seconds("commit_interval", self.commit_interval)
        check_seconds("commit_timeout", self.commit_timeout)
        check_number("drain_timeout", self.drain_timeout)
        check_seconds("close_timeout", self.close_timeout)
        if self.stalled_after is not None:
            check_seconds("stalled_after", self.stalled_after)
        check_count("fetch_records", self.fetch_records)
