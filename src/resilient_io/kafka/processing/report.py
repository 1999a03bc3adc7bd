"""What `run` tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RunStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStats:
    """Counters of one `run`.

    Attributes:
        handled: Records that a handler took without raising.
        failed: Records whose handler raised, each time.
        excused: Those among them that did not count, for a required dependency was to blame.
        retried: Calls of a handler beyond the first of a record.
        dead_lettered: Records written to the dead-letter topic.
        skipped: Records given up without one.
        cancelled: Handlers that were cancelled because a rebalance, or the end, did not wait.
        in_flight: Records in memory now: being handled, or waiting for it.
        in_flight_bytes: Bytes of their keys and values.
        ready: Records among them that wait for nothing but a free handler.
        resting: Records among them that wait for their backoff to end.
        handlers: Handlers that are running now.
        allowed: Handlers that may run now; 0 while a required dependency is down, and while nobody
            knows whether the partitions are still ours.
        pauses: How often a required dependency was down.
    """

    handled: int
    failed: int
    excused: int
    retried: int
    dead_lettered: int
    skipped: int
    cancelled: int
    in_flight: int
    in_flight_bytes: int
    ready: int
    resting: int
    handlers: int
    allowed: int
    pauses: int
