"""Which offset of a partition may be committed: only what is contiguous."""

from __future__ import annotations

from collections import deque

__all__ = ["PartitionProgress"]


class PartitionProgress:
    """How far the records of one partition are handled, for one assignment of it.

    Records are handed out in the order of their offsets and may be done in any order; what may be
    committed is the offset behind the last one before which all are done. Offsets may have gaps
    (compaction, transaction markers): only records that were handed out count. Each operation
    takes constant time, amortised.

    It outlives the assignment: what is done after the partition was taken away changes nothing
    for anybody.
    """

    __slots__ = ("_committable", "_finished", "_last", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()  # handed out, the first not done; ascending
        self._finished: set[int] = set()  # done out of turn; only ever asked for membership
        self._committable: int | None = None
        self._last = -1

    @property
    def committable(self) -> int | None:
        """The offset to commit: that behind the contiguous done ones; None before the first."""
        return self._committable

    @property
    def outstanding(self) -> int:
        """Records that were handed out and are not done."""
        return len(self._waiting) - len(self._finished)

    @property
    def first_outstanding(self) -> int | None:
        """The lowest offset that was handed out and is not done; None when all are."""
        return self._waiting[0] if self._waiting else None

    @property
    def last_delivered(self) -> int:
        """The greatest offset that was handed out; -1 before the first."""
        return self._last

    def delivered(self, offset: int) -> None:
        """Note that a record was handed out; one that was before does no harm."""
        if offset > self._last:
            self._last = offset
            self._waiting.append(offset)

    def delivered_all(self, offsets: list[int]) -> None:
        """Note that several were handed out; ascending."""
        if offsets and offsets[0] > self._last:
            self._last = offsets[-1]
            self._waiting.extend(offsets)
        else:
            for offset in offsets:
                self.delivered(offset)

    def done(self, offset: int) -> None:
        """Note that a record is done; twice, or one that was never handed out, does no harm."""
        waiting = self._waiting
        if not waiting or offset < waiting[0]:
            return
        if offset != waiting[0]:
            if offset <= self._last:
                self._finished.add(offset)
            return
        waiting.popleft()
        finished = self._finished
        while finished and waiting and waiting[0] in finished:
            offset = waiting.popleft()
            finished.remove(offset)
        self._committable = offset + 1

    def reached(self, offset: int) -> None:
        """Note at once that everything before `offset` is done, handed out or not.

        For who hands out one record after the other, and asks for no account of each.
        """
        waiting, finished = self._waiting, self._finished
        while waiting and waiting[0] < offset:
            finished.discard(waiting.popleft())
        while finished and waiting and waiting[0] in finished:
            done = waiting.popleft()
            finished.remove(done)
            offset = done + 1
        if self._committable is None or offset > self._committable:
            self._committable = offset
        self._last = max(self._last, offset - 1)
