"""What `ResilientRedis.stats()` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .engine import Engine


@dataclass(frozen=True, slots=True)
class RedisStats:
    """Counters since the client was started; times in seconds, sizes in bytes.

    Attributes:
        replies: Replies that came over lanes, one for each command of a batch.
        ended: Calls that ended in one of our errors, by its name.
        refused: Replies that said "not applied, for now".
        retries: Attempts beyond the first.
        lanes: Shared connections that are open.
        dedicated: Connections lent to, or kept for, single calls.
        in_flight: Calls on the lanes without a reply yet.
        waiting: Calls that wait for a connection or for room.
        bytes_sent: Bytes written to lanes.
        bytes_received: Bytes read from lanes.
        budget: Tokens left for retries.
        latency: The time within which 50 %, 90 %, 99 % and 99.9 % of the replies came, counted from
            the write; None while there were none. They are as fine as the loop's clock, which
            on uvloop steps by 1 ms.
        latency_total: All those times together, in seconds.
        latency_counts: The same as a histogram: pairs of the most seconds that belong to a bucket
            (eight to an octave) and how many replies took so long, without the empty ones.
    """

    replies: int
    ended: Mapping[str, int]
    refused: int
    retries: int
    lanes: int
    dedicated: int
    in_flight: int
    waiting: int
    bytes_sent: int
    bytes_received: int
    budget: float
    latency: Mapping[str, float | None]
    latency_total: float
    latency_counts: tuple[tuple[float, int], ...]


def stats_of(engine: Engine) -> RedisStats:
    """Read an engine's counters."""
    lanes, gate = engine.lanes, engine.gate
    replies, sent, received = lanes.traffic
    return RedisStats(
        replies=replies,
        ended=dict(gate.verdicts.ended),
        refused=gate.verdicts.refused,
        retries=gate.verdicts.retries,
        lanes=len(lanes.open_lanes),
        dedicated=engine.dedicated.open,
        in_flight=sum(lane.in_flight for lane in lanes.open_lanes),
        waiting=lanes.waiting,
        bytes_sent=sent,
        bytes_received=received,
        budget=gate.budget.tokens,
        latency=lanes.latencies.quantiles,
        latency_total=lanes.latencies.total,
        latency_counts=lanes.latencies.counts,
    )
