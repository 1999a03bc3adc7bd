"""Which partition a record goes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from aiokafka.partitioner import DefaultPartitioner

from .partition_queue import Line

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection


Partitioner: TypeAlias = "Callable[[bytes | None, list[int], list[int]], int]"
"""Takes the key, all partitions in order and those with a leader; returns one of them."""

_MOST_KEYS = 65_536
"""Keys whose partition is remembered, for each topic; one takes about 150 bytes."""

_by_hash: Partitioner = DefaultPartitioner()


class Topic:
    """The partitions of one topic, and which record goes to which.

    Records with a key go where aiokafka (and Java's client) would send them; those without one
    stay with a partition for the length of a batch, then move on to another that is free.

    Attributes:
        name: Its name.
        lines: Its lines, by partition.
        keys: The lines of keys seen lately.
        sticky: Where records without a key go now; None when the partitioner decides.
        enough: The bytes waiting in that line after which they move on.
    """

    __slots__ = (
        "_available",
        "_full",
        "_partitioner",
        "_partitions",
        "_rng",
        "enough",
        "keys",
        "lines",
        "name",
        "sticky",
    )

    def __init__(
        self, name: str, rng: random.Random, partitioner: Partitioner | None, full: int
    ) -> None:
        """Begin without partitions.

        Args:
            name: Its name.
            rng: For choosing among free partitions.
            partitioner: The user's own.
            full: Bytes of records without a key that stay together.
        """
        self.name = name
        self.enough = 0
        self._full = full
        self.lines: dict[int, Line] = {}
        self.keys: dict[bytes | None, Line] = {}
        self.sticky: Line | None = None
        self._rng = rng
        self._partitioner = partitioner
        self._partitions: list[int] = []
        self._available: list[int] = []

    def learn(self, partitions: Collection[int], available: Collection[int]) -> list[Line]:
        """Take what the metadata say; return the lines of new partitions."""
        self._available = sorted(available)
        wanted = sorted(partitions)
        if wanted == self._partitions:
            return []
        self._partitions = wanted
        self.keys.clear()
        # Who was in the line of one that is gone ends with its deadline.
        self.lines = {p: line for p, line in self.lines.items() if p in partitions}
        new = []
        for partition in wanted:
            if partition not in self.lines:
                self.lines[partition] = Line(self.name, partition)
                new.append(self.lines[partition])
        if self._partitioner is None:
            self.move_on()
        return new

    def route(self, key: bytes | None) -> Line:
        """Choose the line of a record; `keys` and `sticky` are the short cuts to it.

        Raises:
            Exception: What the caller's own partitioner raised.
            ValueError: It returned no partition of the topic.
        """
        if self._partitioner is not None:
            chosen = self._partitioner(key, list(self._partitions), list(self._available))
            line = self.lines.get(chosen)
            if line is None:
                raise ValueError(
                    f"partitioner= returned {chosen!r} for topic {self.name!r}: return one of "
                    f"{self._partitions}"
                )
            return line
        if key is None and self.sticky is not None:
            if self.sticky.waiting >= self.enough:
                self.move_on()
            return self.sticky
        if len(self.keys) >= _MOST_KEYS:
            self.keys.clear()
        line = self.lines[_by_hash(key, self._partitions, self._available)]
        self.keys[key] = line
        return line

    def move_on(self) -> None:
        """Send records without a key to another partition: a free one, or the emptiest."""
        lines = [self.lines[partition] for partition in self._partitions]
        free = [line for line in lines if line.idle] or [line for line in lines if not line.held]
        if len(free) > 1:
            start = self._rng.randrange(len(free))
            free = free[start:] + free[:start]
        self.sticky = min(free or lines, key=lambda line: line.waiting)
        self.enough = self.sticky.waiting + self._full
