"""The periods in which callers held locks, and what happened to the keys on the server."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.history import Outcome

from .index import once

if TYPE_CHECKING:
    from tests.simulation.history import Execution, Operation

    from .index import Index


class Taking(NamedTuple):
    """An execution that took a lock; `number` is that of the holder, or None without fencing."""

    execution: Execution
    token: bytes
    number: int | None

    @property
    def at(self) -> int:
        """The number of the execution."""
        return self.execution.at

    @property
    def time(self) -> float:
        """The time of the execution."""
        return self.execution.time


@dataclass(frozen=True, slots=True)
class Holding:
    """A period in which a caller held a lock.

    Attributes:
        operation: The operation that acquired it.
        name, token: The key and its value.
        began_at: The number at which the caller knew that it held the lock.
        ended_at, ended: Number and time at which the caller began to release it, or learned of its
            loss; infinity if it did neither.
        watched: The time since when the holder expects to learn of a loss, or None.
        watched_until: The time until when it did.
        lost_at, lost: Number and time at which it learned of a loss, or None.
    """

    operation: Operation
    name: bytes
    token: bytes
    began_at: int
    ended_at: float
    ended: float
    watched: float | None = None
    watched_until: float = math.inf
    lost_at: int | None = None
    lost: float | None = None

    @property
    def timeout(self) -> float | None:
        """The timeout of the lock."""
        timeout: float | None = self.operation.facts.get("timeout")
        return timeout

    @property
    def renews(self) -> bool:
        """Whether the client renews it."""
        return bool(self.operation.facts.get("renew"))


@once
def takings(index: Index) -> dict[bytes, list[Taking]]:
    """Return the executions that took a lock, by its key."""
    names = {
        operation.facts["lock"].encode(): None
        for operation in index.history.operations
        if operation.kind in ("acquire", "lock block")
    }
    found: dict[bytes, list[Taking]] = {}
    for execution in index.named(b"SET", b"EVALSHA", b"EVAL") if names else ():
        words = execution.words
        if not execution.applied or not execution.reply:
            continue
        if words[0] == b"SET":
            if words[1] in names:
                found.setdefault(words[1], []).append(Taking(execution, words[2], None))
        elif words[2] == b"2" and words[3] in names:
            taking = Taking(execution, words[5], int(execution.reply))
            found.setdefault(words[3], []).append(taking)
    return found


@once
def removals(index: Index) -> dict[bytes, list[tuple[int, float]]]:
    """Return when the key of each lock was deleted or expired: numbers and times, in order."""
    found: dict[bytes, list[tuple[int, float]]] = {}
    for execution in index.named(b"DEL", b"EVALSHA", b"EVAL"):
        words = execution.words
        if not execution.applied or execution.reply != 1:
            continue
        if words[0] == b"DEL" and words[1].startswith(b"lock"):
            found.setdefault(words[1], []).append((execution.at, execution.time))
        elif words[0] != b"DEL" and len(words) == 5 and words[3].startswith(b"lock"):
            found.setdefault(words[3], []).append((execution.at, execution.time))
    for event in index.events.get("expired", ()):
        if event.facts["key"].startswith("lock"):
            found.setdefault(event.facts["key"].encode(), []).append((event.at, event.time))
    for times in found.values():
        times.sort()
    return found


def removed_between(times: list[tuple[int, float]], first: float, last: float) -> bool:
    """Return whether a key was removed after one number and before another."""
    return any(first < at < last for at, _ in times)


@once
def holdings(index: Index) -> list[Holding]:
    """Return the periods in which callers held locks, in the order of their operations."""
    following: dict[str, dict[str, Operation]] = {"hold": {}, "release": {}}
    for operation in index.history.operations:
        if operation.kind in following and "token" in operation.facts:
            following[operation.kind][operation.facts["token"]] = operation
    found = []
    for operation in index.history.operations:
        if "token" not in operation.facts:
            continue
        if operation.kind == "acquire" and operation.ended_at is not None:
            token = operation.facts["token"]
            found.append(
                _by_hand(operation, following["hold"].get(token), following["release"].get(token))
            )
        elif operation.kind == "lock block" and "entered_at" in operation.facts:
            found.append(_of_block(operation))
    return found


def _by_hand(acquire: Operation, hold: Operation | None, release: Operation | None) -> Holding:
    started = release is not None and release.started_at
    lost = hold.facts.get("lost") if hold is not None else None
    until = hold.ended if hold is not None and hold.ended is not None else math.inf
    return Holding(
        acquire,
        acquire.facts["lock"].encode(),
        acquire.facts["token"].encode(),
        began_at=acquire.ended_at or 0,
        ended_at=release.started_at if release is not None and started else math.inf,
        ended=release.started if release is not None and started else math.inf,
        watched=hold.facts.get("watched") if hold is not None else None,
        watched_until=until if lost is None else lost,
        lost_at=hold.facts.get("lost_at") if hold is not None else None,
        lost=lost,
    )


def _of_block(block: Operation) -> Holding:
    facts = block.facts
    lost = "LockLost" in block.error_bases
    left, left_at = facts.get("left", math.inf), facts.get("left_at", math.inf)
    # Without the cancellation of the body, the loss shows when the body has ended.
    known = lost and facts["cancels"] and block.ended is not None
    return Holding(
        block,
        facts["lock"].encode(),
        facts["token"].encode(),
        began_at=facts["entered_at"],
        ended_at=left_at,
        ended=left,
        watched=facts["watched"] if facts["cancels"] else None,
        watched_until=left,
        lost_at=block.ended_at if lost else None,
        lost=(left if known else block.ended) if lost else None,
    )


class Expiry:
    """When the key of one holding expires on the server, as its executions set it."""

    def __init__(self, index: Index, holding: Holding, taken: Taking) -> None:
        self._at = [taken.at]
        timeout = holding.timeout
        self._until = [math.inf if timeout is None else taken.time + timeout]
        for execution in _extensions(index):
            words = execution.words
            if execution.at <= taken.at or words[3:5] != (holding.name, holding.token):
                continue
            seconds = int(words[5]) / 1000
            adds = len(words) == 7 and words[6] == b"0"
            self._at.append(execution.at)
            self._until.append((self._until[-1] if adds else execution.time) + seconds)

    def at(self, number: float) -> float:
        """Return the time at which the key expires, as set before a number of the history."""
        return self._until[max(0, bisect_right(self._at, number) - 1)]


@once
def _extensions(index: Index) -> list[Execution]:
    """Return the executions of scripts that set the timeout of a lock again."""
    return [
        execution
        for execution in index.named(b"EVALSHA", b"EVAL")
        if len(execution.words) >= 6 and execution.applied and execution.reply == 1
    ]


@once
def acquired(index: Index) -> list[Operation]:
    """Return the operations that returned with a lock."""
    return [
        operation
        for operation in index.history.operations
        if operation.kind in ("acquire", "lock block") and "token" in operation.facts
    ]


def succeeded(operation: Operation) -> bool:
    """Return whether an operation returned what it was asked for."""
    return operation.outcome is Outcome.OK and bool(operation.reply)
