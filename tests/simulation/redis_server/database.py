"""The keys of one database: values, expiry, and versions for WATCH.

Strings are bytes, lists are lists, hashes are dicts. Iteration is always in order of insertion,
because the order of a Python set of bytes differs between processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .resp import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"

StreamId = tuple[int, int]


class SetValue(dict[bytes, None]):
    """A set."""

    __slots__ = ()


class ScoreValue(dict[bytes, float]):
    """A sorted set: member to score."""

    __slots__ = ()

    def ordered(self) -> list[tuple[bytes, float]]:
        """Return members and scores, by score and then by member."""
        return sorted(self.items(), key=lambda pair: (pair[1], pair[0]))


class Group:
    """A consumer group of a stream."""

    __slots__ = ("consumers", "delivered", "pending")

    def __init__(self, delivered: StreamId) -> None:
        self.delivered = delivered
        self.pending: dict[StreamId, tuple[bytes, int, int]] = {}  # consumer, time, deliveries
        self.consumers: dict[bytes, None] = {}

    def copy(self) -> Group:
        """Return an independent copy."""
        group = Group(self.delivered)
        group.pending = dict(self.pending)
        group.consumers = dict(self.consumers)
        return group


class Stream:
    """A stream: its entries in the order of their IDs, and its groups."""

    __slots__ = ("entries", "groups", "last")

    def __init__(self) -> None:
        self.entries: dict[StreamId, list[bytes]] = {}
        self.groups: dict[bytes, Group] = {}
        self.last: StreamId = (0, 0)

    def copy(self) -> Stream:
        """Return an independent copy."""
        stream = Stream()
        stream.entries = dict(self.entries)
        stream.groups = {name: group.copy() for name, group in self.groups.items()}
        stream.last = self.last
        return stream


Value = Any
TYPE_NAMES: dict[type, bytes] = {
    bytes: b"string",
    list: b"list",
    dict: b"hash",
    SetValue: b"set",
    ScoreValue: b"zset",
    Stream: b"stream",
}


def copy_value(value: Value) -> Value:
    """Return an independent copy of a value."""
    if type(value) is bytes:
        return value
    if isinstance(value, (list, dict)):
        return type(value)(value)
    return value.copy()


class Journal:
    """What commands changed, for blocked clients, replicas, and the log.

    Attributes:
        changes: The number of changes so far.
        ready: Keys that changed while clients wait for them.
        touched: The changed keys that replicas have not been sent yet.
        recording: Whether `touched` is kept.
        tracked: The sessions that have to be told about the next change of a key, by key.
        invalidated: The tracked keys that have changed.
        expired: Called with the database, the key and the time (ms) for each expired key.
    """

    __slots__ = (
        *("changes", "expired", "invalidated", "ready", "recording", "touched", "tracked"),
    )

    def __init__(self, expired: Callable[[int, bytes, int], None]) -> None:
        self.changes = 0
        self.ready: list[tuple[Database, bytes]] = []
        self.touched: dict[tuple[int, bytes], None] = {}
        self.recording = False
        self.tracked: dict[bytes, dict[int, Any]] = {}
        self.invalidated: list[bytes] = []
        self.expired = expired


class Database:
    """One database."""

    __slots__ = ("_now", "expires", "index", "journal", "values", "versions", "waiting")

    def __init__(self, index: int, journal: Journal, now: Callable[[], int]) -> None:
        self.index = index
        self.journal = journal
        self._now = now
        self.values: dict[bytes, Value] = {}
        self.expires: dict[bytes, int] = {}  # key to Unix time in milliseconds
        self.versions: dict[bytes, int] = {}
        self.waiting: dict[bytes, list[Any]] = {}  # key to blocked clients, the oldest first

    def now(self) -> int:
        """Return the Unix time in milliseconds."""
        return self._now()

    def find(self, key: bytes) -> Value:
        """Return the value of a key, or None if it does not exist or has expired."""
        if self.expires and key in self.expires:
            self._expire(key)
        return self.values.get(key)

    def find_bytes(self, key: bytes) -> bytes | None:
        """Return a string, or None; refuse other types."""
        value = self.find(key)
        if value is None or type(value) is bytes:
            return value
        raise Refused(WRONG_TYPE)

    def find_list(self, key: bytes) -> list[bytes] | None:
        """Return a list, or None; refuse other types."""
        value = self.find(key)
        if value is None or type(value) is list:
            return value
        raise Refused(WRONG_TYPE)

    def find_kind(self, key: bytes, kind: type) -> Value:
        """Return a value of this type, or None; refuse other types."""
        value = self.find(key)
        if value is None or type(value) is kind:
            return value
        raise Refused(WRONG_TYPE)

    def make_kind(self, key: bytes, kind: type) -> Value:
        """Return a value of this type, created empty if it does not exist."""
        value = self.find_kind(key, kind)
        if value is None:
            value = self.values[key] = kind()
        return value

    def put(self, key: bytes, value: Value, *, keep_expiry: bool = False) -> None:
        """Set a key."""
        self.values[key] = value
        if not keep_expiry and self.expires:
            self.expires.pop(key, None)
        self.touch(key)

    def remove(self, key: bytes) -> bool:
        """Delete a key; return whether it existed."""
        if self.find(key) is None:
            return False
        self._drop(key)
        return True

    def touch(self, key: bytes, *, watched: bool = True) -> None:
        """Record that a key has changed; WATCH ignores changes of the groups of a stream."""
        journal = self.journal
        journal.changes += 1
        if watched:
            self.versions[key] = self.versions.get(key, 0) + 1
        if self.waiting and key in self.waiting:
            journal.ready.append((self, key))
        if journal.tracked and key in journal.tracked:
            journal.invalidated.append(key)
        if journal.recording:
            journal.touched[self.index, key] = None

    def changed(self, key: bytes, value: Value) -> None:
        """Record that a list, hash, set or sorted set has changed; delete it if it is empty."""
        if value:
            self.touch(key)
        else:
            self._drop(key)

    def expire_at(self, key: bytes, when: int) -> None:
        """Set when a key expires, in Unix milliseconds; delete it if that has passed."""
        if when <= self._now():
            self._drop(key)
        else:
            self.expires[key] = when
            self.touch(key)

    def clear(self) -> int:
        """Delete all keys; return their number."""
        keys = list(self.values)
        self.values.clear()
        self.expires.clear()
        for key in keys:
            self.touch(key)
        return len(keys)

    def sweep(self) -> None:
        """Delete all keys that have expired."""
        for key in list(self.expires):
            self._expire(key)

    def _drop(self, key: bytes) -> None:
        self.values.pop(key, None)
        if self.expires:
            self.expires.pop(key, None)
        self.touch(key)

    def _expire(self, key: bytes) -> None:
        due = self.expires[key]
        if due <= self._now():
            self.journal.expired(self.index, key, due)
            self._drop(key)
