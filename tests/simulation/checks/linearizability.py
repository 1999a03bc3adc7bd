"""Linearizability of registers, from what callers saw alone.

Every write has a unique value. Gibbons and Korach ("Testing shared memories", 1997): the operations
of one value form a cluster, with a zone from the earliest end to the latest start of its members.
A history of one register is linearizable if and only if no read ends before its write starts, no
two forward zones overlap, and no backward zone is within a forward zone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.simulation.history import Outcome

from .effects import READS, SCRIPTS
from .index import Broken, reply_of
from .replies import is_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .index import Command, Index

_WRITES = frozenset(("SET", "MSET"))
_KNOWN = frozenset(name.encode() for name in READS | _WRITES | SCRIPTS)


@dataclass(slots=True)
class _Cluster:
    """The operations of one value: its write, and the reads that returned it."""

    value: str | None
    written: tuple[int, float] | None = None
    certain: bool = False  # whether the write was acknowledged
    first_end: float = math.inf
    last_start: float = -math.inf
    first_read_end: float = math.inf
    operations: tuple[int, ...] = ()

    def add(self, number: int, start: float, end: float, *, read: bool) -> None:
        # Faster than `min` and `max`.
        if end < self.first_end:  # noqa: PLR1730
            self.first_end = end
        if start > self.last_start:  # noqa: PLR1730
            self.last_start = start
        if read and end < self.first_read_end:
            self.first_read_end = end
        if number not in self.operations:
            self.operations += (number,)

    def describe(self) -> str:
        return "the initial value" if self.value is None else self.value


def registers_are_linearizable(index: Index) -> Iterator[Broken]:
    """Reads and writes of a register could have happened one after the other, at one point each."""
    if index.data_lost:
        return
    for key, clusters in _registers(index).items():
        yield from _check(key, clusters)


def _check(key: str, clusters: list[_Cluster]) -> Iterator[Broken]:
    for cluster in clusters:
        if cluster.written is None:
            yield Broken(
                f"{key}: {cluster.describe()} was read, but its write did not take place",
                cluster.operations,
            )
            return
        if cluster.first_read_end < cluster.written[0]:
            yield Broken(
                f"{key}: {cluster.describe()} was read before it was written", cluster.operations
            )
            return
    forward = sorted(
        (each for each in clusters if each.first_end < each.last_start),
        key=lambda each: each.first_end,
    )
    for first, second in pairwise(forward):
        if second.first_end < first.last_start:
            yield Broken(
                f"{key}: {first.describe()} and {second.describe()} were each current before and "
                f"after the other",
                first.operations + second.operations,
            )
            return
    for cluster in clusters:
        if cluster.first_end < cluster.last_start:
            continue
        for zone in forward:
            if zone.first_end < cluster.last_start and cluster.first_end < zone.last_start:
                yield Broken(
                    f"{key}: {zone.describe()} was current before and after {cluster.describe()}",
                    zone.operations + cluster.operations,
                )
                return


def _registers(index: Index) -> dict[str, list[_Cluster]]:
    """Return the clusters of each register that only plain overwrites changed."""
    writes: dict[str, list[tuple[Command, str]]] = {}
    reads: dict[str, list[tuple[Command, str | None]]] = {}
    excluded = _changed_otherwise(index)
    for commands in index.commands.values():
        for command in commands:
            words = command.words
            if command.name not in ("GET", "MGET"):
                for key, value in _written(command):
                    writes.setdefault(key, []).append((command, value))
                    if len(command.applied) > 1:
                        excluded[key] = None
                continue
            known, reply = reply_of(command)
            if known and not is_error(reply):
                values = reply if words[0] == "MGET" else [reply]
                for key, value in zip(words[1:], values, strict=False):
                    reads.setdefault(key, []).append((command, value))
    return {
        key: _clusters(writes.get(key, []), seen)
        for key, seen in reads.items()
        if key.startswith("r") and key not in excluded
    }


def _written(command: Command) -> list[tuple[str, str]]:
    """Return the registers that a command sets, and their values."""
    words = command.words
    if words[0] == "SET" and len(words) == 3:
        return [(words[1], words[2])]
    if words[0] == "MSET":
        return list(zip(words[1::2], words[2::2], strict=False))
    if words[0] in SCRIPTS and len(words) == 5:  # body, number of keys, key, value
        return [(words[3], words[4])]
    return []


def _changed_otherwise(index: Index) -> dict[str, None]:
    """Return the keys that something else than an overwrite changed."""
    changed: dict[str, None] = {
        event.facts["key"]: None for event in index.events.get("expired", ())
    }
    for name, executions in index.by_name.items():
        for execution in executions if name not in _KNOWN else ():
            for word in execution.words[1:] if execution.applied else ():
                if word.startswith(b"r") and len(word) < 20:
                    changed[word.decode("utf-8", "replace")] = None
    return changed


def _clusters(
    writes: list[tuple[Command, str]], reads: list[tuple[Command, str | None]]
) -> list[_Cluster]:
    clusters: dict[str | None, _Cluster] = {
        None: _Cluster(None, written=(0, 0.0), certain=True, first_end=0.0, last_start=0.0)
    }
    for command, value in writes:
        operation = command.operation
        certain, possible = _took_place(command)
        if certain or possible:
            cluster = clusters.setdefault(value, _Cluster(value))
            end = operation.ended_at if certain and operation.ended_at is not None else math.inf
            cluster.written, cluster.certain = (operation.started_at, end), certain
            cluster.add(operation.number, operation.started_at, end, read=False)
    for command, value in reads:
        operation = command.operation
        start, end = float(operation.started_at), float(operation.ended_at or math.inf)
        if operation.kind == "watch":
            for step, began, ended, _ in operation.steps:
                if step == command.index:
                    start, end = began, ended
        cluster = clusters.setdefault(value, _Cluster(value))
        cluster.add(operation.number, start, end, read=True)
    return [
        cluster
        for cluster in clusters.values()
        if cluster.certain or cluster.first_read_end < math.inf
    ]


def _took_place(command: Command) -> tuple[bool, bool]:
    """Return whether a write certainly, or possibly, took place, as its caller knows."""
    operation = command.operation
    outcome = operation.outcome
    if outcome is Outcome.OK:
        known, reply = reply_of(command)
        failed = known and is_error(reply)
        return not failed, False
    if outcome in (Outcome.NOT_APPLIED, Outcome.WATCH_FAILED):
        return False, operation.kind == "pipeline" and command.index < len(operation.answered)
    if outcome is Outcome.REFUSED:
        return False, len(operation.commands) > 1 or command.name in SCRIPTS
    return False, operation.started_at > 0
