"""The counters of a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .runtime import Runtime


@dataclass(frozen=True, slots=True)
class RedisStats:
    """Counters since the client was started. Times are in seconds, sizes in bytes.

    Attributes:
        replies: Replies received on shared connections, one for each command of a batch.
        ended: Calls that ended in an error of resilient-io, by the name of the error.
        refused: Replies that said "not applied, for now".
        retries: Attempts after the first.
        connections: Shared connections that are open.
        exclusive: Connections that single calls use, or that are kept for them.
        in_flight: Calls on the shared connections without a reply yet.
        waiting: Calls that wait for a connection or for room.
        bytes_sent: Bytes written to shared connections.
        bytes_received: Bytes read from shared connections.
        budget: Tokens left for retries.
        latency: The latencies below which 50 %, 90 %, 99 % and 99.9 % of the replies arrived,
            counted from the write, or None without replies. Their resolution is that of the loop's
            clock, which is 1 ms with uvloop.
        latency_total: The sum of all latencies.
        latency_counts: Non-empty histogram buckets as `(upper_bound_seconds, count)`; eight buckets
            per power of two.
    """

    replies: int
    ended: Mapping[str, int]
    refused: int
    retries: int
    connections: int
    exclusive: int
    in_flight: int
    waiting: int
    bytes_sent: int
    bytes_received: int
    budget: float
    latency: Mapping[str, float | None]
    latency_total: float
    latency_counts: tuple[tuple[float, int], ...]


def read_stats(runtime: Runtime) -> RedisStats:
    """Return the counters of the clients on one runtime."""
    multiplexer, executor = runtime.multiplexer, runtime.executor
    replies, sent, received = multiplexer.traffic
    connections, latencies = multiplexer.connections, multiplexer.latencies
    return RedisStats(
        replies=replies,
        ended=dict(executor.ended),
        refused=executor.refusals,
        retries=executor.retries,
        connections=len(connections),
        exclusive=runtime.pool.open,
        in_flight=sum(connection.in_flight for connection in connections),
        waiting=multiplexer.waiting,
        bytes_sent=sent,
        bytes_received=received,
        budget=executor.budget.tokens,
        latency=latencies.quantiles,
        latency_total=latencies.total,
        latency_counts=latencies.counts,
    )
