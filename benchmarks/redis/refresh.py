"""How much of the event loop's time it takes to read the slots of a large cluster.

The reply to CLUSTER SHARDS is simulated. Its bytes are parsed in pieces, as they would arrive; then
the table is read in slices, and compared with the one before.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import hiredis

from benchmarks.markdown import table
from benchmarks.statistics import spread
from benchmarks.targets import verdict
from resilient_io.redis.cluster.slots import SLOTS, SlotTable, read_table

from .plan import OURS, REFRESH_TARGETS, SLICE_TARGET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.suite import Results, Rounds

_PIECE = 64 * 1024
_REPLICAS = 2
_MS = 1000.0


async def measure(rounds: int) -> Rounds:
    """Return the milliseconds of each size of cluster: all, and the longest slice."""
    return {OURS: [_round() for _ in range(rounds)]}


def refresh_table(results: Results) -> list[str]:
    """Return the table of what a refresh of the slots costs."""
    measured = results["refresh"][OURS]
    rows: list[Sequence[str]] = []
    for nodes, most in REFRESH_TARGETS.items():
        for key, title, target in (
            (f"all-{nodes}", f"slots of {nodes:,} nodes, ms of the event loop", most),
            (f"slice-{nodes}", "longest slice of it", SLICE_TARGET),
        ):
            found = spread([each[key] for each in measured])
            shown = f"{found.median:.1f} ({found.low:.1f}-{found.high:.1f})"
            rows.append((title, shown, f"≤{target:g}", verdict(found.median <= target)))
    return table(("", OURS, "must reach", ""), rows)


def _round() -> dict[str, float]:
    measured: dict[str, float] = {}
    for nodes in REFRESH_TARGETS:
        reply = _encoded(_shards_of(nodes))
        known, _ = _refresh(reply, None)
        _, slices = _refresh(reply, known)
        measured[f"all-{nodes}"] = sum(slices) * _MS
        measured[f"slice-{nodes}"] = max(slices) * _MS
    return measured


def _refresh(reply: bytes, known: SlotTable | None) -> tuple[SlotTable, list[float]]:
    """Return the table, and the seconds of each slice."""
    slices = []
    reader = hiredis.Reader()
    for at in range(0, len(reply), _PIECE):
        began = time.perf_counter()
        reader.feed(reply[at : at + _PIECE])
        parsed: Any = reader.gets()
        slices.append(time.perf_counter() - began)
    reading = read_table(parsed, asked="10.0.0.1", known=known)
    while True:
        began = time.perf_counter()
        try:
            reading.send(None)
        except StopIteration as stop:
            slices.append(time.perf_counter() - began)
            found: SlotTable = stop.value
            break
        slices.append(time.perf_counter() - began)
    began = time.perf_counter()
    (known or found).difference(found)
    slices.append(time.perf_counter() - began)
    return found, slices


def _shards_of(nodes: int) -> list[Any]:
    count = nodes // (1 + _REPLICAS)
    bounds = [SLOTS * at // count for at in range(count + 1)]
    return [
        [
            "slots",
            [bounds[at], bounds[at + 1] - 1],
            "nodes",
            [_node(at * (1 + _REPLICAS) + number, number) for number in range(1 + _REPLICAS)],
        ]
        for at in range(count)
    ]


def _node(identity: int, number: int) -> list[Any]:
    address = f"10.0.{identity // 250}.{identity % 250}"
    facts = {
        "id": f"{identity:040x}",
        "port": 6379,
        "ip": address,
        "endpoint": address,
        "role": "replica" if number else "master",
        "replication-offset": 123_456,
        "health": "online",
        "availability-zone": f"eu-{number}",
    }
    return [part for fact in facts.items() for part in fact]


def _encoded(value: Any) -> bytes:
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(_encoded, value))
    if isinstance(value, int):
        return b":%d\r\n" % value
    return b"$%d\r\n%s\r\n" % (len(value), value.encode())
